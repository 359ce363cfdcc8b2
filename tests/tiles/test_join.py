"""Tiles cut in parts: joined they are what one job cuts; what does not fit together is refused."""

import errno
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest

from pfiles import paths, spreadsheet
from pfiles.__main__ import main
from pfiles.errors import InputError
from pfiles.machine.locks import locked
from pfiles.paths import read_json, write_json
from pfiles.tiles import join
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.join import join_parts
from pfiles.tiles.slides import Tiling
from pfiles.tiles.tiler import tile_slides
from tests.conftest import assert_refused
from tests.tiles.conftest import island, write_slide

TILING = Tiling(0.5, 64)
N_PARTS = 3


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Seven slides of six patients, one of them empty; their tiles as one job cuts them, and as three do."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate("abcdef"):
        write_slide(folder / "slides" / f"{name}.tiff", island(448, 448, 64, 64, 320, 320, seed), levels=(1,))
    write_slide(folder / "slides" / "g.tiff", np.full((448, 448, 3), 243, np.uint8), levels=(1,))
    lines = [f"{name},{patient},lung" for name, patient in zip("abcdefg", "pqrstqu", strict=True)]
    (folder / "patients.csv").write_text("\n".join(["slide,patient,label", *lines]))
    tile_slides([folder / "slides"], folder / "whole", TILING, folder / "patients.csv")
    for number in range(1, N_PARTS + 1):
        part = number, N_PARTS
        tile_slides([folder / "slides"], folder / f"part_{number}", TILING, folder / "patients.csv", part=part)
    return folder


@pytest.fixture
def parts(cut, tmp_path):
    for number in range(1, N_PARTS + 1):
        shutil.copytree(cut / f"part_{number}", tmp_path / f"part_{number}")
    return [tmp_path / f"part_{number}" for number in range(1, N_PARTS + 1)]


def texts(folder):
    return [str(path) for path in folder]


def assert_as_one_job(out, cut):
    joined, whole = (load_tiles(folder, 64) for folder in (out, cut / "whole"))
    assert joined.fingerprint() == whole.fingerprint()  # of all pixels, and of the split
    assert (out / "tiles.csv").read_bytes() == (cut / "whole" / "tiles.csv").read_bytes()
    assert [*joined.patients] == [*whole.patients]
    for picture in (cut / "whole" / "slides").iterdir():
        assert (out / "slides" / picture.name).read_bytes() == picture.read_bytes()


def test_joined_parts_are_what_one_job_cuts(cut, parts, tmp_path, capsys):
    out = tmp_path / "joined"
    assert main(["tile", "--join", *texts(parts[::-1]), "--out", str(out)]) == 3  # g shows no tissue
    printed = capsys.readouterr().out
    assert "g.tiff shows no tissue" in printed
    assert "3 parts are joined" in printed
    assert printed.endswith("The parts may be deleted.\n")
    assert_as_one_job(out, cut)
    whole = load_tiles(cut / "whole", 32)
    np.testing.assert_array_equal(load_tiles(out, 32).images, whole.images)  # averaged down across parts
    for part in parts:
        shutil.rmtree(part)
    assert_as_one_job(out, cut)  # the files have a name of their own here


def test_on_another_disk_links_lead_to_the_parts(cut, parts, tmp_path, monkeypatch, capsys):
    def refuse(*paths):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    join_parts(parts, tmp_path / "joined")
    assert capsys.readouterr().out.endswith("Links lead to them: keep the parts.\n")
    assert_as_one_job(tmp_path / "joined", cut)
    shutil.rmtree(parts[1])
    with pytest.raises(InputError, match=r"leads to tiles that are gone, .*part_2"):
        load_tiles(tmp_path / "joined", 64)


def fills_up_with(monkeypatch, name):
    """The disk takes no file of this name any more, whoever writes it."""

    def full(path):
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def copyfile(source, target, copy=shutil.copyfile):
        full(target)
        return copy(source, target)

    @contextmanager
    def writing(path, *args, write=paths.atomic_write, **options):
        with write(path, *args, **options) as file:
            file.write(b"[")
            full(path)
            file.seek(0)
            file.truncate()
            yield file

    monkeypatch.setattr(join.shutil, "copyfile", copyfile)
    for module in (paths, spreadsheet):
        monkeypatch.setattr(module, "atomic_write", writing)


@pytest.mark.parametrize("name", ["d.jpg", "tiling.json", "tiles.csv", "croissant.json"])
def test_a_disk_that_is_full_half_way_loses_nothing(cut, parts, tmp_path, monkeypatch, capsys, name):
    arguments = ["tile", "--join", *texts(parts), "--out", str(tmp_path / "joined")]
    with monkeypatch.context() as patch:
        fills_up_with(patch, name)
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {part.name for part in parts}
    assert main(arguments) == 3
    assert main(arguments) == 3  # joined again, in the place of the first
    assert_as_one_job(tmp_path / "joined", cut)


def cut_anew(folder, cut, tiling=TILING, slides="slides", part=None):
    shutil.rmtree(folder)
    paths = [cut / name for name in slides.split()]
    tile_slides(paths, folder, tiling, part=part)


def another_scale(cut, parts):
    cut_anew(parts[1], cut, Tiling(1.0, 64), part=(2, N_PARTS))


def another_number(cut, parts):
    cut_anew(parts[1], cut, part=(2, 4))


def other_slides(cut, parts):
    cut_anew(parts[1], cut, slides="slides/a.tiff slides/b.tiff slides/c.tiff", part=(2, N_PARTS))


def no_part(cut, parts):
    cut_anew(parts[1], cut, slides="slides/c.tiff")


def twice(cut, parts):
    cut_anew(parts[1], cut, part=(1, N_PARTS))
    cut_anew(parts[0], cut, part=(1, N_PARTS))


def one_slide_twice(cut, parts):
    for part, names in zip(parts, ("a b", "c", "d b"), strict=True):
        cut_anew(part, cut, slides=" ".join(f"slides/{name}.tiff" for name in names.split()))


def under_two_names(cut, parts):
    for part, name in zip(parts, "abc", strict=True):
        cut_anew(part, cut, slides=f"slides/{name}.tiff")
    shutil.rmtree(parts[2])
    shutil.copyfile(cut / "slides" / "a.tiff", parts[2].parent / "again.tiff")
    tile_slides([parts[2].parent / "again.tiff"], parts[2], TILING)


def missing(cut, parts):
    del parts[1]


def unfinished(cut, parts):
    (parts[1] / "tiles.csv").unlink()


def shortened(cut, parts):
    lines = (parts[1] / "tiles.csv").read_text().splitlines()
    (parts[1] / "tiles.csv").write_text("\n".join(lines[:-1]))


def without_rows(cut, parts):
    lines = (parts[1] / "tiles.csv").read_text().splitlines()
    (parts[1] / "tiles.csv").write_text(lines[0])


def of_another_side(cut, parts):
    np.save(parts[1] / "tiles.npy", np.load(parts[1] / "tiles.npy")[:, ::2, ::2])


def of_a_foreign_slide(cut, parts):
    lines = (parts[1] / "tiles.csv").read_text().replace("\nc,", "\nz,")
    (parts[1] / "tiles.csv").write_text(lines)


def with_strange_numbers(cut, parts):
    about = read_json(parts[1] / "tiling.json")
    write_json(parts[1] / "tiling.json", about | {"part": [1]})


def without_its_side(cut, parts):
    about = read_json(parts[1] / "tiling.json")
    del about["tiling"]["size"]
    write_json(parts[1] / "tiling.json", about)


def without_a_picture(cut, parts):
    (parts[1] / "slides" / "d.jpg").unlink()


def named_twice(cut, parts):
    parts.append(parts[0])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (another_scale, "part_2 with 1.0: cut one anew"),
        (another_number, "are not parts of the same slides in as many parts"),
        (other_slides, "are not parts of the same slides in as many parts"),
        (no_part, "part_2 is no part of the slides that"),
        (twice, "are both part 1 of 3: leave one out"),
        (one_slide_twice, "The slide b is in"),
        (under_two_names, "have the same tiles: keep one of them"),
        (missing, "Of 3 parts these are missing: 2."),
        (unfinished, "part_2 holds no finished part"),
        (shortened, "49 rows for 50 tiles"),
        (without_rows, "0 rows for 50 tiles"),
        (of_another_side, "part_2 are of 32 px, not of 64"),
        (of_a_foreign_slide, "tiles.csv names the slide z, which is not of this part"),
        (with_strange_numbers, "tiling.json does not say what was cut"),
        (without_its_side, "tiling.json does not say what was cut"),
        (without_a_picture, "d.jpg is missing: run the job of this part again"),
        (named_twice, "part_1 is named twice"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_sentence(cut, parts, tmp_path, capsys, spoil, sentence):
    spoil(cut, parts)
    capsys.readouterr()
    with pytest.raises(InputError) as error:
        join_parts(parts, tmp_path / "joined")
    assert sentence in str(error.value)
    assert not (tmp_path / "joined").exists()


def test_only_a_folder_of_its_own_takes_joined_parts(cut, parts, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    arguments = ["tile", "--join", *texts(parts), "--out"]
    for out, sentence in ((tmp_path / "full", "something else"), (tmp_path, "lie in one another")):
        assert main([*arguments, str(out)]) == 2
        assert sentence in capsys.readouterr().err
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    new = tmp_path / "new"
    for wrong in (["--mpp", "2"], ["--part", "1/2"], ["a.svs"]):
        assert_refused(["tile", *wrong, *arguments[1:], str(new)], capsys, new)


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "9/9"])
def test_a_part_that_cannot_be_is_one_sentence(cut, tmp_path, capsys, part):
    assert_refused(
        ["tile", str(cut / "slides"), "--part", part, "--out", str(tmp_path / "out")], capsys, tmp_path / "out"
    )


def test_a_second_job_in_one_folder_is_refused_while_the_first_works(cut, tmp_path, capsys):
    arguments = ["tile", str(cut / "slides" / "a.tiff"), "--size", "64", "--mpp", "0.5", "--out", str(tmp_path / "out")]
    with locked(tmp_path / "out"):
        assert main(arguments) == 2
    assert "Another command is at work in" in capsys.readouterr().err
    assert main(arguments) == 0


def test_a_part_without_a_single_tile_is_a_part(cut, tmp_path):
    """As many parts as slides: that of g holds no tile, and no other is missing it."""
    folders = [tmp_path / str(number) for number in range(1, 8)]
    for number, folder in enumerate(folders, start=1):
        tile_slides([cut / "slides"], folder, TILING, cut / "patients.csv", part=(number, 7))
    left_out = join_parts(folders, tmp_path / "joined")
    assert [*left_out] == ["g"]
    assert_as_one_job(tmp_path / "joined", cut)
