"""Where a run's files lie, and how a file is written: whole or not at all.

`Paths` has more members than other classes here, as it names each file and folder of a run.
"""

import glob
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard, overload

from pfiles.errors import InputError
from pfiles.machine.locks import hold, is_left
from pfiles.machine.rank import is_first

CHECKOUT = Path(__file__).resolve().parents[1]
# where relative paths start: the repository or, for an installed package, the folder that a command was started in
ROOT = CHECKOUT if (CHECKOUT / "train_autoencoder.ipynb").exists() else Path.cwd()
MOST_NUMBERS = 100  # of clusters that are learnt together


def numbers_of_clusters(n_clusters: int | str | Sequence[int]) -> tuple[int, ...]:
    """The numbers of clusters k that 14, "10-16", "10,12,14" or [10, 12, 14] name, rising; InputError for others."""
    text = (
        n_clusters
        if isinstance(n_clusters, str)
        else ",".join(map(repr, n_clusters))
        if _is_list(n_clusters)
        else repr(n_clusters)
    )
    parts = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip()) for part in text.split(",")]
    matches = [part for part in parts if part]
    if len(matches) < len(parts):
        raise InputError(
            f'n_clusters must be a whole number of at least 2, or several such as "10-16", but is {n_clusters!r}.'
        )
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in matches]
    if not all(ranges):
        raise InputError(f"n_clusters must go from the smaller number to the larger, such as 10-16, but is {text}.")
    if min(ks[0] for ks in ranges) < 2:
        raise InputError(f"n_clusters must be a whole number of at least 2, but is {text}.")
    if sum(map(len, ranges)) > MOST_NUMBERS:
        raise InputError(f"n_clusters can be at most {MOST_NUMBERS} numbers at a time, but {text} are more.")
    return tuple(sorted({k for ks in ranges for k in ks}))


def _is_list(n_clusters: object) -> TypeGuard[Sequence[int]]:
    return isinstance(n_clusters, list | tuple | range) and len(n_clusters) > 0


def name_of_numbers(ks: Sequence[int]) -> int | str:
    """The numbers of clusters as file names hold them: 14, "10-16", or "10,12,14"."""
    first, last = ks[0], ks[-1]
    if len(ks) == 1:
        return first
    return f"{first}-{last}" if len(ks) == last - first + 1 else ",".join(map(str, ks))


@dataclass(frozen=True)
class Paths:
    """The files of one run with `n_clusters` clusters below the folder `out`.

    n_clusters: one number, or the name of several that are trained together, see `name_of_numbers`.
    out: None for this repository; a relative path starts there, so that it means the same in every notebook.
    clustering: "classifier", whose files have the published names, or "kmeans", whose files have names of their own.
    """

    n_clusters: int | str = 14
    out: str | Path | None = None
    clustering: str = "classifier"

    def __post_init__(self):
        numbers_of_clusters(self.n_clusters)
        try:
            is_folder = stat.S_ISDIR(os.stat(self.root).st_mode)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"The output folder {self.root} cannot be made ({error.strerror}): name another one."
            ) from error
        if not is_folder:
            raise InputError(f"The output folder {self.root} is a file: name a folder, existing or new.")

    @property
    def root(self) -> Path:
        return (ROOT / expand(self.out or "")).resolve()

    @property
    def suffix(self) -> str:
        """The suffix in file names of k-means runs; empty for a classifier."""
        return "" if self.clustering == "classifier" else f"_{self.clustering}"

    @property
    def autoencoder(self) -> Path:
        return self.root / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth"

    @property
    def precision(self) -> Path:
        """The file that keeps what precision="auto" chose when the run began."""
        return self.autoencoder.parent / "precision.json"

    @property
    def codes(self) -> Path:
        return self.autoencoder.parent / "codes.pt"

    @property
    def cluster_folder(self) -> Path:
        return self.root / f"clusters_{self.n_clusters}"

    @property
    def models(self) -> Path:
        return self.cluster_folder / f"models_{self.n_clusters}"

    @property
    def generated(self) -> Path:
        return self.cluster_folder / f"gen_{self.n_clusters}{self.suffix}"

    @property
    def latent_csv(self) -> Path:
        k = self.n_clusters
        return self.cluster_folder / f"HHH{k}_C{k}_D{k}{self.suffix}.csv"

    def latent_csvs(self) -> dict[int, Path]:
        """The existing latent CSVs of this clustering, by k."""
        csvs = self.root.glob(f"clusters_*/HHH*_C*_D*{self.suffix}.csv")
        pattern = re.compile(rf"clusters_(\d+)/HHH\1_C\1_D\1{self.suffix}\.csv")  # not one in a copy of its folder
        named = ((pattern.fullmatch(path.relative_to(self.root).as_posix()), path) for path in csvs)
        return dict(sorted((int(match[1]), path) for match, path in named if match))

    @property
    def numbers(self) -> list[str]:
        """The numbers of clusters that have a folder in this run, as written in its name."""
        folders = (re.fullmatch(r"clusters_(\d+(?:[-,]\d+)*)", path.name) for path in self.root.glob("clusters_*"))
        return sorted((match[1] for match in folders if match), key=lambda n: (len(n), n))

    @property
    def choose_k(self) -> Path:
        """The folder of what is learnt to choose k."""
        return self.root / f"choose_k{self.suffix}"

    @property
    def training_images(self) -> Path:
        return self.root / "org"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def figure(self, number: int, name: str) -> Path:
        """A panel of a figure of the paper, such as `figure(1, "a")`: Figures/Figure 1/a.jpg."""
        return self.root / "Figures" / f"Figure {number}{self.suffix}" / f"{name}.jpg"

    @property
    def maps(self) -> Path:
        """The folder of the maps of the clusters, one for each slide."""
        return self.cluster_folder / f"maps_{self.n_clusters}{self.suffix}"

    @property
    def ladder(self) -> Path:
        """The file of the coherences of shuffled and decoded training tiles, by which part 13 measures structure."""
        return self.models / f"structure_ladder{self.suffix}.pt"

    @property
    def atlas(self) -> Path:
        return self.cluster_folder / f"atlas_{self.n_clusters}{self.suffix}.html"

    def names_of(self, reader: str) -> Path:
        """The file of a reader's names for the clusters, of both clusterings."""
        return self.cluster_folder / f"names_{reader}.json"

    @property
    def study(self) -> Path:
        """The folder of the reader study."""
        return self.cluster_folder / f"study_{self.n_clusters}{self.suffix}"

    @property
    def fields(self) -> Path:
        """The folder of the layouts that were painted."""
        return self.cluster_folder / f"fields_{self.n_clusters}{self.suffix}"

    @property
    def cluster_sheet(self) -> Path:
        return self.root / "Figures" / f"cluster_sheet_{self.n_clusters}{self.suffix}.jpg"

    def training_folder(self, training: str, clustering: str | None = None) -> Path:
        """Where a training keeps its resume points and logs; only the autoencoder's has no clustering."""
        if clustering is None:
            return self.autoencoder.parent / f"{training}_training"
        return self.models / f"{training}_{clustering}"


def expand(path: str | Path) -> Path:
    """A path given by a user, its ~ replaced by the home folder; InputError for what is none."""
    try:
        return Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path!r} is no path ({error}): write the path in full, as text.") from error


@contextmanager
def atomic_write(path: Path, by_every_process: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the name `path` only once it is complete and on the disk.

    Of several processes that work together only the first writes, unless told otherwise: they write the same. What
    killed processes left of it is removed, but for files of which every process writes its own.
    Raises OSError naming `path` where the disk is full or takes no file there; a file that was there stays as it was.
    """
    if not (is_first() or by_every_process):
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
        return
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not by_every_process:  # there are many of those in one folder, and each would look through all of it
            for killed in _parts(path):
                if is_left(killed):
                    killed.unlink(missing_ok=True)
        part, file = _open_part(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the disk's answer
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder to be filled, which takes the place of `folder`, as a whole, only once it is complete.

    Where `folder` is a link, what it leads to is replaced.
    """
    folder = folder.resolve()
    for killed in _parts(folder):
        if is_left(killed) is not False:
            shutil.rmtree(killed, ignore_errors=True)
    part, handle = _part(folder), None
    try:
        part.mkdir(parents=True)
        handle = os.open(part, os.O_RDONLY)
        hold(handle)
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(part, ignore_errors=True)


def _part(path: Path) -> Path:
    """Where what will be `path` is written: a name that nobody can have put a link under."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _open_part(path: Path) -> tuple[Path, IO[bytes]]:
    """A new file at a path of `_part`, held while it is open."""
    while True:
        part = _part(path)
        file = open(part, "xb")  # noqa: SIM115 - closed by whom it is given to
        hold(file.fileno())
        if part.exists():
            return part, file
        file.close()  # before it was held, another process took it for one that was left, and removed it


def _parts(path: Path) -> list[Path]:
    """All existing paths of `_part` for `path`."""
    parts = path.parent.glob(f".{glob.escape(path.name)}.*.part")
    return [
        part for part in parts if re.fullmatch("[0-9a-f]{8}", part.name.rsplit(".", 2)[1]) and not part.is_symlink()
    ]


def refuse_foreign(folder: Path, names: Iterable[str], is_own: bool) -> None:
    """InputError if `folder` holds a file or folder of these names, which a command would write, and is not its own.

    is_own: whether a note in the folder says that the same command made what is there.
    """
    if there := [] if is_own else [name for name in names if os.path.lexists(folder / name)]:
        raise InputError(
            f"{folder / there[0]} was not made by this command, which would replace it: name an empty or a new folder."
        )


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@overload
def read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]: ...
@overload
def read_json(path: Path, default: None = None) -> dict[str, Any] | None: ...
def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The JSON object in `path`, or `default` where there is no such file."""
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): delete it or put the right file there.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold names and values: delete it or put the right file there.")
    return value
