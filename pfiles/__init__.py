"""The shared modules of the notebooks, in wings that follow the data; a line imports only from itself and those above.

errors        the one exception for mistakes a user can mend
drawing/      samplers: ways from noise to a latent, whose names are values of a setting
settings      every hyper-parameter, by preset
machine/      cpu, kernel, rank, processes, locks, runtime, speed, pretrained: the machine a run happens on
paths         where files lie, and how they are written
spreadsheet   tables as people keep them, read and written
choices       what run.toml says of a run, in one place for all notebooks
names         what people call the clusters, and how far readers agree
tiles/        colours, pixels, mapped, files, encoding (how files are kept), scale, companions, jpeg_slide, arrays, ome,
              readers (slides of every kind), tissue, regions, coordinates, slides, pyramid (a slide written), builtin,
              sources, croissant, thumbnails, gather, split, shifted, copies, slide_table, join (of parts), tiler,
              dataset (tiles, their split), views
networks      blocks, vqvae, discriminator, unet_cond_base, classifier, linear_noise_scheduler, lpips, lpips_metric
ssim          the parts of SSIM and MS-SSIM, for scores and a loss
clusterers, cluster_bank: both kinds of clusters, and those of several k as one
latents       codes of tiles, their clusters, and the latents a UNet works on
checkpoints, provenance, cached: networks on disk, what each file was made from, and tensors computed once
efficientnet  a network that learnt from photographs, for a loss and for measures
learning/     loop, progress, losses, log, resume; autoencoder; clusters; diffusion: what each training draws and
              minimises
drawing/      sampling, soundness, generator: images from noise; layout, field: tissue larger than a tile;
              starting: weights that a training begins from; in_diffusers: a generator as diffusers loads it
measuring/    pairs and controls; features and distribution; fidelity; two_sample, usefulness, tile_network (the
              small network of both); spectrum; smoothness; structure; morphometry; cells, spots, overlays, shortlist,
              memorisation, planted and certificate (copies); neighbours; quality (of each tile); stability; field_check
reporting/    lettering, figures, lessons, tables, doubts (is a result of any use?), page, export, spatial, maps,
              card, field_report; atlas and naming (its form), painting (a layout's): what people look at
reporting/sections/  data (what is compared), record (what a section is); paired, two_sample, spectrum, structure,
              condition, usefulness, distribution, morphometry, copies: a measure each, with its figure and its time;
              files (what is not tissue)
reporting/    evaluation: all sections, from folders of images
study/        trials, form (a page for each reader), answers (the key, and what comes back), intervals, results,
              sections: people judge tiles
run           a run, opened once: it holds settings, paths and what is made of them, and does nothing
artifacts     the table of all files that a run makes; each is written, read and refused here
status        the state of each of them: made, stale, missing or foreign
learn         the trainings of a run
acceptance    how good each drawn tile is; tiles drawn until they pass
draw          tiles that its networks draw, and their files
variations    variations of real tiles, held against them
fields        a field as a slide, with its layout, its table and what it was made from
twin          a field laid out as a slide
report        what its measures, maps and pictures are made of
pack, reproduce: a run as one zip for others; the same run, made again from it and held against it
choose_k      the clusters of every k, learnt together and compared
share         a run's generator in a folder for others
paper, remake: the published files put in their places; what the paper shows, made of them again
reader_study  people judge a run's tiles
cli/          shared (arguments of several commands), parser, options, summary, execute, opening (what a command that
              runs notebooks checks); check, estimate (is this machine ready for a run), watch; notebooks, commands,
              fields, variations
__main__      the door of the command line

Importing a module starts nothing: no device, no seed, no download, no file; the package itself only says how threads
shall wait and that freed memory is kept (machine/cpu), and how a notebook shows a refusal (machine/kernel). Images are
uint8 tensors of shape (N, 3, H, W), and float in [0, 1] where a network computes, unless a docstring says otherwise.
"""

import sys
from importlib.util import find_spec
from typing import Any

from pfiles.errors import WrongPythonError
from pfiles.machine.kernel import show_refusals_as_sentences

if _missing := [name for name in ("joblib", "numpy", "pandas", "torch") if find_spec(name) is None]:
    show_refusals_as_sentences()
    raise WrongPythonError(
        f"The Python in {sys.prefix} lacks {', '.join(_missing)}. In a notebook choose the kernel kpc-ldm, at the "
        "upper right; docs/jupyterhub.md says how to register it. Elsewhere pip install -r requirements.txt with this "
        "Python."
    )

from pfiles.machine.cpu import keep_freed_memory, prepare_threads

__version__ = "1.1.0"  # the one place: pyproject.toml reads it, and CITATION.cff is held to it by a test
__all__ = ["Generator", "__version__", "open_run"]

prepare_threads()
keep_freed_memory()
show_refusals_as_sentences()


def __getattr__(name: str) -> Any:
    """`from pfiles import Generator, open_run`, without torch where only pfiles is imported."""
    if name == "Generator":
        from pfiles.drawing.generator import Generator

        return Generator
    if name == "open_run":
        from pfiles.run import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
