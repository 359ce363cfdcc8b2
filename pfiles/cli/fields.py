"""The commands that draw tissue larger than a tile: `field` and `twin`."""

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pfiles import fields
from pfiles.cli.options import open_generator, output_folder, real_tiles, tiling_of
from pfiles.drawing.field import Field, blocks_of, make_field
from pfiles.drawing.generator import Generator
from pfiles.drawing.layout import Box, Layout, make_layout, read_layout
from pfiles.errors import InputError
from pfiles.machine.runtime import pick_device
from pfiles.measuring.field_check import Joints
from pfiles.paths import expand, write_json
from pfiles.reporting import field_report, page
from pfiles.tiles.dataset import Tiles
from pfiles.tiles.sources import read_source
from pfiles.tiles.tiler import tile_slides
from pfiles.twin import write_twin


def field(args: argparse.Namespace) -> int:
    out = _out(args)
    generator, run = open_generator(args, "field")
    reader = generator.reader if args.mpp is None else generator.reader._replace(mpp=args.mpp)
    size = None if args.size is None else tuple(args.size)
    layout = read_layout(args.layout, reader, size, args.background, args.mpp_of_slide)
    field = _field(generator, layout, args)
    region = None
    if args.region is not None:
        x, y, width, height = args.region
        region = Box(y, x, y + height, x + width)
    blocks = blocks_of(field, region)
    part, side = Box(*blocks[0][:2], *blocks[-1][2:]), generator.settings.image_size_px
    if not args.no_check and not len(fields.asked_tiles(layout, part, side, out.stem, generator.names)):
        raise InputError("There is no whole tile of tissue to be read back: draw a larger part, or add --no-check.")
    real = None if args.no_check else real_tiles(args, generator, run)
    real_crops = None if args.no_check else _real_crops(args, generator, reader.mpp)
    note = fields.write_field(generator, field, out, region, reader.mpp)
    width, height = note["size"]
    scale = "of unknown scale, as --mpp was not given," if note["mpp"] is None else f"of {note['mpp']:g} um/px"
    print(f"A field of {width} x {height} px {scale} is in {out}; what was asked for is beside it.")
    if not args.no_check:
        _check(generator, field, note, out, real, real_crops)
    return 0


def _out(args: argparse.Namespace) -> Path:
    """The slide to write; InputError, before any work, where it cannot be, or where a scale is none."""
    for name in ("mpp", "mpp_of_slide"):
        scale = getattr(args, name)
        if scale is not None and not 0 < scale < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is microns per pixel, above 0, but is {scale:g}.")
    out = expand(args.out).absolute()
    output_folder(str(out.parent))
    fields.require_tiff(out)
    return out


def _field(generator: Generator, layout: Layout, args: argparse.Namespace) -> Field:
    networks = generator.unet, generator.space, generator.settings
    return make_field(*networks, layout, args.seed, args.stride, args.blend, generator.speed, generator.guide)


def _real_crops(args: argparse.Namespace, generator: Generator, mpp: float | None) -> Tensor | None:
    """Crops of the slide that `--real-slide` names, larger than a tile, one from each tile on, at the tiles' scale."""
    if args.real_slide is None:
        return None
    if mpp is None:
        raise InputError("The slide is read at the scale of the tiles, which the generator does not tell: give --mpp.")
    with tempfile.TemporaryDirectory() as private:
        side = generator.settings.image_size_px
        tiling = tiling_of(args, mpp, field_report.LARGER * side, side)
        tile_slides([expand(args.real_slide).absolute()], Path(private) / "tiles", tiling, show_split=False)
        return read_source(Path(private) / "tiles").images[:].clone()


def _check(
    generator: Generator, field: Field, note: Mapping[str, Any], out: Path, real: Tiles | None,
    real_crops: Tensor | None,
) -> None:  # fmt: skip
    table = fields.asked_tiles(
        field.layout, Box(**note["made_from"]["region"]), generator.settings.image_size_px, out.stem, generator.names
    )
    section = field_report.check_field(
        out, table, Joints(**note["joints"]), generator.assign, generator.n_clusters, field.seed, pick_device(),
        real, real_crops, lambda ids: generator.draw(ids, seed=field.seed),
    )  # fmt: skip
    write_json(fields.beside(out, "check.json"), {"said": list(section.notes), **section.scores})
    print(page.as_text([section]))


def twin(args: argparse.Namespace) -> int:
    out, slide = _out(args), expand(args.slide).absolute()
    if out.exists():
        raise InputError(f"{out} is there already: move it, or name another file.")
    generator, run = open_generator(args, "twin")
    side = generator.settings.image_size_px
    _field(generator, make_layout(np.zeros((1, 1), int), (side, side), 1), args)  # refuses stride and blend before work
    mpp = args.mpp or generator.mpp
    if mpp is None:
        raise InputError(f"{args.folder} does not tell the scale of its tiles: give it as --mpp.")
    real = real_tiles(args, generator, run)
    if real is None:
        raise InputError("A twin is compared with the tiles that its generator learnt from: name them with --real.")
    tiling = tiling_of(args, mpp, side)
    section = write_twin(generator, lambda layout: _field(generator, layout, args), slide, out, real, tiling)
    print(page.as_text([section]))
    return 0
