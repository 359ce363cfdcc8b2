"""Generated images that repeat no training tile, copied to a folder with a report."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfiles.errors import InputError
from pfiles.measuring import certificate
from pfiles.measuring.memorisation import aligned
from pfiles.paths import atomic_folder, read_json, write_json
from pfiles.provenance import of_images
from pfiles.reporting import figures
from pfiles.tiles.croissant import FILE, describe_images
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.files import list_images, read_images
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import evenly_spaced, match_size

REPORT, SHEET, MADE_BY = "report.json", "closest_pairs.png", "python -m pfiles export"
SHEET_PAIRS = 20  # closest pairs shown
HELD_OUT = 10_000  # tiles at most that set the threshold, evenly spaced


def show_closest(
    names: Sequence[str],
    images: Tensor,
    train: Images,
    nearest: pd.DataFrame,
    threshold: float,
    mpp: float | None = None,
) -> Figure:
    """The 20 images that lie closest to a training tile, closest first, each beside that tile, laid over it.

    mpp: microns per pixel, for a scale bar; None: not known.
    """
    rows = nearest.sort_values("distance", kind="stable")[:SHEET_PAIRS]
    tiles = [aligned(train[row.tile], row.view, row.shift_y, row.shift_x, row.pose)[0] for row in rows.itertuples()]
    captions = [f"{names[row.Index]} | {row.tile + 1}: {row.distance:.2f}" for row in rows.itertuples()]
    title = f"generated image | training tile: distance (threshold {threshold:.2f})"
    return figures.show_pairs(images[rows.index.to_numpy()], torch.stack(tiles), captions, title, mpp=mpp)


def made_from(generated: Path) -> Mapping[str, Any] | None:
    """What is noted beside images about the tiles they were made from: source, fingerprint, training tiles.

    None for a folder without such a note, such as the published images.
    """
    provenance = of_images(generated)
    data = None if provenance is None else provenance.data
    kinds = {"source": str, "fingerprint": str, "training tiles": int}
    if not isinstance(data, dict) or any(type(data.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return data if data["training tiles"] > 0 else None


def export(generated: Path, tiles: Tiles, out: Path, exhaustive: bool = False) -> dict[str, Any]:
    """Copy those images of the folder `generated` that are no copies of training tiles, with a report.

    tiles: with all their training tiles, whatever part of them the training used. They are read as they are compared.
    exhaustive: see `nearest_tiles`.

    An image is withheld where its nearest training tile, see `nearest_tiles`, is closer than those of the closest 1 %
    of the held-out tiles. Writes the folder `out`, all at once when everything is done:
    images/, the files that passed, unchanged;
    croissant.json, what images/ holds, for catalogues of data sets;
    report.json, what is returned here: the rule, the threshold, and a record for each image;
    closest_pairs.png, the images closest to a training tile beside it: it shows real tiles and is not to be passed on.
    Images of another size than the tiles are compared after resizing. A folder that an earlier export made is replaced.
    Raises InputError for any other that is not empty, for a folder without sound images of one size, for images that
    were made from other tiles, and where held-out tiles are themselves copies of training tiles, so that they cannot
    calibrate anything.
    """
    out = out.resolve()
    _refuse_other_files(out, generated.resolve())
    _refuse_other_data(generated, tiles)
    files = [*list_images(generated).values()]
    images = match_size(read_images(files), tiles.images.shape[2])
    train, held_out = tiles.rows(tiles.train), tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), HELD_OUT)])
    nearest, _, closeness, leak, certified = certificate.search(images, train, held_out, tiles.source, exhaustive)
    if leak or certified is None:
        raise InputError(leak)
    limit = closeness["threshold"]
    passed = nearest.distance >= limit
    report = {
        "made_by": MADE_BY,
        "judged": "the files that were given; nothing of images deleted before, or of the generator that drew them",
        "rule": "withheld if closer to a training tile than the closest 1 % of the held-out tiles",
        "distance": "1 - correlation of local structure, best of 8 views, shifts, and overlays at any angle and up to "
        "twice the size: 0 copy, 1 unrelated",
        "rms_difference": "of the image and the training tile laid over it where they overlap, in levels of 0 ... 255",
        "nearest_training_tile": "its number among all training tiles, from 1; as in org/ where training used all",
        "nearest_tile_in_data": "its place in the data, from 0",
        "data": tiles.source,
        "data_fingerprint": tiles.fingerprint(),
        "training_tiles": len(train),
        "held_out_tiles": len(held_out),
        **closeness,
        "certificate": {**certified.as_note(), "in_words": str(certified)},
        "exported": int(passed.sum()),
        "withheld": int((~passed).sum()),
        "images": [
            {
                "file": file.name,
                "sha256": sha256(file.read_bytes()).hexdigest(),
                "decision": "exported" if passes else "withheld",
                "nearest_training_tile": row.tile + 1,
                "nearest_tile_in_data": int(tiles.train[row.tile]),
                "distance": row.distance,
                "rms_difference": _rms(image, *aligned(train[row.tile], row.view, row.shift_y, row.shift_x, row.pose)),
                "threshold": limit,
            }
            for file, image, passes, row in zip(files, images, passed, nearest.itertuples(), strict=True)
        ],
    }
    with atomic_folder(out) as part:
        (part / "images").mkdir()
        passing = [file for file, passes in zip(files, passed, strict=True) if passes]
        for file in passing:
            shutil.copyfile(file, part / "images" / file.name)
        closest = show_closest([file.name for file in files], images, train, nearest, limit, tiles.mpp)
        figures.save_figure(closest, part / SHEET)
        description = f"{len(passing)} generated tiles of stained tissue, none of which repeats a training tile"
        describe_images(part, "generated_tiles", description, [file.name for file in passing])
        write_json(part / REPORT, report)
    return report


def _refuse_other_files(out: Path, generated: Path) -> None:
    """InputError if `out` holds anything that no export wrote, or the images themselves."""
    if out.exists() and not out.is_dir():
        raise InputError(f"The output folder {out} is a file: name a folder, existing or new.")
    if generated.is_relative_to(out):
        raise InputError(f"The images lie in the output folder {out}, which is replaced as a whole: name another one.")
    report, names = read_json(out / REPORT, {}), set()
    records = report.get("images")
    if report.get("made_by") == MADE_BY and isinstance(records, list):
        exported = (each for each in records if isinstance(each, dict) and each.get("decision") == "exported")
        names = {
            REPORT,
            SHEET,
            FILE,
            "images",
            *(f"images/{each.get('file')}" for each in exported if _is_as(each, out)),
        }
    others = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    if others := [name for name in others if name not in names]:
        raise InputError(f"{out} holds files that no export wrote, such as {others[0]}: name an empty or a new folder.")


def _is_as(exported: dict[str, Any], out: Path) -> bool:
    """Whether an image in the folder `out` is still what the report says was exported."""
    path, digest = out / "images" / str(exported.get("file")), exported.get("sha256")
    return digest is None or (path.is_file() and sha256(path.read_bytes()).hexdigest() == digest)


def _refuse_other_data(generated: Path, tiles: Tiles) -> None:
    """InputError if part 6 noted other tiles than these, of which the training may have used evenly spaced ones."""
    noted = made_from(generated)
    if noted is None:
        print(f"Nothing beside the images says what they were made from: taken to be {tiles.source}.")
        return
    training_tiles = replace(tiles, train=tiles.train[evenly_spaced(len(tiles.train), noted["training tiles"])])
    if training_tiles.fingerprint() != noted["fingerprint"]:
        raise InputError(
            f"The images in {generated} were made from other tiles ({noted['source']}, fingerprint "
            f"{noted['fingerprint']}) than {tiles.source} ({training_tiles.fingerprint()}): name those with --data."
        )


def _rms(image: Tensor, over: Tensor, inside: Tensor) -> float:
    """Of the image and the tile laid over it, where they overlap."""
    return float((image.double() - over)[:, inside].square().mean().sqrt())
