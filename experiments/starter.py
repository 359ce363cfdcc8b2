"""The small generator that comes with the project, from a finished run: its weights, its card and its measured worth.

    python -m experiments.starter --run DIR --data PATH --settings FILE.json [--clusters 10] [--clustering kmeans]
        [--out weights/starter]

DIR is the folder of a run with preset "recommended" and the settings of FILE.json, which are shipped as well. Half
precision. What is measured is what the shipped weights draw, 500 tiles for the clusters of 500 test tiles, as in
`experiments.ablation`; and, where the tiles have labels, of what use 1,000 of its tiles are to a classifier of these.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.measure import device_name
from experiments import ablation
from pfiles import acceptance, draw, report
from pfiles.drawing.generator import STARTER, Generator
from pfiles.measuring import quality, structure
from pfiles.measuring.smoothness import smoothness_of_codes
from pfiles.measuring.usefulness import BOTH, GENERATED, REAL
from pfiles.paths import atomic_write, write_json, write_text
from pfiles.reporting import figures
from pfiles.reporting.sections import usefulness
from pfiles.reporting.sections.distribution import LINEAR_PROBE
from pfiles.run import Run, open_run

CARD = """# The starter generator

Draws H&E tiles of lung, {side} px, from any of {k} clusters that were found without labels.

    python -m pfiles draw --from starter --cluster 3 --number 64 --out drawn

![Real test tiles beside generated ones](sheet.jpg)

*Each row is a cluster: left real test tiles, right generated ones, the first of each, not picked.*

| | |
|---|---|
| Training data | {train} tiles of LC25000, lung (Borkowski et al. 2019, [arXiv 1912.12142](https://arxiv.org/abs/1912.12142)): adenocarcinoma, squamous cell carcinoma and normal tissue, without their labels. Its authors release the images to be used by AI researchers in any way they see fit. No tile of it is in this folder but those of the picture. |
| Test data | {test} tiles of other source images |
| Scale | the authors of the data state none, so `mpp` in `config.json` is empty; red blood cells are about {cell_px:.0f} px wide here, which makes a pixel {finest:g} to {coarsest:g} um |
| Networks | VQ-GAN with {codes} codes, UNet with {parameters:.1f} million parameters{folded}, {clustering} clusters; half precision, {size:.1f} MB |
| Training | preset `recommended` with the settings in `settings.json`: {epochs}. The UNet saw {seen:.2f} million tiles, each in one of its eight views. `python -m pfiles run --data lung_he_5500.zip --clusters {k}`, with each of them after `--set`, trains it again. |
| Latents | averaged over 2 x 2, 4 x 4, 8 x 8 places they keep {kept} of their variance; effective rank {rank:.1f} |
| Drawing | {sampler}, {steps} steps, guidance {guidance}{guide} |
| Measured | {day}, {device}: `python -m experiments.starter --run DIR --data lung_he_5500.zip --settings weights/starter/settings.json`; all numbers in `measured.json` |
| Intended use | trying the project out, teaching, a start for trainings on other tissue |
| Not for | diagnosis, training of anything that decides about patients, or as a stand-in for real tissue in a study |
| Licence | MIT, as the project |

## What was measured

{number} generated tiles, one for the cluster of each test tile. Floors say what real tiles reach.

| measure | generated | floor |
|---|---|---|
| Frechet distance to test tiles, autoencoder features | {frechet:.3f} | training tiles {frechet_train:.3f}, reconstructed test tiles {frechet_rebuilt:.3f} |
| Frechet distance, random convolutions | {random:.4f} | training tiles {random_train:.4f}, reconstructed {random_rebuilt:.4f} |
| Frechet distance, features of an EfficientNet-Lite1 trained on photographs | {photos:.0f} | training tiles {photos_train:.0f}, reconstructed {photos_rebuilt:.0f} |
| built like tissue: as real tiles shuffled in blocks of, decoded alike | {reach} | test tiles beyond {half} px, reconstructed {reach_rebuilt} |
| sorted into the cluster asked for, by the clusters / by a second judge | {asked:.0%} / {second:.0%} | chance {chance:.0%} |
| use to a classifier (CAS), share of what real tiles are worth | {cas:.0%} | 100 % |
| told from real tiles by a small network / behind a blur of 1 px | {told} / {told_1} | 50 % |
| told from reconstructed tiles / behind a blur of 1 px | {told_r} / {told_r1} | 50 % |
| told from real tiles by a linear classifier of features: random / autoencoder / photographs | {linear} | training from test tiles {linear_floor} |
| told from reconstructed tiles by the same | {linear_r} | 50 % |
| tissue sorted rightly by a network that learnt from generated tiles, from real ones, from both ({labels}) | {by_label} | chance {label_chance:.0%} |
| power against real tiles, bands of 0.05 cycles per pixel from 0 on | {power} | 1 |
| closer to a training tile than the closest 1 % of test tiles | {closer:.1%} | 1 % |

**Who judges.** The perceptual loss and the discriminator of the polish saw tiles through an EfficientNet-Lite0. The
judge, a Lite1, was trained by itself, but on the same photographs: what it says is kinder than another network might be.

**What an eye still sees.** Walls enclose air spaces, nests and strands of cells have borders, nuclei differ in size and
chromatin, and red blood cells lie between walls. But tiles of one cluster are more alike than real ones; some nuclei are
ghosts or touch each other; red blood cells run together in places; and no gland or vessel is larger than a tile.
"""  # noqa: E501 - rows of a table
KINDS = ("random", "autoencoder", "imagenet-deeper")
PHOTOGRAPHS = "imagenet-deeper: Frechet distance (deeper ImageNet features)"
BY_LABEL = "tissue sorted rightly, learnt from "
RED_CELL_PX = 8  # how wide red blood cells are in tiles of LC25000 averaged to 128 px
SHOWN, DPI = 5, 210  # tiles of each cluster on the sheet, as large as they are at 128 px
LABELLED = 1000  # tiles drawn for a classifier of the labels


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    settings = json.loads(args.settings.read_text())
    run = open_run(
        "starter", args.clusters, args.clustering, str(args.data.absolute()), "recommended", settings,
        out=str(args.run.absolute()),
    )  # fmt: skip
    draw.generator(run).save(args.out, half=True)
    shipped = Generator.load(args.out, run.device)
    with atomic_write(args.out / quality.FILE) as file:
        file.write(quality.as_bytes(acceptance.standard_for(run, shipped, search=False)))
    sheet, values = ablation.measure(run, list(KINDS), shipped.draw, shown=SHOWN)
    write_json(args.out / "settings.json", settings)
    values |= _by_label(run, shipped)
    figures.save_figure(sheet, args.out / "sheet.jpg", dpi=DPI)
    write_json(args.out / "measured.json", {"date": date.today().isoformat(), "values": values})
    write_text(args.out / "README.md", _card(run, shipped, values, args.out))


def _by_label(run: Run, shipped: Generator) -> dict[str, float]:
    """The share of test tiles whose tissue a network sorts rightly, by what it learnt from; nothing without labels."""
    cluster_ids = shipped.cluster_ids(LABELLED, run.seed)
    data = report.evaluation_data(run, shipped.draw(cluster_ids, seed=run.seed), cluster_ids)
    accuracies = usefulness.make_labels_section(data, run.seed, run.device).scores.get("label_accuracy", {})
    return {f"{BY_LABEL}{name}": share for name, share in accuracies.items()}


def _card(run: Run, shipped: Generator, values: dict[str, float | None], folder: Path) -> str:
    def share(name: str) -> str:
        return "not known" if values[name] is None else f"{values[name]:.0%}"

    def linear(of: str) -> str:
        return " / ".join(f"{values[f'{kind}: {of}']:.1%}" for kind in KINDS)

    labels = [label for label in np.unique(run.tiles.labels) if label]
    by_label = [f"{values[name]:.0%}" for name in (f"{BY_LABEL}{of}" for of in (GENERATED, REAL, BOTH))]
    side = run.settings.image_size_px
    reach, low, high, rebuilt = (
        values[name] for name in ("reach", "reach, low", "reach, high", "reach, reconstructed")
    )
    reached = reach is not None
    sampling, stages = run.settings.sampling, ("training", "finetuning1", "finetuning2")
    autoencoder = run.settings.autoencoder
    number = {"autoencoder": autoencoder.epochs, "polish of its decoder": autoencoder.polish.epochs}
    of_unet = {stage: getattr(run.settings, stage).epochs for stage in stages}
    epochs = ", ".join(f"{count} epochs ({name})" for name, count in {**number, **of_unet}.items() if count)
    smoothness = smoothness_of_codes(run.vqvae, run.codes)
    bands = [ratio for name, ratio in values.items() if name.startswith("power")]
    fold = run.settings.diffusion.unet.get("fold", 1)
    return CARD.format(
        side=side, cell_px=RED_CELL_PX * side / 128, finest=0.75 * 128 / side, coarsest=128 / side,
        folded="" if fold == 1 else f" on latents folded {fold} x {fold}",
        k=shipped.n_clusters, train=len(run.tiles.train), test=len(run.tiles.test), number=len(run.test_images),
        codes=shipped.space.vqvae.embedding.num_embeddings, clustering=run.clustering, epochs=epochs,
        parameters=sum(p.numel() for p in shipped.unet.parameters()) / 1e6,
        size=(folder / "model.safetensors").stat().st_size / 1e6,
        sampler=sampling.sampler, steps=sampling.steps, guidance=sampling.guidance,
        guide="" if sampling.guide == "itself" else " by the UNet after its first training, kept in 8 bits",
        day=date.today().isoformat(), device=device_name(run.device.type),
        frechet=values["autoencoder: Frechet distance (autoencoder features)"],
        frechet_train=values["autoencoder: floor, training tiles"],
        frechet_rebuilt=values["autoencoder: floor, reconstructions"],
        random=values["random: Frechet distance (random convolutions)"],
        random_train=values["random: floor, training tiles"], random_rebuilt=values["random: floor, reconstructions"],
        photos=values[PHOTOGRAPHS], photos_train=values["imagenet-deeper: floor, training tiles"],
        photos_rebuilt=values["imagenet-deeper: floor, reconstructions"],
        asked=values["as asked"], second=values["as asked, second judge"], chance=1 / shipped.n_clusters,
        cas=values["CAS, of real"], closer=values["closer"], told=share("told from real, blur 0"),
        linear=linear(LINEAR_PROBE), linear_floor=linear(f"floor, {LINEAR_PROBE}"),
        linear_r=linear(f"{LINEAR_PROBE} from reconstructed"), labels=", ".join(labels), by_label=" / ".join(by_label),
        label_chance=1 / len(labels), seen=sum(of_unet.values()) * len(run.tiles.train) / 1e6,
        kept=", ".join(f"{smoothness[f'kept_{side}x{side}']:.2f}" for side in (2, 4, 8)),
        rank=smoothness["effective_rank"],
        reach=f"{structure.in_words(reach, side, shipped.mpp)}, {low:.1f} to {high:.1f} px" if reached else "not known",
        reach_rebuilt=structure.in_words(rebuilt, side, shipped.mpp) if reached else "not known", half=side // 2,
        told_1=share("told from real, blur 1"), told_r=share("told from reconstructed, blur 0"),
        told_r1=share("told from reconstructed, blur 1"), power=" ".join(f"{ratio:.2f}" for ratio in bands),
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.starter")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--clustering", default="kmeans")
    parser.add_argument("--out", type=Path, default=STARTER)
    return parser


if __name__ == "__main__":
    main()
