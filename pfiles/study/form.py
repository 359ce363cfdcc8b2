"""The page on which a reader judges tiles: one file that needs nothing else and tells nothing of them.

All tiles are held as bitmaps without compression, each as long as the others to the byte.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from pfiles.reporting.figures import scale_bar_length
from pfiles.study.trials import Question

VERSION = 1  # of the page, the key and the file of answers
PREFIX = "data:image/bmp;base64,"
SURE = ("guess", "rather sure", "sure")
TITLES = {"real": "Real tissue, or made by a computer?", "cluster": "Which group of tissue is this?"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # keys of the groups; those beyond have none


class Look(NamedTuple):
    """How a study shows its tiles. scale: pixels of the page for each of a tile. mpp: microns per pixel, None where not
    known. names, examples: of the clusters, by their numbers from 1; examples are tiles (n, 3, S, S)."""

    question: Question
    scale: float
    mpp: float | None
    n_clusters: int
    names: Mapping[int, str]
    examples: Mapping[int, Tensor]


def page(look: Look, study: str, reader: int, images: Sequence[Tensor]) -> str:
    """The page of one reader, with tiles (3, S, S), uint8, in this reader's order. study: the name of the study."""
    side = images[0].shape[-1]
    content = {
        "version": VERSION, "study": study, "reader": reader, "prefix": PREFIX,
        "tiles": [bitmap(image) for image in images],
    }  # fmt: skip
    return _template().render(
        reader=reader, number=len(images), title=TITLES[look.question], width=round(look.scale * side), sure=SURE,
        bar=_bar(look.mpp, side), study=Markup(json.dumps(content).replace("<", "\\u003c")), **_words(look),
    )  # fmt: skip


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("form.html")


def bitmap(image: Tensor) -> str:
    """A tile (3, S, S) as a bitmap in base 64, without compression or metadata: tiles of one size give one length."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, "BMP")
    return base64.b64encode(buffer.getvalue()).decode()


def _bar(mpp: float | None, side: int) -> dict[str, Any] | None:
    """The scale bar: its share of the tile's width, and its length in words."""
    if mpp is None:
        return None
    microns = scale_bar_length(side * mpp)
    return {"percent": f"{100 * microns / (side * mpp):.2f}", "text": f"{microns:g} µm"}


def _words(look: Look) -> dict[str, Any]:
    """What the page asks, explains and offers as answers."""
    if look.question == "real":
        return {
            "examples": False,
            "task": "For each, say whether it is real, and how sure you are.",
            "asked": "Is this tile real?",
            "explained": [
                "Real is the picture of a section of tissue as a slide scanner took it.",
                "Made is a picture that a computer drew, or a real one that a computer altered, such as by blurring it "
                "all over or by mixing its parts.",
            ],
            "keys": Markup("<kbd>R</kbd> for real, <kbd>M</kbd> for made"),
            "options": [
                {"value": "real", "text": "Real", "key": "R"},
                {"value": "generated", "text": "Made", "key": "M"},
            ],
        }
    keys = dict(enumerate(LETTERS, 1))
    options = [
        {
            "value": str(number), "text": look.names.get(number) or f"Group {number}", "key": keys.get(number),
            "examples": [PREFIX + bitmap(image) for image in look.examples.get(number, ())],
        }
        for number in range(1, look.n_clusters + 1)
    ]  # fmt: skip
    return {
        "examples": True,
        "task": f"Each belongs to one of {look.n_clusters} groups. Say to which, and how sure you are.",
        "asked": "Which group is it of?",
        "explained": [
            "The groups were found by a computer, without a pathologist. Beside each answer stand real tiles of that "
            "group. Choose the group whose tiles are most like the one shown."
        ],
        "keys": "the letter of a group",
        "options": options,
    }
