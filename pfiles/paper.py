"""What the authors published: found in folders and zips, checked, and put where a run of the paper looks for it."""

import errno
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import file_digest
from io import BufferedIOBase
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from pfiles import checkpoints
from pfiles.checkpoints import START
from pfiles.cluster_bank import ClusterBank
from pfiles.errors import InputError
from pfiles.latents import read_latent_csv
from pfiles.machine.processes import progress
from pfiles.paths import Paths, atomic_write
from pfiles.settings import Settings
from pfiles.tiles.files import decode, image_files
from pfiles.tiles.sources import walk
from pfiles.tiles.split import last_part
from pfiles.unet_cond_base import make_unet
from pfiles.vqvae import make_vqvae

K = 14  # the published number of clusters
TILES, STAINS, TRAINING = (
    11_000,
    8,
    10_000,
)  # published tiles, slots of each, and how many of the tiles are for training
FIGSHARE = "https://doi.org/10.6084/m9.figshare."
REPOSITORY = "the authors' repository, https://github.com/randomaccess2023/KPC_LDM_128"
OTHER_K = "latent CSVs of other k"
NETWORKS = (".pth", ".pt")
OF_A_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # errors of reading one


class Part(NamedTuple):
    """Something that was published. pattern: of the end of its files' paths. source: where it can be had."""

    pattern: str
    source: str


PARTS = {
    "tiles": Part(r"slice128_Block2_11K\.npy", f"{FIGSHARE}29588651"),
    "autoencoder": Part(r"vqvae_autoencoder_ckpt\.pth", f"{REPOSITORY}, kpc_ldm"),
    **{
        f"classifier after {stage}": Part(
            rf"classifier_{stage}_ckpt_\d{{8}}_\d+_{K}\.pth", f"{REPOSITORY}, clusters_14"
        )
        for stage in ("training", "finetuning2")
    },
    **{
        f"UNet after {stage}": Part(rf"unet_{stage}_ckpt_\d{{8}}_\d+_{K}\.pth", f"{FIGSHARE}29588807, trained_models")
        for stage in START
    },
    "latent CSV": Part(rf"HHH{K}_C{K}_D{K}\.csv", f"{REPOSITORY}, clusters_14"),
    OTHER_K: Part(rf"HHH(?!{K}_)(\d+)_C\1_D\1\.csv", "not published; part 5 of a run of that k writes it"),
    "training images": Part(r"org/[1-9]\d*\.(?:jpe?g|png)", f"{FIGSHARE}29588849, Images"),
    "generated images": Part(rf"gen_{K}/[1-9]\d*\.(?:jpe?g|png)", f"{FIGSHARE}29588849, Images"),
}


class Member(NamedTuple):
    """A file of an archive: on the disk, or in a zip."""

    path: PurePosixPath
    archive: Path | None = None
    opened: zipfile.ZipFile | None = None
    info: zipfile.ZipInfo | None = None

    def __str__(self) -> str:
        return str(self.path) if self.archive is None else f"{self.archive}/{self.path}"

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """The file's bytes. InputError if they are not as they were packed."""
        try:
            with self.opened.open(self.info) if self.opened and self.info else open(self.path, "rb") as file:
                yield file
        except (*OF_A_ZIP, OSError) as error:
            if isinstance(error, OSError) and (self.opened is None or error.errno != errno.EINVAL):
                raise
            raise InputError(f"{self} cannot be unpacked ({error}): download the archive again.") from error

    @contextmanager
    def file(self) -> Iterator[Path]:
        """The member as a file: itself, or a copy for as long as the block lasts."""
        if self.opened is None:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, self.path.name)
            self.copy(path)
            try:
                yield path
            except InputError as error:
                raise InputError(str(error).replace(str(path), str(self))) from None

    def copy(self, target: Path) -> None:
        """Write the member to `target`, whole or not at all."""
        with self.stream() as source, atomic_write(target) as file:
            shutil.copyfileobj(source, file, 2**20)

    def digest(self) -> bytes:
        with self.stream() as file:
            # typeshed does not know that what `ZipFile.open` returns has readinto
            return file_digest(cast(BufferedIOBase, file), "sha256").digest()


class Published(NamedTuple):
    """What of PARTS there is in a run's folder, by name, and what was not needed from the archives."""

    files: dict[str, list[Path]]
    missing: dict[str, str]  # the names of the others, and where they can be had


def place(archives: Sequence[Path], paths: Paths, settings: Settings) -> Published:
    """Put what the authors published into the folder of a run: all that lies in these folders and zips.

    All is checked before the first file is written; InputError names the first that is not as published, or that would
    take the place of another file. The tiles stay where they are, unless they lie in a zip. Parts that an earlier call
    put there count as well.
    """
    with ExitStack() as opened:
        members = find(archives, opened)
        for name, files in members.items():
            _check(name, files, settings)
        targets_of = {name: _targets(name, files, paths) for name, files in members.items()}
        new = {
            path: member for targets in targets_of.values() for path, member in targets.items() if _is_new(path, member)
        }
        for name, targets in targets_of.items():
            _refuse_others(name, targets, paths)
        for path, member in progress(new.items(), desc="put in place", unit="file", leave=False, delay=2):
            member.copy(path)
    there = {name: [*targets] for name, targets in targets_of.items()} | _already_there(paths, targets_of.keys())
    return Published(
        {name: there[name] for name in PARTS if name in there},
        {name: part.source for name, part in PARTS.items() if name not in there},
    )


def find(archives: Sequence[Path], opened: ExitStack) -> dict[str, list[Member]]:
    """The files of each part, by its name; InputError where there are none at all, or one is there twice and differs.

    opened: closes the zips that the files are read from.
    """
    files: dict[str, dict[str, Member]] = {}
    strange = []
    for member in (member for archive in archives for member in _members(archive, opened)):
        name = next((name for name, part in PARTS.items() if _is_of(part, member.path)), None)
        if name is None:
            strange += [str(member)] * (member.path.suffix in (*NETWORKS, ".csv", ".npy", ".zip"))
            continue
        same = files.setdefault(name, {}).setdefault(member.path.name, member)
        if same is not member and same.digest() != member.digest():
            raise InputError(f"{same} and {member} have one name and differ: leave one of them out.")
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        print(f"Left out, as nothing published is called so: {', '.join(strange[:3])}{more}.")
    if not files:
        raise InputError(
            f"Nothing that the authors published is in {', '.join(map(str, archives))}: files keep their published "
            "names, which docs/paper.md lists."
        )
    return {name: [*files[name].values()] for name in PARTS if name in files}


def _members(archive: Path, opened: ExitStack) -> Iterator[Member]:
    if not archive.exists():
        raise InputError(f"There is no {archive}: name a folder or a .zip that holds published files.")
    for path in walk(archive) if archive.is_dir() else [archive]:
        if path.suffix.lower() != ".zip":
            yield Member(PurePosixPath(path))
            continue
        try:
            packed = opened.enter_context(zipfile.ZipFile(path))
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path} is not a sound .zip file ({error}): download it again.") from error
        for info in packed.infolist():
            inner = PurePosixPath(info.filename)
            if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in inner.parts):
                yield Member(inner, path, packed, info)


def _is_of(part: Part, path: PurePosixPath) -> bool:
    return re.fullmatch(rf"(?:.*/)?{part.pattern}", str(path)) is not None


# Whether a file is as published


def _check(name: str, files: Sequence[Member], settings: Settings) -> None:
    """InputError where one of the files of a part is not laid out as published."""
    check: Callable[[Member, Settings], None] | None = {
        "tiles": _require_tiles,
        "latent CSV": _require_csv,
        OTHER_K: _require_csv,
    }.get(name)
    if name.endswith("images"):
        _require_images(name, files, settings)
        return
    if len(files) > 1 and name != OTHER_K:
        raise InputError(f"{files[0]} and {files[1]} are both a published {name}: leave one of them out.")
    for member in files:
        if check is not None:
            check(member, settings)
            continue
        with member.file() as path:
            checkpoints.load_weights(_network(name, settings), path)


def _network(name: str, settings: Settings) -> nn.Module:
    with torch.device("meta"):
        vqvae = make_vqvae(settings.autoencoder)
    if name == "autoencoder":
        return make_vqvae(settings.autoencoder)
    if name.startswith("UNet"):
        return make_unet(settings.diffusion, vqvae.z_channels, K)
    return ClusterBank.make("classifier", vqvae.z_channels, [K])


def _training_tiles(settings: Settings) -> int:
    return settings.max_train_tiles or TRAINING


def _require_csv(member: Member, settings: Settings) -> None:
    k = int(re.findall(r"\d+", member.path.name)[0])
    with torch.device("meta"):
        channels = make_vqvae(settings.autoencoder).z_channels
    with member.file() as path:
        features, cluster_ids, probability = read_latent_csv(path, k)
        expected = (
            f"{path} should hold {_training_tiles(settings):,} rows of {channels} features, cluster and probability"
        )
        if features.shape != (_training_tiles(settings), channels):
            raise InputError(f"{expected}, but holds {len(features):,} of {features.shape[1]}: download it again.")
        if len(np.unique(cluster_ids)) < 2:
            raise InputError(f"{expected}, but puts all tiles into one cluster: download it again.")
        if np.abs(features.sum(1) - 1).max() > 1e-4 or probability.min() <= 0 or probability.max() > 1 + 1e-6:
            raise InputError(f"{expected}, where features sum to 1 and a probability is at most 1: download it again.")


def _require_tiles(member: Member, settings: Settings) -> None:
    side = settings.image_size_px
    with member.stream() as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise InputError(f"{member} cannot be read as a .npy array ({error}): download it again.") from error
        begin, size = file.tell(), int(np.prod(shape))
        of_training = len(shape) == 5 and int((~last_part(shape[0])).sum())
        if shape[1:] != (STAINS, side, side, 3) or dtype != np.uint8 or of_training < _training_tiles(settings):
            raise InputError(
                f"{member} should hold uint8 tiles of shape ({TILES}, {STAINS}, {side}, {side}, 3), but holds {dtype} "
                f"of shape {shape}: download it again."
            )
    whole = member.info.file_size if member.info else Path(member.path).stat().st_size
    if whole != begin + size:
        raise InputError(f"{member} has {whole:,} bytes of {begin + size:,}: download it again.")


def _require_images(name: str, files: Sequence[Member], settings: Settings) -> None:
    """InputError where images are missing, broken, or not of one size."""
    expected = settings.sampling.num_generated or _training_tiles(settings)
    numbers = {int(member.path.stem) for member in files}
    if missing := sorted(set(range(1, expected + 1)) - numbers):
        raise InputError(
            f"{files[0].path.parent} lacks {len(missing):,} of {expected:,} images, such as {missing[0]}: get "
            f"{PARTS[name].source} again."
        )
    if len(files) > expected:
        raise InputError(f"{files[0].path.parent} holds {len(files):,} images, but {expected:,} were published.")
    shapes: dict[tuple[int, ...], Member] = {}
    for member in progress(files, desc=f"check {name}", unit="image", leave=False, delay=2):
        with member.stream() as file:
            shapes.setdefault(tuple(decode(str(member), file.read())[0].shape), member)
    if len(shapes) > 1:
        one, other = [*shapes.values()][:2]
        raise InputError(f"{one} and {other} are of different sizes: get {PARTS[name].source} again.")


# Where it goes


def _targets(name: str, files: Sequence[Member], paths: Paths) -> dict[Path, Member]:
    """The paths in a run where the files of a part belong."""
    return {_target(name, member, paths): member for member in files}


def _target(name: str, member: Member, paths: Paths) -> Path:
    file = member.path.name
    if name == "tiles":
        return Path(member.path).absolute() if member.opened is None else paths.root / file
    if name in ("latent CSV", OTHER_K):
        return Paths(int(re.findall(r"\d+", file)[0]), paths.out).latent_csv
    if name == "autoencoder":
        return paths.autoencoder
    return (_folder(name, paths) if name.endswith("images") else paths.models) / file


def _folder(name: str, paths: Paths) -> Path:
    return paths.training_images if name == "training images" else paths.generated


def _is_new(path: Path, member: Member) -> bool:
    """Whether `path` is free; False if it holds the same file, InputError if it holds another one."""
    if not path.exists():
        return True
    with open(path, "rb") as file:
        if file_digest(file, "sha256").digest() != member.digest():
            raise InputError(
                f"{path} is there already and is not {member}: move it away, or name another folder with --out."
            )
    return False


def _refuse_others(name: str, targets: Mapping[Path, Member], paths: Paths) -> None:
    """InputError where the folder of a run holds files that would be taken with, or instead of, the published ones."""
    present: list[Path | None] = []
    if name.endswith("images"):
        present = [*image_files(_folder(name, paths)).values()]
    elif " after " in name:
        network, _, stage = name.lower().partition(" after ")
        present = [checkpoints.newest(paths, network, stage, "classifier")]
    for path in present:
        if path is not None and path not in targets:
            raise InputError(f"{path} belongs to another run than the published files: name another folder with --out.")


def _already_there(paths: Paths, apart_from: Collection[str]) -> dict[str, list[Path]]:
    """The published files, by the names in PARTS, that lay in a run's folder before; those of a run are left out."""
    root = paths.root
    patterns = ("*.npy", "kpc_ldm/*.pth", f"clusters_{K}/models_{K}/*.pth", "clusters_*/*.csv", "org/*",
                f"clusters_{K}/gen_{K}/*")  # fmt: skip
    files = sorted(path for pattern in patterns for path in root.glob(pattern))
    named = [
        (name, path)
        for path in files
        for name, part in PARTS.items()
        if name not in apart_from and _is_of(part, PurePosixPath(path)) and not _is_of_a_run(path)
    ]
    return {name: [path for _, path in of] for name, of in groupby(sorted(named), key=lambda pair: pair[0])}


def _is_of_a_run(path: Path) -> bool:
    """Whether a note beside a file says that a run made it."""
    notes = (path.with_suffix(".json"), path.parent / "made_from.json", path.parent / "generated_with.json")
    return any(note.exists() for note in notes)
