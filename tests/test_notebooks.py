"""The notebooks: clean, of one shape, and running from the first to the last."""

import ast
import json
import re
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pfiles import report
from pfiles.__main__ import main
from pfiles.cli.execute import execute
from pfiles.cli.notebooks import NOTEBOOKS, ON_REQUEST
from pfiles.paths import ROOT
from pfiles.run import choices_of, open_run
from pfiles.settings import CLUSTERING
from tests.conftest import TINY, make_tiles, png
from tests.tiles.conftest import island, write_slide

K = 3
EVERY = (
    *NOTEBOOKS,
    *ON_REQUEST.values(),
    "choose_k",
    "start_here",
    "tile_slides",
    "watch",
)  # and those beside a run
TUTORIAL = ("start_here", "tile_slides", *NOTEBOOKS[:3], "choose_k", *NOTEBOOKS[3:])  # in the order of reading


def read(name):
    return nbformat.read(ROOT / f"{name}.ipynb", as_version=4)


def code_cells(book):
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def code_lines(source):
    lines = [line.strip() for line in source.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_notebook_is_in_the_order():
    names = {
        str(path.relative_to(ROOT).with_suffix(""))
        for path in [*ROOT.glob("*.ipynb"), *ROOT.glob("clusters_14/*.ipynb")]
    }
    assert names == set(EVERY)
    assert len(NOTEBOOKS) == 20


@pytest.mark.parametrize("name", EVERY)
def test_shape_of_a_notebook(name):
    book = read(name)
    first, second = book.cells[:2]
    assert first.cell_type == "markdown"
    for row in ("Needs", "Makes", "Time", "Expect"):
        assert f"| {row} |" in first.source
    assert re.match(r"# [^\n]+\n\n\*\*[A-Z][^\n]+\?\*\*\n\n", first.source)  # the question that it answers
    assert "not measured" not in first.source
    _, _, to_try = book.cells[-1].source.partition("## To try\n\n")
    assert 2 <= len(re.findall("^- ", to_try, re.MULTILINE)) <= 3
    assert second.metadata.tags == ["parameters"]
    assert book.metadata.kernelspec.name == "python3"
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert cell.outputs == []
            definitions = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
            assert not any(isinstance(node, definitions) for node in ast.walk(ast.parse(cell.source)))


def test_each_notebook_links_the_paper_and_the_notebooks_before_and_after_it():
    for before, name, after in zip(("", *TUTORIAL), TUTORIAL, (*TUTORIAL[1:], ""), strict=False):
        text = read(name).cells[0].source
        rows = dict(re.findall(r"^\| (Before|After|Paper) \| (.+) \|$", text, re.MULTILINE))
        assert re.fullmatch(
            r"\[sections? \d.*\]\(https://doi\.org/10\.3390/bioengineering12070764\)", rows.pop("Paper")
        )
        targets = {row: re.fullmatch(r"\[\w+\]\((.+)\)", link)[1] for row, link in rows.items()}
        neighbours = {"Before": before, "After": after}
        assert {row: (ROOT / name).parent.joinpath(target).resolve() for row, target in targets.items()} == {
            row: ROOT / f"{neighbour}.ipynb" for row, neighbour in neighbours.items() if neighbour
        }


def test_the_lessons_have_formulas():
    for part in ("part_1_", "part_6_", "part_10", "part_11", "part_12", "part_13", "train_autoencoder", "internal"):
        name = next(name for name in NOTEBOOKS if part in name)
        assert "$" in "".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown"), name


def test_no_cell_stands_in_two_notebooks():
    """But those of parameters, and the import of what the next cells need."""
    names_by = {}
    for name in EVERY:
        for cell in read(name).cells:
            if "tags" not in cell.metadata:
                names_by.setdefault(cell.source, []).append(name)
    assert {source: names for source, names in names_by.items() if len(names) > 1} == {}


@pytest.mark.parametrize("name", [*NOTEBOOKS, *ON_REQUEST.values(), "choose_k"])
def test_the_set_up_opens_the_run_and_does_nothing_else(name):
    set_up = code_cells(read(name))[1]
    assert len(code_lines(set_up)) <= 6
    last = ast.parse(set_up).body[-1]
    assert isinstance(last, ast.Assign)
    assert last.value.func.id == "open_run"
    assert last.value.args[0].value == name.rpartition("/")[2]


def test_no_six_code_lines_in_a_row_stand_in_two_notebooks():
    names_by = {}
    for name in EVERY:
        lines = [line for source in code_cells(read(name)) for line in code_lines(source)]
        for i in range(len(lines) - 5):
            names_by.setdefault(tuple(lines[i : i + 6]), set()).add(name)
    assert {lines: names for lines, names in names_by.items() if len(names) > 1} == {}


# one process for the tests of a run, so that each run is made once
RUNS = ("paper", "recommended")
WITHOUT_LPIPS = {"autoencoder.perceptual": "ms-ssim", "lpips_required": False}  # its weights would be downloaded


@pytest.fixture(scope="module", params=RUNS)
def finished(request, tmp_path_factory):
    """All notebooks at tiny size, with another k than 14, each preset with the clustering that it names.

    `paper` is on a zip of tiles, `recommended` on tiles that know their places.
    """
    folder = tmp_path_factory.mktemp(request.param)
    tiles = make_tiles(44)
    if request.param == "paper":
        data = folder / "tiles.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for i, tile in enumerate(tiles):
                archive.writestr(f"slide/{i:02}.png", png(tile))
    else:
        data = folder / "tiles"
        data.mkdir()
        np.save(data / "tiles.npy", tiles)
        rows = [f"s{i // 4:02},{48 * (i % 2)},{48 * (i // 2 % 2)},48,0.5" for i in range(44)]
        (data / "tiles.csv").write_text("\n".join(["slide,x,y,side,mpp", *rows]))
    out = folder / "out"
    arguments = ["--preset", request.param, "--data", str(data), "--clusters", str(K), "--out", str(out)]
    settings = TINY | WITHOUT_LPIPS
    if request.param == "recommended":  # what the preset itself has
        settings |= {"sampling.guide": "training", "autoencoder.perceptual": "photographs"}
        settings |= {"autoencoder.polish.discriminator_sees": "photographs"}
        settings |= {"autoencoder.colour_weight": 0.1}
        settings |= {"autoencoder.polish.discriminator": {"channels": 8}}
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    with pytest.MonkeyPatch.context() as patch:  # VGG16's weights are neither there nor to be had
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        assert main(["run", *arguments, *overrides]) == 0
    parameters = {"n_clusters": K, "clustering": CLUSTERING[request.param], "data": str(data)}
    return parameters | {"preset": request.param, "overrides": settings, "out": str(out)}


def test_all_notebooks_run(finished):
    clustering, out = finished["clustering"], Path(finished["out"])
    assert len(list((out / "executed").rglob("*.ipynb"))) == len(NOTEBOOKS)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["run"]["clustering"] == clustering
    mark = {"classifier": "", "kmeans": "_kmeans"}[clustering]  # files of k-means have names of their own
    sections = {name.replace("clusters_14", f"clusters_{K}{mark}") for name in NOTEBOOKS}
    sections = {f"{name}{mark}" if name.startswith("internal") else name for name in sections}
    silent = {"save_training_images"} | {
        name for name in sections if "part_6" in name or "part_7" in name or "part_8" in name
    }
    maps = out / f"clusters_{K}" / f"maps_{K}{mark}"
    if clustering == "classifier":  # a zip of tiles does not tell where they were cut
        silent |= {name for name in sections if "part_15" in name}
        assert not maps.exists()
    else:
        assert len(list(maps.glob("s*.geojson"))) == len(list(maps.glob("s*.jpg"))) == 11
        assert len(pd.read_csv(maps / "tile_clusters.csv")) == 44
        assert summary["run"]["mpp"] == 0.5
    assert summary.keys() == sections - silent | {"run"}
    assert summary[f"clusters_{K}{mark}/part_12_LPIPS"] == {"lpips": "unavailable"}
    pixel_space = summary[f"clusters_{K}{mark}/part_14_memorisation"]["pixel space"]
    assert 0 <= pixel_space["low"] <= pixel_space["closer"] <= pixel_space["high"] <= 1
    assert pixel_space["expected"] == pytest.approx(1 / 5)  # four held-out tiles
    assert summary[f"clusters_{K}{mark}/part_4_sampling_clustering"]["clusters_used"] <= K

    table = pd.read_csv(out / f"clusters_{K}" / f"HHH{K}_C{K}_D{K}{mark}.csv", header=None)
    assert table.shape == (24, 18)
    np.testing.assert_allclose(table.iloc[:, :16].sum(axis=1), 1, atol=1e-5)
    assert table[16].between(0, K - 1).all()
    assert table[17].between(1 / K, 1).all()

    expected = {f"{number}.png" for number in np.linspace(1, 24, 12).round().astype(int)}
    for folder in (out / "org", out / f"clusters_{K}" / f"gen_{K}{mark}"):
        assert {path.name for path in folder.glob("*.png")} == expected
        assert Image.open(folder / "1.png").size == (48, 48)

    models = {path.name.split("_ckpt_")[0] for path in (out / f"clusters_{K}" / f"models_{K}").glob("*.pth")}
    learnt_twice = {"classifier_finetuning2"} if clustering == "classifier" else set()  # as published
    assert models == learnt_twice | {
        f"unet{mark}_training", f"unet{mark}_finetuning1", f"unet{mark}_finetuning2", f"{clustering}_training",
    }  # fmt: skip
    figures = {str(path.relative_to(out / "Figures")) for path in (out / "Figures").rglob("*.jpg")}
    assert {"Figure 1/a.jpg", "Figure 1/b.jpg", *(f"Figure 4{mark}/{panel}.jpg" for panel in "abcd")} <= figures
    assert {f"Figure 3{mark}/G{cluster}.jpg" for cluster in range(1, K + 1)} <= figures
    assert any(name.startswith(f"Figure 2{mark}/C_{K}_") for name in figures)
    assert not list(out.rglob("*.part"))


def test_tiles_are_drawn_by_name_from_a_finished_run(finished, tmp_path, capsys):
    run = open_run("test", **choices_of(Path(finished["out"])), out=finished["out"])
    assert run.paths.atlas.exists()
    report.reading(run, "anna").save({2: {"name": "keratin"}})
    arguments = ["draw", "--from", finished["out"], "--number", "2", "--out", str(tmp_path / "drawn"), "--cluster"]
    assert main([*arguments, "keratin"]) == 0
    rows = (tmp_path / "drawn/tiles.csv").read_text().splitlines()[1:]
    assert [",".join(row.split(",")[:4]) for row in rows] == ["1.png,2,keratin,765", "2.png,2,keratin,765"]
    capsys.readouterr()
    assert main([*arguments, "keratim"]) == 2
    assert "nearest names are keratin" in capsys.readouterr().err
    assert main(["draw", "--from", str(tmp_path / "drawn"), "--out", str(tmp_path / "o")]) == 2


def test_what_is_done_is_not_done_again(finished, tmp_path):
    out = Path(finished["out"])
    mark = {"classifier": "", "kmeans": "_kmeans"}[finished["clustering"]]
    image = out / f"clusters_{K}" / f"gen_{K}{mark}" / "1.png"
    written = image.stat().st_mtime_ns
    for name, message in (
        ("part_1_training", "training is done already: 1 epochs"),
        ("part_6_conditional_generation", "12 of 12"),
    ):
        executed = tmp_path / f"{name}.ipynb"
        assert execute(ROOT / "clusters_14" / f"{name}.ipynb", executed, finished) is None
        assert message in executed.read_text()
    assert image.stat().st_mtime_ns == written


def test_a_slide_that_was_not_trained_on_is_mapped_with_the_run(finished, tmp_path, capsys):
    slide = write_slide(tmp_path / "new.tiff", island(512, 512, 96, 96, 288, 288))
    command = ["map", "--slide", str(slide), "--run", finished["out"], "--out", str(tmp_path / "maps")]
    if finished["clustering"] == "classifier":  # trained on tiles of unknown scale
        assert main(command) == 2
        assert "does not tell the scale of its tiles: give it as --mpp" in capsys.readouterr().err
        command += ["--mpp", "0.5"]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "maps" / "tile_clusters.csv")
    assert len(table) == 36
    assert set(table.side) == {48}
    assert table.cluster.between(1, K).all()
    features = json.loads((tmp_path / "maps" / "new.geojson").read_text())["features"]
    assert sum(feature["properties"]["measurements"]["Tiles"] for feature in features) == 36
