"""The two-sample test: what it must find, what it must not find, and that a failure to learn never looks like 50 %."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter

from pfiles.errors import InputError
from pfiles.measuring import two_sample
from pfiles.measuring.tile_network import TileNetwork, Trained, train
from pfiles.measuring.two_sample import blur, compare, stage_comparisons, two_sample_test
from pfiles.tiles.dataset import load_tiles
from tests.conftest import shared


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 60)  # such coarse differences need no more


def texture(n, side=32, seed=0, level=40):
    """Uncorrelated noise: the finest detail there is, which any blur takes away."""
    noise = np.random.default_rng(seed).normal(0, level, (n, 3, side, side))
    return torch.from_numpy(np.clip(128 + noise, 0, 255).astype(np.uint8))


def test_equal_sets_are_not_told_apart_though_the_network_can_learn():
    result = two_sample_test(texture(200, seed=1), texture(200, seed=2), 0, "cpu")
    assert result.learned
    assert result.guard > 0.9
    low, high = result.interval
    assert low < 0.5 < high
    assert 0.4 < result.accuracy < 0.6
    assert result.tiles == 200
    assert str(result) == f"{result.accuracy:.0%} ({low:.0%} to {high:.0%})"


def test_a_blur_of_one_pixel_is_found_and_hidden_by_a_larger_blur_of_both():
    a, b = texture(120, seed=1), texture(120, seed=2)
    result = two_sample_test(blur(a, 1.0), b, 0, "cpu")
    assert result.accuracy > 0.95
    assert result.interval[0] > 0.9
    hidden = two_sample_test(blur(a, 0.3), b, 0, "cpu", blur_px=2.0)  # what differed is gone on both sides
    assert hidden.learned
    assert hidden.interval[0] < 0.6


def test_one_level_of_brightness_is_found():
    flat = (torch.arange(120) % 3 + 100).to(torch.uint8)[:, None, None, None].expand(120, 3, 32, 32).contiguous()
    grain = texture(120, seed=3, level=1) // 64  # so that a blur shows
    result = two_sample_test(flat + 3 + grain, flat + grain, 0, "cpu", guard=1.0)
    assert result.accuracy > 0.95
    black = torch.zeros(60, 3, 32, 32, dtype=torch.uint8)
    assert two_sample_test(black + 1, black, 0, "cpu", guard=1.0).accuracy == 1


def test_a_network_that_did_not_learn_has_no_accuracy(monkeypatch):
    a, b = texture(40, seed=1), texture(40, seed=2)
    monkeypatch.setattr(two_sample, "STEPS", 1)
    result = two_sample_test(blur(a, 1.0), b, 0, "cpu", trials=1)
    assert not result.learned
    assert result.accuracy is None
    assert result.interval is None
    assert str(result).startswith("did not learn")
    assert "50 %" not in str(result)
    assert "50%" not in str(result).partition("(")[0]
    row = result.row()
    assert (row["accuracy"], row["low"], row["learned"]) == (None, None, False)


def test_flat_tiles_cannot_pass_the_guard():
    """A blur changes nothing in them: the network has nothing to learn from, and must not call that likeness."""
    flat = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    result = two_sample_test(flat, flat, 0, "cpu", trials=1)
    assert result.accuracy is None


def test_the_result_follows_from_the_seed():
    a, b = texture(60, seed=1), texture(60, seed=2, level=45)
    before = torch.get_rng_state()
    first, again, other = (two_sample_test(a, b, seed, "cpu", trials=1, guard=1.0) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first.right == again.right
    assert np.array_equal(first.order, again.order)
    assert not np.array_equal(np.sort(first.order), np.sort(other.order))


def test_least_convincing_tiles_come_first():
    """Half of a is real: those come last, however the set is ordered."""
    real, fake = texture(160, seed=1), blur(texture(80, seed=2), 1.5)
    is_fake = torch.arange(160) % 2 == 0
    a = texture(160, seed=3)
    a[is_fake] = fake
    result = two_sample_test(a, real, 0, "cpu", guard=1.0)
    assert len(result.order) == 80
    n = int(is_fake[result.order].sum())
    assert 20 < n < 60
    assert is_fake[result.order[: n - 2]].float().mean() > 0.95
    assert not is_fake[result.order[n + 2 :]].float().mean() > 0.05


def test_order_counts_in_the_whole_set_where_it_was_thinned(monkeypatch):
    monkeypatch.setattr(two_sample, "TILES", 30)
    monkeypatch.setattr(two_sample, "STEPS", 2)
    result = two_sample_test(texture(100, seed=1), texture(40, seed=2), 0, "cpu", trials=1, guard=1.0)
    assert result.tiles == 30
    assert result.order.max() > 40
    assert set(result.order) <= set(np.linspace(0, 99, 30).round().astype(int))


def test_a_tile_and_its_copy_are_on_one_side_of_the_split(monkeypatch):
    """Equal sets: what the network says of the two copies of a tile is one number, so that exactly half is right."""
    monkeypatch.setattr(two_sample, "STEPS", 20)
    a = texture(60, seed=1)
    result = two_sample_test(a, a, 0, "cpu", trials=1, guard=1.0)
    assert result.accuracy == 0.5


def test_only_the_test_half_is_judged_by_what_never_saw_it(monkeypatch):
    parts_of = []
    monkeypatch.setattr(
        two_sample,
        "train",
        lambda learn, validate, *options: parts_of.append((learn, validate)) or train(learn, validate, *options),
    )
    monkeypatch.setattr(two_sample, "STEPS", 2)
    a, b = (
        torch.arange(start, start + 40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 16, 16)
        for start in (0, 100)
    )
    result = two_sample_test(a, b, 0, "cpu", trials=1, guard=1.0)
    learnt = {int(tile[0, 0, 0]) for part, _ in parts_of[0] for tile in part}
    assert len(learnt) == 40
    assert learnt & set(result.order.tolist()) == set()
    parts = [{int(tile[0, 0, 0]) for tile in images} for images, _ in parts_of[0]]
    assert parts[0] & parts[1] == set()


def test_the_best_training_by_validation_counts(monkeypatch):
    """Of three trainings the second is best by validation; the test half, on which it is worst, has no say."""
    a, b = texture(40, seed=1), texture(40, seed=2)
    zero, one = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    networks = []

    def pretend(learn, validate, classes, steps, seed, device):
        network = TileNetwork(2, zero, one)
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor([1.0, 0.0]) if len(networks) == 1 else torch.tensor([0.0, 1.0]))
        networks.append(network)
        return Trained(network, (0.6, 0.7, 0.65)[len(networks) - 1], 0.6)

    monkeypatch.setattr(two_sample, "train", pretend)
    result = two_sample_test(a, b, 0, "cpu", guard=1.0)
    assert len(networks) == 3
    assert result.validation == 0.7
    assert result.right == 20


def test_blur_is_the_gaussian_of_scipy():
    images = texture(3, 32)
    for sigma in (0.5, 1.0, 2.0):
        expected = gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4)
        assert np.abs(blur(images, sigma).numpy() - expected).max() <= 0.51
    assert torch.equal(blur(images, 0), images)


def test_who_is_to_blame():
    """A decoder that blurs and a UNet that draws what the decoder can show: the blame is the autoencoder's alone."""
    real, held_out = texture(160, seed=1), texture(80, seed=2)
    generated, reconstructed = blur(texture(160, seed=4), 1.0), blur(real, 1.0)
    pairs = stage_comparisons(generated, real, reconstructed, held_out)
    result = compare(pairs, 0, "cpu", blurs_px=(0.0,), trials=2)
    of_generator, unet, autoencoder, floor, others = (tests[0.0] for tests in result.values())
    assert of_generator.interval[0] > 0.8
    assert autoencoder.interval[0] > 0.8
    assert unet.interval[0] < 0.5 < unet.interval[1]
    assert floor.interval[0] < 0.5 < floor.interval[1]
    assert others.interval[0] < 0.5 < others.interval[1]
    assert list(stage_comparisons(generated, real)) == ["generated from real", "real from real: the floor"]
    table = two_sample.table(result)
    assert list(table.index) == list(pairs)
    assert table.columns.tolist() == ["accuracy", "low", "high", "test tiles", "learned", "guard"]
    assert table.accuracy.iloc[0] == of_generator.accuracy


def test_the_guard_is_asked_once_for_each_real_set_and_blur(monkeypatch):
    levels = []
    monkeypatch.setattr(two_sample, "can_learn", lambda tiles, seed, device, px, trials: levels.append(px) or 1.0)
    monkeypatch.setattr(two_sample, "STEPS", 1)
    a, b = texture(20, seed=1), texture(20, seed=2)
    result = compare({"one": (a, b), "two": (b, b)}, 0, "cpu", blurs_px=(0.0, 1.0), trials=1)
    assert levels == [0.0, 1.0]
    assert list(two_sample.table(result).index) == [
        "one", "one, both blurred by 1 px", "two", "two, both blurred by 1 px"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x[:19], "at least 20 tiles of each set, but got 19 and 40"),
        (lambda x: x.float(), "uint8 tiles of shape .N, 3, S, S., but got torch.float32"),
        (lambda x: x.permute(0, 2, 3, 1), r"but got torch.uint8 of shape \(40, 32, 32, 3\)"),
        (lambda x: x[:, :, :16, :16], "tiles of one size, but got 16 px and 32 px"),
        (lambda x: x[:, :, :8, :8], "at least 16 px, but these are 8 px"),
    ],
)
def test_sets_that_cannot_be_compared(change, sentence):
    x = texture(40)
    with pytest.raises(InputError, match=sentence):
        two_sample_test(change(x), x, 0, "cpu")


def test_real_tissue(monkeypatch):
    """Real against real is near 50 %, a blur of 1 px near 100 %, on the same tissue."""
    monkeypatch.setattr(two_sample, "STEPS", 300)
    tiles = load_tiles(shared("data/lung_he_5500.zip"), 64, 300)
    real = tiles.tensor(tiles.train)
    result = compare(
        {"real": (real[::2], real[1::2]), "blurred": (blur(real[::2], 1), real[1::2])}, 0, "cpu", (0.0,), trials=1
    )
    same, blurred = (tests[0.0] for tests in result.values())
    assert same.interval[0] < 0.5 < same.interval[1]
    assert blurred.accuracy > 0.95
    assert same.guard > 0.9


def test_a_linear_classifier_tells_sets_of_features_apart():
    """Sets of one distribution by chance; shifted Gaussians as the best of all classifiers; copies by chance too."""
    rng = np.random.default_rng(0)
    same, shifted = (rng.normal(mean, 1, (400, 8)) for mean in (0, 1 / np.sqrt(8)))  # their means are 1 apart
    other = rng.normal(0, 1, (900, 8))
    best = stats.norm.cdf(0.5)  # 0.69
    assert two_sample.linear_probe_accuracy(same, shifted) == pytest.approx(best, abs=0.04)
    assert two_sample.linear_probe_accuracy(other, same) == pytest.approx(0.5, abs=0.05)
    assert two_sample.linear_probe_accuracy(same, same) == pytest.approx(
        0.5, abs=0.05
    )  # both halves of a pair in one part
    assert np.isnan(two_sample.linear_probe_accuracy(same[:9], other))


def test_copies_do_not_look_better_than_real_tiles():
    """Copies in any order, slightly changed: each is judged by a classifier that did not learn its original."""
    rng = np.random.default_rng(1)
    real = rng.normal(0, 1, (100, 60))
    copies = rng.permutation(real) + rng.normal(0, 0.05, real.shape)
    parts = two_sample.same_part(real, copies)
    assert (parts[100:] == parts[:100][np.linalg.norm(copies[:, None] - real, axis=2).argmin(1)]).all()
    assert two_sample.linear_probe_accuracy(real, copies) > 0.45
    assert (
        two_sample.linear_probe_accuracy(real, np.repeat(real[:1], 100, axis=0)) > 0.95
    )  # all alike: told, not hidden in one part
