"""Arguments that several commands take."""

import argparse

from pfiles.settings import PRESETS

CLUSTERING_NAMES = "classifier or kmeans"
SEVERAL_K = "number of clusters, or several such as 10-16"


def add_generator(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        default="starter",
        metavar="FOLDER",
        dest="folder",
        help="folder of a generator or of a run; default starter",
    )


def add_tiles_and_preset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        help="tiles: .npy, folder, .zip or 'embedded'; default: the data of run.toml, else $KPC_DATA, else embedded",
    )
    command.add_argument("--preset", help=f"{', '.join(PRESETS)}; default recommended")


def add_k(command: argparse.ArgumentParser, default: str | None = None) -> None:
    command.add_argument("--clusters", default=default, metavar="K", help=f"{SEVERAL_K}; default {default or 14}")


def add_clustering(command: argparse.ArgumentParser) -> None:
    command.add_argument("--clustering", help=f"{CLUSTERING_NAMES}; default: the preset's")


def add_out_and_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", help="folder for all results; default: this repository's own folders")
    command.add_argument(
        "--seed", type=int, help="seed of all random numbers; default: that of run.toml, else each notebook's own"
    )


def add_seeds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seeds", type=int, default=3, help="how often choose_k learns each clustering; default 3")


def add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
        help="change a setting, such as training.epochs=2; may be repeated",
    )  # fmt: skip


def add_restart(command: argparse.ArgumentParser) -> None:
    command.add_argument("--restart", action="store_true", help="begin all trainings anew instead of going on")


def add_on_request(command: argparse.ArgumentParser) -> None:
    command.add_argument("--fields", action="store_true", help="also draw the fields and variations of part 17")
    command.add_argument("--reader-study", action="store_true", help="also make the pages of part 18 for readers")


def add_started_with(command: argparse.ArgumentParser) -> None:
    """The options that a run was started with, if its summary.json lacks them, as after a run in notebooks."""
    for name in ("data", "preset", "clustering"):
        command.add_argument(f"--{name}", help=f"{name} of the run, if its summary.json does not name it")
    command.add_argument(
        "--clusters", type=int, metavar="K", help="k of the run, likewise; or one k, if it has several"
    )
    command.add_argument(
        "--set", action="append", metavar="NAME=VALUE", dest="overrides", help="a setting of the run, likewise"
    )


def add_exhaustive(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--exhaustive", action="store_true",
        help="search longer: compare 120 candidates from every 8,192 training tiles, not 120 from all of them",
    )  # fmt: skip


def add_reading(command: argparse.ArgumentParser) -> None:
    """How the slides of a command are read."""
    command.add_argument("--mpp-of-slide", type=float, help="microns per pixel of the slides; overrides their files")
    command.add_argument(
        "--slides-csv", metavar="FILE", help="table with columns slide, and patient, label or mpp (of that slide)"
    )
    command.add_argument(
        "--page",
        type=_page,
        default=1,
        metavar="N",
        help="which image to read from a file with several, or all; default 1",
    )
    command.add_argument("--icc", action="store_true", help="convert colours to sRGB by the slide's ICC profile")
    command.add_argument("--allow-missing", action="store_true", help="exit with status 0 even if slides were left out")


def add_tissue(command: argparse.ArgumentParser) -> None:
    """Which part of its slides is tissue."""
    command.add_argument(
        "--min-tissue", type=float, default=0.5, help="smallest share of tissue in a tile; default 0.5"
    )
    command.add_argument(
        "--pens", type=_on_or_off, default=True, metavar="on|off", help="leave out marks of pens; default on"
    )
    command.add_argument(
        "--tissue-threshold", type=float, metavar="LEVELS",
        help="levels of colour above the glass from which a pixel is tissue; default 5 to 12, by the slide",
    )  # fmt: skip


def _page(text: str) -> int | None:
    if text != "all" and not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number or all, but is {text!r}")
    return None if text == "all" else int(text)


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"must be on or off, but is {text!r}")
    return text == "on"


def part(text: str) -> tuple[int, int]:
    numbers = text.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"must be I/N, such as 3/10, but is {text!r}")
    number, count = map(int, numbers)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"must be from 1/{count} to {count}/{count}, but is {text!r}")
    return number, count
