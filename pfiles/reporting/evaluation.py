"""All measures of two sets of images at once, for the last notebooks and for `python -m pfiles evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pfiles import latents
from pfiles.checkpoints import about_weights, fingerprint_of_role, load_weights
from pfiles.errors import InputError
from pfiles.identity import NOT_COMPARED, Identity, of_csv, of_images, same_identity, without
from pfiles.latents import decode_codes, encode_tiles, predict_clusters
from pfiles.lpips import LPIPS
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed
from pfiles.measuring import controls, fidelity, memorisation, morphometry, pairs, spectrum, two_sample, usefulness
from pfiles.measuring.distribution import NEIGHBOURS, PRDC, frechet_distance, kid, prdc
from pfiles.measuring.features import Extractor, make_extractor
from pfiles.measuring.memorisation import COPY
from pfiles.paths import read_json
from pfiles.reporting import export, figures
from pfiles.reporting.page import Section, all_scores
from pfiles.reporting.tables import plain
from pfiles.tiles import files, pixels
from pfiles.tiles.files import read_images
from pfiles.tiles.pixels import evenly_spaced, mean_colour, to_uint8
from pfiles.tiles.sources import read_labels, read_source
from pfiles.vqvae import VQVAE

MIN_IMAGES = 20  # of each side, fewer say nothing about a distribution
MIN_SIDE = 32  # pixels
BLUR = 1 / 32  # of the side: the standard deviation of the Gaussian that makes the blurred reference
HELD_OUT = "held-out real tiles"
TOLD_APART, BY_FEATURES = "told apart", "told from real by "  # in tables, and in scores
OTHER_HALF = "one half of the real tiles against the other"
SHOWN = 20  # of the most and least convincing images
SEARCHED = 200  # images of each side at most that are searched for copies among other measures


def distances(extractor: Extractor, real: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    """All measures of `distribution` between two sets of features (N, d), (M, d), under the extractor's names, and the
    share of both that a linear classifier tells apart.

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
        TOLD_APART: two_sample.told_apart(real, other),
    }


def distribution_table(
    extractor: Extractor, tiles: Tensor, real: np.ndarray, held_out: np.ndarray, generated: np.ndarray, seed: int
) -> pd.DataFrame:
    """The `distances` of real tiles from generated ones, and from references that say what a number means.

    tiles: the real images (N, 3, H, W); real, held_out, generated: features of them, of real tiles that are not among
    them, and of generated images. Held-out tiles are the floor, the best that can be expected. The real tiles behind a
    Gaussian blur of 1/32 of their side, and their one mean colour, are generators that must score worse. As the
    Frechet distance grows when sets shrink, all references are of one size; where there are more generated images
    than that, so many of them have a row of their own. Sets of fewer than 6 images have an empty row.
    """
    size = min(n for n in map(len, (real, held_out, generated)) if n > NEIGHBOURS)
    some = tiles[evenly_spaced(len(tiles), size)]
    sigma = BLUR * tiles.shape[2]
    bar = progress(some, desc="blur", unit="tile", leave=False, delay=2)
    blurred = torch.from_numpy(
        np.stack([scipy.ndimage.gaussian_filter(tile.cpu().numpy(), (0, sigma, sigma)) for tile in bar])
    )
    flat = torch.tensor(mean_colour(tiles), dtype=torch.uint8)[:, None, None].expand(some.shape)
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
    for cluster in np.unique(np.concatenate([ids for _, ids in sides.values()])):
        of = {name: features[ids == cluster] for name, (features, ids) in sides.items()}
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
    text = f"{extractor.frechet} and {extractor.kernel}: 0 is best. {TOLD_APART.capitalize()}: the share that a linear "
    text += "classifier of these features sorts rightly; 0.5 is chance. "
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


def morphometry_by_cluster(
    real: pd.DataFrame,
    generated: pd.DataFrame,
    real_ids: np.ndarray | None,
    generated_ids: np.ndarray | None,
    seed: int,
) -> tuple[pd.DataFrame, str]:
    """`morphometry.compare` of all images and of each cluster that has enough, and a sentence on those that have not.

    real, generated: tables of `morphometry.measure`; real_ids, generated_ids: the cluster of each row, 0-based,
    or None for all alone.
    """
    tables, left_out = {"all": morphometry.compare(real, generated, seed)}, []
    for cluster in [] if real_ids is None else np.unique([*real_ids, *generated_ids]):
        of = real[real_ids == cluster], generated[generated_ids == cluster]
        if min(map(len, of)) < MIN_IMAGES:
            left_out.append(f"{cluster + 1} ({len(of[0])} real, {len(of[1])} generated)")
        else:
            tables[f"cluster {cluster + 1}"] = morphometry.compare(*of, seed)
    table = pd.concat(tables)
    table.index = [f"{group}: {name}" for group, name in table.index]
    return table, clusters_left_out(left_out)


@dataclass(frozen=True)
class Sets:
    """What is compared: images as uint8 (N, 3, H, W) of one size, and what is known of them.

    real: of the mix of slides that was trained on; held_out: real ones of other slides or regions, where there are
    some. The ids are the clusters (N,), 0-based, those of `generated` the ones asked for; None where they are not
    known. The labels (N,) are of tissue, "" where unknown, which no training saw; None where there are none. vqvae: the
    trained autoencoder. codes: of `real`, where they were encoded before. clusterer: the network that the clusters come
    from; None where only its verdicts are known. n_clusters: None for as many as are seen. names: of clusters, by their
    numbers from 1.
    """

    real: Tensor
    generated: Tensor
    held_out: Tensor | None = None
    real_ids: np.ndarray | None = None
    generated_ids: np.ndarray | None = None
    held_out_ids: np.ndarray | None = None
    real_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    vqvae: VQVAE | None = None
    codes: Tensor | None = None
    clusterer: nn.Module | None = None
    n_clusters: int | None = None
    names: Mapping[int, str] | None = None

    @property
    def k(self) -> int:
        return self.n_clusters or 1 + int(max(self.real_ids.max(), self.generated_ids.max()))

    @cached_property
    def real_codes(self) -> Tensor:
        """The codes (N, h, w) of `real`, encoded where that has not been done, on the autoencoder's device."""
        return self.encoded(self.real) if self.codes is None else self.codes

    @cached_property
    def generated_codes(self) -> Tensor:
        """The codes of `generated`."""
        return self.encoded(self.generated)

    @cached_property
    def reconstructed(self) -> Tensor | None:
        """What the autoencoder makes of `real`, uint8 (N, 3, H, W) on the CPU; None without one."""
        return None if self.vqvae is None else to_uint8(decode_codes(self.vqvae, self.real_codes)).cpu()

    def encoded(self, images: Tensor) -> Tensor:
        """The codes of some images, uint8 (N, 3, H, W)."""
        return encode_tiles(self.vqvae, images.to(next(self.vqvae.parameters()).device))


def all_sections(
    sets: Sets,
    extractors: Sequence[Extractor],
    seed: int,
    device: torch.device | str,
    blurs_px: Sequence[float] = two_sample.BLURS_PX,
) -> list[Section]:
    """All that compares the sets as a whole, five lines and pictures first: for part 13 and `evaluate`."""
    telling = two_sample_section(sets, seed, device, blurs_px)
    detail = [spectrum_section(sets)]
    if sets.real_ids is not None:
        detail += [fidelity_section(sets, seed)] * (sets.vqvae is not None)
        detail.append(usefulness_section(sets, seed, device))
        detail += [labels_section(sets, seed, device)] * (sets.real_labels is not None)
    detail += [distribution_section(extractor, sets, seed) for extractor in extractors]
    detail.append(morphometry_section(sets, seed))
    detail += memorisation_sections(sets, at_most=SEARCHED)
    return [in_short(telling, *detail), images_section(sets.real, sets.generated), telling, *detail]


def in_short(*sections: Section) -> Section:
    """Five lines for a reader who wants no statistics, from the scores of the sections that were made."""
    scores = all_scores(*sections)
    told = scores.get("told_from_real", {})
    real = f"; real from real tiles in {told[FLOOR]:.0%}" if FLOOR in told else ""
    linear = max(((share, name) for name, share in scores.items() if name.startswith(BY_FEATURES)), default=None)
    by = f"; by a linear classifier of {linear[1].removeprefix(BY_FEATURES)} in {linear[0]:.0%}" if linear else ""
    lines = {
        "Told from real tiles": f"in {told[DRAWN]:.0%}{real} (50% is chance){by}" if DRAWN in told
        else "not known, with so few tiles or as the network did not learn",
        "Sorted as asked": "not known without the clusters and the autoencoder" if "second_judge" not in scores
        else "in {second_judge[share_assigned]:.0%}; real tiles in {second_judge[agreement_on_real_tiles]:.0%} "
        "({by_chance:.0%} is chance)".format_map(scores),
        "Of use to a classifier": "not known without clusters or with so few tiles" if "of_use_as_real" not in scores
        else "as {of_use_as_real:.0%} of real tiles".format_map(scores),
        "Copies": "not looked for" if "copies" not in scores
        else "{copies} of {images_searched_for_copies} images that were looked at".format_map(scores),
        "Worst tissue": scores.get("worst_cluster", "not known without the clusters and the autoencoder"),
    }  # fmt: skip
    return Section("In short", [f"{name}: {line}." for name, line in lines.items()], scores={"in_short": lines})


DRAWN, FLOOR = "generated from real", "real from real: the floor"  # pairs of `two_sample.steps_to_blame`


def images_section(real: Tensor, generated: Tensor) -> Section:
    """How many images there are, and twenty of each side."""
    note = f"{len(real)} real and {len(generated)} generated images of {real.shape[2]} px."
    shown = [
        figures.show_tiles(images[evenly_spaced(len(images), 20)], title=title)
        for images, title in ((real, "Real"), (generated, "Generated"))
    ]
    return Section("Images", [note], [], shown)


PAIRED = {
    "ssim_published": ("SSIM (published reading)", pairs.ssim_published),
    "ssim": ("SSIM (per channel)", pairs.ssim),
    "ms_ssim": ("MS-SSIM", pairs.ms_ssim),
}  # paired scores that need no weights: the name in summary.json, the title, the score


def paired_sections(
    names: Sequence[str],
    real: Tensor,
    generated: Tensor,
    *,
    cluster_ids: np.ndarray | None,
    seed: int,
    device: torch.device | str,
    lpips_required: bool = False,
) -> list[Section]:
    """The paired scores `names`, of PAIRED or "lpips", with their controls: pictures first, then a section for each.

    lpips_required: whether LPIPS without its weights is an InputError, or is noted as unavailable.
    """
    scores = {name: (PAIRED[name][0], partial(PAIRED[name][1], device=device)) for name in names if name in PAIRED}
    notes, unavailable = [], {}
    if "lpips" in names:
        try:
            scores["lpips"] = "LPIPS", pairs.lpips_score(LPIPS().load_pretrained().to(device), device)
        except InputError as error:
            if lpips_required:
                raise
            notes.append(f"LPIPS is unavailable: {error}")
            unavailable = {"lpips": "unavailable"}
    if "ms_ssim" in names:
        notes.append(pairs.ms_ssim_rule(real.shape[2]))
    tables, sections = {}, []
    for name, (title, score) in scores.items():
        table = tables[title] = controls.paired_controls(score, real, generated, cluster_ids, seed)
        recorded = {name: table["mean"].to_dict(), "details": {name: plain(table)}}
        sections.append(Section(title, [controls.verdict(title, table)], [table], scores=recorded))
    shown = [figures.plot_controls(tables)] if tables else []
    return [Section("Paired scores and their controls", notes, [], shown, unavailable), *sections]


def distribution_section(extractor: Extractor, sets: Sets, seed: int) -> Section:
    """The distances of `distribution_table`, and within each cluster; shown are those that can rank, see `Extractor`.

    The floor compares like with like: one random half of the real images against the other. Where there are held-out
    tiles, which come from other slides or regions, they have a row too.
    """
    order = np.random.default_rng(derive_seed(seed, "halves")).permutation(len(sets.real))
    first, second = np.array_split(order, 2)
    real, drawn = extractor(sets.real), extractor(sets.generated)
    halves = "The floor is one random half of the real images against the other, of the same mix of slides"
    if sets.held_out is None:
        whole = pd.DataFrame([distances(extractor, real, drawn, seed)], index=["all generated against all real"])
        table = distribution_table(extractor, sets.real[first], real[first], real[second], drawn, seed)
        tables = [pd.concat([whole, table])]
        notes = [f"{halves}. The first row compares all images, the rows below compare with the first half."]
        by = {"real": (real, sets.real_ids), "generated": (drawn, sets.generated_ids)}
    else:
        held_out = extractor(sets.held_out)
        table = distribution_table(extractor, sets.real, real, held_out, drawn, seed)
        size = min(int(table.images.min()), len(second))
        half = distances(extractor, real[first], real[second][:size], seed)
        table = pd.concat([table, pd.DataFrame([half], index=[OTHER_HALF])])
        tables = [table]
        notes = [f"{halves}. Held-out tiles come from other slides or regions: they differ by that too."]
        by = {"real": (real, sets.real_ids), "generated": (drawn, sets.generated_ids)}
        if sets.held_out_ids is not None:
            by[HELD_OUT] = held_out, sets.held_out_ids
    notes.append(caveat(extractor, table, real.shape[1]))
    details = {"overall": plain(tables[0])}
    if sets.real_ids is not None:
        by_cluster, left_out = distribution_by_cluster(extractor, by, seed)
        tables += [by_cluster] * (not by_cluster.empty)
        notes += [left_out] * bool(left_out)
        details["by_cluster"] = plain(by_cluster)
    hidden = [column for column in PRDC if column not in extractor.ranks]
    tables = [each.drop(columns=hidden, errors="ignore") for each in tables]
    frechet = table.get(extractor.frechet, pd.Series(dtype=float)).dropna().to_dict()
    by_features = table[TOLD_APART].get("generated", float("nan")) if TOLD_APART in table else float("nan")
    scores = {extractor.frechet: frechet, "details": {extractor.name: details}}
    if np.isfinite(by_features):
        scores[f"{BY_FEATURES}{extractor.name}"] = by_features
    return Section(f"Distribution in {extractor.name}", notes, tables, scores=scores)


def morphometry_section(sets: Sets, seed: int) -> Section:
    """What a pathologist would measure, of all images and of each cluster."""
    threshold = morphometry.nucleus_threshold(sets.real)
    measured = [morphometry.measure(images, threshold) for images in (sets.real, sets.generated)]
    clusters = sets.real_ids, sets.generated_ids
    table, left_out = morphometry_by_cluster(*measured, *clusters, seed)
    notes = [
        f"Nuclei are where haematoxylin exceeds an optical density of {threshold:.3f}, found in the real images. The "
        "Wasserstein distance has a 95 % interval; its floor is that of two random halves of the real images. The "
        "table has what puts tiles of known quality in order, the figure all measurements."
    ]
    scores = {
        "Wasserstein distance": table.distance[: len(morphometry.FEATURES)].dropna().to_dict(),
        "details": {"morphometry": plain(table)},
    }
    shown = [figures.plot_morphometry(*measured, *clusters)]
    ranking = table[[name.rpartition(": ")[2] in morphometry.RANKS for name in table.index]]
    return Section("Morphometry", notes + [left_out] * bool(left_out), [ranking], shown, scores)


def spectrum_section(sets: Sets) -> Section:
    """Power of the generated images over that of real ones in each band, and the lines of a grid."""
    others = {"generated": sets.generated, "other half of the real": sets.real[1::2]}
    if sets.reconstructed is not None:
        others["reconstructed"] = sets.reconstructed
    bands, lines = spectrum.compare(sets.real[::2], others)
    notes = [
        spectrum.verdict(bands["generated"], lines, "generated"),
        "Power is over that of one half of the real images; the other half is the floor.",
    ]
    recorded = {
        "power_over_real": bands["generated"].to_dict(),
        "grid_line": lines.loc["generated"].to_dict(),
        "details": {"spectrum": {"bands": plain(bands), "grid lines": plain(lines)}},
    }
    return Section("Power spectrum", notes, [bands, lines], [figures.plot_spectrum(bands, lines)], recorded)


def two_sample_section(
    sets: Sets, seed: int, device: torch.device | str, blurs_px: Sequence[float] = two_sample.BLURS_PX
) -> Section:
    """Whether a small network can tell generated from real images, which part gives them away, and at which scale."""
    generated, real = sets.generated, sets.real
    if (fewest := min(len(generated), len(real))) < two_sample.MIN_TILES:
        return Section("Two-sample test", [_left_out(two_sample.MIN_TILES, fewest)])
    held_out = None if sets.held_out is None or len(sets.held_out) < MIN_IMAGES else sets.held_out
    floor = len(real) >= 2 * two_sample.MIN_TILES
    steps = two_sample.steps_to_blame(generated, real, sets.reconstructed, held_out)
    found = two_sample.compare({name: p for name, p in steps.items() if floor or name != FLOOR}, seed, device, blurs_px)
    table = two_sample.table(found)
    notes = [
        f"Share of {table['test tiles'].iloc[0]} or fewer test images that the network sorts rightly: 50 % is chance. "
        "Its floor is one half of the real images told from the other, of the same mix of slides. A row that says the "
        "network did not learn has no share, as the network could not see a blur of 1 px either.",
        *(f"{name}{f', both blurred by {px:g} px' if px else ''}: {test}." for name, tests in found.items()
          for px, test in tests.items()),
    ]  # fmt: skip
    at_full = next(iter(found[DRAWN].values()))
    shown = [
        figures.show_tiles(generated[order], title=f"Generated images that look {how} convincing to the network")
        for how, order in (("most", at_full.order[::-1][:SHOWN].copy()), ("least", at_full.order[:SHOWN]))
        if at_full.learned
    ]
    told = {name: next(iter(tests.values())).accuracy for name, tests in found.items()}
    scores = {
        "told_from_real": {name: accuracy for name, accuracy in told.items() if accuracy is not None},
        "details": {"two-sample test": plain(table)},
    }
    return Section("Two-sample test", notes, [table], shown, scores)


def fidelity_section(sets: Sets, seed: int) -> Section:
    """Whether generated tiles are of the cluster they were asked for, by the clusterer itself, where there is one, and
    by a second judge."""
    from sklearn.metrics import confusion_matrix  # half a second to import, which few notebooks need

    vqvae, k = sets.vqvae, sets.k
    judge, ceiling = fidelity.train_judge(vqvae, sets.real_codes, torch.as_tensor(sets.real_ids), k, seed)
    judges = ({} if sets.clusterer is None else {"the clusters": sets.clusterer}) | {"second judge": judge}
    matrices = {
        name: confusion_matrix(
            sets.generated_ids, predict_clusters(vqvae, network, sets.generated_codes)[0], labels=range(k)
        )
        for name, network in judges.items()
    }
    tables = {name: fidelity.agreement(matrix) for name, matrix in matrices.items()}
    again, by_judge = matrices["second judge"], tables["second judge"].drop("all")
    worst = by_judge.accuracy.idxmin()
    chance = 1 / k
    references = {"second judge, real tiles": ceiling, "published, cluster 1": fidelity.PUBLISHED, "chance": chance}
    share = again.trace() / again.sum()
    notes = [
        f"The second judge sorts {share:.1%} of the generated tiles into the cluster they were asked for. It agrees "
        f"with the clusters on {ceiling:.1%} of the real tiles it did not learn from, the most that can be expected; "
        f"chance is {chance:.1%}. Intervals are Wilson's, 95 %."
    ]
    scores = {
        "by_chance": chance,
        "second_judge": {"share_assigned": share, "agreement_on_real_tiles": ceiling},
        "worst_cluster": f"{worst}, of which {by_judge.accuracy[worst]:.0%} are sorted as asked",
        "details": {name: plain(table) for name, table in tables.items()},
    }
    shown = [figures.plot_agreement(tables, references)]
    if (matrix := matrices.get("the clusters")) is not None:
        scores["share_assigned_to_requested_cluster"] = matrix.trace() / matrix.sum()
        scores["by_cluster"] = (matrix.diagonal() / matrix.sum(axis=1).clip(1)).tolist()
        shown.insert(0, figures.plot_confusion(matrix, "requested and re-predicted clusters", sets.names))
    beside = pd.concat([table.add_suffix(f", {name}") for name, table in tables.items()], axis=1)
    return Section("Condition", notes, [beside], shown, scores)


def usefulness_section(sets: Sets, seed: int, device: torch.device | str) -> Section:
    """`usefulness.cas`: a classifier that learns from generated tiles, tested on held-out real ones.

    Without held-out tiles of known clusters every other real one is held out.
    """
    if sets.held_out_ids is None:
        real, held_out = ((sets.real[some], sets.real_ids[some]) for some in (slice(0, None, 2), slice(1, None, 2)))
    else:
        real, held_out = (sets.real, sets.real_ids), (sets.held_out, sets.held_out_ids)
    learn, *tested = (
        (images, torch.as_tensor(ids)) for images, ids in ((sets.generated, sets.generated_ids), real, held_out)
    )
    if (fewest := min(len(images) for images, _ in (learn, *tested))) < usefulness.MIN_TILES:
        return Section("Use to a classifier", [_left_out(usefulness.MIN_TILES, fewest)])
    found = usefulness.cas(*learn, *tested[0], *tested[1], sets.k, seed, device)
    scores = found.table.accuracy
    notes = [
        f"A small network that learnt the clusters from generated tiles sorts {scores[usefulness.GENERATED]:.1%} of "
        f"{found.test_tiles} held-out real tiles rightly; from as many real tiles {scores[usefulness.REAL]:.1%}: "
        f"generated tiles are worth {found.of_real:.0%} of real ones (CAS, Ravuri and Vinyals 2019). Intervals are "
        f"over {usefulness.TRIALS} trainings."
    ]
    recorded = {
        "cas": scores[usefulness.GENERATED],
        "cas_of_real_tiles": scores[usefulness.REAL],
        "of_use_as_real": found.of_real,
        "details": {"usefulness": plain(found.table), "usefulness by cluster": plain(found.by_class)},
    }
    return Section("Use to a classifier", notes, [found.table, found.by_class], scores=recorded)


def labels_section(sets: Sets, seed: int, device: torch.device | str) -> Section:
    """`usefulness.with_labels`: a classifier of the tissue, tested on held-out real tiles."""
    title = "Use to a classifier of the labels"
    if sets.real_labels is None or sets.held_out_labels is None:
        return Section(title, ["Left out: the tiles have no labels."])
    known = sets.real_labels != ""
    names = np.unique(sets.real_labels[known])
    tested = np.isin(sets.held_out_labels, names)
    if (fewest := min(len(sets.generated), known.sum(), tested.sum())) < usefulness.MIN_TILES:
        return Section(title, [_left_out(usefulness.MIN_TILES, fewest)])
    if len(names) < 2:
        return Section(title, [f"Left out: all labelled tiles are {names[0]}."])
    found = usefulness.with_labels(
        sets.generated, torch.as_tensor(sets.generated_ids), sets.real[known], torch.as_tensor(sets.real_ids[known]),
        sets.real_labels[known], sets.held_out[tested], sets.held_out_labels[tested], seed, device,
    )  # fmt: skip
    scores = found.table.accuracy
    notes = [
        f"Of {found.test_tiles} held-out real tiles, a small network that learnt the labels {', '.join(names)} sorts "
        f"{scores[usefulness.REAL]:.1%} rightly from real tiles, {scores[usefulness.GENERATED]:.1%} from generated "
        f"ones, each with the label that most real tiles of its cluster have, and {scores[usefulness.BOTH]:.1%} from "
        f"both. Intervals are over {usefulness.TRIALS} trainings."
    ]
    recorded = {
        "label_accuracy": scores.to_dict(),
        "details": {"labels": plain(found.table), "labels by class": plain(found.by_class)},
    }
    return Section(title, notes, [found.table, found.by_class], scores=recorded)


def copies_section(
    sets: Sets, names: Sequence[str] | None = None, source: str = "these data", at_most: int | None = None
) -> Section:
    """How many generated images repeat a real one, see `memorisation.nearest_tiles`, and, where there are held-out
    tiles, whether generated ones lie closer to the real ones than these do, see `memorisation.judge`.

    names: of the generated images; None: their numbers from 1. source: of the real tiles, in a few words. at_most: of
    the generated and of the held-out images so many are searched, evenly spaced; None: all.
    """
    chosen = evenly_spaced(len(sets.generated), at_most or len(sets.generated))
    some, names = sets.generated[chosen], [str(i + 1) if names is None else names[i] for i in chosen]
    if sets.held_out is None:
        nearest = memorisation.nearest_tiles(some, sets.real)
    else:
        held_out = sets.held_out[evenly_spaced(len(sets.held_out), at_most or len(sets.held_out))]
        nearest, nearest_held_out, judged, leak = memorisation.held_against(some, sets.real, held_out, source)
    copies = int((nearest.distance < COPY).sum())
    notes = [
        f"{copies} of {len(some)} generated images are copies of a real one: their structure differs by less than "
        f"{COPY} (0: the same, 1: nothing in common). The closest differs by {nearest.distance.min():.2f}."
    ]
    scores = {"copies": copies, "images_searched_for_copies": len(some)}
    limit, shown, judgement = COPY, [], []
    if sets.held_out is not None:
        limit, scores["pixel space"] = judged["threshold"], judged
        notes += [leak] if leak else [_closer(judged, len(held_out))]
        judgement = [pd.DataFrame({"pixel space": judged}).T]
        shown = [_histograms(nearest, nearest_held_out, limit, "pixel space")]
    shown.append(export.show_closest(names, some, sets.real, nearest, limit))
    return Section("Copies", notes, judgement, shown, scores)


def memorisation_sections(
    sets: Sets,
    names: Sequence[str] | None = None,
    source: str = "these data",
    at_most: int | None = None,
) -> list[Section]:
    """Copies, see `copies_section`, and likeness in features where there are an autoencoder and held-out tiles.

    Held-out tiles that are copies themselves tell nothing of likeness.
    """
    copies = copies_section(sets, names, source, at_most)
    if sets.vqvae is None or sets.held_out is None or copies.scores["pixel space"]["chance"] is None:
        return [copies]
    return [copies, likeness_section(sets)]


def likeness_section(sets: Sets) -> Section:
    """Whether generated images lie closer to real ones than held-out ones do, in the published features of a tile."""
    real, generated, held_out = (
        latents.mean_channel_softmax(sets.vqvae, codes).numpy()
        for codes in (sets.real_codes, sets.generated_codes, sets.encoded(sets.held_out))
    )
    nearest, nearest_held_out = (memorisation.nearest_features(some, real) for some in (generated, held_out))
    judged = memorisation.against_held_out(nearest.distance, nearest_held_out.distance)
    shown = [_histograms(nearest, nearest_held_out, judged["threshold"], "feature space")]
    notes = [_closer(judged, len(nearest_held_out))]
    table = pd.DataFrame({"feature space": judged}).T
    return Section("Likeness", notes, [table], shown, {"feature space": judged})


def _closer(judged: Mapping[str, float], held_out: int) -> str:
    """What `memorisation.against_held_out` found, in a sentence."""
    return (
        "{closer:.1%} of the generated images ({low:.1%} to {high:.1%}) are closer to a real one than the closest 1 % "
        "of {held_out} held-out tiles are; {expected:.1%} is expected of images as far from real ones as these, and "
        "the probability that such images show as many or more is {chance:.2g}."
    ).format_map({**judged, "held_out": held_out})


def _histograms(nearest: pd.DataFrame, nearest_held_out: pd.DataFrame, threshold: float, space: str) -> Figure:
    both = {"held-out tiles": nearest_held_out.distance, "generated images": nearest.distance}
    return figures.plot_nearest(both, threshold, f"distance to the nearest training tile, {space}")


def _left_out(needed: int, fewest: int) -> str:
    return f"Left out: it needs at least {needed} tiles of each set, but one has {fewest}."


def evaluate(
    real_folder: Path,
    generated_folder: Path,
    clusters_csv: Path | None = None,
    autoencoder: Path | None = None,
    held_out: Path | None = None,
    features: str | None = None,
    paired: bool = True,
    seed: int = 765,
    device: torch.device | str = "cpu",
) -> list[Section]:
    """Every measure of a folder of generated images against a folder of real ones.

    clusters_csv: the file of part 5; images are then numbered as there, and clusters are compared one by one.
    autoencoder: a checkpoint of the VQ-GAN, for its features, its reconstructions, and a judge of the clusters.
    held_out: real tiles that no network was trained on, as a run reads them, see `sources.read_source`.
    features: one of `features.EXTRACTORS`; None: random convolutions, and the autoencoder where there is one.
    paired: whether images pair by name; the paired scores need that.

    A file of labels beside the real images counts with one beside the held-out tiles, see `sources.read_labels`.
    Everything given is read and checked before anything is computed; InputError says what is wrong, such as files of
    different runs. Files that do not say which run they are of are taken as they are, and a note says so.
    """
    vqvae = None if autoencoder is None else _load_autoencoder(autoencoder, device)
    told = {folder: of_images(folder) for folder in (generated_folder, real_folder)}
    if clusters_csv is not None:
        told[clusters_csv] = of_csv(clusters_csv)
    if vqvae is not None:
        told[autoencoder] = about_weights(autoencoder, vqvae)
    _refuse_mixed_runs(told, {} if vqvae is None else {"autoencoder": fingerprint_of_role(vqvae)})
    real_names, real, generated_names, generated = _read(real_folder, generated_folder, paired)
    ids = [None if clusters_csv is None else latents.pair_cluster_ids(clusters_csv, names)
           for names in (real_names, generated_names)]  # fmt: skip
    if vqvae is not None and real.shape[2] % vqvae.downscale:
        raise InputError(
            f"The autoencoder takes sides that are a multiple of {vqvae.downscale} px, but images have {real.shape[2]}."
        )
    kinds = [features] if features else ["random"] + ["autoencoder"] * (vqvae is not None)
    extractors = [make_extractor(kind, vqvae, device) for kind in kinds]
    sets = Sets(real, generated, None, *ids, vqvae=vqvae)
    if held_out is not None:
        others = read_source(held_out)
        sets = replace(
            sets, held_out=pixels.match_size(others.images, real.shape[2]), held_out_labels=others.labels,
            real_labels=read_labels(real_folder, files.list_images(real_folder).values()),
        )  # fmt: skip
    sections = all_sections(sets, extractors, seed, device)
    sections[1] = sections[1]._replace(notes=[*sections[1].notes, _of_which_run(told)])
    if paired:
        scores = paired_sections([*PAIRED, "lpips"], real, generated, cluster_ids=ids[0], seed=seed, device=device)
        sections = [*sections[:2], *scores, *sections[2:]]
    return sections


def _refuse_mixed_runs(told: Mapping[Path, Identity | None], networks: Mapping[str, str]) -> None:
    """InputError where two of the files tell of different runs, or one that it was made with other `networks`."""
    known = [(path, without(about, *NOT_COMPARED, "versions")) for path, about in told.items() if about is not None]
    for (path, about), (other, than) in combinations(known, 2):
        same_identity(than, about, f"{other} beside {path}")
    for path, about in known:
        same_identity(about, {"starts_from": dict(networks)}, f"{path} beside the autoencoder")


def _of_which_run(told: Mapping[Path, Identity | None]) -> str:
    """Which of the files say of which run they are, in a sentence."""
    silent = [str(path) for path, about in told.items() if about is None]
    if not silent:
        return "All files say of which run they are, and it is one run."
    return f"Taken as they are, since they do not say of which run they are: {', '.join(silent)}."


def _read(real_folder: Path, generated_folder: Path, paired: bool) -> tuple[list[str], Tensor, list[str], Tensor]:
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
        generated = pixels.match_size(read_images(folders[1].values()), real.shape[2])
    if real.shape[2] < MIN_SIDE:
        raise InputError(
            f"Images must measure at least {MIN_SIDE} px, but those in {real_folder} are {real.shape[2]} px."
        )
    return names, real, generated_names, generated


def _load_autoencoder(path: Path, device: torch.device | str) -> VQVAE:
    """The autoencoder in `path`, of the sizes in the JSON beside it, or the published ones where there is none."""
    if not path.exists():
        raise InputError(f"There is no autoencoder at {path}: name the checkpoint that train_autoencoder wrote.")
    about = path.with_suffix(".json")
    settings = read_json(about, {}).get("settings", {})
    try:
        of = settings.get("autoencoder", {})
        vqvae = VQVAE(**of.get("vqvae", {}), upsampling=of.get("upsampling", "transposed"))
    except Exception as error:  # torch raises many kinds of errors for impossible sizes
        raise InputError(
            f"{about} does not describe an autoencoder ({error}): put the file that train_autoencoder wrote beside "
            "its checkpoint there, or delete it where the checkpoint has the published sizes."
        ) from error
    load_weights(vqvae, path)
    return vqvae.to(device).eval().requires_grad_(False)
