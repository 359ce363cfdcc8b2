"""Which slides are meant, what lies beside them and is none, and what is said of it."""

import unicodedata

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from pfiles.errors import InputError
from pfiles.tiles import thumbnails
from pfiles.tiles.gather import gather
from tests.tiles.conftest import DICOM, island, tissue, write_slide


def names(gathered):
    return [slide.name for slide in gathered.slides]


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.mark.parametrize(
    "name",
    [
        "case1_thumbnail.jpg", "case1-Thumb.png", "case1Macro.jpg", "case1 (label).png", "case1.svs.overview.jpg",
        "macro_case1.jpg", "LABEL.png", "thumbnails/case1.jpg", "case1_label2.tif", "masks/other.png",
        "case1_lowres.jpg",
    ],
)  # fmt: skip
def test_companions_are_told_by_their_names(tmp_path, name):
    write_slide(tmp_path / "case1.tiff", island(512, 512, 64, 64, 300, 300), levels=(1,))
    save(tmp_path / name, tissue(100, 90))
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["case1"]
    [note] = gathered.notes
    assert note.startswith(f"{name.split('/')[-1]} is no slide: ")
    if "/" not in name:  # as by slides/*
        assert names(gather([tmp_path / "case1.tiff", tmp_path / name], tmp_path / "out")) == ["case1"]
    assert len(gather([tmp_path / name], tmp_path / "out").slides) == 1  # given alone, it is meant
    assert len(gather([tmp_path], tmp_path / "out", names=[name.split("/")[-1]]).slides) == 2


def test_a_thumbnail_is_told_by_what_it_shows(tmp_path):
    image = island(512, 768, 64, 64, 300, 300)
    write_slide(tmp_path / "case1.tiff", image, levels=(1,))
    Image.fromarray(image).reduce(4).save(tmp_path / "export_1.jpg", quality=85)
    other = island(512, 768, 64, 400, 300, 300)
    Image.fromarray(other).reduce(4).save(tmp_path / "export_2.png")
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["case1", "export_2"]
    assert gathered.notes == ["export_1.jpg is no slide: it is a thumbnail of case1.tiff."]


def with_margin(picture, corner):
    canvas = Image.new("RGB", (200, 200), "white")
    canvas.paste(picture.resize((200, 133)), corner)
    return canvas


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture.resize((624, 416)),
        lambda picture: picture.resize((61, 41)),
        lambda picture: picture.resize((207, 138), Image.Resampling.NEAREST),
        lambda picture: picture.resize((150, 150)),
        lambda picture: picture.resize((192, 128)).rotate(90, expand=True),
        lambda picture: with_margin(picture, (0, 33)),
        lambda picture: with_margin(picture, (0, 0)),
    ],
)
def test_a_thumbnail_of_any_ratio_is_told(tmp_path, change):
    write_slide(tmp_path / "case1.tiff", island(512, 768, 64, 64, 300, 300), levels=(1,))
    change(Image.open(tmp_path / "case1.tiff")).save(tmp_path / "export.jpg", quality=85)
    assert gather([tmp_path], tmp_path / "out").notes == ["export.jpg is no slide: it is a thumbnail of case1.tiff."]


@pytest.mark.parametrize("size", [(207, 138), (120, 80), (76, 51)])
def test_a_thumbnail_that_is_noise_but_for_its_coarse_parts_is_told(tmp_path, size):
    """Every other, sixth or tenth pixel of tissue of fine grain."""
    image = island(512, 768, 64, 64, 300, 300).astype(float)
    grain = np.random.default_rng(0).normal(size=(*image.shape[:2], 1)) * 40
    grainy = (image + grain * (image.min(axis=2, keepdims=True) < 235)).clip(0, 255).astype(np.uint8)
    write_slide(tmp_path / "case1.tiff", grainy, levels=(1,))
    Image.fromarray(grainy).resize(size, Image.Resampling.NEAREST).save(tmp_path / "export.png")
    assert gather([tmp_path], tmp_path / "out").notes == ["export.png is no slide: it is a thumbnail of case1.tiff."]


def test_other_tissue_of_the_same_outline_is_no_thumbnail(tmp_path):
    write_slide(tmp_path / "case1.tiff", island(512, 768, 64, 64, 300, 300, seed=0), levels=(1,))
    save(tmp_path / "case2.png", island(256, 384, 32, 32, 150, 150, seed=1))
    assert names(gather([tmp_path], tmp_path / "out")) == ["case1", "case2"]


def test_tissue_is_no_thumbnail_of_a_blank_slide(tmp_path):
    blank = np.full((600, 900, 3), (244, 241, 236), np.uint8)  # the glass of a scanner is not quite grey
    save(tmp_path / "blank.tif", blank + np.random.default_rng(0).integers(0, 2, blank.shape, np.uint8))
    save(tmp_path / "s1.png", island(256, 384, 32, 32, 150, 150))
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["blank", "s1"]
    assert gathered.notes == []


def test_thumbnails_among_many_slides_cost_few_looks(tmp_path, monkeypatch):
    """Each file is read once, and two are looked at closely only where their coarse pictures are alike."""
    reads, looks = [], []
    small_picture, is_view = thumbnails._small_picture, thumbnails._is_view
    monkeypatch.setattr(thumbnails, "_small_picture", lambda *args: reads.append(args[0]) or small_picture(*args))
    monkeypatch.setattr(thumbnails, "_is_view", lambda *views: looks.append(1) or is_view(*views))
    for i in range(6):  # islands in six places, on slides of six sizes
        slide = island(240 + 40 * i, 300 + 20 * i, 20 + 40 * (i % 3), 20 + 100 * (i // 3), 90, 60 + 10 * i, seed=i)
        save(tmp_path / f"s{i}.png", slide)
    Image.open(tmp_path / "s5.png").reduce(3).rotate(90, expand=True).save(tmp_path / "t.png")
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == [f"s{i}" for i in range(6)]
    assert gathered.notes == ["t.png is no slide: it is a thumbnail of s5.png."]
    assert sorted(reads) == sorted(tmp_path.glob("*.png"))
    assert len(looks) <= 21  # of as many pairs, in 12 views each


def test_pictures_of_an_unfinished_cut_are_no_slides(tmp_path):
    write_slide(tmp_path / "case1.tiff", island(512, 512, 64, 64, 300, 300), levels=(1,))
    save(tmp_path / "stopped" / "slides" / "case1.jpg", tissue(100, 90))
    (tmp_path / "stopped" / ".work").mkdir()
    assert names(gather([tmp_path], tmp_path / "out")) == ["case1"]


def test_a_thumbnail_of_a_slide_with_more_pixels_than_pillow_opens(tmp_path, monkeypatch):
    image = island(512, 768, 64, 64, 300, 300)
    write_slide(tmp_path / "case1.tiff", image)
    write_slide(tmp_path / "case2.tif", island(512, 768, 64, 400, 300, 300))
    Image.fromarray(image).reduce(4).save(tmp_path / "export_1.jpg", quality=85)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 512 * 768 // 2 - 1)
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["case1", "case2"]
    assert gathered.notes == ["export_1.jpg is no slide: it is a thumbnail of case1.tiff."]


@pytest.mark.parametrize("name", ["macrophages_1.png", "relabelled.png", "case2.png", "unmasked.png"])
def test_other_names_are_slides(tmp_path, name):
    write_slide(tmp_path / "case1.tiff", island(512, 512, 64, 64, 300, 300), levels=(1,))
    save(tmp_path / name, tissue(300, 200))
    assert len(gather([tmp_path], tmp_path / "out").slides) == 2


def test_what_lies_in_the_output_is_no_slide_however_the_folder_is_written(tmp_path):
    for path in (tmp_path / "a.png", tmp_path / "out" / "b.png"):
        save(path, tissue(300, 200))
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "out" / "..", tmp_path / "link"):
        assert names(gather([folder], tmp_path / "out")) == ["a"]


def test_types_that_are_not_read_are_counted_and_named(tmp_path):
    write_slide(tmp_path / "a.tiff", island(), levels=(1,))
    for name in ("b.vsi", "c.bmp", "d.BMP", "notes.txt", "coordinates.h5"):
        (tmp_path / name).write_bytes(b"x")
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["a"]
    assert gathered.unread.keys() == {"b.vsi", "c.bmp", "d.BMP"}
    assert "2 of .bmp and 1 of .vsi are not read: convert them." in gathered.notes
    with pytest.raises(InputError, match=r"b\.vsi holds no slide: .* 1 of \.vsi are not read"):
        gather([tmp_path / "b.vsi"], tmp_path / "out")


def test_what_holds_only_companions_says_why_it_holds_no_slide(tmp_path):
    save(tmp_path / "label.png", tissue(100, 90))
    save(tmp_path / "case1_macro.png", tissue(100, 90))
    with pytest.raises(InputError, match=r"holds no slide\. case1_macro\.png is no slide: its name says macro\. label"):
        gather([tmp_path], tmp_path / "out")


def test_files_of_one_name_in_two_folders_are_both_named(tmp_path):
    for name in ("a.tiff", "1/b.bmp", "2/b.bmp"):
        save(tmp_path / name, tissue(300, 200))
    reasons = gather([tmp_path], tmp_path / "out").unread.values()
    assert {reason.split(" is ")[0] for reason in reasons} == {str(tmp_path / n / "b.bmp") for n in "12"}


def test_dicom_files_without_their_suffix_are_named(tmp_path):
    save(tmp_path / "a.png", tissue(300, 200))
    for name in ("IM0001", "1.2.840.1"):
        (tmp_path / "series" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "series" / name).write_bytes(DICOM.read_bytes())
    (tmp_path / "series" / "notes").write_text("no image")
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["a"]
    assert gathered.unread.keys() == {"IM0001", "1.2.840.1"}
    assert gathered.notes == ["2 DICOM files have names that do not end in .dcm: rename them."]
    with pytest.raises(InputError, match=r"holds no slide: .* 2 DICOM files have names that do not end in \.dcm"):
        gather([tmp_path / "series"], tmp_path / "out")
    assert len(gather([tmp_path / "series" / "IM0001"], tmp_path / "out").slides) == 1  # given alone, it is meant


@pytest.mark.parametrize("tiled", [True, False])
def test_pages_are_named_or_taken_as_asked(tmp_path, tiled):
    options = {"tile": (128, 128)} if tiled else {}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for seed in range(3):
            file.write(tissue(300, 200, seed), photometric="rgb", metadata=None, **options)
    first = gather([tmp_path], tmp_path / "out")
    assert [(slide.name, slide.page) for slide in first.slides] == [("a", 1)]
    assert first.notes == ["a.tif holds 3 pages, of which number 1 is read: --page takes another one, or all."]
    every = gather([tmp_path], tmp_path / "out", page=None)
    assert [(slide.name, slide.page) for slide in every.slides] == [("a_page1", 1), ("a_page2", 2), ("a_page3", 3)]
    assert every.notes == []


def test_frames_of_a_png_are_pages_and_levels_of_a_pyramid_are_not(tmp_path):
    frames = [Image.fromarray(tissue(100, 90, seed)) for seed in range(2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    write_slide(tmp_path / "b.tiff", island(512, 512, 64, 64, 300, 300), levels=(1, 4))
    assert gather([tmp_path], tmp_path / "out").notes == [
        "a.png holds 2 pages, of which number 1 is read: --page takes another one, or all."
    ]


def test_each_dicom_series_is_a_slide(tmp_path):
    """Two series of two files each in one folder, an annotation beside them, and files given one by one."""
    for series in "12":
        for number in "12":
            tags = pydicom.dcmread(DICOM)
            tags.SeriesInstanceUID = f"1.2.3.{series}"
            tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{series}.{number}"
            tags.save_as(tmp_path / f"{series}{number}.dcm")
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.91.1"
    tags.save_as(tmp_path / "annotation.dcm")
    for paths in ([tmp_path], sorted(tmp_path.glob("*.dcm"))):
        gathered = gather(paths, tmp_path / "out")
        assert names(gathered) == ["11", "21"]
        assert gathered.notes == ["annotation.dcm is no slide: it is a DICOM file of another kind."]


@pytest.mark.parametrize("series", ["1.2.3.1", "1.2.3.9"], ids=["of the slide", "of its own"])
def test_labels_of_dicom_are_no_slides(tmp_path, series):
    """Before the slide in the order of names, in its series or another; given alone it is taken."""
    for name, kind, of in (
        ("label", "LABEL", series),
        ("overview", "OVERVIEW", series),
        ("slide", "VOLUME", "1.2.3.1"),
    ):
        tags = pydicom.dcmread(DICOM)
        tags.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
        tags.SeriesInstanceUID = of
        tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{len(kind)}"
        tags.save_as(tmp_path / f"{name}.dcm")
    gathered = gather([tmp_path], tmp_path / "out")
    assert names(gathered) == ["slide"]
    assert gathered.notes == [f"{kind}.dcm is no slide: its image type says {kind}." for kind in ("label", "overview")]
    assert "label" in names(gather([tmp_path], tmp_path / "out", names=["label.dcm"]))
    assert names(gather([tmp_path / "label.dcm"], tmp_path / "out")) == ["label"]


@pytest.mark.parametrize("name", ["a b%20&c", "x.y.z", "-o", "quo\"te's", "スライド", "é" * 90, "a" * 200])
def test_names_stay_as_they_are(tmp_path, name):
    save(tmp_path / f"{name}.png", tissue(100, 90))
    assert names(gather([tmp_path], tmp_path / "out")) == [name]


def test_both_forms_of_unicode_are_one_name(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Präparat") for form in ("NFC", "NFD"))
    save(tmp_path / f"{apart}.png", tissue(100, 90))
    assert names(gather([tmp_path], tmp_path / "out")) == [composed]


def test_a_name_that_makes_no_file_is_refused(tmp_path):
    save(tmp_path / f"{'b' * 201}.png", tissue(100, 90))
    with pytest.raises(InputError, match="more than 200 bytes"):
        gather([tmp_path], tmp_path / "out")


def test_a_zarr_is_one_slide(tmp_path):
    (tmp_path / "a.zarr" / "0").mkdir(parents=True)
    (tmp_path / "a.zarr" / "0" / "0.png").write_bytes(b"a chunk")
    write_slide(tmp_path / "b.tiff", island(512, 512, 64, 64, 300, 300), levels=(1,))
    assert names(gather([tmp_path], tmp_path / "out")) == ["a", "b"]
