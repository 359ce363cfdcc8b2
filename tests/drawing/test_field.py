"""Fields of tiny networks, held against a loop over windows that knows nothing of parts, blocks or bookkeeping."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pfiles.drawing import field as fields
from pfiles.drawing.field import blocks_of, draw_block, draw_field, make_field
from pfiles.drawing.layout import GLASS, Box, make_layout, shares
from pfiles.drawing.samplers import make_solver
from pfiles.drawing.sampling import sample
from pfiles.errors import InputError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import derive_seed
from tests.conftest import K, another_unet

SIDE, WINDOW, SCALE = 48, 12, 4  # px, latents, px of a latent: of the tiny networks


def field_of(generator, cells, size, **options):
    layout = make_layout(np.array(cells), size, K)
    return make_field(generator.unet, generator.space, generator.settings, layout, 5, guide=generator.guide, **options)


def sampling(generator, **changed):
    settings = generator.settings
    return replace(generator, settings=replace(settings, sampling=replace(settings.sampling, **changed)))


def by_a_plain_loop(generator, cells, size, stride):
    """The latents (z, h, w) of a field, every window of every grid in turn; clusters change sharply at cells."""
    height, width = size[1] // SCALE, size[0] // SCALE
    cells = np.array(cells).repeat(height // len(cells), 0).repeat(width // len(cells[0]), 1)
    squares = [
        [torch.randn(16, WINDOW, WINDOW, generator=torch.Generator().manual_seed(derive_seed(5, "field", row, column)))
         for column in range(width // WINDOW + 1)] for row in range(height // WINDOW + 1)
    ]  # fmt: skip
    x = torch.cat([torch.cat(row, 2) for row in squares], 1)[None, :, :height, :width]
    settings = generator.settings
    scheduler = LinearNoiseScheduler(settings.diffusion.num_timesteps)
    solver = make_solver(settings.sampling.sampler, scheduler, settings.sampling.steps)
    steps, w = len(solver.timesteps), settings.sampling.guidance
    weight = np.outer(*[np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW) ** 2] * 2)
    for i, t in enumerate(solver.timesteps):
        grids = min(fields.EXCHANGES, steps)
        offset = int(i * grids // steps * (5**0.5 - 1) / 2 % 1 * stride)
        sums, total = np.zeros((16, height, width)), np.zeros((height, width))
        corners = {  # those that reach over an edge are moved inside, where several become one
            (min(max(top, 0), height - WINDOW), min(max(left, 0), width - WINDOW))
            for top in range(offset - stride, height, stride)
            for left in range(offset - stride, width, stride)
        }
        for y, x0 in sorted(corners):
            part = x[:, :, y : y + WINDOW, x0 : x0 + WINDOW]
            inside = cells[y : y + WINDOW, x0 : x0 + WINDOW]
            with torch.no_grad():
                guide = generator.guide or generator.unet
                without = guide(part, t, torch.tensor([-1]))[0].double().numpy()
                value = without.copy()
                for cluster in np.unique(inside):
                    of = generator.unet(part, t, torch.tensor([cluster]))[0].double().numpy()
                    value += w * (of - without) * (inside == cluster)
            sums[:, y : y + WINDOW, x0 : x0 + WINDOW] += weight * value
            total[y : y + WINDOW, x0 : x0 + WINDOW] += weight
        x = solver.step(i, x, torch.from_numpy(sums / total).float()[None], None)
    return x[0]


@pytest.mark.parametrize(("stride", "guidance", "guided"), [(48, 1.0, False), (24, 1.5, False), (24, 1.5, True)])
def test_a_field_is_what_a_plain_loop_over_windows_gives(generator, stride, guidance, guided):
    generator = sampling(generator, sampler="ddim", guidance=guidance)
    if guided:
        generator = replace(generator, guide=another_unet(generator))
    cells, size = [[0, 2], [1, 0]], (144, 96)
    field = field_of(generator, cells, size, stride=stride, blend=0)
    whole = field.whole
    needed = np.ones((whole.bottom, whole.right), bool)
    with torch.no_grad():
        latents = fields._draw_latents(field, whole, needed, None)
    expected = by_a_plain_loop(generator, cells, size, stride // SCALE)
    assert torch.allclose(latents, expected, atol=1e-5)
    assert not torch.allclose(latents[:, :, 1:], expected[:, :, :-1], atol=0.1)


def test_a_field_of_a_tiles_size_is_a_tile(generator):
    """Grids that are moved end at the field's edge, so that all their windows are this one."""
    image = draw_field(field_of(generator, [[2]], (SIDE, SIDE)), show_progress=False)
    [tile] = sample(
        generator.unet, LinearNoiseScheduler(20), generator.space.decode, [2], [derive_seed(5, "field", 0, 0)],
        latent_shape=(16, WINDOW, WINDOW), num_steps=4, sampler=generator.settings.sampling.sampler, progress=False,
    )  # fmt: skip
    assert (image.int() - tile.int()).abs().max() <= 1


@pytest.mark.parametrize("sampler", ["dpm-solver++", "ddpm"])
@pytest.mark.parametrize("stride", [48, 20])
def test_a_region_is_the_same_part_of_the_whole(generator, monkeypatch, sampler, stride):
    """Also where the whole is drawn in many blocks, and from noise of each step."""
    monkeypatch.setattr(fields, "EXCHANGES", 2)
    generator = sampling(generator, sampler=sampler)
    field = field_of(generator, [[0, 1, 2], [2, 1, 0]], (310, 250), stride=stride)
    whole = draw_field(field, show_progress=False)
    part = draw_field(field, Box(101, 60, 163, 171), show_progress=False)
    assert part.shape == (3, 62, 111)
    assert (part.int() - whole[:, 101:163, 60:171].int()).abs().max() <= 1
    monkeypatch.setattr(fields, "BLOCK", 2 * SIDE)
    assert len(blocks_of(field)) == 12
    assert (draw_field(field, show_progress=False).int() - whole.int()).abs().max() <= 1


def test_neither_batch_size_nor_calls_before_change_a_byte(generator):
    cells, size = [[0, 1]], (100, 60)
    a = draw_field(field_of(generator, cells, size), show_progress=False)
    b = draw_field(field_of(sampling(generator, batch_size=1), cells, size), show_progress=False)
    assert torch.equal(a, b)
    assert torch.equal(generator.field(make_layout(np.array(cells), size, K), 5, progress=False), a)
    assert not torch.equal(generator.field(make_layout(np.array(cells), size, K), 6, progress=False), a)


def test_glass_is_white_and_costs_nothing_far_from_tissue(generator, monkeypatch):
    batches = []
    forward = generator.unet.forward
    monkeypatch.setattr(generator.unet, "forward", lambda x, t, ids: (batches.append(len(x)), forward(x, t, ids))[1])
    monkeypatch.setattr(fields, "EXCHANGES", 2)
    field = field_of(generator, [[0, GLASS, GLASS, GLASS, GLASS, GLASS]], (576, 96), blend=16)
    image = draw_block(field, Box(0, 0, 96, 576))
    with_glass = sum(batches)
    assert (image[:, :, 96 + 8 :] == fields.GLASS).all()
    assert (image[:, :, : 96 - 8] != fields.GLASS).float().mean() > 0.9
    batches.clear()
    whole = draw_block(field_of(generator, [[0]], (576, 96), blend=16), Box(0, 0, 96, 576))
    assert with_glass < 0.6 * sum(batches)
    assert (image.int() - whole.int())[:, :, : 96 - 9].abs().max() <= 1


def test_other_noise_changes_its_square_and_its_surroundings_alone(generator, monkeypatch):
    monkeypatch.setattr(fields, "EXCHANGES", 2)
    field = field_of(generator, [[0, 1]], (480, 96))
    image = draw_field(field, show_progress=False)
    again = draw_field(replace(field, redrawn={(0, 1): 1}), show_progress=False)
    changed = (image != again).any(0).float()[:48].mean(0)
    assert changed[48:96].min() > 0.3
    assert (changed[96 + 3 * 48 :] == 0).all()
    assert not torch.equal(again, draw_field(replace(field, redrawn={(0, 1): 2}), show_progress=False))


def test_clusters_blend_over_the_stated_width(generator):
    """Far from a border a field is that of its cluster alone, but for the windows that reach over the border."""
    layout = make_layout(np.array([[0, 1]]), (480, 96), K)
    clusters, of_each = shares(layout, Box(0, 0, 24, 120), SCALE, 16 // SCALE)
    assert clusters == [0, 1]
    assert of_each.sum(0).eq(1).all()
    np.testing.assert_allclose(of_each[0, 0, 56:64], [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-6)


def test_what_cannot_be_drawn_is_refused(generator):
    with pytest.raises(InputError, match="at least the size of a tile, 48 px, but 47 x 96"):
        field_of(generator, [[0]], (47, 96))
    for stride in (3, 49):
        with pytest.raises(InputError, match="stride must be from 4 px to a tile's side, 48 px"):
            field_of(generator, [[0]], (96, 96), stride=stride)
    with pytest.raises(InputError, match="blend over 0 to 192 px"):
        field_of(generator, [[0]], (96, 96), blend=193)
    with pytest.raises(InputError, match="from 90, 0 to 110, 20 does not lie in the field of 100 x 100"):
        blocks_of(field_of(generator, [[0]], (100, 100)), Box(0, 90, 20, 110))
