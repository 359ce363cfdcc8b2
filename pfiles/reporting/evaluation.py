"""All measures of two sets of images at once, for the last notebooks and for `python -m pfiles evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from pfiles import latents
from pfiles.checkpoints import inference_fingerprint, load_weights, provenance_of
from pfiles.drawing.sampling import were_chosen
from pfiles.errors import InputError
from pfiles.measuring.features import Extractor, ReadFeatures, make_extractor, read_features
from pfiles.paths import read_json
from pfiles.provenance import IGNORED, Provenance, of_csv, of_images, require_same_run
from pfiles.reporting import figures
from pfiles.reporting.page import Section, all_scores
from pfiles.reporting.sections import (
    condition,
    copies,
    distribution,
    morphometry,
    paired,
    spectrum,
    structure,
    two_sample,
    usefulness,
)
from pfiles.reporting.sections import files as files_of_sides
from pfiles.reporting.sections.data import MIN_IMAGES, EvaluationData, Options
from pfiles.reporting.sections.record import SectionRecord
from pfiles.tiles import files, pixels
from pfiles.tiles.files import read_images
from pfiles.tiles.pixels import evenly_spaced
from pfiles.tiles.sources import read_labels, read_source
from pfiles.vqvae import VQVAE

MIN_SIDE = 32  # pixels
CHOSEN = (
    "The generated images were chosen by the autoencoder's features. Distances in these are left out: one judge must "
    "not both choose and report."
)
SECTIONS: tuple[SectionRecord, ...] = (
    paired.RECORD,
    two_sample.RECORD,
    spectrum.RECORD,
    structure.RECORD,
    condition.RECORD,
    usefulness.RECORD,
    distribution.RECORD,
    morphometry.RECORD,
    copies.RECORD,
)  # in the order of the report


def all_sections(data: EvaluationData, options: Options) -> list[Section]:
    """All that is known of the data: the summary lines and pictures first, then what each of SECTIONS has to say."""
    records = [record for record in SECTIONS if record.applies(data)]
    sections = [section for record in records for section in record.make(data, options)]
    return [summary_section(*sections), images_section(data), *sections]


def summary_section(*sections: Section) -> Section:
    """The summary for a reader who wants no statistics, from the scores of the sections that were made."""
    scores = all_scores(*sections)
    lines = sorted((line for record in SECTIONS for line in record.lines), key=lambda line: line.place)
    sentences = {line.name: line.sentence(scores) or line.unknown for line in lines}
    notes = [f"{name}: {sentence}." for name, sentence in sentences.items()]
    return Section("In short", notes, scores={"in_short": sentences})


def images_section(data: EvaluationData) -> Section:
    """How many images there are, and twenty of each side."""
    real, generated = data.real, data.generated
    note = f"{len(real)} real and {len(generated)} generated images of {real.shape[2]} px."
    pictures = [
        figures.show_tiles(images[evenly_spaced(len(images), 20)], title=title, mpp=data.mpp)
        for images, title in ((real, "Real"), (generated, "Generated"))
    ]
    return Section("Images", [note], [], pictures)


def evaluate(
    real_folder: Path,
    generated_folder: Path,
    clusters_csv: Path | None = None,
    autoencoder: Path | None = None,
    held_out: Path | None = None,
    features: str | None = None,
    feature_files: Sequence[Path] = (),
    paired: bool = True,
    seed: int = 765,
    device: torch.device | str = "cpu",
) -> list[Section]:
    """Every measure of a folder of generated images against a folder of real ones.

    clusters_csv: the file of part 5; images are then numbered as there, and clusters are compared one by one.
    autoencoder: a checkpoint of the VQ-GAN, for its features, its reconstructions, and a judge of the clusters.
    held_out: real tiles that no network was trained on, as a run reads them, see `sources.read_source`.
    features: one of `features.EXTRACTORS`; None: random convolutions, and the autoencoder where there is one.
    feature_files: of the real, the generated and perhaps the held-out images, computed elsewhere, beside the others;
        see `features.read_features`. Rows are in the order of `files.list_images`, or of the tiles in `held_out`.
    paired: whether images pair by name; the paired scores need that.

    A file of labels beside the real images counts with one beside the held-out tiles, see `sources.read_labels`.
    Everything given is read and checked before anything is computed; InputError says what is wrong, such as files of
    different runs. Files that do not say which run they are of are taken as they are, and a note says so.
    """
    selected = were_chosen(generated_folder)
    if selected and features == "autoencoder":
        raise InputError(
            f"The images in {generated_folder} were chosen by the autoencoder's features, which cannot report on them: "
            "name others with --features."
        )
    vqvae = None if autoencoder is None else _load_autoencoder(autoencoder, device)
    recorded = {folder: of_images(folder) for folder in (generated_folder, real_folder)}
    if clusters_csv is not None:
        recorded[clusters_csv] = of_csv(clusters_csv)
    if autoencoder is not None and vqvae is not None:
        recorded[autoencoder] = provenance_of(autoencoder, vqvae)
    _refuse_mixed_runs(recorded, {} if vqvae is None else {"autoencoder": inference_fingerprint(vqvae)})
    real_names, real, generated_names, generated = _read(real_folder, generated_folder, paired)
    real_ids, generated_ids = (
        None if clusters_csv is None else latents.pair_cluster_ids(clusters_csv, names)
        for names in (real_names, generated_names)
    )
    if vqvae is not None and real.shape[2] % vqvae.downscale:
        raise InputError(
            f"The autoencoder takes sides that are a multiple of {vqvae.downscale} px, but images have {real.shape[2]}."
        )
    kinds = [features] if features else ["random"] + ["autoencoder"] * (vqvae is not None and not selected)
    extractors: list[Extractor | ReadFeatures] = [make_extractor(kind, vqvae, device) for kind in kinds]
    data = EvaluationData(
        real, generated, real_ids=real_ids, generated_ids=generated_ids, vqvae=vqvae, is_paired=paired
    )
    if held_out is not None:
        others = read_source(held_out)
        data = replace(
            data, held_out=pixels.match_size(others.images[:], real.shape[2]), held_out_labels=others.labels,
            real_labels=read_labels(real_folder, files.list_images(real_folder).values()),
        )  # fmt: skip
    if feature_files:
        numbers = {"real": len(real), "generated": len(generated)}
        numbers |= {} if data.held_out is None else {"held-out": len(data.held_out)}
        extractors.append(read_features(feature_files, numbers))
    sections = all_sections(data, Options(extractors, seed, device))
    notes = [_of_which_run(recorded), *[CHOSEN] * selected]
    sections[1] = sections[1]._replace(notes=[*sections[1].notes, *notes])
    real_files, generated_files = (
        list(files.list_images(folder).values()) for folder in (real_folder, generated_folder)
    )
    compared = files_of_sides.make_section(real_files, generated_files, real, generated)
    if compared is None:
        return sections
    first = sections[0]._replace(notes=[compared.notes[0], *sections[0].notes])
    return [first, sections[1], compared, *sections[2:]]


def _refuse_mixed_runs(recorded: Mapping[Path, Provenance | None], networks: Mapping[str, str]) -> None:
    """InputError if two of the files tell of different runs, or one that it was made with other `networks`."""
    noted = [
        (path, provenance.without(*IGNORED, "versions"))
        for path, provenance in recorded.items()
        if provenance is not None
    ]
    for (path, provenance), (other_path, other) in combinations(noted, 2):
        require_same_run(other, provenance, f"{other_path} beside {path}")
    for path, provenance in noted:
        require_same_run(provenance, Provenance(parents=networks), f"{path} beside the autoencoder")


def _of_which_run(recorded: Mapping[Path, Provenance | None]) -> str:
    """Which of the files say of which run they are, in a sentence."""
    silent = [str(path) for path, provenance in recorded.items() if provenance is None]
    if not silent:
        return "All files belong to one run."
    return f"Without provenance, and used as they are: {', '.join(silent)}."


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
            "its checkpoint there, or delete it if the checkpoint has the published sizes."
        ) from error
    load_weights(vqvae, path)
    return vqvae.to(device).eval().requires_grad_(False)
