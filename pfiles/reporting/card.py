"""The card of a shared generator: what a run knows of it, and what only people can say."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfiles.errors import InputError

BLANKS = {  # what no run knows and every reader must
    "licence": "of the weights, such as cc-by-nc-4.0; weights learnt from patients are not under the code's licence",
    "organ": "such as lung",
    "species": "such as human",
    "stain": "such as H&E",
    "scanner": "maker and model, and the objective",
    "consent": "of the patients or an ethics vote, or the source's terms of use",
    "intended_use": "what it is for, and what it is not for",
}
HUB_LICENCES = {  # of those that the Hugging Face hub knows by name, what weights are likely to have
    *("apache-2.0", "mit", "bsd-3-clause", "openrail", "creativeml-openrail-m", "cc0-1.0"),
    *(f"cc-by{kind}-{version}" for kind in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for version in ("3.0", "4.0")),
}
CARD = """---
{metadata}
---

# {title}

Draws {stain} tiles of {organ} ({species}), {side} px{scale}, from any of {k} clusters that were found without labels.

![Generated tiles, a row for each cluster](sheet.jpg)

*Every tile is generated: the first {shown} of each cluster, not picked.*

    from pfiles import Generator  # `pip install .` in a checkout of the code

    generator = Generator.from_pretrained("THIS FOLDER OR ITS HUB ID")
    tiles = generator.draw(0, number=16, seed=1)  # uint8 (16, 3, {side}, {side}); clusters count from 0 here

| | |
|---|---|
| Licence of the weights | {licence} |
| Organ, species, stain | {organ}, {species}, {stain} |
| Scanner | {scanner} |
| Consent or ethics | {consent} |
| Intended use | {intended_use} |
| Tiles | {train} for training, {test} held out; {side} px{scale} |
| Slides, patients | {slides}, {patients} |
| Split | {split} |
| Networks | VQ-GAN with {codes} codes, UNet with {parameters:.1f} million parameters, {clustering} clusters |
| Drawing | {sampler}, {steps} steps, guidance {guidance:g} |
| Training | preset `{preset}`{changed} |
| Begun from | {begun} |
| Written | {day} |

Generated tiles are for research; they are no basis for a diagnosis.

## Clusters

| cluster | name | share of the training tiles |
|---|---|---|
{clusters}

## Does it repeat training tiles?

The gate passed. {images} tiles were drawn for it from the weights in this folder (seed {seed}, clusters as often as
among the training tiles{few}) and compared with each of the {train} training tiles, as were the {test} held-out tiles.
Of the drawn tiles {closer:.1%} are closer to a training tile than the closest 1 % of held-out tiles are (95 % interval
{low:.1%} to {high:.1%}; {expected:.1%} would be expected of tiles as far away as held-out ones, and a share as large
has a chance of {chance:.2g}). None is an outright copy (distance below {outright:.2f}, which is half of
what is usual for held-out tiles, at least 0.1, at most the threshold; the smallest is {smallest:.2f}, where 0 is a copy
and 1 unrelated). {flat:.1%} of the drawn tiles show one colour only, and {alike:.1%} repeat another drawn tile.

**{certificate}** The kinds include turned, enlarged, moved, blurred, mixed and recoloured copies. The
search sees copied tissue, not privacy as a whole.

## What was measured
{measured}
"""


def metadata(card: Mapping[str, str]) -> str:
    """The YAML at the head of a card, as the Hugging Face hub reads it. card: see `read_card`.

    A licence that the hub knows stands by its identifier; any other is "other", with its name in the hub's letters.
    """
    from huggingface_hub import ModelCardData  # here, as the command line's help reads this module

    name = re.sub("[^a-z0-9.]+", "-", card["licence"].lower()).strip("-.")
    is_known = name in HUB_LICENCES
    data = ModelCardData(
        license=name if is_known else "other",
        license_name=None if is_known else name or "unnamed",
        library_name="pfiles",
        pipeline_tag="unconditional-image-generation",  # of the hub's tasks the nearest: it draws without words
        tags=["histopathology", "latent-diffusion", card["organ"], card["stain"]],
    )
    return data.to_yaml()


def read_card(file: Path | None, blanks: Mapping[str, str | None]) -> dict[str, str]:
    """What is said of the generator: from a TOML or JSON file, and from options, which count more.

    InputError lists what is missing of BLANKS, or names what is not among them.
    """
    answers: dict[str, Any] = {}
    if file is not None:
        try:
            text = file.read_text()
            answers = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read as TOML or JSON ({error}): write lines such as organ = "
                             '"lung".') from error  # fmt: skip
    if not isinstance(answers, dict) or (unknown := sorted(answers.keys() - BLANKS.keys())):
        raise InputError(f"{file} says {', '.join(unknown or ['no names'])}: a card has {', '.join(BLANKS)}.")
    answers |= {name: value for name, value in blanks.items() if value is not None}
    card = {name: " ".join(str(answers.get(name, "")).split()) for name in BLANKS}
    if blank := [f"{name} ({BLANKS[name]})" for name, value in card.items() if not value]:
        raise InputError(f"A card needs to say {'; '.join(blank)}: give them as options or in a file with --card.")
    return card
