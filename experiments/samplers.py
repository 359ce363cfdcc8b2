"""What fast samplers cost in quality: one trained UNet, the same noise, several ways to the image.

    python -m experiments.samplers --run DIR --data PATH --clusters 10 [--preset demo] [--settings JSON]
        [--images 500] [--out FILE]

DIR is the folder of a finished run (`python -m pfiles run --out DIR`). For every sampler: the Frechet distance between
its images and the test tiles in the autoencoder's feature space, and the seconds an image took. The images take the
test tiles' clusters. Two rows without a sampler say what the numbers can be: training tiles, and the test tiles'
own reconstructions, which is all that the decoder could show at best.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from benchmarks.measure import device_name
from experiments.ablation import absolute
from pfiles.errors import InputError
from pfiles.latents import encode_tiles, predict_clusters, reconstruct
from pfiles.machine.runtime import versions
from pfiles.measuring.distribution import frechet_distance
from pfiles.measuring.features import make_extractor
from pfiles.paths import write_json
from pfiles.reporting import figures
from pfiles.run import open_run
from pfiles.tiles.pixels import evenly_spaced, to_uint8

WAYS = (("dpm-solver++", 20), ("ddim", 50), ("ddpm", 50), ("ddpm", 1000))
SHOWN = 20  # images of each sampler in the picture


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        return compare(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(args: argparse.Namespace) -> int:
    data, folder = absolute(args.data), str(args.run.absolute())
    run = open_run("samplers", args.clusters, args.clustering, data, args.preset, args.settings, 0, folder)
    networks = run.networks()
    tiles, device = run.tiles, run.device
    extract = make_extractor("autoencoder", run.vqvae, device)
    test = tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), args.images)], device)
    real = extract(test)
    cluster_ids, _ = predict_clusters(run.vqvae, networks.bank, encode_tiles(run.vqvae, test))
    rows, examples = [], {}

    def add(name: str, images: torch.Tensor, seconds: float | None) -> None:
        distance = frechet_distance(extract(images), real)
        rows.append({"images": name, "frechet_distance": distance, "seconds_per_image": seconds})
        print(f"{name:<34} {distance:18.4f} {'' if seconds is None else f'{seconds:20.4f}'}", flush=True)
        examples[name] = images[:SHOWN].cpu()

    print(f"\n{len(test)} images on {device_name(device.type)}, {torch.get_num_threads()} threads")
    print(f"{'images':<34} {'Frechet distance':>18} {'seconds per image':>20}")
    selection = tiles.train[evenly_spaced(len(tiles.train), len(test))]
    add("training tiles", tiles.tensor(selection, device), None)
    add("test tiles, reconstructed", to_uint8(reconstruct(run.vqvae, test)), None)
    for sampler, steps in WAYS:
        began = time.perf_counter()
        sampling = replace(run.settings.sampling, sampler=sampler, steps=steps, guidance=1.0)
        images = replace(networks, settings=replace(run.settings, sampling=sampling)).draw(cluster_ids, seed=0)
        add(f"{sampler}, {steps} steps", images, (time.perf_counter() - began) / len(test))

    if args.out is not None:
        about = {"device": device_name(device.type), "date": date.today().isoformat(), "versions": versions()}
        write_json(args.out, {**about, "images": len(test), "data": tiles.source, "rows": rows})
        figure = figures.show_tiles(torch.cat(list(examples.values())), SHOWN, title=", ".join(examples))
        figures.save_figure(figure, args.out.with_suffix(".jpg"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.samplers", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--data", required=True, help="the tiles of that run")
    parser.add_argument("--preset", default="demo", help="of that run; default demo")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="changed ones of that run")
    parser.add_argument("--clusters", type=int, default=14, help="of that run; default 14")
    parser.add_argument("--clustering", default="classifier", help="of that run; default classifier")
    parser.add_argument("--images", type=int, default=500, help="of each sampler; default 500")
    parser.add_argument("--out", type=Path, help="JSON file to write, with a picture beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
