"""What each command does, one function per command; those that run notebooks in a kernel stand in `notebooks`."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import torch

from pfiles import pack, paper, remake, reproduce
from pfiles.acceptance import Acceptance, qualities, standard_in, standard_of, until_accepted
from pfiles.checkpoints import inference_fingerprint
from pfiles.cli.check import check
from pfiles.cli.options import (
    generator_folder,
    open_generator,
    output_folder,
    parse_overrides,
    resolve_data,
    run_choices,
    run_folder,
    tiling_of,
)
from pfiles.cli.parser import parse
from pfiles.cli.watch import watch
from pfiles.drawing.generator import Generator
from pfiles.drawing.sampling import image_seeds, write_table
from pfiles.errors import InputError
from pfiles.machine.processes import progress
from pfiles.machine.runtime import pick_device, versions
from pfiles.measuring.pairs import PUBLISHED_SIDE
from pfiles.measuring.quality import FILE as QUALITY_FILE
from pfiles.paths import Paths, expand, numbers_of_clusters, read_json, refuse_foreign, write_json
from pfiles.provenance import MADE_FROM
from pfiles.reporting import evaluation, export, figures, maps, page
from pfiles.reporting.card import BLANKS, read_card
from pfiles.run import open_run
from pfiles.settings import get_settings
from pfiles.share import share
from pfiles.status import states_of
from pfiles.tiles.files import list_images, read_images, refuse_other_images, write_tiles
from pfiles.tiles.gather import gather
from pfiles.tiles.join import join_parts
from pfiles.tiles.slide_table import read_slide_table
from pfiles.tiles.slides import Tiling
from pfiles.tiles.sources import PICTURES, TABLE, is_drawn, patients_of, positions_of, read_source, read_tile_table
from pfiles.tiles.tiler import tile_slides

LEFT_OUT = 3  # exit status

MOST_TILES = 1_000_000  # of one `draw`, which holds them all in memory


def _check(args: argparse.Namespace) -> int:
    out = None if args.out is None else expand(args.out).absolute()
    data = None if args.data is None else resolve_data(args.data)
    overrides = parse_overrides(args.overrides)
    return int(not check(args.clusters, args.clustering, data, args.preset, overrides, out, not args.fast))


def _cells(args: argparse.Namespace) -> int:
    from pfiles.cli import notebooks  # here and below, as the other commands do without Jupyter

    return notebooks.cells(args)


def _watch(args: argparse.Namespace) -> int:
    watch(None if args.out is None else expand(args.out).absolute(), once=args.once)
    return 0


def _show_status(args: argparse.Namespace) -> int:
    folder = expand(args.folder).absolute()
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: name that of a run with --run.")
    run = open_run("status", **run_choices(args, folder), out=folder, run_toml=False, looks=True)
    print(f"{'artefact':<24} {'state':<8} {'where':<52} why")
    for artifact, path, state, reason in states_of(run):
        where = "" if path is None else path.relative_to(run.paths.root)
        print(f"{artifact.name:<24} {state:<8} {where!s:<52} {reason}".rstrip())
    return 0


def _draw(args: argparse.Namespace) -> int:
    if not 1 <= args.number <= MOST_TILES:
        raise InputError(f"--number must be from 1 to {MOST_TILES:,}, but is {args.number}.")
    out, numbers = output_folder(args.out), range(1, args.number + 1)
    refuse_foreign(out, (TABLE, "sheet.jpg", "tiles"), is_drawn(out))
    refuse_other_images(out / "tiles", numbers)
    acceptance, seeds = Acceptance(args.accept), image_seeds(args.seed, range(args.number))
    generator, run = open_generator(args, "draw")
    standard = standard_in(generator_folder(args.folder), generator) if run is None else standard_of(run)
    cluster_ids = generator.cluster_ids(args.number, args.seed, args.cluster)
    images = until_accepted(generator.draw, standard, generator.space.vqvae, acceptance)(cluster_ids, seeds=seeds)
    measured = qualities(generator, standard, images, cluster_ids, run, acceptance)
    write_table(  # first: it says that the folder is ours
        out, numbers, cluster_ids, generator.names, args.seed, measured, acceptance.accept
    )
    write_tiles(out / "tiles", numbers, images)
    clusters = cluster_ids.unique().tolist()
    labels = [figures.cluster_label(cluster + 1, generator.names) for cluster in clusters]
    rows = [images[cluster_ids == cluster] for cluster in clusters]
    sheet = figures.show_rows(rows, labels, "Generated tiles of each cluster", generator.mpp)
    figures.save_figure(sheet, out / "sheet.jpg")
    print(f"{args.number} tiles in {out / 'tiles'}, at most ten of each cluster in {out / 'sheet.jpg'}")
    if acceptance.accept < 1:
        print(acceptance)
    if unknown := [column for column in measured if measured[column].isna().all()]:
        print(
            f"tiles.csv has no values for {', '.join(unknown)}: realism and structure need a run, or {QUALITY_FILE} "
            "beside the generator; nearest needs a run."
        )
    return 0


def _field(args: argparse.Namespace) -> int:
    from pfiles.cli import fields

    return fields.field(args)


def _twin(args: argparse.Namespace) -> int:
    from pfiles.cli import fields

    return fields.twin(args)


def _vary(args: argparse.Namespace) -> int:
    from pfiles.cli import variations

    return variations.vary(args)


def _tile(args: argparse.Namespace) -> int:
    if args.join is not None:
        return _join(args)
    if not args.slides:
        raise InputError("tile needs slides or folders of them, or with --join the parts that were cut of them.")
    tiling = Tiling(**{field.name: getattr(args, field.name) for field in fields(Tiling)})
    table = None if args.slides_csv is None else expand(args.slides_csv).absolute()
    slides = [expand(path).absolute() for path in args.slides]
    regions, coordinates = (
        None if path is None else expand(path).absolute() for path in (args.regions_path, args.coordinates_path)
    )
    left_out = tile_slides(
        slides, output_folder(args.out), tiling, table, args.pseudonyms, regions=regions, coordinates=coordinates,
        dry_run=args.dry_run, part=args.part,
    )  # fmt: skip
    return _status(left_out, args)


def _join(args: argparse.Namespace) -> int:
    plain = parse(["tile", "--join", *args.join, "--out", args.out])
    free = ("allow_missing", "debug", "run_toml")
    if others := [name for name, value in vars(plain).items() if name not in free and getattr(args, name) != value]:
        raise InputError(f"--join takes parts as they were cut: leave out {', '.join(others)}.")
    left_out = join_parts([expand(path).absolute() for path in args.join], expand(args.out).absolute())
    return _status(left_out, args)


def _status(left_out: Mapping[str, str], args: argparse.Namespace) -> int:
    """The exit status of a command that read slides: 3 where some were left out."""
    return LEFT_OUT if left_out and not args.allow_missing else 0


def _map(args: argparse.Namespace) -> int:
    folder, out = run_folder(args.folder), output_folder(args.out)
    if folder is not None:
        run = open_run("map", **run_choices(args, folder), out=folder, run_toml=False, looks=True)
        trained = replace(run.networks(), names=run.names)
        mpp = args.mpp or read_json(run.paths.summary, {}).get("run", {}).get("mpp")
    else:
        trained = Generator.load(generator_folder(args.folder), pick_device())
        mpp = args.mpp or trained.mpp
    if mpp is None:
        raise InputError(f"{args.folder} does not tell the scale of its tiles: give it as --mpp.")
    side = trained.settings.image_size_px
    tiling = tiling_of(args, mpp, side)
    table = None if args.slides_csv is None else expand(args.slides_csv).absolute()
    paths = [expand(path).absolute() for path in args.slide]
    networks = {"autoencoder": trained.space.vqvae, "clusters": trained.bank}
    of: dict[str, Any] = {name: inference_fingerprint(network) for name, network in networks.items()}
    slides = gather(paths, out, tiling.page, [] if table is None else [*read_slide_table(table)]).slides
    of["slides"] = sorted({slide.path.name for slide in slides})
    refuse_foreign(out, ("tiles", *maps.file_names(slide.name for slide in slides)), (out / MADE_FROM).exists())
    if read_json(out / MADE_FROM, of) != of:
        raise InputError(f"{out} holds maps of other slides or of other networks: name another folder with --out.")
    write_json(out / MADE_FROM, of)
    left_out = tile_slides(paths, out / "tiles", tiling, table, show_split=False, skipped=out)
    for name in (f"{slide.name}.{kind}" for slide in slides if slide.name in left_out for kind in ("jpg", "geojson")):
        (out / name).unlink(missing_ok=True)  # a map of what lay there before
    tiles = read_source(out / "tiles")
    bar = progress(tiles.images.split(4096), desc="assign tiles", unit="batch", leave=False, delay=2)
    parts = [trained.assign(batch) for batch in bar]
    positions = positions_of(read_tile_table(out / "tiles" / TABLE))
    clustered = maps.ClusteredTiles(positions, *(torch.cat(part).numpy() for part in zip(*parts, strict=True)))
    section = maps.write_maps(
        out, clustered, tiles.images, trained.n_clusters, names=trained.names, patients=patients_of(tiles),
        pictures=out / "tiles" / PICTURES, frame=args.frame, min_region=args.min_region,
    )  # fmt: skip
    print(page.as_text([section]))
    return _status(left_out, args)


def _evaluate(args: argparse.Namespace) -> int:
    clusters_csv, autoencoder, held_out = (
        None if path is None else expand(path).absolute()
        for path in (args.clusters_csv, args.autoencoder, args.held_out)
    )
    real, generated = (expand(folder).absolute() for folder in (args.real, args.generated))
    out = output_folder(args.out)
    page.refuse_other_report(out)
    sections = evaluation.evaluate(
        real, generated, clusters_csv, autoencoder, held_out, **_features(args.features or []),
        paired=not args.unpaired, seed=args.seed, device=pick_device(),
    )  # fmt: skip
    print(page.as_text(sections))
    about = {"real": str(real), "generated": str(generated), "seed": args.seed, **versions()}
    print("\nwritten", *page.write_report(sections, out, about), sep="\n  ")
    return 0


def _features(values: list[str]) -> dict[str, Any]:
    """What `--features` names: a kind of features, or the files of features that were computed elsewhere."""
    if any(value.endswith(".npy") for value in values):
        return {"feature_files": [expand(value).absolute() for value in values]}
    if len(values) > 1:
        raise InputError(f"--features takes one name, or files ending in .npy, but got {' '.join(values)}.")
    return {"features": values[0]} if values else {}


def _export(args: argparse.Namespace) -> int:
    generated, out = expand(args.generated).absolute(), output_folder(args.out)
    side = read_images([*list_images(generated).values()][:1]).shape[2]
    overrides = {**parse_overrides(args.overrides), "max_train_tiles": None, "precision": "fp32"}
    if side != PUBLISHED_SIDE:  # else they are tiles enlarged by the authors' way of saving them
        overrides["image_size_px"] = side
    data = None if args.data is None else resolve_data(args.data)
    run = open_run("export", 2, "kmeans", data, args.preset, overrides, looks=True)
    if run.data is None and export.made_from(generated) is None:
        raise InputError(f"Nothing in {generated} says which tiles its images were made from: name them with --data.")
    gate = export.export(generated, run.tiles, out, args.exhaustive)
    noted, searched = export.made_from(generated), gate["training_tiles"]
    if noted is not None and noted["training tiles"] < searched:
        print(
            f"All {searched:,} training tiles of the data count here. Part 14 and share look at those alone that the "
            f"networks learnt from, {noted['training tiles']:,}, so that their shares may differ from these."
        )
    share_closer, low, high, expected = (f"{gate[name]:.1%}" for name in ("closer", "low", "high", "expected"))
    print(
        f"{gate['exported']} of {len(gate['images'])} images passed: {out / 'images'}\n"
        f"{gate['withheld']} were withheld: they are closer to a training tile than {gate['threshold']:.3f}, as "
        f"the closest 1 % of {gate['held_out_tiles']} held-out tiles are.\n"
        f"That is {share_closer}, 95 % interval {low} to {high}. Of images like the held-out tiles {expected} would be "
        f"expected, and this share or a larger one has a chance of {gate['chance']:.2g}.\n"
        f"{gate['certificate']['in_words']}\n"
        "These are the files that were given: it says nothing of images that were deleted before, or of the "
        "generator.\n"
        "Hand on images and croissant.json only: report.json and closest_pairs.png reveal real tiles."
    )
    return 0


def _share(args: argparse.Namespace) -> int:
    folder, out = expand(args.folder).absolute(), output_folder(args.out)
    card = read_card(args.card and expand(args.card), {name: getattr(args, name) for name in BLANKS})
    choices = run_choices(args, folder)
    run = open_run("share", **choices, out=folder, run_toml=False, looks=True)
    gate = share(
        run, out, card, preset=run.preset, overrides=choices.get("overrides", {}), judged=args.judged,
        exhaustive=args.exhaustive, field_files=[expand(file).absolute() for file in args.field],
    )  # fmt: skip
    print(
        f"The gate passed: {gate['closer']:.1%} of {gate['images']} tiles, drawn anew from these networks, are nearer "
        f"to a training tile than the closest 1 % of held-out tiles.\n{gate['certificate']}\n"
        f"{out} is ready. Read its README.md. To put it on the Hugging Face hub:\n"
        f"    hf auth login\n    hf upload YOUR-NAME/NAME-OF-THE-GENERATOR {out}"
    )
    return 0


def _paper(args: argparse.Namespace) -> int:
    out = None if args.out is None else output_folder(args.out)
    overrides = parse_overrides(args.overrides)
    archives = [expand(archive).absolute() for archive in args.archive]
    paths, settings = Paths(paper.K, out), get_settings("paper", overrides)
    if out is not None:
        refuse_foreign(out, ("Figures",), (out / "kpc_ldm").exists() or remake.is_table(out / remake.TABLE))
    remake.refuse_other_table(paths.root)
    published = paper.place(archives, paths, settings)
    for name, files in published.files.items():
        more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
        print(f"{name:<28} {files[0]}{more}")
    for name, source in published.missing.items():
        print(f"{name:<28} missing: {source}")
    data = next(iter(published.files.get("tiles", [])), None)
    run = open_run("paper", paper.K, "classifier", data, "paper", overrides, out=out, run_toml=False)
    evidence, rows = remake.Paper(run, published.files), []
    for row in chain(remake.numbers(evidence), remake.save_figures(evidence)):
        print(f"\n{row.what}\n    published {row.published or '-'}, re-made {row.remade or '-'}: {row.why}", flush=True)
        rows.append(row)
    table = run.paths.root / remake.TABLE
    remake.write_table(rows, table)
    print(f"\nThis as a table: {table}")
    return 0


def _reader_study(args: argparse.Namespace) -> int:
    from pfiles import reader_study  # Jinja is not installed everywhere

    if (args.folder is None) == (args.score is None):
        raise InputError("reader-study takes either --run, for new pages, or --score, for files of answers.")
    if args.score is not None:
        files = [expand(file).absolute() for file in args.score]
        out = None if args.out is None else output_folder(args.out)
        print(page.as_text(reader_study.score(files, out)))
        return 0
    if args.out is None:
        raise InputError("reader-study --run needs --out, a new folder for the pages.")
    folder, out = expand(args.folder).absolute(), output_folder(args.out)
    run = open_run("reader_study", **run_choices(args, folder), out=folder, run_toml=False)
    reader_study.make(run, out, args.question, args.tiles, args.readers, args.scale)
    print(
        f"{args.readers} pages in {out}: give each reader one of reader_1.html ... and keep key.json, which tells the "
        "answers. Put the files that come back beside it, and then:\n"
        f"    python -m pfiles reader-study --score {out}/*.json"
    )
    return 0


def _pack(args: argparse.Namespace) -> int:
    from pfiles.cli.notebooks import NOTEBOOKS

    folder, out = expand(args.folder).absolute(), expand(args.out).absolute()
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: name that of a run with --run.")
    if out.is_dir() or out.suffix != ".zip":
        raise InputError(f"--out must be the name of a file that ends in .zip, but is {out}.")
    refuse_foreign(out.parent, (out.name,), pack.is_crate(out))
    choices = run_choices(args, folder)
    if len(numbers_of_clusters(choices.get("n_clusters", 14))) > 1:
        raise InputError("This run trained several numbers of clusters together, but a crate holds a run of one.")
    run = open_run("pack", **choices, out=folder, run_toml=False, looks=True)
    licence = {} if args.licence is None else {"licence": args.licence}
    record = pack.pack(
        run, out, NOTEBOOKS, choices, with_checkpoints=args.checkpoints, with_tiles=args.tiles,
        **licence,
    )  # fmt: skip
    for name, artefact in record["artefacts"].items():
        if artefact["state"] != "made":
            print(f"{name} is {artefact['state']}: {artefact['why']}")
    print(
        f"{out} holds what {len(record['notebooks'])} notebooks made. Its figures and notebooks show single tiles: "
        "look at them before you publish it."
    )
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from pfiles.cli.notebooks import make_again

    out = output_folder(args.out)
    refuse_foreign(out, ("summary.json", "Figures", "org", "reproduction.json"), (out / "reproduce.log").exists())
    with reproduce.opened(expand(args.crate).absolute()) as (archive, record):
        choices = reproduce.choices_for(archive, record, out, args.data and resolve_data(args.data))
    choices["overrides"] |= parse_overrides(args.overrides)
    run = open_run("reproduce", **choices, run_toml=False)
    changed = reproduce.changed_inputs(record, run)
    print("\n".join(["Changed inputs:", *changed] if changed else ["No input has changed."]))
    make_again(record["notebooks"], choices, out)
    verdicts = reproduce.compare(record, open_run("reproduce", **choices, run_toml=False), changed)
    write_json(out / "reproduction.json", {"changed": changed, "verdicts": [each._asdict() for each in verdicts]})
    return reproduce.show(verdicts, out / "reproduction.json")


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {  # each returns the exit status
    "check": _check,
    "cells": _cells,
    "watch": _watch,
    "status": _show_status,
    "draw": _draw,
    "field": _field,
    "twin": _twin,
    "vary": _vary,
    "tile": _tile,
    "map": _map,
    "evaluate": _evaluate,
    "export": _export,
    "share": _share,
    "paper": _paper,
    "reader-study": _reader_study,
    "pack": _pack,
    "reproduce": _reproduce,
}
