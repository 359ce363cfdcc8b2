"""What each element of the recipe is worth: trainings of one budget that differ in one element.

    python -m experiments.ablation --data PATH --out DIR [--clusters 10] [--epochs 18] [--rows full plain ...]

All rows share one autoencoder (DIR/autoencoder, trained first where it is not there), the k-means clusters of its
latents and the size of the UNet, and train for the same number of steps, so that they spend equal multiply-adds in the
UNet. From each, one tile is drawn for the cluster of each test tile. A row that is done is not done again, and a
training that was stopped goes on: give the same command again. Writes DIR/NAME.json and a sheet DIR/NAME.jpg for each
row, and ablation.md with all rows that are done.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.measure import device_name
from pfiles import draw, learn
from pfiles.errors import InputError
from pfiles.latents import encode_tiles, predict_clusters, reconstruct
from pfiles.learning.log import History
from pfiles.machine.runtime import make_rng, versions
from pfiles.measuring import fidelity, memorisation, spectrum, structure, two_sample, usefulness
from pfiles.measuring.features import make_extractor
from pfiles.paths import read_json, write_json, write_text
from pfiles.reporting import figures
from pfiles.reporting.sections import distribution
from pfiles.run import Run, open_run
from pfiles.tiles.dataset import EMBEDDED
from pfiles.tiles.pixels import to_uint8

SIZE = {  # tiles and networks that two CPU cores can train, and the recipe of 2026-11-26, of 4 x 4 px for a latent
    "image_size_px": 64,
    "precision": "fp32",
    "autoencoder.vqvae": {"down_channels": [24, 48, 96], "codebook_size": 256, "num_heads": 4, "norm_channels": 8},
    "autoencoder.perceptual": "ms-ssim",
    "autoencoder.perceptual_weight": 0.2,
    "autoencoder.learning_rate": 1e-3,
    "autoencoder.adam_betas": [0.9, 0.99],
    "autoencoder.batch_size": 8,
    "autoencoder.epochs": 4,
    "autoencoder.adversarial_weight": 0.0,
    "autoencoder.discriminator_start_step": 10**9,
    "autoencoder.colour_weight": 0.0,
    "autoencoder.polish.discriminator_sees": "pixels",
    "autoencoder.polish.epochs": 5,
    "autoencoder.polish.batch_size": 8,
    "diffusion.shared_scale": False,
    "diffusion.times": "uniform",
    "diffusion.unet": {"down_channels": [64, 64, 64], "t_emb_dim": 64, "num_layers": 1, "num_heads": 4,
                       "norm_channels": 8, "conv_out_channels": 64},
    "clusters_first": True,
    "training.decay": "cosine",
    "training.warmup_steps": 100,
    "training.learning_rate": 1e-3,
    "training.ema_decay": 0.999,
    "training.clip_norm": 1.0,
    "diffusion.latent_views": True,
    "sampling.guide": "itself",
}  # fmt: skip
WITHOUT = {  # each element of the recipe, and the settings without it
    "v": {"diffusion.prediction": "noise"},
    "scaled latents": {"diffusion.latent_scaling": False},
    "views": {"diffusion.latent_views": False},
    "cosine": {"training.decay": "constant", "training.warmup_steps": 0},
    "average": {"training.ema_decay": 0.0},
    "clipping": {"training.clip_norm": None},
    "guidance": {"sampling.guidance": 1.0, "diffusion.condition_dropout": 0.0},
}
PLAIN = {name: value for element in WITHOUT.values() for name, value in element.items()}
ROWS = {
    "full": {},
    "full, seed 2": {},
    "plain": PLAIN,
    "plain, seed 2": PLAIN,
    "published": PLAIN | {"training.optimizer": "adadelta", "training.learning_rate": 0.003},
    **{f"full without {element}": change for element, change in WITHOUT.items()},
    **{
        f"plain with {element}": {name: value for name, value in PLAIN.items() if name not in change}
        for element, change in WITHOUT.items()
    },
    "kept": WITHOUT["views"] | WITHOUT["average"] | WITHOUT["clipping"],  # what recommended has today
    "full, DDPM 50": {"sampling.sampler": "ddpm", "sampling.steps": 50},
    "full, guidance 1": {"sampling.guidance": 1.0},
    "full, guidance 2": {"sampling.guidance": 2.0},
}
DRAWN_ONLY = {"full, DDPM 50": "full", "full, guidance 1": "full", "full, guidance 2": "full"}  # trained as that row


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    base = SIZE | {"training.epochs": args.epochs} | args.settings
    first = _open(args, "autoencoder", base)
    if not first.paths.autoencoder.exists():
        learn.autoencoder(first, *learn.new_autoencoder(first))
    first.view_codes  # noqa: B018 - encoded once for all rows
    for name in args.rows:
        if not (args.out / f"{name}.json").exists():
            _do(args, name, base)
    table = as_table([read_json(args.out / f"{name}.json") for name in ROWS if (args.out / f"{name}.json").exists()])
    print(table)
    write_text(args.out / "ablation.md", table)


def _open(args: argparse.Namespace, folder: str, settings: dict[str, Any], seed: int = 765) -> Run:
    data = absolute(args.data)
    out = str((args.out / folder).absolute())
    return open_run("ablation", args.clusters, "kmeans", data, "recommended", settings, seed, out)


def absolute(data: str) -> str:
    """The path of tiles, wherever notebooks run; names of embedded ones stay."""
    return data if data in EMBEDDED else str(Path(data).absolute())


def _do(args: argparse.Namespace, name: str, base: dict[str, Any]) -> None:
    """Train and measure a row."""
    run = _open(args, DRAWN_ONLY.get(name, name), base | ROWS[name], 766 if name.endswith("seed 2") else 765)
    shutil.copytree(args.out / "autoencoder" / "kpc_ldm", run.paths.autoencoder.parent, dirs_exist_ok=True)
    begun = run.paths.training_folder("training", "kmeans").exists()
    networks, began = learn.new_networks(run), time.process_time()
    history = learn.unet(run, "training", networks)
    seconds = None if begun else round(time.process_time() - began)  # of the whole training, if this process did it
    write_row(run, args, name, history, seconds, base | ROWS[name], floors=name == "full")


def write_row(
    run: Run,
    args: argparse.Namespace,
    name: str,
    history: History,
    seconds: int | None,
    settings: dict[str, Any],
    floors: bool,
) -> None:
    """Measure what a run drew after its first training, in `args.features`; its JSON and its sheet go to `args.out`."""
    draw_tiles = partial(draw.tiles, run, stage="training")
    sheet, values = measure(run, args.features, draw_tiles, "training", blurs_px=(0.0,), floors=floors)
    about = {"row": name, "date": date.today().isoformat(), "device": device_name(run.device.type), **versions()}
    trained = {"epochs": len(history), "training_cpu_seconds": seconds, "mse": history[-1]["mse"]}
    figures.save_figure(sheet, args.out / f"{name}.jpg")
    write_json(args.out / f"{name}.json", {**about, **trained, "settings": settings, "values": values})


def measure(
    run: Run,
    features: list[str],
    draw: Callable[..., Tensor],
    stage: str = "finetuning2",
    number: int = 500,
    blurs_px: tuple[float, ...] = (0.0, 1.0),
    floors: bool = True,
    shown: int = 8,
) -> tuple[Figure, dict[str, float | None]]:
    """A sheet of tiles by cluster, and what the measures say of tiles generated for the clusters of the test tiles.

    floors: whether to say also what training tiles and reconstructions reach, which no UNet changes. shown: the tiles
        of each cluster on the sheet.
    """
    test = run.test_images[:number].cpu()
    clusters, _ = run.assign(test, stage)
    train_clusters, _ = run.assign(stage=stage)
    began = time.process_time()
    generated = draw(clusters)
    values = {"seconds per tile": (time.process_time() - began) / len(generated)}
    rebuilt = reconstructed(run, test)
    train, seed, device = run.train_images.cpu(), run.seed, run.device
    for kind in features:
        extractor = make_extractor(kind, run.vqvae, device)
        of_test, of_generated = extractor(test), extractor(generated)
        distances = distribution.distances(extractor, of_test, of_generated, seed)
        values |= {f"{kind}: {column}": value for column, value in distances.items() if column != "images"}
        if not floors:
            continue
        floor = train[torch.randperm(len(train), generator=make_rng(seed, "floor"))[: len(test)]]
        of_floor = distribution.distances(extractor, of_test, extractor(floor), seed)
        values[f"{kind}: floor, training tiles"] = of_floor[extractor.frechet]
        values[f"{kind}: floor, {distribution.LINEAR_PROBE}"] = of_floor[distribution.LINEAR_PROBE]
        of_rebuilt = extractor(rebuilt)
        of_rebuilt_tiles = distribution.distances(extractor, of_test, of_rebuilt, seed)
        values[f"{kind}: floor, reconstructions"] = of_rebuilt_tiles[extractor.frechet]
        from_rebuilt = two_sample.linear_probe_accuracy(of_rebuilt, of_generated)
        values[f"{kind}: {distribution.LINEAR_PROBE} from reconstructed"] = from_rebuilt
    read, _ = run.assign(generated, stage)
    judge, _ = fidelity.train_judge(run.vqvae, run.codes, train_clusters, run.n_clusters, seed)
    by_judge, _ = predict_clusters(run.vqvae, judge, encode_tiles(run.vqvae, generated.to(device)))
    values |= {"as asked": (read == clusters).float().mean().item()}
    values |= {"as asked, second judge": (by_judge == clusters).float().mean().item()}
    use = usefulness.cas(generated, clusters, train, train_clusters, test, clusters, run.n_clusters, seed, device)
    values["CAS, of real"] = use.of_real
    for name, pair in {"from real": (generated, train), "from reconstructed": (generated, rebuilt)}.items():
        for px in blurs_px:
            values[f"told {name}, blur {px:g}"] = two_sample.two_sample_test(*pair, seed, device, px).accuracy
    values |= reach_of_structure(test, generated, rebuilt, clusters, seed, lambda tiles: reconstructed(run, tiles))
    bands, lines = spectrum.compare(test, {"drawn": generated, "rebuilt": rebuilt})
    values |= {f"power {band}": ratio for band, ratio in bands["drawn"].items()}
    values |= {f"grid {place}": value for place, value in lines.loc["drawn"].items()}
    nearest, held_out = (memorisation.nearest_tiles(tiles, train) for tiles in (generated, test))
    values["closer"] = memorisation.against_held_out(nearest.distance, held_out.distance)["closer"]
    scores = {name: None if value is None else float(value) for name, value in values.items()}
    return sheet_of(run, test, generated, clusters, shown), scores


def sheet_of(run: Run, test: Tensor, generated: Tensor, clusters: Tensor, shown: int = 8) -> Figure:
    """The first test and generated tiles of each cluster, side by side."""
    k = run.n_clusters
    real, drawn = ([tiles[clusters == cluster][:shown] for cluster in range(k)] for tiles in (test, generated))
    return figures.cluster_sheet(real, drawn, ("Real test tiles", "Generated tiles"))


def reconstructed(run: Run, tiles: Tensor) -> Tensor:
    """uint8 tiles (N, 3, S, S) as the run's autoencoder reconstructs them, on the CPU."""
    return to_uint8(reconstruct(run.vqvae, tiles.to(run.device))).cpu()


def reach_of_structure(
    test: Tensor,
    generated: Tensor,
    rebuilt: Tensor,
    clusters: Tensor,
    seed: int,
    through: Callable[[Tensor], Tensor] | None = None,
    keep: Callable[[Callable[[], Tensor]], Tensor] = lambda measure: measure(),
) -> dict[str, float | None]:
    """How far drawn and reconstructed tiles are built, held against shuffled test tiles; None where that is unknown.

    through: the autoencoder that decoded the drawn tiles; reconstructed ones are held against shuffled tiles as they
        are. keep: of what went through it. Both as in `structure.make_ladder`.
    """
    names = ["reach", "reach, low", "reach, high", "structure", "reach, reconstructed"]
    cluster_ids = clusters.cpu().numpy()
    try:
        raw = structure.make_ladder(test, seed, cluster_ids)
        decoded = structure.make_ladder(test, seed, cluster_ids, through, keep)
        reach, rebuilt_reach = (
            structure.reaches(ladder, tiles, seed, cluster_ids).loc["all"]
            for ladder, tiles in ((decoded, generated), (raw, rebuilt))
        )
    except InputError:
        return dict.fromkeys(names)
    values = (reach.reach, reach.low, reach.high, reach.share, rebuilt_reach.reach)
    return dict(zip(names, map(float, values), strict=True))


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows that are done as Markdown; all that was measured stands in their JSON."""
    kinds = dict.fromkeys(name.partition(": ")[0] for name in rows[0]["values"] if ": Frechet" in name)
    columns = {
        "CPU s": ("training_cpu_seconds", "{:.0f}"),
        **{f"Frechet, {kind}": (f"{kind}: Frechet", "{:.4f}") for kind in kinds},
        **{f"kernel, {kind}": (f"{kind}: kernel", "{:.5f}") for kind in kinds},
        **{f"{of}, {kind}": (f"{kind}: {of}", "{:.2f}") for kind in kinds for of in ("precision", "recall")},
        "as asked": ("as asked", "{:.0%}"),
        "second judge": ("as asked, second judge", "{:.0%}"),
        "CAS": ("CAS, of real", "{:.0%}"),
        "reach, px": ("reach", "{:.1f}"),
        "told from real": ("told from real, blur 0", "{:.0%}"),
        "told from reconstructed": ("told from reconstructed, blur 0", "{:.0%}"),
        "closer": ("closer", "{:.1%}"),
    }
    lines = [f"| row | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        values = row["values"] | {"training_cpu_seconds": row["training_cpu_seconds"]}
        lines.append(f"| {row['row']} | {' | '.join(as_cells(values, columns))} |")
    return "\n".join(lines) + "\n"


def as_cells(values: Mapping[str, float | None], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """The cells of a row. columns: by title, a value's name, or how it begins, and its form; empty where it lacks."""
    cells = []
    for beginning, form in columns.values():
        value = values.get(beginning, next((v for name, v in values.items() if name.startswith(beginning)), None))
        cells.append("" if value is None else form.format(value))
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.ablation")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=18, help="of every row; 18 of 5,000 tiles are 5,616 steps")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--features", nargs="+", default=["random", "autoencoder", "imagenet"])
    parser.add_argument("--set", type=json.loads, default={}, dest="settings", help="settings of all rows, as JSON")
    return parser


if __name__ == "__main__":
    main()
