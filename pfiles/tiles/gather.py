"""Which slides are meant: files, folders of them, DICOM series and pages; and what lies beside them and is none."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pfiles.errors import InputError, extra
from pfiles.spreadsheet import composed, file_name
from pfiles.tiles.companions import is_companion, word_at_end, word_beside_name
from pfiles.tiles.files import UNREAD_SUFFIXES, stored_size, types_in_words
from pfiles.tiles.readers import open_slide, pages_of
from pfiles.tiles.sources import walk
from pfiles.tiles.thumbnails import thumbnails

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (*PLAIN_SUFFIXES, ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".czi", ".dcm", ".vms", ".vmu", ".svslide",
            ".zarr")  # fmt: skip
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # DICOM's class of whole slide images
LONGEST_NAME = 200  # bytes, so that names of files made from it stay within 255
RECORDS = ("tiling.json", "made_from.json", "generated_with.json", ".work")  # beside what this project made or makes


@dataclass(frozen=True)
class SlideFile:
    """A slide that is asked for: its file, of a DICOM series one of them; what it is called; its page, from 1."""

    path: Path
    name: str
    page: int = 1


@dataclass
class Gathered:
    """slides: in order. unread: why others are left out, by name. notes: what else there is to say."""

    slides: list[SlideFile] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def name_of(path: Path) -> str:
    """What a slide is called everywhere: its file's name without the suffix, in the composed form of Unicode."""
    return file_name(composed(path.stem.removesuffix(".ome")).strip(), str(path))


def gather(paths: Sequence[Path], out: Path, page: int | None = 1, names: Sequence[str] = ()) -> Gathered:
    """The slides given by name, and those below folders in sorted order.

    What lies in `out` is not looked at. page: of each file, from 1; None for all of them. names: of slides in the
    user's table; these, and a file that is given alone, are never taken for companions of other slides.
    Raises InputError if there is no slide.
    """
    gathered, meant, out = Gathered(), {name.lower() for name in names}, out.resolve()
    files: dict[Path, bool] = {}
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"There is no slide or folder of slides at {path}: correct the path.")
        is_folder = path.is_dir() and path.suffix.lower() != ".zarr"
        below = sorted(file for file in walk(path) if out not in file.resolve().parents) if is_folder else [path]
        results = {file for file in below if _is_result(file, path)}
        if results:
            below = [file for file in below if file not in results]
            gathered.notes.append(f"{len(results)} images below {path} were made by this project, and are no slides.")
        slides = [file for file in below if file.suffix.lower() in SUFFIXES or (file == path and not _is_unread(file))]
        others = {file: f"{file} is of a type that is not read" for file in below if _is_unread(file)}
        if others:
            gathered.notes.append(types_in_words(others))
        of_known_type = {*slides, *others}
        if unnamed := [file for file in below if file not in of_known_type and _is_dicom(file)]:
            others |= {file: f"{file} is a DICOM file whose name does not end in .dcm: rename it" for file in unnamed}
            gathered.notes.append(f"{len(unnamed)} DICOM files have names that do not end in .dcm: rename them.")
        if not slides:
            expected = f"{path} holds no slide: expected files ending in {', '.join(SUFFIXES)}."
            raise InputError(" ".join([expected, *gathered.notes]))
        for file, reason in others.items():
            is_doubled = gathered.unread.get(file.name, reason) != reason  # another file's, in another folder
            gathered.unread[str(file) if is_doubled else file.name] = reason
        for file in slides:
            is_meant = (file == path and len(paths) == 1) or {
                composed(file.name).lower(),
                name_of(file).lower(),
            } & meant
            files[file] = not is_meant
    series = _without_later_files_of_series(files, gathered)
    companions = _companions(series, [file for file in series if files[file]], paths)
    for file, reason in companions.items():
        gathered.notes.append(f"{file.name} is no slide: {reason}.")
    for file in series:
        if file not in companions:
            _take_pages(file, page, gathered)
    if not gathered.slides:
        raise InputError(" ".join([f"{paths[0]} holds no slide.", *gathered.notes]))
    return gathered


def files_of(path: Path) -> list[Path]:
    """The files that a slide consists of, of which `path` is one or the folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.suffix.lower() == ".dcm":
        return sorted(file for file in path.parent.iterdir() if file.suffix.lower() == ".dcm")
    beside = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    return [path, *sorted(file for file in beside.rglob("*") if file.is_file())]


def files_of_content(path: Path) -> list[Path]:
    """What two slides must have in common to be one; the first file of a DICOM series, which names it, is enough."""
    return [path] if path.suffix.lower() == ".dcm" else files_of(path)


def copies_of_files(slides: Sequence[SlideFile], patients: Mapping[str, str]) -> dict[str, str]:
    """Why slides whose files have the same content as an earlier one's are left out, by name."""
    files = {slide: files_of_content(slide.path) for slide in slides}
    by_size: dict[int, list[SlideFile]] = {}
    for slide, of_slide in files.items():
        by_size.setdefault(sum(file.stat().st_size for file in of_slide), []).append(slide)
    firsts: dict[tuple[str, int], SlideFile] = {}
    copies = {}
    for slide in (slide for of_size in by_size.values() if len(of_size) > 1 for slide in of_size):
        content = hashlib.sha256()
        for path in files[slide]:
            with open(path, "rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
        first = firsts.setdefault((content.hexdigest(), slide.page), slide)
        if first is not slide:
            copies[slide.name] = f"it is the same file as {first.name}"
            if patients[first.name] != patients[slide.name]:
                raise InputError(
                    f"{first.name} and {slide.name} are the same file, but of the patients {patients[first.name]!r} "
                    f"and {patients[slide.name]!r}: remove one."
                )
    return copies


def _is_result(file: Path, root: Path) -> bool:
    """Whether an image lies in a folder, `root` or below, in which this project keeps a record of what it made."""
    if file.suffix.lower() not in PLAIN_SUFFIXES:
        return False
    folders = (folder for folder in file.parents if root in (folder, *folder.parents))
    return any((folder / record).exists() for folder in folders for record in RECORDS)


def _is_unread(file: Path) -> bool:
    return file.suffix.lower() in UNREAD_SUFFIXES


def _is_dicom(file: Path) -> bool:
    with suppress(OSError), open(file, "rb") as content:
        return content.read(132)[128:] == b"DICM"
    return False


def _take_pages(file: Path, page: int | None, gathered: Gathered) -> None:
    name, count = name_of(file), pages_of(file)
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(f"The name of {file} has more than {LONGEST_NAME} bytes: rename it, as files are named by it.")
    if page is None and count > 1:
        gathered.slides += [SlideFile(file, f"{name}_page{number}", number) for number in range(1, count + 1)]
        return
    gathered.slides.append(SlideFile(file, name, page or 1))
    if count > 1 and page is not None:
        gathered.notes.append(
            f"{file.name} holds {count} pages, of which number {page} is read: --page takes another one, or all."
        )


def _without_later_files_of_series(files: Mapping[Path, bool], gathered: Gathered) -> list[Path]:
    """Of the files of each DICOM series the first; labels, and other kinds of DICOM, are named in `gathered`.

    files: whether each may be a label, which none is that the user named.
    """
    slides, series_met = [], set()
    for file, may_be_label in files.items():
        if file.suffix.lower() == ".dcm":
            series, kind = _series_of(file)
            if series is None:
                gathered.notes.append(f"{file.name} is no slide: it is a DICOM file of another kind.")
                continue
            if is_companion(kind) and may_be_label:
                gathered.notes.append(f"{file.name} is no slide: its image type says {kind}.")
                continue
            if (file.parent, series) in series_met:
                continue
            series_met.add((file.parent, series))
        slides.append(file)
    return slides


def _series_of(file: Path) -> tuple[str | None, str]:
    """The series of a DICOM file of a slide, None of another kind, and its image type, such as volume or label.

    A series of its own where it cannot be read, which `open_slide` will say.
    """
    with extra("slides"):
        import pydicom

    try:
        names = ["SOPClassUID", "SeriesInstanceUID", "ImageType"]
        tags = pydicom.dcmread(file, specific_tags=names, stop_before_pixels=True)
        kind = str((*tags.get("ImageType", ()), "", "", "")[2]).lower()
        return (str(tags.SeriesInstanceUID), kind) if tags.SOPClassUID == WHOLE_SLIDE else (None, kind)
    except Exception:  # a damaged file raises errors of many kinds
        return f"unread {file.name}", ""


def _companions(files: Sequence[Path], candidates: Sequence[Path], roots: Sequence[Path]) -> dict[Path, str]:
    """Which of the candidates are thumbnails, labels and the like, and why, by their names or by what they show."""
    stems = {name_of(file).lower(): file for file in files}
    companions = {}
    for file in candidates:
        if file.suffix.lower() not in PLAIN_SUFFIXES:
            continue
        root = next((root for root in roots if root in file.parents), file.parent)
        folders = file.relative_to(root).parts[:-1]
        if word := next((word for folder in folders if (word := word_at_end(folder))), None):
            companions[file] = f"its folder says {word}"
        elif word := word_at_end(file.stem) or word_beside_name(file.stem, stems):
            companions[file] = f"its name says {word}"
    plain = [file for file in candidates if file.suffix.lower() in PLAIN_SUFFIXES and file not in companions]
    sizes = {file: size for file in files if (size := _size_of(file)) is not None} if len(files) > 1 and plain else {}
    for file, slide in thumbnails([file for file in plain if file in sizes], sizes).items():
        companions[file] = f"it is a thumbnail of {slide.name}"
    return companions


def _size_of(file: Path) -> tuple[int, int] | None:
    """Width and height in pixels; None where it cannot be opened."""
    try:
        if file.suffix.lower() in PLAIN_SUFFIXES:
            with suppress(Image.DecompressionBombError), Image.open(file) as image:  # the header alone
                return stored_size(image)  # one with more pixels than Pillow opens may still be a pyramid
        with open_slide(file) as slide:
            width, height = slide.level_dimensions[0]
            return width, height
    except (InputError, OSError, ValueError, SyntaxError):
        return None
