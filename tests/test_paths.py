"""Where files lie, and that they appear whole or not at all."""

import os
import signal

import pytest

from pfiles import paths
from pfiles.checkpoints import checkpoint_name
from pfiles.errors import InputError
from pfiles.paths import Paths, atomic_folder, atomic_write, name_of_numbers, numbers_of_clusters, read_json, write_json


def test_published_names(tmp_path):
    paths = Paths(14, tmp_path)
    published = [paths.autoencoder, paths.models, paths.generated, paths.latent_csv, paths.figure(2, "C_14_3")]
    assert [str(path.relative_to(tmp_path)) for path in published] == [
        "kpc_ldm/vqvae_autoencoder_ckpt.pth",
        "clusters_14/models_14",
        "clusters_14/gen_14",
        "clusters_14/HHH14_C14_D14.csv",
        "Figures/Figure 2/C_14_3.jpg",
    ]
    assert checkpoint_name("unet", "training", 600, 14, "20250127") == "unet_training_ckpt_20250127_600_14.pth"


def test_the_files_of_kmeans_have_names_of_their_own(tmp_path):
    def names(clustering):
        paths = Paths(14, tmp_path, clustering)
        files = paths.generated, paths.latent_csv, paths.figure(2, "C_14_3"), paths.cluster_sheet
        trained = checkpoint_name("unet", "training", 600, 14, "20250127", clustering)
        return {*files, trained, checkpoint_name(clustering, "training", 600, 14, "20250127", clustering)}

    assert len(names("classifier") | names("kmeans")) == 12
    assert "unet_kmeans_training_ckpt_20250127_600_14.pth" in names("kmeans")
    assert tmp_path / "clusters_14" / "HHH14_C14_D14_kmeans.csv" in names("kmeans")


@pytest.mark.parametrize("n_clusters", [1, 0, -3, 2.5, "1", "fourteen", None])
def test_impossible_number_of_clusters(n_clusters):
    with pytest.raises(InputError, match="n_clusters must be a whole number of at least 2"):
        Paths(n_clusters)


def test_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: name a folder"):
        Paths(14, tmp_path / "file")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="disk full"), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the new ")
        raise RuntimeError("disk full")
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_no_link_leads_a_write_elsewhere(tmp_path, monkeypatch):
    """Not even one that somebody put there who guessed the name of what is not finished yet."""
    monkeypatch.setattr(paths.secrets, "token_hex", lambda size: "0" * 2 * size)
    victim, part = tmp_path / "victim", tmp_path / ".a.json.00000000.part"
    victim.write_text("mine")
    part.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "a.json", {})
    assert victim.read_text() == "mine"
    assert not (tmp_path / "a.json").exists()


def test_unfinished_files_have_names_that_nobody_can_guess(tmp_path):
    names = set()
    for _ in range(2):
        with atomic_write(tmp_path / "a") as file:
            names.add(file.name)
    assert len(names) == 2


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    def begin_and_die(where, unfinished):
        child = os.fork()
        if child == 0:
            with unfinished(where):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)

    (tmp_path / ".a.json.notes.part").write_text("mine")
    for unfinished, name in ((atomic_write, "a.json"), (atomic_folder, "folder")):
        with unfinished(tmp_path / name):
            begin_and_die(tmp_path / name, unfinished)
            assert len([*tmp_path.glob(f".{name}.????????.part")]) == 2
            with unfinished(tmp_path / name):
                assert len([*tmp_path.glob(f".{name}.????????.part")]) == 2  # of two that live
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "folder", ".a.json.notes.part"}


def test_a_folder_takes_the_place_of_what_a_link_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "link") as part:
        (part / "a").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}
    assert (tmp_path / "real" / "a").exists()


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("text", "ks", "name"),
    [
        (14, (14,), 14),
        ("14", (14,), 14),
        ("10-12", (10, 11, 12), "10-12"),
        ([12, 10], (10, 12), "10,12"),
        ("10, 12-13", (10, 12, 13), "10,12,13"),
        (range(3, 5), (3, 4), "3-4"),
    ],
)
def test_numbers_of_clusters(text, ks, name):
    assert numbers_of_clusters(text) == ks
    assert name_of_numbers(ks) == name
    assert numbers_of_clusters(name) == ks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("16-10", "from the smaller number to the larger"),
        ("1-3", "at least 2"),
        ("10-9999", "at most 100"),
        ("2-999999999", "at most 100"),
        *(
            (wrong, "a whole number of at least 2")
            for wrong in (1, 0, -3, 2.5, True, None, "", "ten", [], [3, "x"], "3-")
        ),
    ],
)
def test_wrong_numbers_of_clusters(text, said):
    with pytest.raises(InputError, match=said):
        numbers_of_clusters(text)


def test_a_copy_of_a_clusters_folder_is_not_taken_for_its_own(tmp_path):
    """As docs/own_tiles.md says one may copy it for another k; the copy would otherwise hide what is trained since."""
    csv = tmp_path / "clusters_4" / "HHH4_C4_D4.csv"
    for path in (csv, tmp_path / "clusters_5" / csv.name, tmp_path / "clusters_4 (copy)" / csv.name):
        path.parent.mkdir()
        path.write_text("")
    assert Paths(4, tmp_path).latent_csvs() == {4: csv}
