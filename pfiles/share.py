"""A run's generator in a folder for others: networks, a card that says what it is, and a sheet of what it draws.

Nothing in the folder tells from whose tissue it learnt: no path, no file name, no slide, no patient.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from html import escape
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from pfiles import checkpoints, draw, fields
from pfiles.acceptance import standard_of
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.measuring import certificate
from pfiles.measuring.memorisation import UNLIKELY, is_flat, repeated
from pfiles.measuring.quality import FILE as QUALITY_FILE
from pfiles.measuring.quality import as_bytes
from pfiles.paths import ROOT, atomic_folder, atomic_write, expand, read_json, write_text
from pfiles.provenance import flatten, require_same_run
from pfiles.reporting import figures
from pfiles.reporting.card import CARD, metadata
from pfiles.reporting.export import HELD_OUT
from pfiles.reporting.tables import provenances
from pfiles.run import Run
from pfiles.tiles.dataset import EMBEDDED, data_or_default
from pfiles.tiles.mapped import Images
from pfiles.tiles.pixels import evenly_spaced
from pfiles.tiles.sources import Source, read_source
from pfiles.tiles.split import level_of_slides

JUDGED = 500  # tiles that the gate draws; of fewer the card says so
MOST_FLAT, MOST_ALIKE = 0.1, 0.5  # shares of the judged tiles: more flat ones than training has, or repeated ones
TILES_SHOWN = 8  # of each cluster


def share(
    run: Run, folder: Path, card: Mapping[str, str], preset: str = "",
    overrides: Mapping[str, Any] | None = None, judged: int = JUDGED, exhaustive: bool = False,
    field_files: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write the new `folder`, all at once: config.json, model.safetensors, quality.safetensors,
    README.md and sheet.jpg; and copies of `field_files`, fields of this generator, see `fields.hand_on`.

    card: see `read_card`. preset, overrides: the run's, for the card. judged: how many tiles the gate draws.
    exhaustive: see `memorisation.nearest_tiles`.
    Returns the result of the gate: how many tiles that the written networks draw are near to a training tile.
    InputError where it fails, and where a text in the folder would name a path, a file, a slide or a patient.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new folder.")
    if judged < 2:
        raise InputError(f"The gate must draw at least 2 tiles to judge, but was asked for {judged}.")
    generator, source = replace(draw.generator(run), about=_begun_from(run)), _source(run)
    with atomic_folder(folder) as part:
        generator.save(part)
        if (standard := standard_of(run)) is not None:
            with atomic_write(part / QUALITY_FILE) as file:
                file.write(as_bytes(standard))
        texts = fields.hand_on(field_files, part, generator, run.tiles)
        telling = _telling(run, source)
        _refuse_traces(part, " ".join(card.values()), telling, texts)  # before the work
        loaded = Generator.load(part, run.device)  # what others will get
        gate = _gate(run, loaded.draw(number=judged, seed=run.seed), exhaustive)
        tiles = loaded.draw(torch.arange(loaded.n_clusters).repeat_interleave(TILES_SHOWN))
        labels = [figures.cluster_label(number + 1, loaded.names) for number in range(loaded.n_clusters)]
        sheet = figures.show_tiles(tiles, TILES_SHOWN, rows=labels, mpp=loaded.mpp)
        figures.save_figure(sheet, part / "sheet.jpg", dpi=110)
        text = _card(run, loaded, source, card, gate, preset, overrides or {})
        write_text(part / "README.md", text)
        _refuse_traces(part, text, telling)
    return gate


def _gate(run: Run, images: Tensor, exhaustive: bool = False) -> dict[str, Any]:
    """How near the images are to the run's training tiles; InputError where they repeat them, or can show nothing.

    The images are drawn for this from the networks that are handed on: files of images could be edited.
    """
    tiles = run.tiles
    train, held_out = tiles.rows(tiles.train), tiles.tensor(tiles.test[evenly_spaced(len(tiles.test), HELD_OUT)])
    flat, alike = _refuse_no_evidence(images, tiles.rows(tiles.some_of_training(HELD_OUT)))
    nearest, _, closeness, leak, certified = certificate.search(images, train, held_out, tiles.source, exhaustive)
    if leak or certified is None or (chance := closeness["chance"]) is None:
        raise InputError(f"The gate cannot judge this generator. {leak}")
    copies = int((nearest.distance < closeness["outright"]).sum())
    if copies or chance < UNLIKELY:
        raise InputError(
            f"The memorisation gate fails: {copies} of {len(images)} tiles that were drawn for it are outright copies "
            f"of training tiles, and {closeness['closer']:.1%} are nearer to one than the closest 1 % of held-out "
            f"tiles, where {closeness['expected']:.1%} would be expected without copying (p = {chance:.2g}). The "
            "generator remembers training tiles: train on more tiles, or for fewer epochs, and see part 14."
        )
    return {
        **closeness, "certificate": str(certified), "images": len(images), "smallest": float(nearest.distance.min()),
        "flat": flat, "alike": alike, "seed": run.seed,
    }  # fmt: skip


def _refuse_no_evidence(images: Tensor, train: Images) -> tuple[float, float]:
    """The shares of the images that are flat, and of those that repeat another image, both small.

    InputError where they are large: what shows nothing, or one thing only, is near to no training tile whatever the
    networks keep of them.
    """
    flat, usual = (is_flat(tiles).double().mean().item() for tiles in (images, train))
    if flat > MOST_FLAT + usual:
        raise InputError(
            f"The gate cannot judge this generator: {flat:.0%} of {len(images)} tiles that were drawn for it show "
            f"nothing but one colour, and {usual:.0%} of the training tiles. Train it longer."
        )
    alike = repeated(images)
    if alike > MOST_ALIKE:
        raise InputError(
            f"The gate cannot judge this generator: {alike:.0%} of the tiles that were drawn for it repeat another one "
            "of them. Train it longer, or with another seed."
        )
    return flat, alike


def _begun_from(run: Run) -> dict[str, str]:
    """What the card and config.json say of the weights that the training began from, if it began from any."""
    return {} if not run.start_weights else {"begun_from": checkpoints.fingerprint_of_state(run.start_weights)}


def _begun_in_words(run: Run, generator: Generator) -> str:
    """What the training began from in words, without the path."""
    begun = generator.about.get("begun_from")
    if begun is None:
        return "random weights"
    name = "the small generator that comes with pfiles" if run.settings.start_from == "starter" else "other weights"
    return (
        f"{name} (fingerprint {begun}), which learnt from tiles of their own: what this card says of tiles, patients, "
        "consent and copies does not cover those"
    )


def _data(run: Run) -> Path | None:
    """The path of the data; None for embedded tiles."""
    data = data_or_default(run.data)
    return None if data in EMBEDDED else (ROOT / expand(data)).resolve()


def _source(run: Run) -> Source | None:
    """The data as given; None for embedded tiles."""
    return None if (data := _data(run)) is None else read_source(data, run.settings.icc)


def _card(
    run: Run, generator: Generator, source: Source | None, card: Mapping[str, str], gate: Mapping[str, Any],
    preset: str, overrides: Mapping[str, Any],
) -> str:  # fmt: skip
    cells = {name: _as_text(value) for name, value in card.items()}
    names = [_as_text(generator.names.get(number, "")) for number in range(1, generator.n_clusters + 1)]
    rows = [f"| {i} | {name} | {s:.1%} |" for i, (name, s) in enumerate(zip(names, generator.shares, strict=True), 1)]
    slides = set() if run.tiles.positions is None else set(run.tiles.positions.slide)
    patients = set() if source is None else set(source.patients) - {""}
    sampling, scale = generator.settings.sampling, "" if generator.mpp is None else f", {generator.mpp:g} um per pixel"
    changed = ", ".join(f"{name} = {value}" for name, value in overrides.items() if name != "start_from")
    few = "" if gate["images"] >= JUDGED else f"; fewer than the usual {JUDGED}, so that rarer copies stay unseen"
    return CARD.format(
        metadata=metadata(card), few=few, begun=_begun_in_words(run, generator),
        title=f"A generator of {card['organ']} tissue", **cells, **gate,
        side=generator.settings.image_size_px, scale=scale, k=generator.n_clusters, shown=TILES_SHOWN,
        train=len(run.tiles.train), test=len(run.tiles.test), split=_split(source),
        slides=f"{len(slides)} slide{'s' * (len(slides) > 1)}" if slides else "number of slides not known",
        patients=f"{len(patients)} patient{'s' * (len(patients) > 1)}" if patients else "number of patients not known",
        codes=generator.space.vqvae.embedding.num_embeddings, clustering=generator.clustering,
        parameters=sum(p.numel() for p in generator.unet.parameters()) / 1e6, sampler=sampling.sampler,
        steps=sampling.steps, guidance=sampling.guidance, preset=preset, changed=f", with {changed}" if changed else "",
        day=date.today().isoformat(), clusters="\n".join(rows), measured=_measured(run),
    )  # fmt: skip


def _split(source: Source | None) -> str:
    """How `load_tiles` told training and test tiles apart, without the names of slides that it prints."""
    if source is None:
        return "by region"
    if source.positions is not None:
        if all(source.patients):
            return "by patient: none is on both sides"
        several = len(set(source.positions.slide)) > 1
        return "by slide: none is on both sides" if several else "by region of the one slide"
    if level_of_slides(source.names)[0] is not None:
        return "by folder, each taken for a slide"
    return "the last eleventh of the tiles is held out; a slide may be on both sides"


def _measured(run: Run) -> str:
    """What part 13 recorded, with its floors, as Markdown; InputError where it is of other data or settings."""
    section = f"{run.paths.cluster_folder.name}{run.paths.suffix}/part_13_distribution_metrics"
    scores = read_json(run.paths.summary, {}).get(section)
    if scores is None:
        return "\nNothing: part 13 was not run."
    if (provenance := provenances(run.paths.summary).get(section)) is not None:
        require_same_run(provenance, run.provenance, f"{section} in {run.paths.summary}")
    lines = [f"- {name}: {line}" for name, line in scores.get("in_short", {}).items()]
    for features, tables in scores.get("details", {}).items():
        rows = tables.get("overall", {}) if isinstance(tables, dict) else {}
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        if columns:
            lines += ["", f"In {features}; every row below the first is a floor or a ceiling:", ""]
            lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            for name, row in rows.items():
                lines.append(f"| {name} | {' | '.join(f'{row[c]:.4g}' if c in row else '' for c in columns)} |")
    return "\n".join(["", *lines])


def _as_text(words: str) -> str:
    """Text for a cell of a table: markup, formulas and links are shown, not run."""
    return re.sub(r"([\\`*_\[\]$~|])", r"\\\1", escape(words, quote=False))


def _telling(run: Run, source: Source | None) -> set[str]:
    """What must not be said: the run's paths, and files, folders, slides and patients of its data."""
    words, people = {str(run.paths.root), str(Path.home())}, set()
    data = _data(run)
    if source is not None and data is not None:
        words |= {str(data), str(data.parent), data.name, data.stem}
        words |= {part for name in source.names for part in (*name.parts, name.stem)}
        people |= set(source.patients)
        if source.positions is not None:
            people |= set(source.positions.slide.tolist())
    ordinary = set(re.findall(r"\w+", CARD.lower()))
    people |= {PurePath(name).stem for name in people}
    telling = {word for word in words if _is_telling(word, 4, 6)} | {word for word in people if _is_telling(word, 2, 4)}
    return {word for word in telling if word.lower() not in ordinary}


def _is_telling(word: str, letters: int, digits: int) -> bool:
    """Whether a name is more than a short number or a syllable, which stand in any text."""
    return len(word) >= (digits if word.isdecimal() else letters)


def _refuse_traces(folder: Path, card: str, telling: Iterable[str], more: Mapping[str, str] | None = None) -> None:
    """InputError where the card, config.json in `folder`, the names in its weights or `more` hold one of the words."""
    header = (folder / "model.safetensors").read_bytes()
    header = header[8 : 8 + int.from_bytes(header[:8], "little")]
    config = flatten(read_json(folder / "config.json", {}))
    texts = {
        "the card": card,
        "config.json": json.dumps(config, ensure_ascii=False),
        "the names of the weights": header.decode(),
        **(more or {}),
    }
    for where, text in texts.items():
        for word in sorted(telling):
            if re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE):  # _ parts words too
                raise InputError(
                    f"{where} would say {word!r}, which is a path, file, slide or patient of the data: say it "
                    "otherwise in the card's fields or in the names of clusters."
                )
