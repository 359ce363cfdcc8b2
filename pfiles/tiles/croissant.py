"""What lies in a folder of tiles or images, as a Croissant file: the form in which catalogues of data sets read it.

Croissant 1.0, https://docs.mlcommons.org/croissant/docs/croissant-spec.html. What no command knows is left to people:
licence, creator, address and date.
"""

import hashlib
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfiles.paths import read_json, write_json
from pfiles.tiles.sources import TABLE

FILE = "croissant.json"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    **{
        name: f"cr:{name}"
        for name in (
            "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet",
            "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet",
            "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField",
            "transform",
        )
    },
}  # fmt: skip
COLUMNS = {  # of tiles.csv: type and meaning
    "slide": ("sc:Text", "name of the slide that the tile was cut from"),
    "x": ("sc:Integer", "left edge of the tile, in pixels of the slide's level 0"),
    "y": ("sc:Integer", "upper edge of the tile, in pixels of the slide's level 0"),
    "side": ("sc:Integer", "width of the tile, in pixels of the slide's level 0"),
    "level": ("sc:Integer", "level of the slide that was read"),
    "mpp": ("sc:Float", "microns per pixel of the tile"),
    "tissue": ("sc:Float", "share of the tile that shows tissue, 0 to 1"),
    "sharpness": ("sc:Float", "variance of the Laplacian"),
    "patient": ("sc:Text", "name of the patient"),
    "label": ("sc:Text", "label of the slide"),
}


def describe_tiles(
    folder: Path, columns: Sequence[str], numbers: Mapping[str, int], size: int, hashes: Mapping[str, str] | None = None
) -> None:
    """Write croissant.json beside the files of tiles and tiles.csv. columns: of the table.

    numbers: how many tiles each file holds, by its name, in the order of the table. size: their side in pixels.
    hashes: the SHA-256 of files that need not be read for it, by name.
    """
    files, first = [], 0
    for name, number in numbers.items():
        layout = f"uint8 array ({number}, {size}, {size}, 3) in the format of NumPy; tile i belongs to row i of {TABLE}"
        layout = layout.replace("row i", f"row {first} + i") if first else layout
        sha256 = (hashes or {}).get(name) or sha256_of(folder / name)
        files.append(_file(name, "application/octet-stream", sha256, layout))
        first += number
    files.append(_file(TABLE, "text/csv", sha256_of(folder / TABLE), "a row for each tile"))
    fields = [
        _field(f"tiles/{column}", *COLUMNS[column], {"fileObject": {"@id": TABLE}, "extract": {"column": column}})
        for column in columns
    ]
    said = f"{first} tiles of {size} x {size} px, cut from whole slides of stained tissue"
    _write(folder, "tiles", said, files, fields)


def describe_images(folder: Path, name: str, said: str, names: Sequence[str]) -> None:
    """Write croissant.json into `folder`, beside the folder images/ that holds files of these names.

    name, said: of the whole, a word and a sentence.
    """
    kinds = sorted({mimetypes.guess_type(each)[0] or "application/octet-stream" for each in names})
    images = {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "encodingFormat": kinds,
        "includes": "images/*",
    }
    source = {"fileSet": {"@id": "images"}}
    fields = [
        _field("records/file", "sc:Text", "name of the file", source | {"extract": {"fileProperty": "filename"}}),
        _field("records/image", "sc:ImageObject", "the image", source | {"extract": {"fileProperty": "content"}}),
    ]
    _write(folder, name, said, [images], fields)


def recorded_sha256(folder: Path, name: str) -> str | None:
    """What croissant.json in `folder` says of a file; None if it does not."""
    described = read_json(folder / FILE, {}).get("distribution", [])
    hashes = (each.get("sha256") for each in described if isinstance(each, dict) and each.get("@id") == name)
    return next(hashes, None)


def sha256_of(path: Path) -> str:
    """Of the file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(name: str, kind: str, sha256: str, said: str) -> dict[str, Any]:
    about = {"@type": "cr:FileObject", "@id": name, "name": name, "description": said}
    return about | {"contentUrl": name, "encodingFormat": kind, "sha256": sha256}


def _field(name: str, kind: str, said: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "description": said, "dataType": kind, "source": source}


def _write(folder: Path, name: str, said: str, files: list[dict[str, Any]], fields: list[dict[str, Any]]) -> None:
    records = fields[0]["@id"].partition("/")[0]
    description = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": said,
        "distribution": files,
        "recordSet": [{"@type": "cr:RecordSet", "@id": records, "name": records, "field": fields}],
    }
    write_json(folder / FILE, description)
