"""The benchmarks: the reference computes what the product does, and what is measured is what is printed."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import date

import numpy as np
import pytest
import torch
from torch import nn

import benchmarks.__main__ as command
from benchmarks import growth, indices, items, load, measure, peers, reference, step, tiling
from benchmarks.inputs import Flops, count_flops, make_networks, make_size, published_networks, smooth_tiles
from MODULE import all_indices
from pfiles.cli.parser import parse
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing import sampling
from pfiles.latents import LatentSpace, encode_tiles
from pfiles.learning import clusters, diffusion, loop
from pfiles.linear_noise_scheduler import LinearNoiseScheduler
from pfiles.machine.runtime import make_rng, seeded
from pfiles.machine.speed import EAGER
from pfiles.measuring import pairs
from pfiles.paths import ROOT
from pfiles.settings import get_settings
from pfiles.tiles import files
from pfiles.tiles.files import write_tiles
from pfiles.tiles.pixels import as_array, to_uint8, to_unit
from pfiles.tiles.views import affine
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE

SIZE = make_size("tiny", "cpu")
SIDE = SIZE.settings.image_size_px


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# the reference


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_published_attention_computes_the_same(mode, monkeypatch):
    ours, theirs = make_networks(SIZE, "cpu"), published_networks(SIZE, "cpu")
    returned = []
    forward = nn.MultiheadAttention.forward

    def watched(self, *args):
        out, weights = forward(self, *args)
        returned.append(weights.shape)
        return out, weights

    monkeypatch.setattr(nn.MultiheadAttention, "forward", watched)
    for networks in (ours, theirs):
        for network in (networks.unet, networks.vqvae):
            getattr(network, mode)()
    generator = make_rng("attention")
    x = torch.randn(3, *ours.latent_shape(SIZE), generator=generator)
    t, clusters = torch.tensor([0, 5, 9]), torch.tensor([1, 2, 3])
    with torch.no_grad():
        close(theirs.unet(x, t, clusters), ours.unet(x, t, clusters))
        assert len(returned) == sum(isinstance(m, nn.MultiheadAttention) for m in theirs.unet.modules())
        tokens = x.shape[2] * x.shape[3]
        assert returned[0] == (3, tokens, tokens)  # every pair of pixels
        image = torch.rand(2, 3, SIDE, SIDE, generator=generator)
        close(theirs.vqvae.encode_continuous(image), ours.vqvae.encode_continuous(image))
        close(theirs.vqvae.decode(x), ours.vqvae.decode(x))
    assert theirs.unet.state_dict().keys() == ours.unet.state_dict().keys()


def test_published_views_are_the_products():
    images = smooth_tiles(4, SIDE)
    arrays = as_array(images)
    close(reference.tiles_one_by_one(arrays, range(4)), to_unit(images))
    with seeded("views"):
        parameters = [
            reference.affine_view.get_params((-5.0, 5.0), (0.05, 0.05), (0.95, 1.05), None, [SIDE, SIDE])
            for _ in range(4)
        ]
    with seeded("views"):
        views = reference.tiles_one_by_one(arrays, range(4), reference.affine_view)
    angle, shift, zoom, _ = (np.array(column, dtype=float) for column in zip(*parameters, strict=True))
    angle, x, y, zoom = (torch.tensor(v) for v in (np.deg2rad(angle), shift[:, 0], shift[:, 1], zoom))
    ours = to_unit(affine(images, angle, x, y, zoom, (130, 97, 154)))
    assert (ours != views).float().mean() < 0.002  # a source pixel on the edge between two


def test_a_published_step_has_the_products_losses_and_update(tmp_path, monkeypatch):
    """The random numbers are the product's; everything computed from them must be equal."""
    ours, theirs = make_networks(SIZE, "cpu"), published_networks(SIZE, "cpu")
    settings = SIZE.settings
    images = smooth_tiles(16, SIDE)
    batch_of_step = {}
    views, add_noise = clusters.random_affine, LinearNoiseScheduler.add_noise

    def watched_views(tiles, *args, **options):
        batch_of_step["x"], batch_of_step["x_affine"] = tiles, views(tiles, *args, **options)
        return batch_of_step["x_affine"]

    def watched_noise(self, z, noise, t):
        batch_of_step["t"], batch_of_step["noise"] = t, noise
        return add_noise(self, z, noise, t)

    monkeypatch.setattr(clusters, "random_affine", watched_views)
    monkeypatch.setattr(LinearNoiseScheduler, "add_noise", watched_noise)
    # so high a learning rate that the update is well above rounding
    stage = get_settings("paper", {"training.epochs": 1, "training.learning_rate": 1.0}).training
    job = loop.Job("test", 0, 16, tmp_path, {}, settings.saving, EAGER)
    codes = encode_tiles(ours.vqvae, images)
    (row,) = diffusion.train_stage(
        unet=ours.unet, bank=ClusterBank([ours.classifier]), space=LatentSpace(ours.vqvae), images=images, codes=codes,
        settings=settings.diffusion, stage=stage, job=job,
    )  # fmt: skip

    theirs.unet.train()
    theirs.classifier.train()
    parameters = [*theirs.unet.parameters(), *theirs.classifier.parameters()]
    terms = reference.stage_step(
        theirs.unet, theirs.classifier, theirs.vqvae, torch.optim.Adadelta(parameters, lr=stage.learning_rate),
        to_unit(batch_of_step["x"]), to_unit(batch_of_step["x_affine"]), batch_of_step["t"], batch_of_step["noise"],
        LinearNoiseScheduler(1000, settings.diffusion.beta_start, settings.diffusion.beta_end).alpha_cumprod,
        items.loss_weights(settings.diffusion, stage),
    )  # fmt: skip
    assert all(type(term) is float for term in terms.values())
    assert terms == pytest.approx({name: row[name] for name in terms}, rel=1e-4, abs=1e-6)
    assert terms["affine_kl"] > 0
    before, after, published = (
        nn.utils.parameters_to_vector(unet.parameters())
        for unet in (make_networks(SIZE, "cpu").unet, ours.unet, theirs.unet)
    )
    assert (after - published).norm() < 0.01 * (after - before).norm()


def test_images_one_by_one_are_the_products():
    ours, theirs = make_networks(SIZE, "cpu"), published_networks(SIZE, "cpu")
    scheduler, seeds, clusters = LinearNoiseScheduler(12), [5, 6], [1, 3]
    together = sampling.sample(
        ours.unet, scheduler, ours.vqvae.decode, clusters, seeds, latent_shape=ours.latent_shape(SIZE), progress=False
    )
    for image, seed, cluster in zip(together, seeds, clusters, strict=True):
        generator = torch.Generator().manual_seed(seed)
        alone = reference.sample_one(
            theirs.unet, theirs.vqvae.decode, scheduler.betas, cluster, theirs.latent_shape(SIZE), generator
        )
        assert (to_uint8(alone).int() - image.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 10


def test_metrics_one_by_one_are_the_products():
    """SSIM exactly; MS-SSIM in torchmetrics' variant, see the reference: equal for equal images, near for near ones."""
    root, originals, generated = items.pair_folders(SIZE)
    with root:
        _, real, fake = files.load_pairs(originals[0].parent, generated[0].parent)
        np.testing.assert_allclose(
            reference.ssim_one_by_one(originals, generated), pairs.score_pairs(pairs.ssim, real, fake), atol=1e-4
        )
        near = (0.8 * real + 0.2 * fake).byte()
        write_tiles(generated[0].parent, range(1, len(near) + 1), near)
        alone = reference.ms_ssim_one_by_one(originals, generated)
        np.testing.assert_allclose(alone, pairs.score_pairs(pairs.ms_ssim, real, near), atol=0.02)
        assert max(alone) < 0.99
        assert reference.ms_ssim_one_by_one(originals, originals) == pytest.approx([1.0] * len(real))


# counting


def test_operations_of_the_paper_networks():
    """10.1 GFLOP of convolutions in a UNet call, counted apart from the kernels' shapes; 15.4 with attention."""
    counts = count_flops(get_settings("paper"))
    assert counts["unet"].convolutions == pytest.approx(10.1e9, rel=0.005)
    assert counts["unet"].all == pytest.approx(15.4e9, rel=0.005)
    assert counts["encode"].convolutions == pytest.approx(6.2e9, rel=0.005)
    assert counts["decode"].convolutions == pytest.approx(4.4e9, rel=0.01)

    by_hand = {}

    def add(name):
        def hook(layer, inputs, output):
            # a transposed convolution visits every pixel of its input, a plain one of its output
            pixels = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output)[0, 0].numel()
            by_hand[name] = by_hand.get(name, 0) + 2 * layer.weight.numel() * pixels

        return hook

    with torch.device("meta"):
        vqvae, unet = VQVAE(), UNet()
        zero = torch.zeros(1, dtype=torch.int64)
        for network, name in ((vqvae, "encode"), (unet, "unet")):
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    layer.register_forward_hook(add(name))
        unet(torch.empty(1, 16, 32, 32), zero, zero)
        vqvae.encode_continuous(torch.empty(1, 3, 128, 128))
    assert by_hand == {name: counts[name].convolutions for name in by_hand}


def test_operations_add_up():
    assert 2 * Flops(3, 5) + Flops(1, 1) == Flops(7, 11)
    counts = {"unet": Flops(100, 200), "encode": Flops(10, 10), "decode": Flops(1, 2), "classifier": Flops(3, 3)}
    by_name = {item.name: item.flops(counts) for item in items.ITEMS if item.flops}
    assert by_name["unet"].all == 8 * 200
    assert by_name["stage"].convolutions == 16 * (3 * 100 + 10)
    assert by_name["clusters"].all == 16 * (10 + 7 * 2 * 3 * 3)  # two views of seven, forward and twice backward
    assert by_name["clusters-21"].all == 16 * (10 + 21 * 2 * 3 * 3)
    assert by_name["every-k"].all == 16 * (10 + 7 * 2 * 3 * 3 + 3 * 200)
    assert by_name["ddpm"].convolutions == 16 * (1000 * 100 + 1)
    assert by_name["solver"].convolutions == 16 * (20 * 100 + 1)
    assert by_name["batch"].convolutions == pytest.approx(100.001)


def test_only_the_steps_are_extrapolated(monkeypatch):
    """A clock that only work moves: four steps of one second and a decoding of five are 1,005 s for 1,000 steps."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def draw(decode):
        now[0] += 4
        decode(torch.zeros(1))

    def decode(z):
        now[0] += 5
        return z

    assert items.sampling_seconds("cpu", decode, draw, 250) == pytest.approx(1005)


# measuring


def note(path, name):
    with open(path, "a") as file:
        file.write(name)


def light(size, device):
    note(size, "a")
    return lambda: note(size, "A") or {"seconds": 1.0}


def heavy(size, device):
    note(size, "b")
    held = np.ones(350 * 2**20, np.uint8)  # some of which may be memory that the process has already
    return lambda: note(size, "B") or {"seconds": float(held[0])}


def failing(size, device):
    raise ValueError("this side is broken")


def dying(size, device):
    return lambda: os._exit(9)


def test_sides_take_turns_and_keep_their_own_peaks(tmp_path):
    measured = measure.interleaved({"light": light, "heavy": heavy}, tmp_path / "notes", "cpu", 2)
    assert (tmp_path / "notes").read_text() == "abABABAB"  # the first of each does not count
    assert [len(side["runs"]) for side in measured.values()] == [2, 2]
    light_mb, heavy_mb = (measured[name]["peak_mb"] - measured[name]["before_mb"] for name in ("light", "heavy"))
    assert light_mb < 100
    assert 300 < heavy_mb < 400


@pytest.mark.parametrize(("job", "message"), [(failing, "this side is broken"), (dying, "process of one side ended")])
def test_a_broken_side_is_reported(job, message):
    with pytest.raises(measure.MeasurementError, match=message):
        measure.interleaved({"side": job}, None, "cpu", 1)


def test_every_item_is_measured_and_written(tmp_path, capsys):
    names = [item.name for item in items.ITEMS]
    status = command.main(
        ["--size", "tiny", "--device", "cpu", "--repetitions", "2", "--out", str(tmp_path), "--only", *names]
    )
    printed = capsys.readouterr().out
    assert status == 0
    (out,) = tmp_path.iterdir()
    assert out.name.endswith(f"-{date.today().isoformat()}.json")
    result = json.loads(out.read_text())
    assert result["threads"] == torch.get_num_threads()
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert all(value > 0 for value in result["ceilings"].values())
    assert [row["name"] for row in result["items"]] == names
    for row, item in zip(result["items"], items.ITEMS, strict=True):
        assert item.work in printed
        for side in ("reference", "product"):
            if side == "product" or item.reference:
                times = [run["seconds"] for run in row[side]["runs"]]
                assert len(times) == 2
                assert min(times) > 0
                assert row[side]["median_s"] == pytest.approx(sum(times) / 2)
                assert row[side]["peak_mb"] > 50
        if item.reference:
            assert row["ratio"] == pytest.approx(row["reference"]["median_s"] / row["product"]["median_s"])
        if item.flops:
            rate = row["flops"]["all"] / row["product"]["median_s"]
            assert row["share_of_ceiling"]["all"] == pytest.approx(rate / result["ceilings"]["fp32_tflops"] / 1e12)
    best = next(row for row in result["items"] if row["name"] == "batch")
    assert [tried["batch_size"] for tried in best["product"]["runs"][0]["tried"]] == [4, 8]


def test_a_failed_item_leaves_the_others(tmp_path, capsys, monkeypatch):
    broken = items.Item("broken", "work that fails", None, failing)
    monkeypatch.setattr(command, "ITEMS", (broken, items.ITEMS[0]))
    out = tmp_path / "result.json"
    assert command.main(["--size", "tiny", "--device", "cpu", "--repetitions", "1", "--out", str(out)]) == 1
    assert "work that fails failed" in capsys.readouterr().err
    first, second = json.loads(out.read_text())["items"]
    assert "this side is broken" in first["failed"]
    assert second["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repetitions", "0"], "must be a whole number of at least 1, but is '0'"),
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--size", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_indices_and_the_plain_way_are_measured_beside_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(indices, "PLAIN_UP_TO", 300)
    x, labels = indices.load(300)
    np.savetxt(tmp_path / "a.csv", np.column_stack([x, labels]), delimiter=",")
    out = tmp_path / "a.json"
    arguments = [str(tmp_path / "a.csv"), "--points", "300", "400", "--repetitions", "1", "--out", str(out)]
    assert indices.main(arguments) == 0
    from_file, small, large = json.loads(out.read_text())["rows"]
    assert from_file["module"]["values"] == small["module"]["values"] == small["plain"]["values"]
    assert small["module"]["values"] == [f"{value:.5f}" for value in all_indices(x, labels).values()]
    assert (large["points"], "plain" in large) == (400, False)
    assert small["module"]["seconds"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_tiling_is_measured_beside_two_loops(tmp_path, capsys):
    out = tmp_path / "tiling.json"
    assert tiling.main(["--side", "1500", "--part", "3", "--repetitions", "1", "--out", str(out)]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[:3] == ["loop", "DeepZoomGenerator", "pfiles, 1 thread"]
    result = json.loads(out.read_text())
    counts = [side["runs"][0]["tiles"] for side in result["sides"].values()]
    assert counts == [3, 3, result["tiles"], result["tiles"]]
    assert result["tiles"] > 3
    assert all(side["tiles_per_cpu_second"] > 0 for side in result["sides"].values())


def test_a_step_is_measured_beside_other_programs(tmp_path, capsys):
    out = tmp_path / "load.json"
    load.main(["--competitors", "0", "1", "--steps", "1", "--repetitions", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["way"], row["competitors"]) for row in rows] == [(way, n) for way in load.WAYS for n in (0, 1)]
    assert [row["share of idle"] for row in rows[::2]] == [1.0] * len(load.WAYS)
    assert all(row["ms"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 2


@pytest.mark.parametrize("work", ["forward", "step", "images"])
def test_a_public_library_is_measured_on_the_same_work(work, tmp_path, monkeypatch, capsys):
    job, _ = peers.WORKS[work]
    monkeypatch.setattr(peers, "WORKS", {work: (job, (peers.OURS, "diffusers"))})
    monkeypatch.setattr(peers, "version", lambda package: "known")  # the others need not be installed
    out = tmp_path / "peers.json"
    assert peers.main(["--size", "tiny", "--repetitions", "2", "--device", "cpu", "--out", str(out)]) == 0
    ours, theirs = json.loads(out.read_text())["rows"]
    assert (ours["by"], ours["ratio"], ours["low"], ours["high"]) == (peers.OURS, 1, 1, 1)
    assert theirs["ratio"] == pytest.approx(
        sum(b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)) / 2
    )
    assert "diffusers" in capsys.readouterr().out


def test_a_step_alone_as_processes_do_it_together(monkeypatch, capsys):
    monkeypatch.setattr(step, "STEPS", 1)
    step.main()
    assert 0 < float(capsys.readouterr().out.split()[-1]) < 60


def test_growth_is_fitted_and_drawn(tmp_path, capsys):
    out = tmp_path / "growth.json"
    assert growth.main(["--only", "loading", "unet-k", "--sizes", "2", "--device", "cpu", "--out", str(out)]) == 0
    loading, unet = json.loads(out.read_text())["rows"]
    assert list(loading["sizes"]) == ["1000", "10000"]
    assert list(unet["sizes"]) == ["10", "30"]
    assert loading["exponent"] == pytest.approx(
        np.log10(loading["sizes"]["10000"]["seconds"] / loading["sizes"]["1000"]["seconds"])
    )
    assert (tmp_path / "growth.jpg").stat().st_size > 10_000
    assert "exponent" in capsys.readouterr().out


def test_the_exponent_is_the_slope_in_logarithms():
    quadratic = {n: {"seconds": 3e-4 * n**2} for n in (10, 100, 1000)}
    assert growth.fit(quadratic)["exponent"] == pytest.approx(2)
    assert growth.fit({1: {"seconds": 7.0}} | quadratic, fit_from=10)["exponent"] == pytest.approx(2)
    assert growth.fit({1: {"seconds": 7.0}}) == {}


def test_a_library_gets_the_width_of_most_similar_size():
    def make(width):
        return torch.nn.Linear(width, 10, bias=False)

    assert peers.closest_width(make, 640) == 64
    assert peers.closest_width(make, 730) == 80


# the script for a machine with a GPU


def run_script(tmp_path, python, call="1", **environment):
    (tmp_path / "python").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n{python}\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "OUT": str(tmp_path / "out"), **environment}
    return subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", call, "some tiles"], env=environment, capture_output=True, text=True
    )


def test_gpu_script_runs_every_step_and_tells_of_a_failure(tmp_path):
    done = run_script(tmp_path, '[ "$2" != benchmarks ]', TINY="1")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == [
        "torch.utils.collect_env", "pytest", "benchmarks", "benchmarks.peers", "experiments.short_run",
    ]  # fmt: skip
    assert "some tiles" in calls[-1]
    assert done.returncode == 1
    assert [line.rsplit(" ", 1)[1] for line in done.stdout.splitlines()[-5:]] == ["0", "0", "1", "0", "0"]


def test_the_second_call_of_the_gpu_script_goes_on_where_the_first_stopped(tmp_path):
    stopped = run_script(tmp_path, '[ "$2" != experiments.short_run ] || exit 143', TINY="1")
    assert stopped.returncode == 0  # as it was meant
    (tmp_path / "calls").unlink()
    done = run_script(tmp_path, "exit 0", call="2", TINY="1")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["experiments.short_run", "pfiles"]
    parse(shlex.split(calls[-1])[2:])
    assert done.returncode == 0
    limits = [int(limit) for limit in re.findall(r"at most (\d+) s", stopped.stdout)]
    assert sum(limits[:-1]) < 240  # the training has what is left of five minutes
    assert sum(int(limit) for limit in re.findall(r"at most (\d+) s", done.stdout)) <= 300
    for script in (stopped, done):
        assert "experiments.short_run some tiles --size tiny" in script.stdout
    assert run_script(tmp_path, "exit 0", call="3").returncode == 2


def test_gpu_script_names_the_way_without_a_gpu(tmp_path):
    done = run_script(tmp_path, "exit 1")
    assert done.returncode == 2
    assert "TINY=1" in done.stdout


def test_gpu_tests_are_skipped_with_a_reason():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: they run")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-rs",
        "-p",
        "no:cacheprovider",
        "tests/machine/test_gpu.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "needs a GPU: run bash benchmarks/gpu.sh" in done.stdout


def test_gpu_script_runs_whole_at_tiny_sizes(tmp_path):
    """Both calls, every step for real: trainings, drawing and measures, on whatever machine this is."""
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "TINY": "1"}
    for call, steps in (("1", 5), ("2", 2)):
        done = subprocess.run(
            ["bash", ROOT / "benchmarks" / "gpu.sh", call], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert done.stdout.count("exit status 0") == steps
    assert {"sheet.jpg", "peers.json", "evaluation.json"} <= {path.name for path in tmp_path.iterdir()}
