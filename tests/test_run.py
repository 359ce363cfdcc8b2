"""A run, opened once: its files know which run they are of, and another run's are refused before any work."""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pfiles import artifacts, checkpoints, draw, learn, report
from pfiles.__main__ import main
from pfiles.cli.execute import run_cells
from pfiles.cli.notebooks import NOTEBOOKS
from pfiles.cli.summary import print_summary
from pfiles.drawing.starting import newest_unet
from pfiles.errors import InputError
from pfiles.learning import autoencoder
from pfiles.machine.locks import locked
from pfiles.paths import ROOT, read_json, write_json
from pfiles.provenance import require_same_run, without
from pfiles.reporting import evaluation, figures, page, tables
from pfiles.run import choices_of, open_run
from pfiles.status import states_of
from pfiles.tiles.sources import read_source
from tests.conftest import OVERRIDES, STAGES, K, finish, make_tiles, opened, parameters, png, tiny_options, train, write

GENERATED, TABLE = "clusters_3/gen_3", "clusters_3/HHH3_C3_D3.json"


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def in_notebooks(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield
    plt.close("all")


# other data, other settings


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_other_data_of_the_same_shape_are_refused(name, run_dir, in_notebooks):
    before = files(run_dir)
    other = parameters(run_dir, data=str(run_dir / "other.npy"))
    with pytest.raises(InputError, match=r"data\.fingerprint was '\w+' and is '\w+'"):
        run_cells(ROOT / f"{name}.ipynb", other)
    assert files(run_dir) == before


@pytest.mark.parametrize("part", ["part_4_sampling_clustering", "part_9_conditional_generation_using_cluster_IDs"])
def test_other_settings_are_refused(part, run_dir, in_notebooks):
    changed = {**parameters(run_dir)["overrides"], "diffusion.beta_end": 0.03}
    with pytest.raises(InputError, match=r"settings\.diffusion\.beta_end was 0\.02 and is 0\.03"):
        run_cells(ROOT / "clusters_14" / f"{part}.ipynb", parameters(run_dir, overrides=changed))


@pytest.mark.parametrize(
    "artefact", ["org/made_from.json", "clusters_3/gen_3/generated_with.json", "clusters_3/HHH3_C3_D3.json"]
)
def test_files_of_two_runs_are_not_compared(artefact, done):
    assert len(artifacts.pairs(opened(done))[0]) == 12
    path = done / "out" / artefact
    note = read_json(path)
    note["data"]["fingerprint"] = "another"
    write_json(path, note)
    with pytest.raises(InputError, match=r"data\.fingerprint was"):
        artifacts.pairs(opened(done))


def test_images_and_labels_of_networks_trained_since_are_refused(done):
    run = opened(done)
    assert len(artifacts.generated_files(run)) == len(artifacts.cluster_ids_of(run, ["1", "2"])) + 10
    for path, read in (
        (done / "out/clusters_3/gen_3/generated_with.json", lambda: artifacts.generated_files(opened(done))),
        (done / "out/clusters_3/HHH3_C3_D3.json", lambda: artifacts.cluster_ids_of(opened(done), ["1"])),
    ):
        note = read_json(path)
        note["starts_from"]["autoencoder"] = "another"
        write_json(path, note)
        with pytest.raises(InputError, match=r"starts_from\.autoencoder was 'another' and is"):
            read()


def test_published_files_are_accepted_and_said_to_be_so(done, capsys):
    for path in (done / "out").rglob("*.json"):
        path.unlink()
    run = opened(done, data=str(done / "other.npy"), overrides={**OVERRIDES, "diffusion.prediction": "noise"})
    with pytest.raises(InputError, match="latent_scaling"):  # what published UNets never had
        run.networks()
    assert len(artifacts.generated_files(run)) == 12
    assert len(artifacts.cluster_ids_of(run, ["1"])) == 1
    assert len(artifacts.pairs(run)[0]) == 12
    lines = [line for line in capsys.readouterr().out.splitlines() if "has no provenance" in line]
    for name in ("vqvae_autoencoder_ckpt.pth", "unet_finetuning2", "gen_3", "HHH3_C3_D3.csv", "org"):
        assert any(name in line for line in lines), name


def test_a_csv_that_was_replaced_is_told_from_ours(done, capsys):
    path = opened(done).paths.latent_csv
    path.write_text(path.read_text().replace("0.", "0.0", 1))
    artifacts.cluster_ids_of(opened(done), ["1"])
    assert f"{path} has no provenance" in capsys.readouterr().out


def test_csvs_of_different_data_are_not_ranked(done):
    run = opened(done)
    assert list(artifacts.latent_csvs(run).paths) == [K]
    shutil.copytree(run.paths.cluster_folder, done / "out/clusters_4")
    for suffix in ("csv", "json"):
        (done / f"out/clusters_4/HHH3_C3_D3.{suffix}").rename(done / f"out/clusters_4/HHH4_C4_D4.{suffix}")
    assert list(artifacts.latent_csvs(run).paths) == [3, 4]
    note = read_json(done / "out/clusters_4/HHH4_C4_D4.json")
    note["data"]["fingerprint"] = "another"
    write_json(done / "out/clusters_4/HHH4_C4_D4.json", note)
    with pytest.raises(InputError, match=r"HHH4_C4_D4\.csv beside .*data\.fingerprint was 'another'"):
        artifacts.latent_csvs(run)


def test_every_csv_is_held_against_the_run_and_the_others_where_the_first_is_a_published_one(done):
    """Also where no tiles are named, and the others can only be held against each other."""
    cluster_folders = [done / f"out/clusters_{k}" for k in (3, 4, 5)]
    for k, folder in zip((4, 5), cluster_folders[1:], strict=True):
        folder.mkdir()
        for suffix in ("csv", "json"):
            shutil.copy(cluster_folders[0] / f"HHH3_C3_D3.{suffix}", folder / f"HHH{k}_C{k}_D{k}.{suffix}")
    (done / "out" / TABLE).unlink()
    csvs = artifacts.latent_csvs(opened(done))
    assert list(csvs.paths) == [3, 4, 5]
    assert csvs.provenance.data["fingerprint"] == opened(done).tiles.fingerprint()
    with pytest.raises(InputError, match=r"HHH4_C4_D4\.csv belongs to another run \(data\.fingerprint was"):
        artifacts.latent_csvs(opened(done, data=str(done / "other.npy")))
    last = cluster_folders[2] / "HHH5_C5_D5.json"
    note = read_json(last)
    note["data"]["fingerprint"] = "another"
    write_json(last, note)
    with pytest.raises(
        InputError, match=r"HHH5_C5_D5\.csv beside .*HHH4_C4_D4\.csv belongs to another run \(data\.finger"
    ):
        artifacts.latent_csvs(opened(done, data=None))


def test_results_among_the_tiles_are_refused_before_any_work(tmp_path):
    write(tmp_path, range(44), make_tiles(44))
    run = opened(tmp_path, data=str(tmp_path))
    with pytest.raises(InputError, match=r"results in .*out would lie among the tiles in .*: name another folder"):
        learn.autoencoder(run, *learn.new_autoencoder(run))


def test_one_generated_image_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"sampling\.num_generated must be at least 2"):
        opened(tmp_path, overrides={**OVERRIDES, "sampling.num_generated": 1})


def test_files_are_compared_with_other_samplers_and_with_tiles_of_another_size(done):
    assert len(artifacts.pairs(opened(done))[0]) == 12
    with pytest.raises(InputError, match=r"gen_3 belongs to another run \(steps was 4 and is 3\)"):
        artifacts.pairs(opened(done, overrides={**OVERRIDES, "sampling.steps": 3}))
    np.save(done / "larger.npy", make_tiles(44, 52))
    with pytest.raises(InputError, match="52 px, but image_size_px is 48"):
        artifacts.pairs(opened(done, data=str(done / "larger.npy")))
    assert len(artifacts.pairs(opened(done, data=str(done / "moved.npy")))[0]) == 12  # tiles that are not there


def test_training_images_of_other_tiles_stay(done):
    (done / "out/org/made_from.json").unlink()
    with pytest.raises(InputError, match="has no provenance, so its images may show other tiles"):
        artifacts.write_training_images(opened(done))


def test_a_restart_that_would_stop_at_org_says_so_before_it_trains(done):
    before = files(done)
    again = opened(done, data=str(done / "other.npy"), restart="a name")
    with pytest.raises(InputError, match=r"org.* belongs to another run \(data\.fingerprint was"):
        learn.autoencoder(again, *learn.new_autoencoder(again))
    assert files(done) == before


def test_a_published_csv_is_not_replaced(done):
    run = opened(done)
    path, note = run.paths.latent_csv, run.paths.latent_csv.with_suffix(".json")
    ours, noted = path.read_bytes(), note.read_bytes()
    table = pd.read_csv(path, header=None)
    published = ours.replace(b"1", b"2")
    path.write_bytes(published)  # over ours, whose JSON tells of another file
    for _ in range(2):
        with pytest.raises(InputError, match=f"{path} has no provenance and would be replaced: move"):
            artifacts.write_latent_csv(run, table)
        assert path.read_bytes() == published
        note.unlink(missing_ok=True)
    assert not note.exists()
    path.unlink()
    artifacts.write_latent_csv(run, table)
    assert (path.read_bytes(), note.read_bytes()) == (ours, noted)


def test_a_run_that_was_made_in_notebooks_draws_once_it_is_said_with_what(done, tmp_path, capsys):
    write_json(done / "out" / "summary.json", {})  # without what a command notes there
    command = ["draw", "--from", str(done / "out"), "--number", "2", "--out", str(tmp_path / "drawn")]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: ")
    said = ["--data", str(done / "tiles.npy"), "--preset", "demo", "--clusters", str(K), "--clustering", "classifier"]
    assert main([*command, *said, *tiny_options()]) == 0
    assert len([*(tmp_path / "drawn" / "tiles").glob("*.png")]) == 2


# k-means beside the classifier


def test_kmeans_and_classifier_share_no_file(done, in_notebooks):
    before = files(done)
    finish(opened(done, clustering="kmeans"))
    after = files(done)
    changed = {name for name, content in before.items() if after.get(name) != content}
    assert changed <= {name for name in before if "events" in name}
    new = {Path(name).name for name in after.keys() - before.keys()}
    assert {"HHH3_C3_D3_kmeans.csv", "HHH3_C3_D3_kmeans.json"} <= new
    assert {name.split("_ckpt_")[0] for name in new if name.endswith(".pth")} == {
        "kmeans_training", *(f"unet_kmeans_{stage}" for stage in STAGES)
    }  # fmt: skip
    assert any("clusters_3/gen_3_kmeans/" in name for name in after)
    run_cells(ROOT / "clusters_14/part_10_SSIM.ipynb", parameters(done, clustering="kmeans"))
    run_cells(ROOT / "internal_cluster_validation_metrics.ipynb", parameters(done, clustering="kmeans"))
    assert read_json(done / "out/summary.json").keys() == {
        "clusters_3_kmeans/part_10_SSIM", "internal_cluster_validation_metrics_kmeans",
    }  # fmt: skip
    assert opened(done).paths.latent_csvs().keys() == opened(done, clustering="kmeans").paths.latent_csvs().keys()


# names of clusters


def test_names_are_words_of_the_run(done):
    run = opened(done)
    assert run.names == {}
    report.reading(run, "anna").save({1: {"name": "keratin"}, 2: {"name": "=dermis"}, 3: {"same_as": 1}})
    assert run.names == {1: "keratin", 2: "=dermis", 3: "keratin"}
    assert torch.equal(draw.tiles(run, "=Dermis", 3), draw.tiles(run, [1, 1, 1]))
    several = draw.generator(run).cluster_ids(5, run.seed, "keratin")
    assert torch.equal(draw.tiles(run, "keratin", 5), draw.tiles(run, several))
    assert set(several.tolist()) <= {0, 2}
    with pytest.raises(InputError, match="'keratine': the nearest names are keratin"):
        draw.tiles(run, "keratine", 2)
    with pytest.raises(InputError, match="number of tiles to draw"):
        draw.tiles(run, "keratin", 0)
    draw.write_generated_table(run)
    table = (run.paths.generated / "tiles.csv").read_text().splitlines()
    first = run.assignment.cluster_ids[0].item() + 1
    name = {1: "keratin", 2: "'=dermis", 3: "keratin"}[first]
    assert table[0] == "file,cluster,name,seed,probability,realism,nearest,structure"
    assert table[1].startswith(f"1.png,{first},{name},765,")
    assert pd.read_csv(run.paths.generated / "tiles.csv")[["probability", "realism", "nearest"]].notna().all(axis=None)
    assert len(read_source(run.paths.generated).images) == 12  # such a table does not make it a folder cut from slides


def test_a_finished_run_draws_by_name_on_the_command_line(done, tmp_path, capsys):
    report.reading(opened(done), "anna").save({2: {"name": "keratin"}})
    write_json(done / "out/summary.json", {"run": parameters(done)})
    arguments = ["draw", "--from", str(done / "out"), "--number", "2", "--out", str(tmp_path / "drawn"), "--cluster"]
    assert main([*arguments, "keratin"]) == 0
    table = pd.read_csv(tmp_path / "drawn/tiles.csv")
    assert table[["file", "cluster", "name"]].to_numpy().tolist() == [[f"{i}.png", 2, "keratin"] for i in (1, 2)]
    assert table[["probability", "realism", "nearest"]].notna().all(axis=None)
    first = torch.from_numpy(np.array(Image.open(tmp_path / "drawn/tiles/1.png"))).permute(2, 0, 1)
    assert torch.equal(first, draw.tiles(opened(done), "keratin", 2)[0])
    capsys.readouterr()
    assert main([*arguments, "keratim"]) == 2
    assert "nearest names are keratin" in capsys.readouterr().err


def test_names_do_not_stick_to_other_clusters(done):
    run = opened(done)
    report.reading(run, "anna").save({1: {"name": "keratin"}})
    assert opened(done).names == {1: "keratin"}
    for name in ("clusterer", "vqvae"):
        other = opened(done)
        networks = {"vqvae": other.vqvae, "clusterer": other.bank}
        with torch.no_grad():
            next(networks[name].parameters()).add_(1)
        assert other.names == {}, name


def test_the_tiles_of_the_atlas_are_drawn_once(done, monkeypatch):
    images, clusters = draw.samples(opened(done), 2)
    assert clusters.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(images, draw.tiles(opened(done), clusters))
    run = opened(done)
    monkeypatch.setattr(draw, "tiles", None)
    assert torch.equal(draw.samples(run, 2)[0], images)


def test_frames_lead_from_noise_to_the_tile(done):
    run = opened(done)
    frames = draw.frames(run, [0, 2], 3)
    assert frames.shape == (2, 3, 3, 48, 48)
    assert frames[:, -1].equal(draw.tiles(run, [0, 2]))
    plain = draw.frames(run, [1, 1], 3, guidance=1.0)
    assert plain[:, 0].equal(frames[:, 0])  # noise is of no cluster
    assert not plain[:, -1].equal(draw.tiles(run, [1, 1]))  # which guidance moves


def test_the_autoencoder_before_its_polish(done):
    """Only its decoder is another one."""
    run = opened(done)
    before = learn.before_polish(run, run.vqvae)
    assert checkpoints.inference_fingerprint(before) == checkpoints.inference_fingerprint(run.vqvae)
    assert checkpoints.fingerprint(before) != checkpoints.fingerprint(run.vqvae)
    unpolished = opened(done, overrides=OVERRIDES | {"autoencoder.polish.epochs": 0})
    assert learn.before_polish(unpolished, run.vqvae) is None


def test_a_blended_polish_goes_part_of_the_way(done):
    """Without a training, from the weights before and after that a finished run has."""
    polished = opened(done).vqvae.state_dict()
    before = learn.before_polish(opened(done), opened(done).vqvae).state_dict()
    blended = opened(done, overrides=OVERRIDES | {"autoencoder.polish.blend": 0.25})
    learn.autoencoder(blended, *learn.new_autoencoder(blended))
    for name, weights in opened(done).vqvae.state_dict().items():
        torch.testing.assert_close(weights, 0.75 * before[name] + 0.25 * polished[name], msg=name)
    assert not torch.equal(polished["decoder_conv_out.weight"], before["decoder_conv_out.weight"])


# restarts, second runs, stale networks


def test_a_finished_run_on_another_day_leaves_no_second_checkpoint(done, monkeypatch):
    before = {name for name in files(done) if name.endswith(".pth")}

    class Tomorrow:
        @staticmethod
        def today():
            return Tomorrow()

        def strftime(self, form):
            return "20991231"

    monkeypatch.setattr(checkpoints, "date", Tomorrow)
    train(opened(done))
    assert {name for name in files(done) if name.endswith(".pth")} == before


def test_a_unet_trained_since_makes_the_next_stage_stale(done):
    run = opened(done, clustering="classifier")
    about = read_json(checkpoints.find_checkpoint(run.paths, "unet", "training", "classifier").with_suffix(".json"))
    networks = run.networks("training")
    with torch.no_grad():
        networks.unet.conv_out.weight += 1
    content = without(about, "versions", "weights", "number", "replaces", "stage", "epochs", "network", "trained_with")
    parts = networks.unet, networks.bank, networks.space
    checkpoints.save_stage(run.paths, "training", *parts, 9, content, clusters_first={})
    with pytest.raises(InputError, match=r"another UNet than that of the last training: run part_2_finetuning1 again"):
        opened(done).networks("finetuning1")


def test_the_unet_after_its_first_training_guides_where_the_settings_say_so(done):
    plain, guided = opened(done), opened(done, overrides=OVERRIDES | {"sampling.guide": "training"})
    assert plain.networks().guide is None
    first = guided.networks("training")
    assert first.guide is None
    assert torch.equal(guided.networks().guide.conv_out.weight, first.unet.conv_out.weight)
    inputs = artifacts.generated_provenance(guided).inputs
    assert inputs["guide_weights"] == checkpoints.fingerprint(first.unet)
    assert "guide" not in artifacts.generated_provenance(plain).inputs  # as of runs before there was such a setting


def test_a_restart_that_old_images_would_stop_says_so_first(done):
    before = files(done)
    run = opened(done, seed=1, restart=True)
    with pytest.raises(
        InputError, match=r"gen_3 would not belong to the networks that autoencoder trains: move or delete"
    ):
        learn.autoencoder(run, *learn.new_autoencoder(run))
    assert {name: content for name, content in files(done).items() if "restart_" not in name} == before


def test_the_autoencoders_restart_sees_the_images_of_every_clustering(done):
    """Its notebook knows neither clustering nor number of clusters."""
    content = done / "out/clusters_6/gen_6_kmeans"
    content.parent.mkdir()
    (done / "out/clusters_3/gen_3").rename(content)
    before = files(done)
    run = opened(done, notebook="train_autoencoder", n_clusters=None, clustering="kmeans", restart=True)
    with pytest.raises(InputError, match=r"gen_6_kmeans would not belong to the networks that autoencoder trains"):
        learn.autoencoder(run, *learn.new_autoencoder(run))
    assert {name: content for name, content in files(done).items() if "restart_" not in name} == before


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("org", "images of another run, such as 99.png"),
        ("clusters_3/gen_3", "would not belong to the networks that autoencoder trains"),
    ],
)
def test_what_would_stop_a_run_after_its_trainings_stops_it_before(run_dir, tmp_path, folder, says):
    shutil.copy(run_dir / "tiles.npy", tmp_path)
    (tmp_path / "out" / folder).mkdir(parents=True)
    (tmp_path / "out" / folder / "99.png").write_bytes(png(make_tiles(1)[0]))
    run = opened(tmp_path)
    with pytest.raises(InputError, match=says):
        learn.autoencoder(run, *learn.new_autoencoder(run))
    assert not run.paths.autoencoder.exists()


def test_a_longer_training_is_refused_before_it_makes_images_old(done):
    before = files(done)
    train(opened(done))  # done already: nothing becomes old
    assert files(done) == before
    run = opened(done)
    shutil.rmtree(run.paths.training_folder("training", "classifier"))  # now it has steps to do
    with pytest.raises(
        InputError, match=r"gen_3 would not belong to the networks that training trains: move or delete it"
    ):
        learn.unet(run, "training", learn.new_networks(run))
    assert files(done).items() <= before.items()
    shutil.rmtree(done / "out/clusters_3/gen_3")
    (done / "out/clusters_3/HHH3_C3_D3.json").unlink()  # as a published one
    with pytest.raises(InputError, match=r"HHH3_C3_D3\.csv would not belong to the networks that training trains"):
        learn.unet(run, "training", learn.new_networks(run))


def test_networks_that_another_training_finished_are_kept(done, capsys):
    """Trained again on the same day, on another autoencoder."""
    shutil.rmtree(done / "out/clusters_3/gen_3")
    run = opened(done)
    [path] = run.paths.models.glob("unet_training_*_3.pth")
    before, noted = path.read_bytes(), path.with_suffix(".json").read_bytes()
    foreign, _ = learn.new_autoencoder(opened(done, seed=5, restart=True))
    torch.save(foreign.state_dict(), run.paths.autoencoder)
    learn.unet(run, "training", learn.new_networks(run))
    printed = capsys.readouterr().out
    assert "Starts from the beginning" in printed
    assert f"are kept as {path.stem}.kept_1.pth" in printed
    assert path.with_name(f"{path.stem}.kept_1.pth").read_bytes() == before
    assert path.with_name(f"{path.stem}.kept_1.json").read_bytes() == noted
    assert read_json(path.with_suffix(".json"))["number"] == 2
    assert newest_unet(run.paths.root).name.startswith("unet_finetuning2_")


def test_weights_put_over_ours_are_replaced_when_that_is_asked_for(done):
    shutil.rmtree(done / "out/clusters_3/gen_3")
    run = opened(done)
    ours = checkpoints.fingerprint(run.vqvae)
    foreign, _ = learn.new_autoencoder(opened(done, seed=5, restart=True))
    torch.save(foreign.state_dict(), run.paths.autoencoder)
    again = opened(done, notebook="train_autoencoder", restart=True)
    learn.autoencoder(again, *learn.new_autoencoder(again))  # becomes the same, bit for bit, as its JSON tells already
    assert checkpoints.fingerprint(opened(done).vqvae) == ours


def test_weights_put_over_a_unet_are_kept_when_it_is_trained_again(done, capsys):
    run = opened(done)
    [path] = run.paths.models.glob("unet_training_*.pth")
    torch.save(learn.new_networks(opened(done, seed=5)).unet.state_dict(), path)
    foreign = path.read_bytes()
    learn.unet(run, "training", learn.new_networks(run))
    assert path.with_name(f"{path.stem}.kept_1.pth").read_bytes() == foreign
    assert "held weights of another training: they are kept as" in capsys.readouterr().out
    assert run.networks("training")


@pytest.mark.parametrize("part", ["part_10_SSIM", "internal_cluster_validation_metrics"])
def test_notebooks_of_files_alone_refuse_other_data_and_settings_where_these_are_named(part, run_dir, in_notebooks):
    path = ROOT / ("clusters_14" if part.startswith("part") else "") / f"{part}.ipynb"
    with pytest.raises(InputError, match=r"data\.fingerprint was"):
        run_cells(path, parameters(run_dir, data=str(run_dir / "other.npy")))
    changed = {**parameters(run_dir)["overrides"], "diffusion.beta_end": 0.03}
    with pytest.raises(InputError, match=r"settings\.diffusion\.beta_end was 0\.02 and is 0\.03"):
        run_cells(path, parameters(run_dir, overrides=changed))


def test_a_restart_of_all_trainings_is_done_once(done, capsys):
    shutil.rmtree(done / "out/clusters_3/gen_3")
    for _ in range(2):
        train(opened(done, restart="a name"))
    printed = capsys.readouterr().out
    assert [printed.count(f"{name} is done already") for name in ("autoencoder", "training", "finetuning2")] == [1] * 3
    train(opened(done, restart="another"))
    assert "done already" not in capsys.readouterr().out


def test_a_restart_of_a_notebook_with_two_trainings_is_done_once(done, monkeypatch, capsys):
    """Stopped in its second training and run again, its first one is done already."""
    shutil.rmtree(done / "out/clusters_3/gen_3")
    overrides = {**OVERRIDES, "autoencoder.polish.epochs": 1}
    polish = autoencoder.polish_decoder

    def stop(**arguments):
        raise KeyboardInterrupt

    def again(stopped):
        monkeypatch.setattr(autoencoder, "polish_decoder", stop if stopped else polish)
        run = opened(done, notebook="train_autoencoder", overrides=overrides, restart=True)
        with suppress(KeyboardInterrupt):
            learn.autoencoder(run, *learn.new_autoencoder(run))
        return capsys.readouterr().out

    assert ["autoencoder is done already" in again(stopped) for stopped in (True, True, False, True)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_the_command_names_its_restart_until_it_ends(tmp_path, monkeypatch):
    restarts = []

    def execute(notebook, target, parameters, kernel):
        restarts.append(parameters["restart"])
        return ("KeyboardInterrupt", "stopped") if len(restarts) < 3 else None

    monkeypatch.setattr("pfiles.cli.notebooks.execute", execute)
    monkeypatch.setattr("pfiles.cli.notebooks.start_kernel", lambda: None)
    monkeypatch.setattr("pfiles.cli.notebooks.end_kernel", lambda kernel: None)
    monkeypatch.setattr("pfiles.cli.notebooks.NOTEBOOKS", ("one",))
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    data = str(tmp_path / "tiles.npy")
    command = ["run", "--preset", "demo", "--data", data, "--out", str(tmp_path), "--restart", *tiny_options()]
    assert main([*command, "--seed", "1"]) == 130
    assert [main(command) for _ in range(3)] == [130, 0, 0]
    other, first, again, anew = restarts
    assert first == again != other
    assert anew not in (other, first)
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["restart"] is True
    assert not [*tmp_path.rglob("restart*.json")]


def test_several_k_are_run_one_after_the_other_but_trained_together(tmp_path, monkeypatch):
    ran = []

    def execute(notebook, target, parameters, kernel):
        ran.append((notebook.stem, parameters["n_clusters"]))

    monkeypatch.setattr("pfiles.cli.notebooks.execute", execute)
    monkeypatch.setattr("pfiles.cli.notebooks.start_kernel", lambda: None)
    monkeypatch.setattr("pfiles.cli.notebooks.end_kernel", lambda kernel: None)
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    where = ["--preset", "demo", "--data", str(tmp_path / "tiles.npy"), "--out", str(tmp_path)]
    assert main(["run", *where, "--clusters", "3-4", *tiny_options()]) == 0
    together, last = NOTEBOOKS[:6], NOTEBOOKS[-1]
    expected = [(name, "3-4") for name in together]
    expected += [(name, k) for k in (3, 4) for name in NOTEBOOKS[6:-1]] + [(last, "3-4")]
    assert ran == [(name.rpartition("/")[2], k) for name, k in expected]

    ran.clear()
    assert main(["run", *where, "--clusters", "3-4", "--fields", "--reader-study", *tiny_options()]) == 0
    for part in ("part_17_fields", "part_18_reader_study"):
        assert [step for step in ran if step[0] == part] == [(part, k) for k in (3, 4)]
    assert len(ran) == len(expected) + 4
    assert ran[-1] == (last, "3-4")

    with pytest.raises(InputError, match="has 3, 4 clusters: name one of these numbers"):
        choices_of(tmp_path)
    assert choices_of(tmp_path, n_clusters=4)["n_clusters"] == 4
    with pytest.raises(InputError, match="has 3, 4 clusters"):
        choices_of(tmp_path, n_clusters=5)
    assert main(["share", "--run", str(tmp_path), "--out", str(tmp_path / "shared")]) == 2
    assert main(["clusters", *where, "--clusters", "5-6", *tiny_options()]) == 0  # leaves the run's own entry alone
    assert choices_of(tmp_path, n_clusters=3)["n_clusters"] == 3


def test_two_runs_in_one_folder(tmp_path, capsys):
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    where = ["--preset", "demo", "--data", str(tmp_path / "tiles.npy"), "--out", str(tmp_path / "out")]
    with locked(tmp_path / "out" / "executed" / "clusters_3_kmeans"):
        assert main(["run", *where, "--clusters", "3", *tiny_options()]) == 2
    assert "Another run with these clusters is at work in" in capsys.readouterr().err


def test_two_trainings_in_one_folder(done):
    run = opened(done)
    with locked(run.paths.training_folder("training", "classifier")), pytest.raises(InputError, match="Another run"):
        learn.unet(run, "training", learn.new_networks(run))


# foreign files


def test_a_published_autoencoder_put_over_ours_is_recognised(done, capsys):
    run = opened(done)
    foreign, _ = learn.new_autoencoder(opened(done, seed=5, restart=True))
    torch.save(foreign.state_dict(), run.paths.autoencoder)
    before = run.paths.autoencoder.read_bytes()
    with pytest.raises(InputError, match="was not made here and would be replaced"):
        learn.new_autoencoder(run)
    assert run.paths.autoencoder.read_bytes() == before
    assert checkpoints.fingerprint(run.vqvae) == checkpoints.fingerprint(foreign)
    assert "has no provenance" in capsys.readouterr().out


def test_a_kill_between_a_json_and_its_weights_leaves_ours(done):
    run = opened(done)
    foreign, _ = learn.new_autoencoder(opened(done, seed=5, restart=True))
    before = run.paths.autoencoder.read_bytes()
    checkpoints.save_weights(foreign, run.paths.autoencoder, {})
    run.paths.autoencoder.write_bytes(before)  # the JSON tells of the new, and of what it replaces
    learn.new_autoencoder(run)


# numbers and figures


def test_numbers_know_which_run_they_are_of(tmp_path, capsys):
    """Two notebooks of a run, one of them run again on other data, and a number that nobody vouches for."""
    for name, seed in (("tiles", 0), ("other", 1)):
        np.save(tmp_path / f"{name}.npy", make_tiles(44, seed=seed))
    other = str(tmp_path / "other.npy")
    runs = [opened(tmp_path), opened(tmp_path, notebook="part_b", data=other, seed=1)]
    for run in runs:
        assert len(run.tiles.train)
        artifacts.record(run, {"y": 0.5})
    first = runs[0]
    provenances = tables.provenances(first.paths.summary)
    require_same_run(provenances["clusters_3/part_test"], first.provenance, "the numbers")
    assert provenances["clusters_3/part_test"].seed == first.seed
    with pytest.raises(InputError, match=r"data\.fingerprint was .* and is "):
        require_same_run(provenances["clusters_3/part_b"], first.provenance, "the numbers")
    assert read_json(first.paths.summary)["clusters_3/part_b"] == {"y": 0.5}  # nothing between the numbers themselves
    summary = read_json(first.paths.summary)
    summary["run"] = {"data_fingerprint": first.tiles.fingerprint(), "seconds": 1, "peak_memory_gb": 1.0}
    capsys.readouterr()
    print_summary(summary, first.paths)
    printed = capsys.readouterr().out
    assert printed.count("part_test ") == 1
    assert "left out, as these numbers are of other data: clusters_3/part_b\n" in printed
    write_json(first.paths.summary, {**summary, "clusters_3/part_b": {"y": 0.6}})  # by hand, or by an older version
    assert tables.provenances(first.paths.summary).keys() == {"clusters_3/part_test"}


def test_numbers_of_pairs_are_of_the_run_that_made_the_files(done):
    """Parts 10 to 12 and the indices are not told the data: they read it from the files."""
    run, fingerprint = opened(done, data=str(done / "nowhere.npy")), opened(done).tiles.fingerprint()
    artifacts.record(run, {"ssim": 0.5}, artifacts.pairs(run).provenance)
    indices = opened(done, notebook="indices", data=None)
    artifacts.record(indices, {"3": {}}, artifacts.latent_csvs(indices).provenance)
    provenances = tables.provenances(run.paths.summary)
    assert {name: of.data["fingerprint"] for name, of in provenances.items()} == {
        "clusters_3/part_test": fingerprint, "indices": fingerprint,
    }  # fmt: skip


def test_evaluate_knows_a_finished_run_from_two(done, monkeypatch):
    monkeypatch.setattr(evaluation, "MIN_IMAGES", 12)
    monkeypatch.setattr(
        evaluation, "all_sections", lambda *_: [evaluation.summary_section(), page.Section("Images", [])]
    )
    paths = opened(done).paths
    files = [paths.training_images, paths.generated, paths.latent_csv, paths.autoencoder]
    assert evaluation.evaluate(*files, paired=False)[1].notes[0].startswith("All files belong to one run")
    other = opened(done, data=str(done / "other.npy"), out=str(done / "other"))
    artifacts.write_training_images(other)
    with pytest.raises(InputError, match=r"other/org beside .*gen_3 belongs to another run \(data\.fingerprint was"):
        evaluation.evaluate(other.paths.training_images, *files[1:])


def test_panels_of_another_k_stay(tmp_path):
    """Under the published name lies the last one; the name with k is its own."""
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    for k in (3, 4):
        run = opened(tmp_path, n_clusters=k)
        report.save_panel(run, figures.plot_sizes([k], f"{k} clusters", "", ""), 3, "G1")
    folder = tmp_path / "out" / "Figures" / "Figure 3"
    assert {path.name for path in folder.iterdir()} == {"G1.jpg", "G1_k3.jpg", "G1_k4.jpg"}
    assert (
        (folder / "G1.jpg").read_bytes() == (folder / "G1_k4.jpg").read_bytes() != (folder / "G1_k3.jpg").read_bytes()
    )


def test_a_run_keeps_the_precision_it_began_with(tmp_path, monkeypatch, capsys):
    def precision(measured):
        monkeypatch.setattr("pfiles.run.pick_precision", lambda device: measured)
        return open_run("x", 3, preset="recommended", out=tmp_path).settings.precision

    assert precision("bf16") == "bf16"
    assert "This run computes in bf16" in capsys.readouterr().out
    assert precision("fp32") == "bf16"  # on another machine, or beside other work
    assert (
        open_run("x", 3, preset="recommended", overrides={"precision": "fp32"}, out=tmp_path).settings.precision
        == "fp32"
    )
    assert not (tmp_path / "a").exists()
    assert open_run("x", 3, preset="paper", out=tmp_path / "a").settings.precision == "fp32"
    assert not (tmp_path / "a").exists()  # nothing to be chosen, nothing to be kept


def test_a_look_at_a_run_does_not_decide_its_precision(tmp_path, monkeypatch, capsys):
    def precision(looks, faster):
        monkeypatch.setattr("pfiles.run.pick_precision", lambda device: faster)
        return open_run("x", 3, preset="recommended", out=tmp_path / "out", looks=looks).settings.precision

    assert precision(True, "fp32") == "fp32"  # as beside other work
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""
    assert precision(False, "bf16") == "bf16"
    assert precision(True, "fp32") == "bf16"  # what the run keeps


def test_a_copy_of_a_finished_folder_of_clusters_changes_nothing(done):
    """Copied for another k, as the docs say; what is trained for the first k since counts, and not its copy."""
    shutil.copytree(done / "out/clusters_3", done / "out/clusters_5")
    csv = opened(done).paths.latent_csv
    assert artifacts.latent_csvs(opened(done)).paths == {3: csv}
    run = opened(done, n_clusters=5)
    assert {state for *_, state, _ in states_of(run)[2:]} == {"missing"}
    learn.unet(run, "training", learn.new_networks(run))
    assert [path.parent.name for path in run.paths.models.glob("unet_*.pth")] == ["models_5"]


@pytest.mark.parametrize("preset", ["recommended", "demo"])
def test_settings_that_train_no_clusters_are_refused(preset, tmp_path):
    options = {"preset": preset, "overrides": {"clusters_first": False}, "out": str(tmp_path)}
    with pytest.raises(InputError, match="No training of these settings learns clusters: set clusters_first"):
        open_run("part_1_training", 3, "classifier", **options)
    open_run("part_1_training", 3, "kmeans", **options)
    open_run("train_autoencoder", 3, **options)


def test_folders_that_were_left_unfinished_at_the_same_tile_are_no_pairs(done):
    run = opened(done)
    assert len(artifacts.pairs(run).real) == 12
    for folder in (run.paths.training_images, run.paths.generated):
        sorted(folder.glob("*.png"))[-1].unlink()
    with pytest.raises(InputError, match=r"org lacks 1 of 12 images: run save_training_images again\."):
        artifacts.pairs(opened(done))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"autoencoder.vqvae": {"down_channel": [8]}}, r"vqvae has no down_channel: it has down_channels, z"),
        ({"diffusion.unet": {"cls": 3}}, r"diffusion\.unet has no cls: it has down_channels"),
        ({"autoencoder.discriminator": {"fold": 2}}, r"discriminator has no fold: it has conv_channels\."),
        ({"autoencoder.polish.discriminator_sees": "pixels"},
         r"polish\.discriminator has no channels: it has conv_channels, norm_channels\."),
    ],
)  # fmt: skip
def test_a_misspelt_argument_of_a_network_is_told_before_any_work(overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        open_run("test", 3, "kmeans", "embedded", "demo", overrides, run_toml=False)
