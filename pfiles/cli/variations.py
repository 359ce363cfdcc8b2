"""The command that varies real tiles: `vary`."""

import argparse

from pfiles import variations
from pfiles.cli.options import open_generator, output_folder, real_tiles
from pfiles.errors import InputError
from pfiles.paths import expand
from pfiles.tiles.files import list_images, read_images
from pfiles.tiles.pixels import resize

MOST_VARIATIONS = 100_000  # of one command, which holds them all in memory


def vary(args: argparse.Namespace) -> int:
    out, path = output_folder(args.out), expand(args.tiles).absolute()
    variations.refuse_other_files(out)
    if not path.exists():
        raise InputError(f"There is no tile or folder of tiles at {path}: correct the path.")
    files = [path] if path.is_file() else [*list_images(path).values()]
    if args.number * len(files) * len(args.strength) * (1 + len(args.cluster)) > MOST_VARIATIONS:
        raise InputError(f"That would be more than {MOST_VARIATIONS:,} variations: ask for fewer.")
    generator, run = open_generator(args, "vary")
    variations.check(generator, args.strength, args.number, args.cluster)
    side = generator.settings.image_size_px
    originals = read_images(files)
    originals = originals if originals.shape[2] == side else resize(originals, side)
    gate = variations.make_gate(real_tiles(args, generator, run))
    note = variations.write_variations(
        generator, [file.name for file in files], originals, out, gate,
        strengths=args.strength, number=args.number, seed=args.seed, clusters=args.cluster,
    )  # fmt: skip
    print(variations.in_words(note))
    print(f"{note['variations'] - note['withheld']} of {note['variations']} variations are in {out / 'tiles'}.")
    return 0
