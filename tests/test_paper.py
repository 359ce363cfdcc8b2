"""The published files: found in folders and zips, put in their places, and refused where they are not as published."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch

from pfiles.errors import InputError
from pfiles.paper import PARTS, place
from pfiles.paths import Paths
from pfiles.settings import get_settings
from tests.conftest import PAPER, shared

PLACES = {
    "autoencoder": ["kpc_ldm/vqvae_autoencoder_ckpt.pth"],
    "classifier after training": ["clusters_14/models_14/classifier_training_ckpt_20250127_600_14.pth"],
    "classifier after finetuning2": ["clusters_14/models_14/classifier_finetuning2_ckpt_20250128_70_14.pth"],
    "UNet after training": ["clusters_14/models_14/unet_training_ckpt_20250127_600_14.pth"],
    "UNet after finetuning1": ["clusters_14/models_14/unet_finetuning1_ckpt_20250128_130_14.pth"],
    "UNet after finetuning2": ["clusters_14/models_14/unet_finetuning2_ckpt_20250128_70_14.pth"],
    "latent CSV": ["clusters_14/HHH14_C14_D14.csv"],
    "training images": [f"org/{number}.jpg" for number in range(1, 25)],
    "generated images": [f"clusters_14/gen_14/{number}.jpg" for number in range(1, 25)],
}


def placed(out, *archives):
    return place(archives, Paths(14, out), get_settings("paper", PAPER))


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def saved(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.fixture
def archive(stand_ins, tmp_path):
    """A copy of the stand-ins that a test may change."""
    return shutil.copytree(stand_ins, tmp_path / "archive")


def test_everything_goes_where_it_belongs(stand_ins, tmp_path, capsys):
    published = placed(tmp_path, stand_ins)
    assert published.files["tiles"] == [stand_ins / "slice128_Block2_11K.npy"]
    where = {name: [str(path.relative_to(tmp_path)) for path in files] for name, files in published.files.items()
             if name != "tiles"}  # fmt: skip
    assert where == PLACES
    assert published.missing.keys() == {"latent CSVs of other k"}
    written = files_below(tmp_path)
    assert written.keys() == {path for paths in PLACES.values() for path in paths}
    with zipfile.ZipFile(stand_ins / "Images.zip") as images:
        assert written["org/7.jpg"] == images.read("Images/org/7.jpg")
    placed(tmp_path, stand_ins)
    assert files_below(tmp_path) == written
    assert capsys.readouterr().out == ""


def test_part_by_part_and_the_rest_is_listed_with_its_doi(stand_ins, tmp_path):
    first = placed(tmp_path, stand_ins / "Images.zip")
    assert first.files.keys() == {"training images", "generated images"}
    assert first.missing["UNet after finetuning1"] == "https://doi.org/10.6084/m9.figshare.29588807, trained_models"
    assert first.missing["tiles"] == "https://doi.org/10.6084/m9.figshare.29588651"
    second = placed(tmp_path, stand_ins / "trained_models.zip", stand_ins / "clusters_14")
    assert second.missing.keys() == {"tiles", "autoencoder", "latent CSVs of other k"}
    assert {*second.files["training images"]} == {*first.files["training images"]}


def test_tiles_in_a_zip_are_unpacked(stand_ins, tmp_path):
    content = (stand_ins / "slice128_Block2_11K.npy").read_bytes()
    published = placed(tmp_path / "out", packed(tmp_path / "tiles.zip", {"29588651/slice128_Block2_11K.npy": content}))
    assert published.files == {"tiles": [tmp_path / "out" / "slice128_Block2_11K.npy"]}
    assert published.files["tiles"][0].read_bytes() == content


def test_what_has_no_published_name_is_left_out(archive, tmp_path, capsys):
    (archive / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth").rename(archive / "kpc_ldm" / "vqvae_final.pth")
    published = placed(tmp_path / "out", archive)
    assert "autoencoder" in published.missing
    said = capsys.readouterr().out
    assert said == f"Left out, as nothing published is called so: {archive}/kpc_ldm/vqvae_final.pth.\n"


CSV, MODELS = "clusters_14/HHH14_C14_D14.csv", "clusters_14/models_14"
CLASSIFIER = f"{MODELS}/classifier_training_ckpt_20250127_600_14.pth"


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def repack(path, change):
    """The zip anew, its members as `change` gives them back."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    packed(path, change(members))


def without(name):
    return lambda members: {each: content for each, content in members.items() if each != name}


def changed(name, content):
    return lambda members: members | {name: content}


SPOILT = {
    "classifier cut off": (lambda a: cut(a / CLASSIFIER), r"classifier_training\S+ is not a sound checkpoint"),
    "classifier of other k": (
        lambda a: torch.save({"weight": torch.zeros(3)}, a / CLASSIFIER),
        r"classifier_training\S+ does not fit ClusterBank .*: expected classifier",
    ),
    "UNet in the zip is another network": (
        lambda a: repack(a / "trained_models.zip", lambda m: m | {
            "trained_models/unet_finetuning1_ckpt_20250128_130_14.pth": (a / CLASSIFIER).read_bytes()}),
        r"trained_models\.zip/trained_models/unet_finetuning1\S+ does not fit UNet",
    ),
    "zip cut off": (lambda a: cut(a / "Images.zip"), r"Images\.zip is not a sound \.zip file .* download it again"),
    "begin of the zip missing": (
        lambda a: (a / "Images.zip").write_bytes((a / "Images.zip").read_bytes()[500:]), r"1\.jpg cannot be unpacked"
    ),
    "table cut off": (lambda a: cut(a / CSV), r"HHH14_C14_D14\.csv (should hold 24 rows|must hold a row of|cannot be)"),
    "table of features that sum to another number": (
        lambda a: (a / CSV).write_text("\n".join(",".join(["0.5"] * 16 + [f"{i % 3}", "0.9"]) for i in range(24))),
        r"HHH14_C14_D14\.csv should hold 24 rows of 16 features, .* features sum to 1",
    ),
    "image missing": (
        lambda a: repack(a / "Images.zip", without("Images/org/7.jpg")),
        r"org lacks 1 of 24 images, such as 7: get https://doi\.org/10\.6084/m9\.figshare\.29588849",
    ),
    "image too many": (
        lambda a: repack(a / "Images.zip", changed("Images/org/25.jpg", b"")), r"holds 25 images, but 24 were published"
    ),
    "image broken": (
        lambda a: repack(a / "Images.zip", changed("Images/org/7.jpg", b"\xff\xd8\xff")),
        r"Images\.zip/Images/org/7\.jpg cannot be read as an image",
    ),
    "tiles of another shape": (
        lambda a: np.save(a / "slice128_Block2_11K.npy", np.zeros((26, 48, 48, 3), np.uint8)),
        r"should hold uint8 tiles of shape \(11000, 8, 48, 48, 3\), but holds uint8 of shape \(26, 48, 48, 3\)",
    ),
    "tiles cut off": (lambda a: cut(a / "slice128_Block2_11K.npy"), r"slice128\S+ has [\d,]+ bytes of [\d,]+"),
    "tiles of text": (
        lambda a: (a / "slice128_Block2_11K.npy").write_text("hello"), "cannot be read as a .npy array"
    ),
    "two that differ": (
        lambda a: packed(a / "again.zip", {"kpc_ldm/vqvae_autoencoder_ckpt.pth": b"x"}),
        "have one name and differ: leave one of them out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_not_as_published_is_refused_before_anything_is_written(case, archive, tmp_path):
    spoil, sentence = SPOILT[case]
    spoil(archive)
    with pytest.raises(InputError, match=sentence):
        placed(tmp_path / "out", archive)
    assert not (tmp_path / "out").exists()


def test_nothing_published(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*nowhere"):
        placed(tmp_path / "out", tmp_path / "nowhere")
    with pytest.raises(InputError, match="Nothing that the authors published is in"):
        placed(tmp_path / "out", packed(tmp_path / "x.zip", {"notes.txt": b"hello"}))


def test_no_file_of_another_run_is_lost(stand_ins, tmp_path):
    foreign = tmp_path / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth"
    foreign.parent.mkdir()
    foreign.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"vqvae_autoencoder_ckpt\.pth is there already and is not"):
        placed(tmp_path, stand_ins)
    assert files_below(tmp_path) == {"kpc_ldm/vqvae_autoencoder_ckpt.pth": b"mine"}
    foreign.unlink()
    for name in ("clusters_14/models_14/unet_finetuning2_ckpt_20990101_1_14.pth", "org/99.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(
            InputError, match=rf"{name.rpartition('/')[2]} belongs to another run than the published files"
        ):
            placed(tmp_path, stand_ins)
        assert files_below(tmp_path) == {name: b"mine"}
        shutil.rmtree((tmp_path / name).parent)


def test_nothing_is_written_where_a_zip_says(stand_ins, tmp_path):
    """Only the end of a member's path counts, so that no path in a zip leads anywhere."""
    content, out = (stand_ins / CSV).read_bytes(), tmp_path / "out"
    with pytest.raises(InputError, match="Nothing that the authors published"):
        placed(out, packed(tmp_path / "x.zip", {"a/../../HHH14_C14_D14.csv": content}))
    placed(out, packed(tmp_path / "x.zip", {"/tmp/.//HHH14_C14_D14.csv": content}))
    assert files_below(out) == {CSV: content}
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "out"}


def test_a_call_that_was_stopped_goes_on(stand_ins, tmp_path, monkeypatch):
    from pfiles.paper import Member

    copy, copied = Member.copy, []

    def stop_after_five(member, target):
        if len(copied) == 5:
            raise OSError(28, "No space left on device", str(target))
        copied.append(target)
        copy(member, target)

    monkeypatch.setattr(Member, "copy", stop_after_five)
    with pytest.raises(OSError, match="No space left"):
        placed(tmp_path / "out", stand_ins / "Images.zip")
    monkeypatch.setattr(Member, "copy", copy)
    placed(tmp_path / "out", stand_ins / "Images.zip")
    assert len(files_below(tmp_path / "out")) == 48


@pytest.mark.slow
def test_the_published_files_themselves(tmp_path):
    folder = shared("published/HHH14_C14_D14.csv").parent
    published = place([folder], Paths(14, tmp_path), get_settings("paper"))
    assert published.files.keys() == {"classifier after training", "classifier after finetuning2", "latent CSV"}
    assert published.missing.keys() == PARTS.keys() - published.files.keys()
    assert len(files_below(tmp_path)) == 3
