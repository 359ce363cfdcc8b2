"""A packed run is read, and the run that was made again from it is held against it, number by number.

Nothing in a crate is run, and no member's path is followed but those of its tiles, below a folder of their own.
"""

import errno
import json
import math
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from hashlib import file_digest
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, cast
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from pfiles import artifacts, checkpoints
from pfiles.errors import InputError
from pfiles.pack import FORMAT, METADATA, RECORD, content, environment, leads_out, numbers_of
from pfiles.paths import atomic_write
from pfiles.provenance import Provenance, flatten
from pfiles.reporting.tables import provenances
from pfiles.run import Run
from pfiles.tiles.dataset import EMBEDDED

UNSOUND = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)  # errors of a zip
ROUNDING = 1e-5  # relative: what float32 sums in another order leave of one number
MOST_BYTES = 2**28  # of a text in a crate
UNEXPLAINED = "no recorded input has changed: a file was changed after it was made, or sums were made in another order"
SHOWN = 20  # verdicts
EQUAL, ROUNDED, DIFFERENT = "equal to the bit", f"within {ROUNDING:g}", "differs"


def _one_of(names: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"{name!r} is none of {', '.join(names)}")
        return name

    return AfterValidator(check)


class _Choices(BaseModel, strict=True):
    n_clusters: int
    clustering: str
    preset: str
    overrides: dict[str, Any]
    seed: int | None = None


class _Data(BaseModel, strict=True):
    source: str
    fingerprint: str
    embedded: Annotated[str, _one_of(EMBEDDED)] | None


class _Environment(BaseModel, strict=True):
    python: str | None
    packages: dict[str, str]
    processor: str
    threads: int


class _Artefact(BaseModel, strict=True):
    state: str
    why: str
    content: str
    provenance: dict[str, Any] | None


class _Record(BaseModel, strict=True):
    """What run.json holds, see `pack.describe`."""

    format: int
    version: str
    choices: _Choices
    settings: dict[str, Any]
    data: _Data
    environment: _Environment
    notebooks: Annotated[list[str], Field(min_length=1)]
    artefacts: dict[Annotated[str, _one_of(artifacts.BY_NAME)], _Artefact]
    numbers: dict[str, dict[str, Any]]


class Verdict(NamedTuple):
    """An artefact or a number, made again. state: EQUAL, ROUNDED or DIFFERENT. then, now: a hash or a number.
    why: the changed inputs that explain it."""

    what: str
    state: str
    then: Any
    now: Any
    why: str = ""


# Reading a crate


@contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """The zip of a crate, sound and as it was packed, and what its run.json holds; InputError otherwise."""
    if not path.is_file():
        raise InputError(f"There is no crate {path}: name a .zip that `python -m pfiles pack` wrote.")
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            _refuse_names(archive, path)
            record = _json(archive, RECORD, path)
            if record.get("format") != FORMAT:
                raise InputError(
                    f"{path} is of format {record.get('format')!r} and pfiles {record.get('version', 'unknown')}, but "
                    f"this version reads format {FORMAT}: use the version that packed it, or pack the run again."
                )
            _refuse_edited(archive, path)
            _check(record, path)
        except (*UNSOUND, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a place before the file's begin is
                raise
            raise InputError(f"{path} is not a sound .zip file ({error}): get the crate again.") from error
        yield archive, record


def _check(record: Mapping[str, Any], path: Path) -> None:
    """InputError where run.json does not hold what `pack.describe` writes, before anything is made of it."""
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is not a crate of a run: {where} in {RECORD} is wrong ({first['msg']}); get the crate again."
        ) from None


def _refuse_names(archive: zipfile.ZipFile, path: Path) -> None:
    """InputError where a member could be written outside the folder of a crate, or stands for another one."""
    names = set()
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        if leads_out(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{path} holds {info.filename!r}, which leads out of the crate: do not trust it.")
        if info.flag_bits & 1:
            raise InputError(f"{path} holds {info.filename!r} encrypted: get the crate again, without a password.")
        if name in names:
            raise InputError(f"{path} holds {info.filename!r} twice: get the crate again.")
        names.add(name)


def _json(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    try:
        if archive.getinfo(name).file_size > MOST_BYTES:
            raise ValueError("too large")
        value = json.loads(archive.read(name))
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a crate of a run ({name}: {error}): `python -m pfiles pack` writes one."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a crate of a run: {name} should hold names and values.")
    return value


def _refuse_edited(archive: zipfile.ZipFile, path: Path) -> None:
    """InputError where a file is not the one that the crate's metadata describe."""
    graph = _json(archive, METADATA, path).get("@graph")
    entities = graph if isinstance(graph, list) else []
    described = [each for each in entities if isinstance(each, dict) and "sha256" in each]
    hashes = {unquote(str(each.get("@id"))): each["sha256"] for each in described}
    members = {info.filename for info in archive.infolist() if not info.is_dir()} - {METADATA}
    if strange := sorted(members ^ hashes.keys()):
        where = "is not in it" if strange[0] in hashes else "was put into it"
        raise InputError(f"{path} was edited after it was packed: {strange[0]} {where}.")
    for name in sorted(members):
        with archive.open(name) as file:
            # typeshed does not know that what `open` returns has readinto
            if file_digest(cast(BufferedIOBase, file), "sha256").hexdigest() != hashes[name]:
                raise InputError(f"{path} was edited after it was packed: {name} is another file.")


def unpack_tiles(archive: zipfile.ZipFile, folder: Path) -> Path | None:
    """Write the tiles of a crate below `folder` and return where they lie; None where it holds none."""
    names = [name for name in archive.namelist() if name.startswith("data/")]
    for name in names:
        target = folder / name
        if not target.exists():
            with archive.open(name) as source, atomic_write(target) as file:
                shutil.copyfileobj(source, file, 2**20)
    return folder / "data" / PurePosixPath(names[0]).parts[1] if names else None


def choices_for(archive: zipfile.ZipFile, record: Mapping[str, Any], out: Path, data: str | None) -> dict[str, Any]:
    """The arguments of `open_run` that make the run of a crate again in the folder `out`.

    data: the tiles as a user names them; None: those in the crate, or the embedded ones it was made of.
    """
    embedded = record["data"]["embedded"]
    tiles = data or embedded or unpack_tiles(archive, out)
    if tiles is None:
        source, fingerprint = record["data"]["source"], record["data"]["fingerprint"]
        raise InputError(f"The crate holds no tiles: name {source} (fingerprint {fingerprint}) with --data.")
    choices = {name: value for name, value in record["choices"].items() if name in _Choices.model_fields}
    return choices | {"overrides": dict(choices.get("overrides", {})), "data": str(tiles), "out": str(out)}


# What has changed, and what that changed


def changed_inputs(record: Mapping[str, Any], run: Run) -> list[str]:
    """The inputs of a crate that are others here, each as a sentence: tiles, settings, packages, threads, processor."""
    then, now = record["environment"], environment()
    pairs = [("tiles", record["data"]["fingerprint"], run.tiles.fingerprint())]
    settings = json.loads(json.dumps(asdict(run.settings)))
    different = Provenance(settings=record["settings"]).differences(Provenance(settings=settings))
    pairs += [(name.replace("settings.", "setting "), *values) for name, values in different.items()]
    packages = then["packages"] | {"Python": then["python"]}, now["packages"] | {"Python": now["python"]}
    pairs += [(f"package {name}", packages[0].get(name), packages[1].get(name))
              for name in sorted(packages[0].keys() | packages[1].keys())]  # fmt: skip
    pairs += [(name, then[name], now[name]) for name in ("threads", "processor")]
    return [f"{name}: was {before!r}, is {after!r}" for name, before, after in pairs if before != after]


def compare(record: Mapping[str, Any], run: Run, changed: list[str]) -> list[Verdict]:
    """The verdict on each artefact and on each number of a crate, `run` being the run that was made again.

    changed: see `changed_inputs`.
    """
    verdicts = []
    for name, then in record["artefacts"].items():
        path = artifacts.BY_NAME[name].path(run)
        now = provenance = None
        if path is not None and path.exists():
            now, provenance = content(path), artifacts.recorded(run, name)
        why = _why(_provenance(then["provenance"]), provenance, changed)
        if then["state"] != "made":
            why = f"in the crate it is {then['state']} ({then['why']}); {why}"
        verdicts.append(Verdict(name, EQUAL, then["content"], now) if now == then["content"] else
                        Verdict(name, DIFFERENT, then["content"], now, why))  # fmt: skip
    of_sections = provenances(run.paths.summary)
    here = numbers_of(run)
    differing = [verdict.what for verdict in verdicts if verdict.state == DIFFERENT]
    for section, values in record["numbers"].items():
        now_values = flatten(_as_mapping(here.get(section, {})))
        why = _why(None, of_sections.get(section), changed + [f"{name} differs" for name in differing])
        for name, value in flatten(_as_mapping(values)).items():
            state = same(value, now_values.get(name))
            verdicts.append(
                Verdict(f"{section}: {name}", state, value, now_values.get(name), "" if state == EQUAL else why)
            )
    return verdicts


def _as_mapping(value: Any) -> Any:
    """The value with each list as a mapping from place to item, so that each number in it has a name."""
    if isinstance(value, list):
        value = {str(i): item for i, item in enumerate(value)}
    return {name: _as_mapping(item) for name, item in value.items()} if isinstance(value, Mapping) else value


def _provenance(note: Mapping[str, Any] | None) -> Provenance | None:
    return None if note is None else Provenance.from_note(note)


def same(then: Any, now: Any) -> str:
    """Whether two values are equal, or as near as rounding leaves numbers."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (then, now)]
    if then == now or (all(numbers) and math.isnan(then) and math.isnan(now)):
        return EQUAL
    return ROUNDED if all(numbers) and math.isclose(then, now, rel_tol=ROUNDING) else DIFFERENT


KINDS = {"settings": "setting", "data": "tiles", "starts_from": "weights of", "trained_with": "weights of"}


def _why(then: Provenance | None, now: Provenance | None, changed: list[str]) -> str:
    """The changed inputs that a file's provenance names, and those of the whole run."""
    causes = list(changed)
    if then is not None and now is not None:
        for name, (before, after) in then.without(*NOT_INPUTS).differences(now.without(*NOT_INPUTS)).items():
            group, _, setting = name.partition(".")
            words = f"{KINDS[group]} {setting}" if group in KINDS else name
            if not any(cause.startswith((f"{words}:", f"{words.partition(' ')[0]}:")) for cause in causes):
                causes.append(f"{words}: was {before!r}, is {after!r}")
    return "; ".join(causes) or UNEXPLAINED


NOT_INPUTS = (*checkpoints.NOTE_FIELDS, "weights", "sha256", "epochs", "latent_scaling")


def show(verdicts: list[Verdict], report: Path) -> int:
    """Print the verdicts, and return the exit status: 1 where something differs."""
    others = [verdict for verdict in verdicts if verdict.state != EQUAL]
    for verdict in others[:SHOWN]:
        print(f"{verdict.what}: {verdict.state}, was {verdict.then}, is {verdict.now}: {verdict.why}")
    if len(others) > SHOWN:
        print(f"... and {len(others) - SHOWN} more")
    counts = {state: sum(verdict.state == state for verdict in verdicts) for state in (EQUAL, ROUNDED, DIFFERENT)}
    print(f"{', '.join(f'{number} {state}' for state, number in counts.items())}. All of it: {report}")
    return int(counts[DIFFERENT] > 0)
