"""Do a reader study's intervals hold what they promise? Simulated readers of known skill judge simulated tiles.

    python -m experiments.reader_study [--studies 500] [--readers 4] [--tiles 60] [--seed 765] [--out DIR]

A reader sees a generated tile as more like a made one by `skill` standard deviations, plus chance, of which 30 % is the
tile's own and the same for all readers; six steps from "sure: real" to "sure: made" divide the scale evenly around the
middle. Readers' skills are drawn from a Gaussian. So the true sensitivity, specificity and area under the curve of each
reader are known, and their means over all readers. Each row says in which share of all intervals, which should be
95 %, the truth lay. Writes DIR/reader_study.json and DIR/reader_study.md.
"""

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.measure import device_name
from pfiles.machine.runtime import derive_seed, versions
from pfiles.paths import write_json, write_text
from pfiles.study import results
from pfiles.study.results import Ratings

SKILLS = ((0.0, 0.0), (0.5, 0.3), (1.0, 0.3), (1.0, 0.6), (2.0, 0.4))  # mean and deviation
OF_TILE = 0.3  # of the variance
STEPS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # around the middle between real and generated
CERTAINTIES = np.array([-3, -2, -1, 1, 2, 3])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.reader_study", description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=500, help="of each row; default 500")
    parser.add_argument("--readers", type=int, default=4, help="of each study; default 4")
    parser.add_argument("--tiles", type=int, default=60, help="half of them real; default 60")
    parser.add_argument("--seed", type=int, default=765, help="of all chance; default 765")
    parser.add_argument("--out", type=Path, default=Path("reader_study"), help="folder; default reader_study")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Simulate, print the table, write the files."""
    args = _parser().parse_args(arguments)
    began = time.process_time()
    rows = {
        f"{skill:g} +- {deviation:g}": coverage(skill, deviation, args.studies, args.readers, args.tiles, args.seed)
        for skill, deviation in SKILLS
    }
    report = {
        "studies": args.studies, "readers": args.readers, "tiles": args.tiles, "seed": args.seed, "coverage": rows,
        "cpu_seconds": round(time.process_time() - began, 1), "device": device_name("cpu"),
        "date": date.today().isoformat(), **versions(),
    }  # fmt: skip
    table = as_markdown(rows)
    print(table)
    write_json(args.out / "reader_study.json", report)
    write_text(args.out / "reader_study.md", table)
    return 0


def coverage(skill: float, deviation: float, studies: int, readers: int, tiles: int, seed: int) -> dict[str, Any]:
    """The share of intervals that hold the truth, by measure: of one reader, and of all together."""
    rng = np.random.default_rng(derive_seed(seed, "simulated readers", repr((skill, deviation))))
    steps = skill / 2 + STEPS
    everyone = skill + deviation * stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    of_all = {name: values.mean() for name, values in truth(everyone, steps).items()}
    hits: dict[str, list[bool]] = {}
    for _ in range(studies):
        skills = skill + deviation * rng.standard_normal(readers)
        ratings = simulated(skills, steps, tiles, rng)
        of_each = truth(skills, steps)
        for name, measure in results.measures("real", ratings).items():
            for value, interval in zip(of_each[name], measure.each, strict=True):
                hits.setdefault(f"{name}, one reader", []).append(interval.low <= value <= interval.high)
            interval = measure.together
            hits.setdefault(f"{name}, together", []).append(interval.low <= of_all[name] <= interval.high)
    return {name: float(np.mean(held)) for name, held in hits.items()}


def truth(skills: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of readers of these skills (r,) over all tiles there could be."""
    generated, real = (
        np.diff(stats.norm.cdf(steps - mean[:, None]), prepend=0, append=1) for mean in (skills, 0 * skills)
    )
    below = real.cumsum(1) - real / 2
    return {
        "sensitivity": generated[:, 3:].sum(1),
        "specificity": real[:, :3].sum(1),
        "AUC": (generated * below).sum(1),
    }


def simulated(skills: np.ndarray, steps: np.ndarray, tiles: int, rng: np.random.Generator) -> Ratings:
    """What readers of these skills (r,) say of tiles that are drawn anew."""
    r = len(skills)
    is_generated = np.arange(tiles) < tiles // 2
    chance = np.sqrt(OF_TILE) * rng.standard_normal(tiles) + np.sqrt(1 - OF_TILE) * rng.standard_normal((r, tiles))
    certainty = CERTAINTIES[np.digitize(chance + skills[:, None] * is_generated, steps)]
    answers = np.where(certainty > 0, "generated", "real")
    place = np.broadcast_to(np.arange(tiles) / tiles, (r, tiles))
    is_right = (certainty > 0) == is_generated
    return Ratings(np.arange(1, r + 1), is_generated, np.ones(tiles, int), answers, certainty, is_right, place)


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    """A row for each skill, a column for each interval."""
    columns = list(next(iter(rows.values())))
    lines = [f"| skill | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[c]:.1%}' for c in columns)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
