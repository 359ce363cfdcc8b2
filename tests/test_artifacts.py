"""Every file that a run makes is known as its own, and as another's: other data, other settings, trained since."""

from dataclasses import replace

import numpy as np
import pytest

from pfiles import artifacts
from pfiles.__main__ import main
from pfiles.artifacts import ARTIFACTS, BY_NAME
from pfiles.errors import InputError
from pfiles.paths import ROOT, read_json, write_json
from pfiles.provenance import GENERATED_WITH, MADE_FROM
from pfiles.status import states_of
from pfiles.tiles.pixels import resize
from pfiles.tiles.sources import make_positions
from tests.conftest import OVERRIDES, opened, tiny_options

MADE = [artifact.name for artifact in ARTIFACTS if artifact.name != "maps"]  # tiles of an array have no maps
ANOTHER = {"autoencoder": ("autoencoder.commitment_weight", 0.3), "diffusion": ("diffusion.beta_end", 0.03)}


def note_of(path):
    """The JSON that holds the provenance of an artefact."""
    if path.is_dir():
        return next(file for file in (path / GENERATED_WITH, path / MADE_FROM) if file.exists())
    return path.with_suffix(".json")


def states(run):
    return {artifact.name: state for artifact, _, state, _ in states_of(run)}


def test_a_finished_run_has_made_everything(run_dir):
    assert states(opened(run_dir)) == {**dict.fromkeys(MADE, "made"), "maps": "missing"}
    for name in MADE:
        assert artifacts.require(opened(run_dir), name).exists()
    with pytest.raises(InputError, match="run part_15_cluster_maps first"):
        artifacts.require(opened(run_dir), "maps")


@pytest.mark.parametrize(
    ("name", "file"), [("generated images", "gen_{}/1.png"), ("latent CSV", "HHH{0}_C{0}_D{0}.csv")]
)
def test_a_forgotten_number_of_clusters_names_those_that_are_there(name, file, tmp_path):
    for k in ("10", "9", "10-16"):
        path = tmp_path / "out" / f"clusters_{k}" / file.format(k)
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "out" / "clusters_old" / "gen_old").mkdir(parents=True)
    with pytest.raises(InputError, match=r"first, or set n_clusters to one that was made \(9, 10, 10-16\)\.$"):
        artifacts.require(opened(tmp_path, n_clusters=14), name)


@pytest.mark.parametrize("name", MADE)
def test_an_artefact_of_other_data_is_refused(name, run_dir):
    with pytest.raises(InputError, match=r"data\.fingerprint was '\w+' and is '\w+'"):
        artifacts.require(opened(run_dir, data=str(run_dir / "other.npy")), name)


@pytest.mark.parametrize("name", [name for name in MADE if BY_NAME[name].settings])
def test_an_artefact_of_other_settings_is_refused(name, run_dir):
    setting, value = ANOTHER[BY_NAME[name].settings[0]]
    run = opened(run_dir, overrides=OVERRIDES | {setting: value})
    with pytest.raises(InputError, match=rf"settings\.{setting} was .* and is {value}"):
        artifacts.require(run, name)


def test_a_classifier_that_learnt_first_keeps_the_settings_of_its_own_training(run_dir):
    note = read_json(note_of(BY_NAME["clusters"].path(opened(run_dir))))
    assert "epochs" in note["settings"]["clusters"]
    run = opened(run_dir, overrides=OVERRIDES | {"clusters.epochs": 2})
    for read in (lambda: artifacts.require(run, "clusters"), run.networks):
        with pytest.raises(InputError, match=r"settings\.clusters\.epochs was 1 and is 2"):
            read()


@pytest.mark.parametrize("name", MADE)
def test_notes_hold_the_settings_of_the_table_and_runs_expect_them(name, run_dir):
    run = opened(run_dir)
    groups = set(artifacts.settings_of(name))
    plain = {"image_size_px", "precision"}
    note = set(read_json(note_of(BY_NAME[name].path(run)))["settings"]) - plain
    assert note <= groups if name == "clusters" else note == groups  # clusters: of the training that they come from
    expected = set(artifacts.expected(run, name).settings) - plain
    assert expected >= groups
    assert ("training" in expected) == (name not in ("autoencoder", "training images"))


@pytest.mark.parametrize("name", [name for name in MADE if "autoencoder" in BY_NAME[name].made_from])
def test_an_artefact_of_networks_trained_since_is_refused(name, done):
    note = note_of(BY_NAME[name].path(opened(done)))
    content = read_json(note)
    content["starts_from"]["autoencoder"] = "another"
    write_json(note, content)
    assert states(opened(done))[name] == "stale"
    with pytest.raises(InputError, match=r"starts_from\.autoencoder was 'another' and is '\w+'"):
        artifacts.require(opened(done), name)


@pytest.mark.parametrize("name", MADE)
def test_a_published_artefact_is_accepted_and_said_to_be_so(name, done, capsys):
    path = BY_NAME[name].path(opened(done))
    note_of(path).unlink()
    assert states(opened(done))[name] == "foreign"
    assert artifacts.require(opened(done), name) == path
    assert f"{path} has no provenance" in capsys.readouterr().out


def test_pairs_know_their_scale_also_where_they_were_enlarged(run_dir, monkeypatch):
    """Tiles of 48 px at 0.5 microns a pixel; as files of 96 px a pixel is half as large."""
    run = opened(run_dir)
    places = np.zeros(len(run.tiles.images), int)
    positions = make_positions(np.full(len(places), "a"), places, places, places + 48, np.full(len(places), 0.5))
    vars(run)["tiles"] = replace(run.tiles, positions=positions)
    assert artifacts.pairs(run).mpp == 0.5
    names, real, generated = artifacts.load_pairs(run.paths.training_images, run.paths.generated)
    monkeypatch.setattr(artifacts, "load_pairs", lambda *folders: (names, resize(real, 96), resize(generated, 96)))
    assert artifacts.pairs(run).mpp == 0.25
    monkeypatch.delenv("KPC_DATA", raising=False)
    assert artifacts.pairs(opened(run_dir, data=None)).mpp is None


def test_a_unet_is_stale_once_the_one_before_it_was_trained_again(done):
    path = BY_NAME["UNet after training"].path(opened(done))
    write_json(path.with_suffix(".json"), read_json(path.with_suffix(".json")) | {"weights": "newer"})
    [reason] = [row.reason for row in states_of(opened(done)) if row.artifact.name == "UNet after finetuning1"]
    assert "starts_from.unet was" in reason
    assert "is 'newer'" in reason


@pytest.mark.parametrize("name", ["training images", "generated images"])
def test_a_folder_that_was_left_unfinished_misses_images(name, done):
    """Its provenance was written before its first image."""
    artifact, folder = BY_NAME[name], BY_NAME[name].path(opened(done))
    for path in [*folder.glob("*.png")][2:]:
        path.unlink()
    [row] = [row for row in states_of(opened(done)) if row.artifact is artifact]
    assert (row.state, row.reason) == ("missing", f"10 of 12 images: run {artifact.made_by} again")
    with pytest.raises(InputError, match=f"{folder} lacks 10 of 12 images: run {artifact.made_by} again"):
        artifacts.require(opened(done), name)
    if name == "generated images":
        with pytest.raises(InputError, match="lacks 10 of 12 images"):
            artifacts.generated_images(opened(done))
    note_of(folder).unlink()  # a published one has as many as it has
    assert states(opened(done))[name] == "foreign"
    assert artifacts.require(opened(done), name) == folder


def test_a_folder_without_images_is_refused(done):
    folder = opened(done).paths.generated
    for path in folder.iterdir():
        path.unlink()
    (folder / ".DS_Store").touch()
    for read in (artifacts.generated_files, artifacts.generated_images):
        with pytest.raises(
            InputError, match=f"There are no images in {folder}: name a folder that holds some, or run the notebook"
        ):
            read(opened(done))


def test_a_folder_of_more_images_misses_none(done):
    """Part 6 drew more of them before."""
    run = opened(done, overrides=OVERRIDES | {"sampling.num_generated": 2})
    numbers = {str(number) for number in run.selected_tiles + 1}
    assert numbers < artifacts.generated_files(run).keys()
    assert states(run)["generated images"] == "made"


def test_the_status_command(done, capsys):
    (done / "out/clusters_3/HHH3_C3_D3.json").unlink()
    data = ["--data", str(done / "tiles.npy"), "--preset", "demo", "--clusters", "3", "--clustering", "classifier"]
    assert main(["status", "--run", str(done / "out"), *data, *tiny_options()]) == 0
    lines = capsys.readouterr().out.splitlines()
    [csv] = [line for line in lines if line.startswith("latent CSV")]
    assert csv.split()[2:4] == ["foreign", "clusters_3/HHH3_C3_D3.csv"]
    assert sum(" made " in line for line in lines) == len(MADE) - 1


def test_the_status_of_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["status", "--run", str(tmp_path / "rnu"), "--preset", "recommended"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: There is no folder {tmp_path / 'rnu'}: name that of a run with --run.\n"
    assert not [*tmp_path.iterdir()]


def test_docs_show_the_table():
    rows = [
        f"| {artifact.name} | `{artifact.made_by}` | {', '.join(artifact.made_from)} | "
        f"{', '.join(f'`{group}`' for group in artifact.settings) or '-'} |"
        for artifact in ARTIFACTS
    ]
    table = "\n".join(["| Artefact | Made by | Out of | Settings that count |", "|---|---|---|---|", *rows])
    assert table in (ROOT / "docs" / "stopping_and_processes.md").read_text()
