"""Fields: tissue larger than a tile, drawn by the networks of a generator of tiles.

The UNet looks at windows of a tile's size. At each step of the solver the windows lie side by side on a grid; where
windows overlap, their predictions are averaged with a smooth weight (MultiDiffusion, Bar-Tal et al. 2023). The grid
moves several times on the way from noise to tissue (shifted windows, Frolov et al. 2024): what was a border between two
windows lies inside of one afterwards, so that no seam stays, and each place is predicted once a step at the stride of a
whole window. `EXCHANGES` says how often the grid moves. That number bounds what a place depends on: its
surroundings of at most so many windows, whatever the number of steps. So any part of a field can be drawn alone.

All noise belongs to its absolute place and the seed. Networks always get windows in batches of one size, the setting
`sampling.batch_size` does not count: so a field has the same bytes on any machine of one kind.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pfiles.drawing import layout as layouts
from pfiles.drawing.layout import Box, Layout
from pfiles.drawing.samplers import make_solver
from pfiles.drawing.sampling import sample_noise
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.processes import progress
from pfiles.machine.runtime import derive_seed, eval_mode
from pfiles.machine.speed import EAGER, Speed
from pfiles.settings import Settings
from pfiles.tiles.pixels import to_uint8
from pfiles.unet_cond_base import UNet

EXCHANGES = 8  # grids of windows, each moved, on the way from noise to tissue
AT_ONCE = 16  # windows in a network; other numbers round sums differently, so this is part of what a seed means
BLOCK = 2048  # px along the side of the blocks that a field is drawn in, or a little less; bounds memory
GLASS = 243  # level of all colours where there is no tissue
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, less whole numbers, never come near each other


class _Task(NamedTuple):
    """A window of a part, counted from its corner, that the UNet predicts for one cluster (-1: for none).

    share: how much the prediction counts, one number or of each place (w, w).
    """

    rows: slice
    columns: slice
    cluster: int
    share: Tensor | float


@dataclass(frozen=True, eq=False)
class Field:
    """What decides every pixel of a field. `make_field` checks it.

    stride, blend: in latents: from window to window; over which two clusters blend at their border. redrawn: how often
    the noise of a square of a tile's size, by its row and column, was replaced by other noise. guide: see `sample`.
    """

    unet: UNet
    space: LatentSpace
    settings: Settings
    layout: Layout
    seed: int
    stride: int
    blend: int
    speed: Speed = EAGER
    redrawn: Mapping[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    guide: UNet | None = None

    @property
    def window(self) -> int:
        """Latents along the side of a tile."""
        return self.space.vqvae.latent_shape(self.settings.image_size_px)[1]

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent."""
        return self.space.vqvae.downscale

    @property
    def whole(self) -> Box:
        """All latents; the last row and column may reach over the field's edge."""
        width, height = self.layout.size
        return Box(0, 0, -(-height // self.scale), -(-width // self.scale))


def make_field(
    unet: UNet,
    space: LatentSpace,
    settings: Settings,
    layout: Layout,
    seed: int = 765,
    stride: int | None = None,
    blend: int | None = None,
    speed: Speed = EAGER,
    guide: UNet | None = None,
) -> Field:
    """A field of pixels; InputError for what cannot be drawn.

    layout: which cluster lies where, and the size. stride: pixels from window to window, at most a tile's side, which
    is the default; smaller ones average more predictions and take longer. blend: pixels over which two clusters blend
    at their border; default a quarter of a tile's side. guide: see `sample`.
    """
    side, scale = settings.image_size_px, space.vqvae.downscale
    stride, blend = side if stride is None else stride, side // 4 if blend is None else blend
    if not scale <= stride <= side:
        raise InputError(f"The stride must be from {scale} px to a tile's side, {side} px, but is {stride}.")
    if not 0 <= blend <= 4 * side:
        raise InputError(f"Clusters blend over 0 to {4 * side} px at their border, but got {blend}.")
    if min(layout.size) < side:
        width, height = layout.size
        raise InputError(f"A field has at least the size of a tile, {side} px, but {width} x {height} px were asked.")
    speed = replace(speed, compiled=False)  # batches differ in length, and each would be compiled for a minute
    return Field(unet, space, settings, layout, seed, stride // scale, blend // scale, speed, guide=guide)


def steps_of(field: Field) -> int:
    """Steps of the solver for a block."""
    diffusion, sampling = field.settings.diffusion, field.settings.sampling
    scheduler = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
    return len(make_solver(sampling.sampler, scheduler, sampling.steps).timesteps)


def offset_of(field: Field, number: int) -> int:
    """Latents by which the grid of that number is moved."""
    return int(number * GOLDEN % 1 * field.stride)


def blocks_of(field: Field, region: Box | None = None) -> list[Box]:
    """The blocks of pixels, row by row, that a field, or a region of it, is drawn in: a grid of the whole field."""
    width, height = field.layout.size
    region = region or Box(0, 0, height, width)
    if not (0 <= region.top < region.bottom <= height and 0 <= region.left < region.right <= width):
        raise InputError(
            f"The region from {region.left}, {region.top} to {region.right}, {region.bottom} does not lie in the field "
            f"of {width} x {height} px: choose one that does."
        )
    side = max(BLOCK // field.settings.image_size_px, 1) * field.settings.image_size_px
    edges = [
        [low, *range((low // side + 1) * side, high, side), high]
        for low, high in ((region.top, region.bottom), (region.left, region.right))
    ]
    return [
        Box(top, left, bottom, right)
        for top, bottom in zip(edges[0], edges[0][1:], strict=False)
        for left, right in zip(edges[1], edges[1][1:], strict=False)
    ]


def draw_field(field: Field, region: Box | None = None, show_progress: bool = True) -> Tensor:
    """The field, or a region of it in pixels, as one uint8 image (3, H, W) on the CPU."""
    blocks = blocks_of(field, region)
    corner = blocks[0]
    image = torch.empty(3, blocks[-1].bottom - corner.top, blocks[-1].right - corner.left, dtype=torch.uint8)
    hidden = {} if show_progress else {"disable": True}
    with progress(total=len(blocks) * steps_of(field), desc="field", unit="step", **hidden) as bar:
        for block in blocks:
            rows, columns = block.inside(corner)
            image[:, rows, columns] = draw_block(field, block, bar)
    return image


def draw_block(field: Field, block: Box, bar: tqdm | None = None) -> Tensor:
    """A box of pixels as uint8 (3, h, w) on the CPU. bar: grows by 1 at each of its `steps_of`."""
    scale, window = field.scale, field.window
    inner = Box(block.top // scale, block.left // scale, -(-block.bottom // scale), -(-block.right // scale))
    reach = (EXCHANGES + 1) * window
    whole = field.whole
    part = Box(
        max(inner.top - reach, 0), max(inner.left - reach, 0),
        min(inner.bottom + reach, whole.bottom), min(inner.right + reach, whole.right),
    )  # fmt: skip
    needed = np.zeros((part.bottom - part.top, part.right - part.left), bool)
    needed[inner.inside(part)] = layouts.tissue(field.layout, inner, scale, field.blend + 2) > 0
    decoded = _grid(field, part, needed, max(window // 2, 1), 0)
    with eval_mode(field.unet):
        z = _draw_latents(field, part, _union(needed, decoded), bar)
        image = _decode(field, z, decoded, inner, part)
    rows, columns = block.inside(Box(inner.top * scale, inner.left * scale, 0, 0))
    image = image[:, rows, columns]
    if field.layout.has_glass:
        tissue = layouts.tissue(field.layout, block, 1, field.blend * scale)
        image = torch.where(tissue > 0, image, 0) * tissue + GLASS / 255 * (1 - tissue)
    return to_uint8(image)


def _grid(field: Field, part: Box, needed: np.ndarray, stride: int, offset: int) -> list[tuple[slice, slice]]:
    """The windows of a grid of the whole field, counted from the corner of `part`, that hold a needed place (h, w).

    Windows that would reach over an edge of the field are moved inside.
    """
    window, starts = field.window, []
    sides = ((field.whole.bottom, part.top, part.bottom), (field.whole.right, part.left, part.right))
    for length, low, high in sides:
        along = {min(max(start, 0), length - window) for start in range(offset - stride, length, stride)}
        starts.append(np.array(sorted(s - low for s in along if low <= s <= high - window)))
    sums = np.zeros((needed.shape[0] + 1, needed.shape[1] + 1), np.int64)
    sums[1:, 1:] = needed.cumsum(0).cumsum(1)
    top, left = starts[0][:, None], starts[1][None]
    count = sums[top + window, left + window] - sums[top, left + window] - sums[top + window, left] + sums[top, left]
    at = zip(starts[0][np.nonzero(count)[0]].tolist(), starts[1][np.nonzero(count)[1]].tolist(), strict=True)
    return [(slice(y, y + window), slice(x, x + window)) for y, x in at]


def _union(like: np.ndarray, windows: list[tuple[slice, slice]]) -> np.ndarray:
    """Which places lie in one of the windows."""
    inside = np.zeros_like(like)
    for window in windows:
        inside[window] = True
    return inside


def _draw_latents(field: Field, part: Box, needed: np.ndarray, bar: tqdm | None) -> Tensor:
    """The latents (z, h, w) of a part, right where `needed` (h, w), and of no meaning elsewhere."""
    diffusion, sampling = field.settings.diffusion, field.settings.sampling
    scheduler = LinearNoiseScheduler(diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end)
    solver = make_solver(sampling.sampler, scheduler, sampling.steps)
    steps = len(solver.timesteps)
    grids = min(EXCHANGES, steps)
    windows: list[list[tuple[slice, slice]]] = []
    for number in reversed(range(grids)):  # what the last grid needs, the one before must have drawn
        windows.insert(0, _grid(field, part, needed, field.stride, offset_of(field, number)))
        needed = _union(needed, windows[0])
    clusters, shares = layouts.shares(field.layout, part, field.scale, field.blend)
    noise = _noise(field, part)
    x = next(noise)
    times = torch.tensor(solver.timesteps, device=x.device)
    predict = field.speed.accelerate(field.unet)
    if field.guide:
        predict = _guided(predict, field.speed.accelerate(field.guide))
    tasks: list[_Task] = []
    for i in range(steps):
        number = i * grids // steps
        if i == 0 or number != (i - 1) * grids // steps:
            tasks = _tasks(windows[number], clusters, shares.to(x.device), sampling.guidance)
        predicted = _predict(field, predict, x, times[i : i + 1], tasks)
        if diffusion.prediction == "v":
            predicted = scheduler.noise_from_velocity(x, predicted, solver.timesteps[i])
        x = solver.step(i, x, predicted, noise)
        if bar is not None:
            bar.update()
    return x[0]


def _guided(predict: Callable[..., Tensor], guide: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`predict` for the windows that have a cluster, `guide` for those without, whose id is -1."""

    def both(x: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        predicted = torch.empty_like(x)
        for network, rows in ((predict, ids >= 0), (guide, ids < 0)):
            if rows.any():
                predicted[rows] = network(x[rows], time, ids[rows]).to(x.dtype)
        return predicted

    return both


def _tasks(windows: list[tuple[slice, slice]], clusters: list[int], shares: Tensor, guidance: float) -> list[_Task]:
    """What the UNet predicts for these windows: once for each cluster in it, and once without for guidance.

    shares: of each of the clusters at each place (k, h, w).
    """
    tasks = []
    for rows, columns in windows:
        if guidance != 1:
            tasks.append(_Task(rows, columns, -1, 1 - guidance))
        for cluster, share in zip(clusters, shares[:, rows, columns], strict=True):
            if share.any():
                tasks.append(_Task(rows, columns, cluster, guidance * share))
    return tasks


def _predict(field: Field, predict, x: Tensor, time: Tensor, tasks: list[_Task]) -> Tensor:
    """What the UNet predicts for x (1, z, h, w), overlapping windows averaged with a smooth weight; 0 elsewhere."""
    weight = _weight(field.window, x.device)
    sums, total = torch.zeros_like(x[0]), torch.zeros_like(x[0, 0])
    for begin in range(0, len(tasks), AT_ONCE):
        batch = tasks[begin : begin + AT_ONCE]
        field.speed.begin_step()
        inputs = torch.stack([x[0, :, task.rows, task.columns] for task in batch])
        ids = torch.tensor([task.cluster for task in batch], device=x.device)
        for task, predicted in zip(batch, predict(inputs, time, ids).to(x.dtype), strict=True):
            sums[:, task.rows, task.columns] += predicted * (weight * task.share)
            total[task.rows, task.columns] += weight * task.share
    return torch.where(total > 0, sums / total, 0.0)[None]


def _weight(side: int, device: torch.device) -> Tensor:
    """The weight (side, side) of a window's places: 1 in its middle, nearly 0 at its border."""
    rise = torch.sin(math.pi * (torch.arange(side, device=device) + 0.5) / side).square()
    return rise[:, None] * rise


def _noise(field: Field, part: Box) -> Iterator[Tensor]:
    """Endless standard normal noise (1, z, h, w) of a part; each square of a tile's size has a seed of its own."""
    side = field.window
    rows, columns = range(part.top // side, -(-part.bottom // side)), range(part.left // side, -(-part.right // side))
    seeds = [
        derive_seed(field.seed, "field", *square, *filter(None, [field.redrawn.get(square)]))
        for square in product(rows, columns)
    ]
    shape = field.space.vqvae.latent_shape(field.settings.image_size_px)
    within = part.inside(Box(rows[0] * side, columns[0] * side, 0, 0))
    for squares in sample_noise(seeds, shape, next(field.unet.parameters()).device):
        tall = squares.unflatten(0, (len(rows), len(columns))).permute(2, 0, 3, 1, 4)
        yield tall.reshape(shape[0], len(rows) * side, len(columns) * side)[None, :, *within].contiguous()


def _decode(field: Field, z: Tensor, windows: list[tuple[slice, slice]], inner: Box, part: Box) -> Tensor:
    """The image (3, H, W) in [0, 1], on the CPU, of the latents `inner` among z (z, h, w), those of `part`.

    The decoder looks at windows of a tile's size that overlap by half, as its attention knows no others.
    """
    scale, side = field.scale, field.window * field.scale
    weight = _weight(side, torch.device("cpu"))
    sums, total = torch.zeros(3, z.shape[1] * scale, z.shape[2] * scale), torch.zeros(*(n * scale for n in z.shape[1:]))
    for begin in range(0, len(windows), AT_ONCE):
        batch = windows[begin : begin + AT_ONCE]
        images = field.space.decode(torch.stack([z[:, rows, columns] for rows, columns in batch])).float().cpu()
        for (rows, columns), image in zip(batch, images, strict=True):
            at = (slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale))
            sums[:, *at] += image * weight
            total[at] += weight
    within = tuple(slice(along.start * scale, along.stop * scale) for along in inner.inside(part))
    return (sums[:, *within] / total[within].clamp_min(1e-12)).clamp(0, 1)
