"""Distances between two sets of images in features of them."""

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import two_sample
from pfiles.measuring.distribution import NEIGHBOURS, PRDC, frechet_distance, kid, prdc
from pfiles.measuring.features import Extractor, ReadFeatures
from pfiles.reporting.page import Section
from pfiles.reporting.sections.data import HELD_OUT, MIN_IMAGES, EvaluationData, clusters_left_out
from pfiles.reporting.sections.record import BY_FEATURES, SectionRecord
from pfiles.reporting.tables import plain
from pfiles.tiles.pixels import evenly_spaced, mean_colour

BLUR = 1 / 32  # of the side: the standard deviation of the Gaussian that makes the blurred reference
LINEAR_PROBE = "told apart"  # the column of what a linear classifier of the features sorts rightly
OTHER_HALF = "one half of the real tiles against the other"


def make_section(extractor: Extractor | ReadFeatures, data: EvaluationData, seed: int) -> Section:
    """The distances of `distribution_table`, and within each cluster; shown are those that can rank, see `Extractor`.

    The floor compares like with like: one random half of the real images against the other. Where there are held-out
    tiles, which come from other slides or regions, they have a row too.
    """
    order = np.random.default_rng(derive_seed(seed, "halves")).permutation(len(data.real))
    first, second = np.array_split(order, 2)
    real, generated, held_out = _features(extractor, data)
    halves = "The floor is one random half of the real images against the other, of the same mix of slides"
    if held_out is None:
        whole = pd.DataFrame([distances(extractor, real, generated, seed)], index=["all generated against all real"])
        table = distribution_table(extractor, data.real[first], real[first], real[second], generated, seed)
        tables = [pd.concat([whole, table])]
        notes = [f"{halves}. The first row compares all images, the rows below compare with the first half."]
    else:
        table = distribution_table(extractor, data.real, real, held_out, generated, seed)
        size = min(int(table.images.min()), len(second))
        half = distances(extractor, real[first], real[second][:size], seed)
        table = pd.concat([table, pd.DataFrame([half], index=[OTHER_HALF])])
        tables = [table]
        notes = [f"{halves}. Held-out tiles come from other slides or regions: they differ by that too."]
    notes.append(caveat(extractor, table, real.shape[1]))
    details = {"overall": plain(tables[0])}
    if data.real_ids is not None and data.generated_ids is not None:
        sides = {"real": (real, data.real_ids), "generated": (generated, data.generated_ids)}
        if held_out is not None and data.held_out_ids is not None:
            sides[HELD_OUT] = held_out, data.held_out_ids
        by_cluster, left_out = distribution_by_cluster(extractor, sides, seed)
        tables += [by_cluster] * (not by_cluster.empty)
        notes += [left_out] * bool(left_out)
        details["by_cluster"] = plain(by_cluster)
    hidden = [column for column in PRDC if column not in extractor.ranks]
    tables = [each.drop(columns=hidden, errors="ignore") for each in tables]
    frechet = table.get(extractor.frechet, pd.Series(dtype=float)).dropna().to_dict()
    by_features = table[LINEAR_PROBE].get("generated", float("nan")) if LINEAR_PROBE in table else float("nan")
    scores = {extractor.frechet: frechet, "details": {extractor.name: details}}
    if np.isfinite(by_features):
        scores[f"{BY_FEATURES}{extractor.name}"] = by_features
    return Section(f"Distribution in {extractor.name}", notes, tables, scores=scores)


def _features(
    extractor: Extractor | ReadFeatures, data: EvaluationData
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The features of real, generated and, if there are any, held-out images."""
    if isinstance(extractor, ReadFeatures):
        return extractor.real, extractor.generated, extractor.held_out
    held_out = None if data.held_out is None else extractor(data.held_out)
    return extractor(data.real), extractor(data.generated), held_out


def distances(
    extractor: Extractor | ReadFeatures, real: np.ndarray, compared: np.ndarray, seed: int
) -> dict[str, float]:
    """All measures of `distribution` between two sets of features (N, d), (M, d), under the extractor's names, and the
    share of both that a linear classifier tells apart.

    Sets too small for their neighbours have no measures but their number of images.
    """
    if min(len(real), len(compared)) <= NEIGHBOURS:
        return {"images": len(compared)}
    kernel, error = kid(real, compared, seed)
    return {
        "images": len(compared),
        extractor.frechet: frechet_distance(real, compared),
        extractor.kernel: kernel,
        "standard error": error,
        **prdc(real, compared),
        LINEAR_PROBE: two_sample.linear_probe_accuracy(real, compared),
    }


def distribution_table(
    extractor: Extractor | ReadFeatures,
    tiles: Tensor,
    real: np.ndarray,
    held_out: np.ndarray,
    generated: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """The `distances` of real tiles from generated ones, and from references that say what a number means.

    tiles: the real images (N, 3, H, W); real, held_out, generated: features of them, of real tiles that are not among
    them, and of generated images. Held-out tiles are the floor, the best that can be expected. The real tiles behind a
    Gaussian blur of 1/32 of their side, and their one mean colour, are generators that must score worse. As the
    Frechet distance grows when sets shrink, all references are of one size; where there are more generated images
    than that, so many of them have a row of their own. Sets of fewer than 6 images have an empty row. Features that
    were read have no blurred and flat rows.
    """
    size = min(n for n in map(len, (real, held_out, generated)) if n > NEIGHBOURS)
    sets = {
        "generated": generated,
        f"generated, {size} of them": generated[evenly_spaced(len(generated), size)],
        HELD_OUT: held_out[evenly_spaced(len(held_out), size)],
    }
    if isinstance(extractor, Extractor):
        sets |= {name: extractor(images) for name, images in _spoilt(tiles, size).items()}
    if len(generated) <= size:
        del sets[f"generated, {size} of them"]
    rows = {name: distances(extractor, real, features, seed) for name, features in sets.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _spoilt(tiles: Tensor, size: int) -> dict[str, Tensor]:
    """So many of the tiles behind a blur, and as many of their mean colour."""
    subset = tiles[evenly_spaced(len(tiles), size)]
    sigma = BLUR * tiles.shape[2]
    bar = progress(subset, desc="blur", unit="tile", leave=False, delay=2)
    blurred = torch.from_numpy(
        np.stack([scipy.ndimage.gaussian_filter(tile.cpu().numpy(), (0, sigma, sigma)) for tile in bar])
    )
    flat = torch.tensor(mean_colour(tiles), dtype=torch.uint8)[:, None, None].expand(subset.shape)
    return {"blurred real tiles": blurred, "flat mean colour": flat}


def distribution_by_cluster(
    extractor: Extractor | ReadFeatures, sides: dict[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[pd.DataFrame, str]:
    """The `distances` within each cluster that has enough images, and a sentence on those that have not.

    sides: features and clusters (N,), 0-based, of "real", "generated" and, as a floor, HELD_OUT where there are some.
    One row for each cluster's generated images, and one for its held-out real tiles, if enough.
    """
    rows, left_out = {}, []
    for cluster in np.unique(np.concatenate([ids for _, ids in sides.values()])):
        of = {name: features[ids == cluster] for name, (features, ids) in sides.items()}
        if min(len(of["real"]), len(of["generated"])) < MIN_IMAGES:
            left_out.append(f"{cluster + 1} ({len(of['real'])} real, {len(of['generated'])} generated)")
            continue
        rows[f"cluster {cluster + 1}: generated"] = distances(extractor, of["real"], of["generated"], seed)
        if len(of.get(HELD_OUT, ())) >= MIN_IMAGES:
            rows[f"cluster {cluster + 1}: {HELD_OUT}"] = distances(extractor, of["real"], of[HELD_OUT], seed)
    return pd.DataFrame.from_dict(rows, orient="index"), clusters_left_out(left_out)


def caveat(extractor: Extractor | ReadFeatures, table: pd.DataFrame, width: int) -> str:
    """What to keep in mind with a table of `distances` in features of that width."""
    fewest = int(table.images[table.images > NEIGHBOURS].min())
    text = f"{extractor.frechet} and {extractor.kernel}: 0 is best. {LINEAR_PROBE.capitalize()}: the share that a "
    text += "linear classifier of these features sorts rightly; 0.5 is chance. Far below 0.5 is no better "
    text += "than 0.5: tiles of one set then resemble what was learnt as the other set, as copies do; see Copies. "
    if extractor.ranks:
        ranks = " and ".join(extractor.ranks).capitalize()
        text += f"{ranks}, with {NEIGHBOURS} neighbours: what held-out real tiles reach is best. "
    text += "All but the kernel distance and its error depend on how many images there are: compare rows of one number."
    if (table.images <= NEIGHBOURS).any():
        text += f" Rows of fewer than {NEIGHBOURS + 1} images stay empty."
    if fewest <= width:
        text += (
            f" {fewest} images do not fill the {width} dimensions of these features: the {extractor.frechet} of so few "
            "is far above its value for many."
        )
    return text


RECORD = SectionRecord(
    title="Distances between sets",
    question="do both sets hold the same kinds of tiles, equally often?",
    make=lambda data, options: [make_section(extractor, data, options.seed) for extractor in options.extractors],
)
