"""Images from noise: each is its seed's and cluster's alone, and folders of them go on where they stopped."""

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from pfiles.drawing import sampling
from pfiles.drawing.sampling import generate_to_folder, image_seeds, sample
from pfiles.errors import InputError
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.paths import atomic_write
from pfiles.unet_cond_base import UNet

LATENT = (4, 8, 8)
SIZES = {"im_channels": 4, "cls": 3, "down_channels": (8, 8, 8), "t_emb_dim": 8, "norm_channels": 4, "num_heads": 2,
         "conv_out_channels": 8}  # fmt: skip


def test_guidance_moves_along_the_difference(unet):
    """Noise of weight w is w times the conditional minus w - 1 times the unconditional one, at every step."""
    unet.requires_grad_(False)
    clusters, seeds = torch.tensor([0, 1]), image_seeds(0, range(2))

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, x, t, cond):
            return 3 * self.unet(x, t, cond) - 2 * self.unet(x, t)

    arguments = (LinearNoiseScheduler(20), lambda z: z[:, :3] / 4 + 0.5, clusters, seeds)
    options = {"latent_shape": LATENT, "num_steps": 5, "progress": False}
    guided = sample(unet, *arguments, **options, guidance=3.0)
    assert (guided.int() - sample(Mixed(), *arguments, **options).int()).abs().max() <= 1
    assert not torch.equal(guided, sample(unet, *arguments, **options))


def test_guidance_leads_away_from_the_guide(unet):
    """Twice the UNet's noise for the cluster, less that of the guide without any."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        guide = UNet(**SIZES).requires_grad_(False)
    unet.requires_grad_(False)

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, x, t, cond):
            return 2 * self.unet(x, t, cond) - guide(x, t)

    arguments = (LinearNoiseScheduler(20), lambda z: z[:, :3] / 4 + 0.5, torch.tensor([0, 1]), image_seeds(0, range(2)))
    options = {"latent_shape": LATENT, "num_steps": 5, "progress": False}
    guided = sample(unet, *arguments, **options, guidance=2.0, guide=guide)
    assert (guided.int() - sample(Mixed(), *arguments, **options).int()).abs().max() <= 1
    assert not torch.equal(guided, sample(unet, *arguments, **options, guidance=2.0))


@pytest.fixture
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(**SIZES)


def draw(unet, cluster_ids, seeds, batch_size=100):
    scheduler = LinearNoiseScheduler(20)
    return sample(
        unet, scheduler, lambda z: z[:, :3] / 4 + 0.5, cluster_ids, seeds, latent_shape=LATENT, num_steps=5,
        batch_size=batch_size, progress=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_image_depends_on_its_seed_and_cluster_alone(unet):
    clusters, seeds = torch.tensor([0, 1, 2, 0, 1, 2, 0]), image_seeds(7, range(7))
    together = draw(unet, clusters, seeds)
    for batch_size in (1, 3):
        difference = (draw(unet, clusters, seeds, batch_size).int() - together.int()).abs().max()
        assert difference <= 1  # one grey level: sums are rounded differently at other batch sizes
    order = [4, 0, 6]
    alone = draw(unet, clusters[order], [seeds[i] for i in order])
    assert (alone.int() - together[order].int()).abs().max() <= 1
    assert not torch.equal(draw(unet, clusters, image_seeds(8, range(7))), together)
    assert not torch.equal(draw(unet, clusters.flip(0), seeds), together)


def test_sampling_gives_the_mode_back_and_refuses_missing_seeds(unet):
    unet.train()
    draw(unet, [0], image_seeds(0, [0]))
    assert unet.training
    with pytest.raises(ValueError, match="a seed for each image"):
        draw(unet, [0, 1], image_seeds(0, [0]))


def test_seeds_are_unrelated():
    assert len({*image_seeds(765, range(1000)), *image_seeds(766, range(1000))}) == 2000


def test_generation_goes_on_where_it_stopped(unet, tmp_path):
    numbers, clusters = [1, 2, 3, 10, 11], torch.tensor([0, 1, 2, 0, 1])
    calls = []

    def counted(cluster_ids, seeds):
        calls.append(len(seeds))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(unet, cluster_ids, seeds)

    arguments, options = (numbers, clusters), {"seed": 5, "batch_size": 2, "note": {"unet": "a"}}
    with pytest.raises(KeyboardInterrupt):
        generate_to_folder(counted, tmp_path / "broken", *arguments, **options)
    assert sorted(path.name for path in (tmp_path / "broken").glob("*.png")) == ["1.png", "2.png"]
    generate_to_folder(counted, tmp_path / "broken", *arguments, **options)
    assert calls == [2, 2, 2, 1]
    generate_to_folder(lambda **kw: draw(unet, **kw), tmp_path / "whole", *arguments, **options)
    for number in numbers:
        one, other = (np.asarray(Image.open(tmp_path / name / f"{number}.png")) for name in ("broken", "whole"))
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1

    with pytest.raises(InputError, match="other networks or settings"):
        generate_to_folder(counted, tmp_path / "whole", *arguments, **options | {"note": {"unet": "b"}})
    with pytest.raises(InputError, match=r"images of another run, such as 2\.png"):
        generate_to_folder(counted, tmp_path / "whole", [1, 3, 10, 11], clusters[:4], **options)


def test_shares_of_several_jobs_are_the_whole(unet, tmp_path):
    numbers, clusters = [1, 2, 3, 10, 11], torch.tensor([0, 1, 2, 0, 1])
    arguments = (lambda **kw: draw(unet, **kw), tmp_path / "shares", numbers, clusters)
    options = {"seed": 5, "batch_size": 2, "note": {"unet": "a"}}
    with pytest.raises(InputError, match="first and the last number of a range"):
        generate_to_folder(*arguments, **options, only=(10, 3))
    generate_to_folder(*arguments, **options, only=(3, 10))
    assert sorted(path.name for path in (tmp_path / "shares").glob("*.png")) == ["10.png", "3.png"]
    generate_to_folder(*arguments, **options, only=(1, 2))
    generate_to_folder(*arguments, **options, only=(11, 11))
    generate_to_folder(arguments[0], tmp_path / "whole", *arguments[2:], **options)
    for number in numbers:
        one, other = (np.asarray(Image.open(tmp_path / name / f"{number}.png")) for name in ("shares", "whole"))
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("only", [(4, 9), (12, 20), (0, 0)])
def test_a_range_without_images_is_refused_before_drawing(only, unet, tmp_path):
    with pytest.raises(InputError, match=r"holds none of the 5 numbers from 1 to 11: choose a range that does\.$"):
        generate_to_folder(
            None, tmp_path / "gen", [1, 2, 3, 10, 11], torch.arange(5), seed=5, batch_size=2, note={}, only=only
        )
    assert not (tmp_path / "gen").exists()


@pytest.mark.parametrize("only", [7, "1-5", (1,), (1, 2, 3), (1.5, 3), ("a", "b"), (None, 3), (True, 3)])
def test_what_is_no_range_is_refused(only, tmp_path):
    with pytest.raises(InputError, match="only must be the first and the last number of a range"):
        generate_to_folder(None, tmp_path / "gen", [1, 2, 3], torch.arange(3), seed=5, batch_size=2, note={}, only=only)


def test_an_interrupt_is_one_sentence_and_keeps_what_is_done(unet, tmp_path, capsys):
    def stopped(cluster_ids, seeds):
        if (tmp_path / "generated_with.json").exists() and seeds == image_seeds(5, [3]):
            raise KeyboardInterrupt
        return draw(unet, cluster_ids, seeds)

    with pytest.raises(KeyboardInterrupt, match=r"^Drawing images was stopped: run it again to go on with those"):
        generate_to_folder(
            stopped, tmp_path, [1, 2, 3], torch.tensor([0, 1, 2]), seed=5, batch_size=1, note={"unet": "a"}
        )
    assert "Drawing images was stopped" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"1.png", "2.png", "generated_with.json"}


def test_parts_of_a_kill_are_removed_when_the_work_goes_on(unet, tmp_path):
    """Its own alone: those of another job's images may still be written."""
    left = [".1.png.77.part", ".2.png.78.part", ".11.png.79.part", ".generated_with.json.80.part", ".notes.part"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    arguments = (lambda **kw: draw(unet, **kw), tmp_path, [1, 2, 3, 10, 11], torch.arange(5) % 3)
    options = {"seed": 5, "batch_size": 2, "note": {"unet": "a"}}
    generate_to_folder(*arguments, **options, only=(1, 3))
    assert {path.name for path in tmp_path.glob(".*")} == {*left[2:]}
    generate_to_folder(*arguments, **options)
    assert {path.name for path in tmp_path.glob(".*")} == {".notes.part"}


def test_what_another_notebook_writes_right_now_stays(unet, tmp_path):
    """Two notebooks draw the same images at once: each leaves the other's unfinished file alone."""
    with atomic_write(tmp_path / "1.png", by_every_process=True) as file:
        generate_to_folder(
            lambda **kw: draw(unet, **kw), tmp_path, [1, 2], torch.arange(2), seed=5, batch_size=2, note={}
        )
        file.write((tmp_path / "1.png").read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {"1.png", "2.png", "generated_with.json"}


@pytest.mark.slow
def test_batch_sizes_change_few_values_by_one_level(unet):
    """Sums are rounded differently where a batch has one image, or few rows."""
    clusters, seeds = torch.arange(24) % 3, image_seeds(3, range(24))
    together = draw(unet, clusters, seeds).int()
    for batch_size in (1, 5, 7):
        difference = (draw(unet, clusters, seeds, batch_size).int() - together).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


def test_a_full_disk_is_told(unet, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sampling, "write_tiles", full)
    with pytest.raises(OSError, match="No space left"):
        generate_to_folder(
            lambda **kw: draw(unet, **kw), tmp_path, [1, 2], torch.tensor([0, 1]), seed=5, batch_size=1, note={}
        )


class TrueNoise(torch.nn.Module):
    """The noise that lies over known latents, in place of a network."""

    def __init__(self, latents, scheduler):
        super().__init__()
        self.latents, self.scheduler = torch.nn.Parameter(latents), scheduler

    def forward(self, x, t, cond):
        alpha_bar = self.scheduler.alpha_cumprod[t].float()
        return (x - alpha_bar.sqrt() * self.latents) / (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++"])
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_a_network_that_knows_the_noise_draws_the_original_back(sampler, strength):
    """Whatever the share of the steps: the noise laid over the latents is that of the step that is begun with."""
    scheduler = LinearNoiseScheduler(1000)
    latents = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(0))
    results, reports = [], []
    sample(
        TrueNoise(latents, scheduler), scheduler, lambda z: results.append(z) or z[:, :3], torch.zeros(3).long(),
        image_seeds(1, range(3)), latent_shape=LATENT, num_steps=10, sampler=sampler, progress=False,
        originals=latents, strength=strength, on_step=lambda done, steps, x: reports.append((done, steps)),
    )  # fmt: skip
    torch.testing.assert_close(results[0], latents, atol=2e-3, rtol=0)
    steps = reports[0][1]
    assert reports == [(done, steps) for done in range(steps - max(1, round(strength * steps)), steps + 1)]
