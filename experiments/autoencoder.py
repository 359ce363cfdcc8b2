"""What each element of the autoencoder's recipe brings back: trainings that differ in one element.

    python -m experiments.autoencoder --data PATH --out DIR [--tiles 1000] [--rows all ...]

Autoencoder and sizes are those of the preset "demo" as it was on 2026-11-26. What they make of test tiles is held
against these. A row that is done is not done again, and a training that was stopped goes on: give the same command
again. Writes DIR/NAME.json and a picture DIR/NAME.jpg for each row, and autoencoder.md with all rows that are done.
"""

import argparse
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import device_name
from experiments.ablation import absolute
from pfiles import learn
from pfiles.latents import encode_tiles, reconstruct
from pfiles.machine.runtime import versions
from pfiles.measuring import spectrum, two_sample
from pfiles.measuring.features import make_extractor
from pfiles.paths import read_json, write_json, write_text
from pfiles.reporting import figures
from pfiles.run import open_run
from pfiles.tiles.pixels import evenly_spaced, to_uint8

BASE: dict[str, Any] = {
    "autoencoder.vqvae": {"down_channels": [16, 32, 64], "codebook_size": 256, "num_heads": 4, "norm_channels": 8},
    "autoencoder.epochs": 8, "autoencoder.perceptual": "ms-ssim", "autoencoder.colour_weight": 0.0,
    "autoencoder.polish.epochs": 5, "autoencoder.polish.discriminator_sees": "pixels",
    "autoencoder.polish.discriminator": {"conv_channels": [16, 32, 64]},
    "autoencoder.polish.adversarial_weight": 0.05,
}  # fmt: skip
PHOTOGRAPHS = {  # loss and discriminator see what a network sees that learnt from photographs
    "autoencoder.perceptual": "photographs", "autoencoder.polish.discriminator_sees": "photographs",
    "autoencoder.polish.discriminator": {"channels": 64}, "autoencoder.polish.adversarial_weight": 0.1,
}  # fmt: skip
HALVED_AGAIN = {  # a latent vector stands for 8 x 8 px instead of 4 x 4
    "autoencoder.vqvae": {
        "down_channels": [16, 32, 64, 96], "z_channels": 8, "codebook_size": 512, "num_heads": 4, "norm_channels": 8,
    },
}  # fmt: skip
ROWS = {
    "all": {},
    "longer instead of polished": {"autoencoder.epochs": 12, "autoencoder.polish.epochs": 0},
    "polished without adversary": {"autoencoder.polish.adversarial_weight": 0.0},
    "adversary from the start, no polish": {
        "autoencoder.epochs": 12, "autoencoder.polish.epochs": 0, "autoencoder.adversarial_weight": 0.05,
        "autoencoder.discriminator_start_step": 200,
    },
    "transposed convolutions": {"autoencoder.upsampling": "transposed"},
    "without MS-SSIM": {"autoencoder.perceptual_weight": 0.0, "autoencoder.polish.perceptual_weight": 0.0},
    "squared error": {"autoencoder.reconstruction": "mse"},
    "dead codes stay dead": {"autoencoder.revive_dead_codes": False},
    "without views": {"autoencoder.dihedral_views": False},
    "photographs": PHOTOGRAPHS,
    "halved three times": HALVED_AGAIN,
    "halved three times, photographs": PHOTOGRAPHS | HALVED_AGAIN,
}  # fmt: skip
TEST, SHOWN = 500, 20  # test tiles at most, and how many of them a picture shows
COLUMNS = {
    "CPU s": "{:.0f}",
    "PSNR, dB": "{:.2f}",
    "told from real": "{:.0%}",
    "told apart, random features": "{:.0%}",
    "power 0.20 to 0.25": "{:.2f}",
    "power 0.30 to 0.35": "{:.2f}",
    "power 0.40 to 0.45": "{:.2f}",
    "grid a quarter": "{:.2f}",
    "grid a half": "{:.2f}",
    "codes used": "{:.0f}",
}


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    for name in args.rows:
        if not (args.out / f"{name}.json").exists():
            _do(args, name)
    done = [read_json(args.out / f"{name}.json") for name in ROWS if (args.out / f"{name}.json").exists()]
    table = as_table(done)
    print(table)
    write_text(args.out / "autoencoder.md", table)


def _do(args: argparse.Namespace, name: str) -> None:
    """Train and measure a row."""
    settings = BASE | {"max_train_tiles": args.tiles} | ROWS[name]
    out = str((args.out / name).absolute())
    run = open_run("autoencoder", data=absolute(args.data), preset="demo", overrides=settings, out=out)
    begun, began = run.paths.training_folder("autoencoder").exists(), time.process_time()
    learn.autoencoder(run, *learn.new_autoencoder(run))
    values = {"CPU s": None if begun else time.process_time() - began}  # of the whole, if this process did it
    test = run.tiles.tensor(run.tiles.test)[evenly_spaced(len(run.tiles.test), TEST)]
    rebuilt = to_uint8(reconstruct(run.vqvae, test.to(run.device))).cpu()
    values |= measure(test, rebuilt, run.seed, run.device)
    values["codes used"] = len(encode_tiles(run.vqvae, test.to(run.device)).unique())
    examples = evenly_spaced(len(test), SHOWN)
    pairs = torch.stack([test[examples], rebuilt[examples]], 1).flatten(0, 1)
    figures.save_figure(figures.show_tiles(pairs, title=f"{name}: test tiles, each before what becomes of it"),
                        args.out / f"{name}.jpg")  # fmt: skip
    about = {"row": name, "date": date.today().isoformat(), "device": device_name(run.device.type), **versions()}
    write_json(args.out / f"{name}.json", {**about, "settings": settings, "values": values})


def measure(test: Tensor, rebuilt: Tensor, seed: int, device: torch.device | str) -> dict[str, float | None]:
    """What was lost between tiles and reconstructions, both uint8 (N, 3, S, S)."""
    error = (test.double() - rebuilt.double()).square().mean((1, 2, 3)).clamp_min(1e-9)
    bands, lines = spectrum.compare(test, {"rebuilt": rebuilt})
    features = make_extractor("random", None, device)
    return {
        "PSNR, dB": float((10 * (255**2 / error).log10()).mean()),
        "told from real": two_sample.two_sample_test(rebuilt, test, seed, device).accuracy,
        "told apart, random features": two_sample.linear_probe_accuracy(features(test), features(rebuilt)),
        **{f"power {band}": float(ratio) for band, ratio in bands["rebuilt"].items()},
        **{f"grid {place}": float(value) for place, value in lines.loc["rebuilt"].items()},
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows that are done as Markdown; all that was measured stands in their JSON."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = ["" if (value := row["values"][name]) is None else form.format(value) for name, form in COLUMNS.items()]
        lines.append(f"| {row['row']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.autoencoder", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="tiles, or 'embedded'")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiles", type=int, default=1000, help="that are learnt from; default 1000")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    return parser


if __name__ == "__main__":
    main()
