"""What the paper shows, made again: each number against the published one, or against networks that are known."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from pfiles import remake
from pfiles.__main__ import main
from pfiles.errors import InputError
from tests.conftest import PAPER, shared, tiny_options


@pytest.fixture
def remade(tmp_path, monkeypatch, capsys):
    """The table that `paper` writes: (published, re-made, why) by what."""
    monkeypatch.setattr("pfiles.lpips.vgg16_file", refuse)

    def remade(*archives, options=()):
        assert main(["paper", "--archive", *map(str, archives), "--out", str(tmp_path), *options]) == 0
        said = capsys.readouterr().out
        lines = (tmp_path / "paper" / "table.md").read_text().splitlines()[2:]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert all(what in said for what, *_ in rows)
        return {what: tuple(numbers) for what, *numbers in rows}

    return remade


def refuse():
    raise InputError("VGG16's weights are not here.")


@pytest.mark.slow
def test_the_published_table_gives_the_published_numbers(remade):
    table = remade(shared("published/HHH14_C14_D14.csv").parent)
    printed = {"Calinski-Harabasz": "3367.74211", "C": "0.07645", "Dunn": "0.00548", "Hartigan": "1.47801",
               "McClain-Rao": "0.41643"}  # fmt: skip
    for name, number in printed.items():
        assert table[f"{name}, k = 14"] == (number, number, "equal to every published digit")
    assert table["entropy of the clusters, k = 14"][:2] == ("", "2.6145 of at most 2.6391")
    assert table["mean probability, k = 14"][:2] == ("", "0.8888")
    assert table["SSIM"] == ("0.7988", "", "not measured; missing: training images, generated images")
    assert table["Figure 3"][2] == "not made; missing: autoencoder, UNet after finetuning2"


def test_a_table_is_known_by_its_first_line(tmp_path):
    path = tmp_path / remake.TABLE
    remake.refuse_other_table(tmp_path)
    remake.write_table([remake.Row("C", "0.1", "0.2", "another table")], path)
    remake.refuse_other_table(tmp_path)
    assert path.read_text().splitlines()[2] == "| C | 0.1 | 0.2 | another table |"
    for content in (b"", b"| my own | table |\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="paper was not made by this command"):
            remake.refuse_other_table(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="paper was not made by this command"):
        remake.refuse_other_table(tmp_path)


@pytest.mark.slow
def test_everything_is_made_of_everything(remade, stand_ins, tmp_path):
    table = remade(stand_ins, options=tiny_options(PAPER))
    assert table["training tiles in their published cluster"] == ("100.00 %", "100.00 %", "equal")
    assert float(table["largest difference of a feature in the table"][1]) < 1e-6
    assert table["C, k = 14"][0] == "0.07645" != table["C, k = 14"][1]
    assert table["C, k = 14"][2] == "this is another table than the published one"
    assert table["SSIM as published, colour as a third axis"][2] == "of 24 pairs, where 10,000 were published"
    assert table["SSIM within each colour"][0] == ""
    assert table["LPIPS"] == ("0.4923", "", "not measured: VGG16's weights are not here.")
    assert "of 11 tiles such a share moves by 0.27 by chance" in next(
        why for what, (*_, why) in table.items() if what.startswith("tiles drawn from cluster 1")
    )
    figures = {str(path.relative_to(tmp_path / "Figures")) for path in (tmp_path / "Figures").rglob("*.jpg")}
    assert figures >= {"Figure 1/a.jpg", "Figure 1/b.jpg", "Figure 2/sheet_k14.jpg", "Figure 4/sheet_k14.jpg",
                       *(f"Figure 3/G{cluster}.jpg" for cluster in range(1, 15))}  # fmt: skip
    assert all(table[f"Figure {number}"][1] == f"Figures/Figure {number}" for number in (1, 2, 3, 4))


@pytest.mark.slow
def test_images_and_the_table_alone(remade, stand_ins):
    """SSIM is what the authors' call computes; Figure 2 shows the published images."""
    table = remade(stand_ins / "Images.zip", stand_ins / "clusters_14", options=tiny_options(PAPER))
    with zipfile.ZipFile(stand_ins / "Images.zip") as archive:
        pairs = [
            [np.asarray(Image.open(archive.open(f"Images/{kind}/{number}.jpg"))) for kind in ("org", "gen_14")]
            for number in range(1, 25)
        ]
    mean = np.mean([structural_similarity(a, b, win_size=3) for a, b in pairs])
    assert table["SSIM as published, colour as a third axis"][:2] == ("0.7988", f"{mean:.4f}")
    assert table["Figure 2"][1] == "Figures/Figure 2"
    assert table["Figure 1"] == ("shown", "", "not made; missing: tiles, autoencoder")
    assert "training tiles in their published cluster" not in table
