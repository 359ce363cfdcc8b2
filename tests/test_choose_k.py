"""The clusters of every k, learnt together and compared; whole runs at tiny size."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pfiles import artifacts, choose_k, draw, latents, learn
from pfiles.__main__ import main
from pfiles.checkpoints import fingerprint
from pfiles.drawing.generator import Generator
from pfiles.errors import InputError
from pfiles.measuring import stability
from pfiles.paths import read_json, write_json
from pfiles.reporting import figures
from pfiles.run import open_run
from pfiles.unet_cond_base import UNet
from tests.conftest import PLAIN_LEARNING, TINY, make_tiles, weights

PLAIN_DIFFUSION = {name: value for name, value in PLAIN_LEARNING.items() if not name.startswith("autoencoder")}

PUBLISHED_ORDER = TINY | PLAIN_DIFFUSION | {"training.epochs": 3} | {
    f"{stage}.{name}": value
    for stage in ("training", "finetuning2") for name, value in (("optimizer", "adadelta"), ("learning_rate", 1.0))
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with tiles and a trained autoencoder."""
    folder = tmp_path_factory.mktemp("every k")
    np.save(folder / "tiles.npy", make_tiles(44))
    run = open_run("train_autoencoder", 3, "kmeans", folder / "tiles.npy", "demo", TINY, out=folder / "first")
    learn.autoencoder(run, *learn.new_autoencoder(run))
    return folder


@pytest.fixture
def opened(begun, tmp_path):
    """open_run on those tiles, in a folder of its own with that autoencoder."""

    def opened(notebook, n_clusters, clustering="classifier", overrides=TINY, out="out"):
        shutil.copytree(begun / "first" / "kpc_ldm", tmp_path / out / "kpc_ldm", dirs_exist_ok=True)
        data = begun / "tiles.npy"
        return open_run(notebook, n_clusters, clustering, data, "demo", overrides, out=tmp_path / out)

    return opened


def train_all(run):
    networks = learn.new_networks(run)
    if run.settings.clusters_first and run.clustering == "classifier":
        learn.clusters(run, networks.bank)
    for stage, following in (("training", "finetuning1"), ("finetuning1", "finetuning2"), ("finetuning2", None)):
        learn.unet(run, stage, networks)
        networks = run.networks(stage) if following else networks
    return networks


def write_csv(run):
    artifacts.write_latent_csv(
        run, latents.latent_table(latents.mean_channel_softmax(run.vqvae, run.codes), *run.assignment)
    )


@pytest.mark.parametrize("n_clusters", [3, "3-4"])
def test_what_a_training_saves_is_what_it_learnt(opened, n_clusters):
    run = opened("part_1_training", n_clusters, "kmeans")
    networks = learn.new_networks(run)
    untrained = fingerprint(networks.unet)
    learn.unet(run, "training", networks)
    assert fingerprint(networks.unet) != untrained
    trained = [networks, *(networks.split_by_k() if n_clusters == "3-4" else [])]
    for part, generator in zip(dict.fromkeys((run, *run.per_k)), trained, strict=True):
        saved = opened("part_1_training", part.n_clusters, "kmeans").networks("training")
        assert fingerprint(saved.unet) == fingerprint(generator.unet)
        assert fingerprint(saved.bank) == fingerprint(generator.bank)


def test_clusters_learnt_without_a_unet_are_those_of_parts_1_and_3(opened):
    """One by one bit for bit, and so is the CSV; of several k to rounding."""
    beside = opened("part_1_training", 3, overrides=PUBLISHED_ORDER, out="beside")
    train_all(beside)
    write_csv(beside)
    alone = opened("choose_k", 3, overrides=PUBLISHED_ORDER, out="alone")
    clusterings = choose_k.learn_every_k(alone, 1)
    choose_k.write_csvs(alone, clusterings, choose_k.assign(alone, clusterings))
    assert torch.equal(weights(clusterings.clusterers[3, 765]), weights(beside.bank))
    assert not torch.equal(weights(clusterings.clusterers[3, 765]), weights(clusterings.halves[3][0]))
    for suffix in (".csv", ".json"):
        paths = (run.paths.latent_csv.with_suffix(suffix) for run in (alone, beside))
        assert len({path.read_bytes() for path in paths}) == 1

    several = opened("choose_k", "3-4", overrides=PUBLISHED_ORDER, out="several")
    again = choose_k.learn_every_k(several, 2)
    assert again.clusterers.keys() == {(3, 765), (4, 765), (3, 766), (4, 766)}
    begun = weights(learn.new_clusterer(several, 3, 765))
    change = (weights(beside.bank) - begun).norm()
    assert (weights(again.clusterers[3, 765]) - weights(beside.bank)).norm() < 1e-3 * change
    assert (weights(again.clusterers[3, 766]) - weights(beside.bank)).norm() > change


@pytest.mark.parametrize("clustering", ["classifier", "kmeans"])
def test_one_training_gives_the_networks_of_every_k(opened, clustering, capsys):
    """Plain checkpoints that load strictly and draw what the one UNet draws, to the bit."""
    run = opened("part_1_training", [3, 4], clustering)
    networks = train_all(run)
    [file] = run.paths.models.glob("unet*finetuning2_ckpt_*_3-4.pth")
    whole = UNet(16, 7, **run.settings.diffusion.unet)
    whole.load_state_dict(torch.load(file, weights_only=True), strict=True)
    per_k = []
    for each, first, one in zip(run.per_k, (0, 3), networks.bank, strict=True):
        k = each.n_clusters
        later = opened("part_6_conditional_generation", k, clustering)
        [file] = later.paths.models.glob(f"unet*finetuning2_ckpt_*_{k}.pth")
        plain = UNet(16, k, **run.settings.diffusion.unet)
        plain.load_state_dict(torch.load(file, weights_only=True), strict=True)
        x, t = torch.randn(k, 16, 12, 12), torch.arange(k)
        with torch.no_grad():
            assert torch.equal(plain(x, t, t), whole(x, t, t + first))
        per_k.append(draw.tiles(later, torch.arange(k)))
        assert torch.equal(
            latents.predict_clusters(run.vqvae, one, run.codes).cluster_ids, later.assignment.cluster_ids
        )
        write_csv(later)
        assert artifacts.cluster_ids_of(later, ["1"]).shape == (1,)
    space = replace(networks.space, vqvae=later.vqvae)
    one_unet = Generator(whole, networks.bank, space, run.settings, speed=run.speed)
    for images, first in zip(per_k, (0, 3), strict=True):
        assert torch.equal(images, one_unet.draw(first + torch.arange(len(images))))
    capsys.readouterr()
    again = opened("part_3_finetuning2", "3-4", clustering)  # what is done is not done again
    networks = learn.new_networks(again)
    if clustering == "classifier":
        learn.clusters(again, networks.bank)
    learn.unet(again, "training", networks)
    learn.unet(again, "finetuning2", again.networks("finetuning1"))
    assert capsys.readouterr().out.count("is done already") == (3 if clustering == "classifier" else 2)


def test_several_k_are_refused_where_one_is_meant(opened):
    with pytest.raises(InputError, match="part_6_conditional_generation works with one number of clusters"):
        opened("part_6_conditional_generation", "3-4")


def test_clusters_of_which_only_some_were_kept_are_learnt_from_the_start(opened):
    """Those that were kept must not begin from what they have learnt already."""
    together = opened("choose_k", "3-4")
    clusterings = choose_k.learn_every_k(together, 1)
    (together.paths.choose_k / "classifier_4.pth").unlink()
    run = opened("part_1_training", "3-4")
    networks = learn.new_networks(run)
    learn.clusters(run, networks.bank)
    for k, one in zip(run.ks, networks.bank, strict=True):
        assert torch.allclose(weights(one), weights(clusterings.clusterers[k, 765]), atol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_clusters_that_learnt_for_another_number_of_epochs_are_not_taken(opened, decay, capsys):
    """Nor such as an earlier version kept without that number, where their learning rate does not tell it."""
    overrides = TINY | {"clusters.decay": decay}

    def learn_clusters(epochs):
        run = opened("part_1_training", 3, overrides=overrides | {"clusters.epochs": epochs})
        capsys.readouterr()
        history = learn.clusters(run, learn.new_networks(run).bank)
        return len(history), "were learnt before" in capsys.readouterr().out

    together = opened("choose_k", 3, overrides=overrides)
    choose_k.learn_every_k(together, 1)
    assert learn_clusters(1) == (1, True)
    assert learn_clusters(2) == (2, False)
    note_path = learn.cached_classifier(together).with_suffix(".json")
    note = read_json(note_path)
    assert note.pop("epochs") == 1
    write_json(note_path, note)
    assert learn.has_cached_classifier(together) == (decay == "cosine")


def test_parts_1_to_3_start_from_clusters_that_choose_k_learnt(opened, capsys):
    together = opened("choose_k", "3-4")
    clusterings = choose_k.learn_every_k(together, 1)
    assignments = choose_k.assign(together, clusterings)
    choose_k.write_csvs(together, clusterings, assignments)
    assert artifacts.latent_csvs(together).paths.keys() == {3, 4}
    for ks in (3, "3-4"):
        run = opened("part_1_training", ks)
        networks, capsys_before = learn.new_networks(run), capsys.readouterr()
        assert capsys_before is not None
        history = learn.clusters(run, networks.bank)
        assert "The clusters were learnt before" in capsys.readouterr().out
        assert history[-1] == pytest.approx(clusterings.histories["clusters"][-1])
        for k, one in zip(run.ks, networks.bank, strict=True):
            assert torch.equal(weights(one), weights(clusterings.clusterers[k, 765]))
    other = opened("part_1_training", 3, overrides=TINY | {"clusters.learning_rate": 2e-3})
    learn.clusters(other, learn.new_networks(other).bank)
    assert "were learnt before" not in capsys.readouterr().out

    trained = opened("part_1_training", 3, overrides=TINY | {"clusters.learning_rate": 2e-3})
    train_all(trained)
    write_csv(trained)
    written = trained.paths.latent_csv.read_bytes()
    # does not replace that of clusters which a UNet was trained with
    choose_k.write_csvs(together, clusterings, assignments)
    assert "stays as it is" in capsys.readouterr().out
    assert trained.paths.latent_csv.read_bytes() == written


@pytest.mark.parametrize("clustering", ["classifier", "kmeans"])
def test_the_tables_of_every_k(opened, clustering):
    run = opened("choose_k", "3-5", clustering)
    clusterings = choose_k.learn_every_k(run, 3)
    assignments = choose_k.assign(run, clusterings)
    rows, same = choose_k.compare(run, clusterings, assignments)
    labels = assignments[4, 766].cluster_ids.numpy()
    features = latents.mean_channel_softmax(run.vqvae, run.codes).numpy()
    assert rows.loc[(4, 766), "calinski_harabasz"] == pytest.approx(
        stability.all_indices(features, labels)["calinski_harabasz"]
    )
    views = [
        latents.predict_clusters(run.vqvae, clusterings.clusterers[4, 766], view).cluster_ids
        for view in choose_k.all_orientations(run)
    ]
    assert rows.loc[(4, 766), "same in 8 views"] == np.mean(
        [len(set(tile)) == 1 for tile in torch.stack(views).T.tolist()]
    )
    assert same.loc[5, ["next k", "nested"]].isna().all()
    assert same.loc[[3, 4]].notna().all(axis=None)
    table = stability.over_seeds(rows)
    sentence = choose_k.conclude(run, table, same)
    assert re.fullmatch(r"[A-Z]([^.]|\.\d| \.\.\. )*\.", sentence)
    written = pd.read_csv(run.paths.choose_k / "choose_k.csv", index_col="k")
    assert written.loc[4, "dunn mean"] == pytest.approx(rows.loc[4, "dunn"].mean())
    figures.plot_choice(rows, same)
    with pytest.raises(InputError, match="at most 12"):
        choose_k.learn_every_k(opened("choose_k", "12-13", clustering), 1)
    with pytest.raises(InputError, match="seeds must be"):
        choose_k.learn_every_k(run, 0)


def arguments(begun, *more):
    overrides = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return [*more, "--preset", "demo", "--data", str(begun / "tiles.npy"), *overrides]


@pytest.mark.parametrize("command", ["run", "clusters"])
@pytest.mark.parametrize("clusters", ["16-10", "1-3", "10-9999", "30-60", "4;5"])
def test_wrong_ranges_are_one_sentence(begun, tmp_path, capsys, command, clusters):
    out = tmp_path / "out"
    options = arguments(begun, command, "--clusters", clusters, "--out", str(out))
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not out.exists()


def test_the_notebook_ends_with_what_the_numbers_support(begun, opened, tmp_path, monkeypatch, capsys):
    """Run twice: what was learnt is not learnt again. `internal_cluster_validation_metrics` reads every CSV."""
    for name in ("KPC_RUN_TOML", "MPLBACKEND"):
        monkeypatch.setenv(name, "")  # what the command changes
    monkeypatch.chdir(tmp_path)
    opened("choose_k", "3-5")  # brings the autoencoder
    more = ["--clusters", "3-5", "--clustering", "classifier", "--seeds", "2", "--out", str(tmp_path / "out")]
    for already in (0, 3):
        assert main(arguments(begun, "cells", "choose_k", *more)) == 0
        printed = capsys.readouterr().out
        assert printed.count("clusters is done already") == already
        assert printed.rstrip().endswith(".")
    written = {path.name for path in (tmp_path / "out" / "choose_k").iterdir() if path.is_file()}
    assert {"choose_k.csv", "indices.jpg", "flow.jpg", "classifier_4.pth", "classifier_4.json"} <= written
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["choose_k"]
    assert summary["supported"] in printed
    assert summary["details"].keys() == {"3", "4", "5"}
    more = ["--clustering", "classifier", "--out", str(tmp_path / "out")]
    assert main(["cells", "internal_cluster_validation_metrics", *more]) == 0
    assert "Found k = [3, 4, 5]" in capsys.readouterr().out
