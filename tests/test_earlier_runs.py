"""Runs of an earlier version are opened, drawn from, extended and judged; see tests/fixtures/make_earlier_runs.py."""

import shutil

import numpy as np
import pytest
import torch

from pfiles import artifacts, checkpoints, draw, learn, report
from pfiles.classifier import Classifier
from pfiles.errors import InputError
from pfiles.latents import read_latent_csv
from pfiles.reporting import evaluation, tables
from pfiles.reporting.page import all_scores
from pfiles.reporting.sections.data import Options
from pfiles.run import Run, open_run
from pfiles.tiles.files import read_images
from tests.conftest import make_tiles
from tests.fixtures.earlier_runs import CHANNELS, SETTINGS, unpack

KINDS = ("classifier", "kmeans")


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """`open_run` on the runs in the archive; data: "tiles" (theirs) or "other"."""
    monkeypatch.setattr(Classifier.__init__, "__defaults__", CHANNELS)
    unpack(tmp_path / "made")
    for seed, name in enumerate(("tiles", "other")):
        np.save(tmp_path / f"{name}.npy", make_tiles(44, seed=seed))

    def opened(out, clustering, n_clusters=6, notebook="part_1_training", data="tiles", **changed):
        data, settings = tmp_path / f"{data}.npy", SETTINGS | changed
        return open_run(notebook, n_clusters, clustering, data, "demo", settings, out=tmp_path / "made" / out)

    return opened


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_opened_and_judged(earlier, kind, capsys):
    run = earlier("one", kind)
    assert len(artifacts.generated_files(run)) == len(artifacts.pairs(run)[0]) == 12
    assert list(artifacts.latent_csvs(run).paths) == [6]
    cluster_ids = read_latent_csv(run.paths.latent_csv, 6).cluster_ids
    assert run.assignment.cluster_ids.tolist() == cluster_ids.tolist()
    assert artifacts.cluster_ids_of(run, ["1", "24"]).tolist() == cluster_ids[[0, 23]].tolist()
    assert [run.networks(stage).unet.class_emb.num_embeddings for stage in checkpoints.START] == [6] * 3
    assert run.names == {1: "tumour"}
    assert tables.provenances(run.paths.summary)[f"clusters_6{run.paths.suffix}/part_test"].inputs["clustering"] == kind
    cache = run.paths.models / f"atlas_tiles{run.paths.suffix}.pt"
    before = cache.read_bytes()
    images, _ = draw.samples(run, 1)
    assert cache.read_bytes() == before
    generated = draw.tiles(run, torch.arange(6))
    assert (generated.int() - images.int()).abs().max() <= 2  # rounding differs among processors
    assert "has no provenance" not in capsys.readouterr().out


@pytest.mark.parametrize(("out", "k"), [("one", 6), ("several", 6), ("several", 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_draws_is_judged(earlier, kind, out, k):
    """By every measure of part 13, on the run's own clusters."""
    run = earlier(out, kind, k)
    requested = torch.arange(12) % k
    data = report.evaluation_data(run, draw.tiles(run, requested), requested)
    options = Options(report.extractors(run, ["random", "autoencoder"]), run.seed, run.device, blurs_px=(0.0,))
    scores = all_scores(*evaluation.all_sections(data, options))
    assert len(scores["in_short"]) == 7
    assert scores["copies"] == 0
    assert len(scores["by_cluster"]) == k
    assert 0 <= scores["second_judge"]["share_assigned"] <= 1
    assert all(np.isfinite(value) for value in scores["power_over_real"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_extended(earlier, kind, capsys):
    run = earlier("one", kind)
    before = read_images(artifacts.generated_files(run).values())
    for number in (1, 24):
        (run.paths.generated / f"{number}.png").unlink()
    artifacts.write_training_images(run)
    draw.to_folder(run, run.assignment.cluster_ids[run.selected_tiles])
    assert "10 of 12 images are there already" in capsys.readouterr().out
    assert (read_images(artifacts.generated_files(run).values()).int() - before.int()).abs().max() <= 2
    draw.write_generated_table(run)
    longer = earlier("one", kind, **{"finetuning2.epochs": 2})
    with pytest.raises(InputError, match=r"gen_6.* would not belong to the networks that finetuning2 trains"):
        learn.unet(longer, "finetuning2", longer.networks("finetuning1"))
    shutil.rmtree(run.paths.generated)
    assert len(learn.unet(longer, "finetuning2", longer.networks("finetuning1"))) == 2
    printed = capsys.readouterr().out
    assert ("finetuning2 goes on after step 3 of 6" in printed) == (kind == "kmeans")  # whose resume point was kept
    newest = checkpoints.find_checkpoint(run.paths, "unet", "finetuning2", kind)
    assert "_2_6.pth" in newest.name
    assert earlier("one", kind, **{"finetuning2.epochs": 2}).networks()


@pytest.mark.parametrize("kind", KINDS)
def test_several_k_are_opened_together_and_each_alone(earlier, kind, capsys):
    run = earlier("several", kind, "6-7")
    networks = run.networks()
    assert networks.unet.class_emb.num_embeddings == 13
    for k, part in zip((6, 7), networks.split_by_k(), strict=True):
        alone = earlier("several", kind, k)
        assert checkpoints.fingerprint(alone.networks().unet) == checkpoints.fingerprint(part.unet)
        assert len(draw.tiles(alone, [0, k - 1])) == 2
    if kind == "classifier":
        learn.clusters(run, learn.new_networks(run).bank)
        assert "The clusters were learnt before" in capsys.readouterr().out
    else:
        assert list(artifacts.latent_csvs(run).paths) == [6, 7]
    history = learn.unet(run, "finetuning2", run.networks("finetuning1"))
    assert len(history) == 1
    assert ("finetuning2 is done already" in capsys.readouterr().out) == (kind == "kmeans")


def test_a_stopped_training_goes_on(earlier, capsys):
    run = earlier("stopped", "classifier", **{"training.epochs": 3, "saving.every_epochs": 1})
    networks = learn.new_networks(run)
    learn.clusters(run, networks.bank)
    assert "clusters is done already" in capsys.readouterr().out
    history = learn.unet(run, "training", networks)
    assert "training goes on after step 6 of 9" in capsys.readouterr().out
    assert len(history) == 3


@pytest.mark.parametrize(("data", "changed", "says"), [
    ("other", {}, r"data\.fingerprint was '\w+' and is '\w+'"),
    ("tiles", {"diffusion.beta_end": 0.03}, r"settings\.diffusion\.beta_end was 0\.02 and is 0\.03"),
])  # fmt: skip
@pytest.mark.parametrize("read", [Run.networks, artifacts.generated_files, artifacts.pairs, artifacts.latent_csvs])
def test_other_data_and_settings_are_refused(earlier, data, changed, says, read):
    run = earlier("one", "kmeans", data=data, **changed)
    with pytest.raises(InputError, match=says):
        read(run)
