"""All measures of two sets of images at once, for the last notebooks and for `python -m pfiles evaluate`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from pfiles import latents
from pfiles.checkpoints import load_weights
from pfiles.errors import InputError
from pfiles.lpips import LPIPS
from pfiles.machine.runtime import derive_seed, pick_device
from pfiles.measuring import controls, morphometry, pairs
from pfiles.measuring.distribution import NEIGHBOURS, frechet_distance, kid, prdc
from pfiles.measuring.features import Extractor, make_extractor
from pfiles.paths import read_json
from pfiles.reporting import figures
from pfiles.reporting.page import Section
from pfiles.tiles import files, pixels
from pfiles.tiles.files import read_images
from pfiles.tiles.pixels import as_tensor, evenly_spaced, mean_colour
from pfiles.vqvae import VQVAE

MIN_IMAGES = 20  # of each side, fewer say nothing about a distribution
MIN_SIDE = 32  # pixels
BLUR = 1 / 32  # of the side: the standard deviation of the Gaussian that makes the blurred reference
HELD_OUT = "held-out real tiles"


def distances(extractor: Extractor, real: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    """All measures of `distribution` between two sets of features (N, d), (M, d), under the extractor's names.

    Sets too small for their neighbours have no measures but their number of images.
    """
    if min(len(real), len(other)) <= NEIGHBOURS:
        return {"images": len(other)}
    kernel, error = kid(real, other, seed)
    return {
        "images": len(other),
        extractor.frechet: frechet_distance(real, other),
        extractor.kernel: kernel,
        "standard error": error,
        **prdc(real, other),
    }


def distribution_table(
    extractor: Extractor, tiles: np.ndarray, real: np.ndarray, held_out: np.ndarray, generated: np.ndarray, seed: int
) -> pd.DataFrame:
    """The `distances` of real tiles from generated ones, and from references that say what a number means.

    tiles: the real images (N, H, W, 3); real, held_out, generated: features of them, of real tiles that are not among
    them, and of generated images. Held-out tiles are the floor, the best that can be expected. The real tiles behind a
    Gaussian blur of 1/32 of their side, and their one mean colour, are generators that must score worse. As the
    Frechet distance grows when sets shrink, all references are of one size; where there are more generated images
    than that, so many of them have a row of their own. Sets of fewer than 6 images have an empty row.
    """
    size = min(n for n in map(len, (real, held_out, generated)) if n > NEIGHBOURS)
    some = np.ascontiguousarray(tiles[evenly_spaced(len(tiles), size)])
    sigma = BLUR * tiles.shape[1]
    blurred = np.stack([gaussian_filter(tile, (sigma, sigma, 0)) for tile in some])
    flat = np.broadcast_to(np.array(mean_colour(as_tensor(tiles)), np.uint8), some.shape)
    sets = {
        "generated": generated,
        f"generated, {size} of them": generated[evenly_spaced(len(generated), size)],
        HELD_OUT: held_out[evenly_spaced(len(held_out), size)],
        "blurred real tiles": extractor(blurred),
        "flat mean colour": extractor(flat),
    }
    if len(generated) <= size:
        del sets[f"generated, {size} of them"]
    rows = {name: distances(extractor, real, other, seed) for name, other in sets.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def distribution_by_cluster(
    extractor: Extractor, sides: dict[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[pd.DataFrame, str]:
    """The `distances` within each cluster that has enough images, and a sentence on those that have not.

    sides: features and clusters (N,), 0-based, of "real", "generated" and, as a floor, HELD_OUT where there are some.
    One row for each cluster's generated images, and one for its held-out real tiles, if enough.
    """
    rows, left_out = {}, []
    for cluster in np.unique(np.concatenate([labels for _, labels in sides.values()])):
        of = {name: features[labels == cluster] for name, (features, labels) in sides.items()}
        if min(len(of["real"]), len(of["generated"])) < MIN_IMAGES:
            left_out.append(f"{cluster + 1} ({len(of['real'])} real, {len(of['generated'])} generated)")
            continue
        rows[f"cluster {cluster + 1}: generated"] = distances(extractor, of["real"], of["generated"], seed)
        if len(of.get(HELD_OUT, ())) >= MIN_IMAGES:
            rows[f"cluster {cluster + 1}: {HELD_OUT}"] = distances(extractor, of["real"], of[HELD_OUT], seed)
    return pd.DataFrame.from_dict(rows, orient="index"), clusters_left_out(left_out)


def clusters_left_out(clusters: Sequence[str]) -> str:
    """The sentence on clusters that have too few images, empty where there are none."""
    if not clusters:
        return ""
    return f"Left out, with fewer than {MIN_IMAGES} images on one side: clusters {', '.join(clusters)}."


def caveat(extractor: Extractor, table: pd.DataFrame, width: int) -> str:
    """What to keep in mind with a table of `distances` in features of that width."""
    fewest = int(table.images[table.images > NEIGHBOURS].min())
    text = (
        f"{extractor.frechet} and {extractor.kernel}: 0 is best. Precision, recall, density and coverage, with "
        f"{NEIGHBOURS} neighbours: what held-out real tiles reach is best. All but the kernel distance and its error "
        "depend on how many images there are: compare rows of one number."
    )
    if (table.images <= NEIGHBOURS).any():
        text += f" Rows of fewer than {NEIGHBOURS + 1} images stay empty."
    if fewest <= width:
        text += (
            f" {fewest} images do not fill the {width} dimensions of these features: the {extractor.frechet} of so few "
            "is far above its value for many."
        )
    return text


def morphometry_by_cluster(
    real: pd.DataFrame,
    generated: pd.DataFrame,
    real_labels: np.ndarray | None,
    generated_labels: np.ndarray | None,
    seed: int,
) -> tuple[pd.DataFrame, str]:
    """`morphometry.compare` of all images and of each cluster that has enough, and a sentence on those that have not.

    real, generated: tables of `morphometry.measure`; labels: the cluster of each row, 0-based, or None for all alone.
    """
    tables, left_out = {"all": morphometry.compare(real, generated, seed)}, []
    for cluster in [] if real_labels is None else np.unique([*real_labels, *generated_labels]):
        of = real[real_labels == cluster], generated[generated_labels == cluster]
        if min(map(len, of)) < MIN_IMAGES:
            left_out.append(f"{cluster + 1} ({len(of[0])} real, {len(of[1])} generated)")
        else:
            tables[f"cluster {cluster + 1}"] = morphometry.compare(*of, seed)
    table = pd.concat(tables)
    table.index = [f"{group}: {name}" for group, name in table.index]
    return table, clusters_left_out(left_out)


def evaluate(
    real_folder: Path,
    generated_folder: Path,
    clusters_csv: Path | None = None,
    autoencoder: Path | None = None,
    features: str | None = None,
    paired: bool = True,
    seed: int = 765,
) -> list[Section]:
    """Every measure of a folder of generated images against a folder of real ones.

    clusters_csv: the file of part 5; images are then numbered as there, and clusters are compared one by one.
    autoencoder: a checkpoint of the VQ-GAN, for its features.
    features: one of `features.EXTRACTORS`; None: random convolutions, and the autoencoder where there is one.
    paired: whether images pair by name; the paired scores need that.

    Everything given is read and checked before anything is computed; InputError says what is wrong.
    """
    real_names, real, generated_names, generated = _read(real_folder, generated_folder, paired)
    labels = [None if clusters_csv is None else latents.pair_labels(clusters_csv, names)
              for names in (real_names, generated_names)]  # fmt: skip
    vqvae = None if autoencoder is None else _load_autoencoder(autoencoder, real.shape[1])
    kinds = [features] if features else ["random"] + ["autoencoder"] * (vqvae is not None)
    extractors = [make_extractor(kind, vqvae) for kind in kinds]

    sections = [_images_section(real, generated)]
    if paired:
        sections += _paired_sections(real, generated, labels[0], seed)
    sections += [_distribution_section(extractor, real, generated, labels, seed) for extractor in extractors]
    return [*sections, _morphometry_section(real, generated, labels, seed)]


def _read(
    real_folder: Path, generated_folder: Path, paired: bool
) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Names and images of both folders."""
    folders = [files.list_images(folder) for folder in (real_folder, generated_folder)]
    for folder, images in zip((real_folder, generated_folder), folders, strict=True):
        if len(images) < MIN_IMAGES:
            raise InputError(
                f"A comparison needs at least {MIN_IMAGES} images in each folder, but {folder} holds {len(images)}."
            )
    if paired:
        names, real, generated = files.load_pairs(real_folder, generated_folder)
        generated_names = names
    else:
        names, generated_names = map(list, folders)
        real = read_images(folders[0].values())
        generated = pixels.match_size(read_images(folders[1].values()), real)
    if real.shape[1] < MIN_SIDE:
        raise InputError(
            f"Images must measure at least {MIN_SIDE} px, but those in {real_folder} are {real.shape[1]} px."
        )
    return names, real, generated_names, generated


def _load_autoencoder(path: Path, side: int) -> VQVAE:
    """The autoencoder in `path`, of the sizes in the JSON beside it, or the published ones where there is none."""
    if not path.exists():
        raise InputError(f"There is no autoencoder at {path}: name the checkpoint that train_autoencoder wrote.")
    about = path.with_suffix(".json")
    settings = read_json(about, {}).get("settings", {})
    try:
        vqvae = VQVAE(**settings.get("autoencoder", {}).get("vqvae", {}))
    except Exception as error:  # torch lets out whatever an impossible size trips
        raise InputError(
            f"{about} does not describe an autoencoder ({error}): put the file that train_autoencoder wrote beside "
            "its checkpoint there, or delete it where the checkpoint has the published sizes."
        ) from error
    load_weights(vqvae, path)
    if side % vqvae.downscale:
        raise InputError(
            f"The autoencoder takes sides that are a multiple of {vqvae.downscale} px, but images have {side}."
        )
    return vqvae.to(pick_device()).eval().requires_grad_(False)


def _images_section(real: np.ndarray, generated: np.ndarray) -> Section:
    note = f"{len(real)} real and {len(generated)} generated images of {real.shape[1]} px."
    shown = [
        figures.show_tiles(as_tensor(images[evenly_spaced(len(images), 20)]), title=title)
        for images, title in ((real, "Real"), (generated, "Generated"))
    ]
    return Section("Images", [note], [], shown)


def _paired_sections(real: np.ndarray, generated: np.ndarray, labels: np.ndarray | None, seed: int) -> list[Section]:
    scores = {
        "SSIM (published reading)": pairs.ssim_published,
        "SSIM (per channel)": pairs.ssim,
        "MS-SSIM": pairs.ms_ssim,
    }
    notes = []
    try:
        device = pick_device()
        scores["LPIPS"] = pairs.lpips_score(LPIPS().load_pretrained().to(device), device)
    except InputError as error:
        notes = [f"LPIPS is unavailable: {error}"]
    tables = {name: controls.paired_controls(score, real, generated, labels, seed) for name, score in scores.items()}
    sections = [Section(name, [controls.verdict(name, table)], [table]) for name, table in tables.items()]
    notes.append(pairs.ms_ssim_rule(real.shape[1]))
    return [Section("Paired scores and their controls", notes, [], [figures.plot_controls(tables)]), *sections]


def _distribution_section(
    extractor: Extractor, real: np.ndarray, generated: np.ndarray, labels: Sequence[np.ndarray | None], seed: int
) -> Section:
    """Without a test set the floor is one random half of the real images against the other."""
    order = np.random.default_rng(derive_seed(seed, "halves")).permutation(len(real))
    first, second = np.array_split(order, 2)
    features, drawn = extractor(real), extractor(generated)
    whole = pd.DataFrame([distances(extractor, features, drawn, seed)], index=["all generated against all real"])
    table = distribution_table(extractor, real[first], features[first], features[second], drawn, seed)
    notes = [
        "The first row compares all images. The rows below compare with one random half of the real images, of which "
        "the other half is the held-out one.",
        caveat(extractor, table, features.shape[1]),
    ]
    tables = [pd.concat([whole, table])]
    if labels[0] is not None:
        sides = {"real": (features, labels[0]), "generated": (drawn, labels[1])}
        by_cluster, left_out = distribution_by_cluster(extractor, sides, seed)
        tables += [by_cluster] * (not by_cluster.empty)
        notes += [left_out] * bool(left_out)
    return Section(f"Distribution in {extractor.name}", notes, tables)


def _morphometry_section(
    real: np.ndarray, generated: np.ndarray, labels: Sequence[np.ndarray | None], seed: int
) -> Section:
    threshold = morphometry.nucleus_threshold(real)
    measured = [morphometry.measure(images, threshold) for images in (real, generated)]
    table, left_out = morphometry_by_cluster(*measured, *labels, seed)
    notes = [
        f"Nuclei are where haematoxylin exceeds an optical density of {threshold:.3f}, found in the real images. The "
        "Wasserstein distance has a 95 % interval; its floor is that of two random halves of the real images."
    ]
    return Section(
        "Morphometry", notes + [left_out] * bool(left_out), [table], [figures.plot_morphometry(*measured, *labels)]
    )
