"""A generator saved, loaded and drawn from; trainings that begin from one."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pfiles
from pfiles import draw, learn, report
from pfiles.__main__ import main
from pfiles.cluster_bank import ClusterBank
from pfiles.drawing.generator import Generator
from pfiles.drawing.starting import begin_from, starting_weights
from pfiles.errors import InputError
from pfiles.latents import LatentSpace
from pfiles.machine.runtime import seeded
from pfiles.measuring.quality import FILE, as_bytes, make_standard, own_features
from pfiles.paths import write_json
from pfiles.reporting.evaluation import evaluate
from pfiles.run import open_run
from pfiles.settings import get_settings
from pfiles.tiles.files import read_images
from pfiles.tiles.pixels import as_tensor
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE
from tests.conftest import PLAIN_LEARNING, TINY, K, another_unet, assert_refused, make_tiles, shared, stage_networks


def test_loaded_it_draws_the_same_to_the_bit(generator, tmp_path):
    generator.save(tmp_path)
    loaded = Generator.load(tmp_path)
    assert torch.equal(loaded.draw([0, 1, 2, 1], seed=3), generator.draw([0, 1, 2, 1], seed=3))
    images = torch.randint(256, (5, 3, 48, 48), dtype=torch.uint8)
    for a, b in zip(loaded.assign(images), generator.assign(images), strict=True):
        assert torch.equal(a, b)
    assert loaded.about == {"mpp": 1.0}
    generator.save(tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    difference = Generator.load(tmp_path / "half").draw([0, 1], seed=3).int() - generator.draw([0, 1], seed=3).int()
    assert difference.abs().float().mean() < 3


def test_clusters_are_drawn_as_often_as_they_are(generator):
    ids = generator.cluster_ids(4000, seed=0)
    shares = ids.bincount(minlength=K) / 4000
    assert shares[1] == 0
    assert shares[0].item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(generator.draw(number=3, seed=5), generator.draw(generator.cluster_ids(3, 5), seed=5))
    with pytest.raises(InputError, match="numbered from 1 to 3"):
        generator.draw([3])


def test_draw_command(generator, tmp_path, capsys):
    generator.save(tmp_path / "g")
    arguments = ["draw", "--from", str(tmp_path / "g"), "--cluster", "2", "--number", "5", "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "o" / "tiles").iterdir()) == [f"{i}.png" for i in range(1, 6)]
    header, row = (line.split(",") for line in (tmp_path / "o" / "tiles.csv").read_text().splitlines()[:2])
    assert header[4:] == ["probability", "realism", "nearest", "structure"]
    assert row[:4] + row[5:] == ["1.png", "2", "", "765", "", "", ""]  # there is nothing to hold the tiles against
    assert 0 < float(row[4]) <= 1
    assert "no values for realism, nearest, structure" in capsys.readouterr().out
    assert Image.open(tmp_path / "o" / "sheet.jpg").size[0] > 100
    capsys.readouterr()
    assert_refused(["draw", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "p")], capsys, tmp_path / "p")
    (tmp_path / "g" / "model.safetensors").write_bytes(b"not tensors")
    assert_refused(["draw", "--from", str(tmp_path / "g"), "--out", str(tmp_path / "p")], capsys, tmp_path / "p")
    config = json.loads((tmp_path / "g" / "config.json").read_text()) | {"n_clusters": 4}
    generator.save(tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text(json.dumps(config))
    assert_refused(["draw", "--from", str(tmp_path / "g"), "--out", str(tmp_path / "p")], capsys, tmp_path / "p")


@pytest.mark.slow
def test_draw_until_tiles_pass(generator, tmp_path, capsys):
    generator.save(tmp_path / "g")
    arguments = ["draw", "--from", str(tmp_path / "g"), "--number", "6", "--out", str(tmp_path / "o")]
    assert_refused([*arguments, "--accept", "0"], capsys, tmp_path / "o")
    assert_refused([*arguments, "--accept", "0.5"], capsys, tmp_path / "o")
    train, held_out = (as_tensor(make_tiles(12, 48, seed=seed)).contiguous() for seed in (1, 2))
    ids = torch.arange(12) % K
    standard = make_standard(
        generator.space.vqvae, train, held_out, generator.draw(ids), ids.numpy(), K, 1, search=False
    )  # fmt: skip
    (tmp_path / "g" / FILE).write_bytes(as_bytes(standard))
    assert main([*arguments, "--accept", "0.5"]) == 0
    assert "6 tiles passed of" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "o/tiles.csv")
    assert (table.accept == 0.5).all()
    images = read_images(tmp_path / f"o/tiles/{number}.png" for number in range(1, 7))
    odds = standard.odds(own_features(generator.space.vqvae, images))
    assert standard.passes(odds, table.cluster.to_numpy() - 1, 0.5).all()
    assert table.realism.between(0, 100).all()
    with pytest.raises(InputError, match="cannot report on them"):
        evaluate(tmp_path / "o/tiles", tmp_path / "o/tiles", features="autoencoder")


def test_clusters_of_one_name_are_drawn_as_often_as_they_are(generator):
    shares, names = torch.tensor([0.1, 0.3, 0.6, 0.0]), {1: "a", 2: "A", 3: "b", 4: "c"}
    generator = replace(
        generator, shares=shares, names=names, unet=UNet(16, 4, **get_settings("demo", TINY).diffusion.unet)
    )
    sizes = generator.cluster_ids(4000, 0, "a").bincount(minlength=4)
    assert sizes[2:].sum() == 0
    assert sizes[0].item() == pytest.approx(1000, abs=110)
    assert generator.cluster_ids(3, 0, "4").tolist() == generator.cluster_ids(3, 0, "c").tolist() == [3, 3, 3]


def test_draw_command_by_name(generator, tmp_path, capsys):
    named = replace(generator, names={1: "keratin", 3: "=dermis"})
    named.save(tmp_path / "g")
    assert Generator.load(tmp_path / "g").names == named.names
    arguments = ["draw", "--from", str(tmp_path / "g"), "--number", "2", "--out", str(tmp_path / "o"), "--cluster"]
    assert main([*arguments, "=Dermis"]) == 0
    table = (tmp_path / "o/tiles.csv").read_text().splitlines()
    named = [",".join(line.split(",")[:4]) for line in table]
    assert named == ["file,cluster,name,seed", "1.png,3,'=dermis,765", "2.png,3,'=dermis,765"]
    for number, image in enumerate(generator.draw([2, 2], seed=765), start=1):
        written = np.array(Image.open(tmp_path / f"o/tiles/{number}.png"))
        assert torch.equal(torch.from_numpy(written).permute(2, 0, 1), image)
    capsys.readouterr()
    assert main([*arguments, "keratine"]) == 2
    assert "'keratine': the nearest names are keratin; a number" in capsys.readouterr().err


BEGUN = {**TINY, "diffusion.prediction": "noise", "diffusion.latent_scaling": False}  # as `generator` learnt


def test_a_training_begins_from_a_generator(generator, tmp_path):
    """All weights but the embedding of another number of clusters, which begins anew."""
    generator.save(tmp_path)
    overrides = {**BEGUN, "start_from": str(tmp_path)}
    vqvae, _ = learn.new_autoencoder(open_run("test", 5, "kmeans", None, "demo", overrides, 1, tmp_path / "out"))
    for a, b in zip(vqvae.state_dict().values(), generator.space.vqvae.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    unet = type(generator.unet)(16, 5, **get_settings("demo", TINY).diffusion.unet)
    embeddings = unet.class_emb.weight.clone()
    begin_from(
        unet, starting_weights(str(tmp_path), get_settings("demo", BEGUN).diffusion), "unet.", anew=["class_emb.weight"]
    )
    assert torch.equal(unet.class_emb.weight, embeddings)
    assert torch.equal(unet.conv_in.weight, generator.unet.conv_in.weight)


def test_weights_of_other_widths_are_refused_by_name(generator, tmp_path):
    generator.save(tmp_path)
    wider = {**BEGUN, "autoencoder.vqvae": {**TINY["autoencoder.vqvae"], "down_channels": [8, 8, 32]}}
    run = open_run("test", 3, "kmeans", None, "demo", {**wider, "start_from": str(tmp_path)}, 1, tmp_path / "out")
    with pytest.raises(InputError, match=r"start_from .* VQVAE .*: encoder_layers.* has the shape .* but needs"):
        learn.new_autoencoder(run)
    run = open_run("test", 3, "kmeans", None, "demo", {**TINY, "start_from": str(tmp_path / "no")}, 1, tmp_path / "out")
    with pytest.raises(InputError, match="holds neither a generator"):
        learn.new_autoencoder(run)


def test_shares_are_kept(generator, tmp_path):
    replace(generator, shares=torch.tensor([0.1, 0.2, 0.7])).save(tmp_path)
    assert Generator.load(tmp_path).shares.tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert replace(generator, shares=None).shares.tolist() == pytest.approx([1 / K] * K)


# as hub models


def serve(folder):
    """A server that answers as the hub does for the files of one repository, someone/tissue, and 404 for all else."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            start = "/someone/tissue/resolve/main/"
            file = folder / self.path.removeprefix(start)
            is_file = self.path.startswith(start) and file.is_file()
            content = file.read_bytes() if is_file else b""
            self.send_response(200 if is_file else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            if not is_file:
                self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith(start) else "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.slow
def test_saved_as_pretrained_it_comes_back_to_the_bit_from_folder_and_hub(generator, tmp_path, monkeypatch):
    named = replace(generator, names={1: "keratin", 2: "dermis", 3: "glass | <b>"}, mpp=0.5)
    named.save_pretrained(tmp_path / "g")
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "g" / "config.json").read_text())
    assert config["cluster_names"] == {"1": "keratin", "2": "dermis", "3": "glass | <b>"}
    assert config["mpp"] == 0.5
    assert config["cluster_shares"] == [0.5, 0, 0.5]
    assert config["settings"]["sampling.sampler"] == "dpm-solver++"
    assert config["settings"]["diffusion.unet"]["down_channels"] == [16, 16, 16]
    assert config["latent_scaling"].keys() == {"mean", "std"}
    server = serve(tmp_path / "g")
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.chdir(tmp_path)
    expected = generator.draw([0, 1, 2, 1], seed=3)
    for where in ("g", tmp_path / "g", "someone/tissue"):
        loaded = pfiles.Generator.from_pretrained(where, cache_dir=tmp_path / "cache", token=False)
        assert torch.equal(loaded.draw([0, 1, 2, 1], seed=3), expected)
        assert torch.equal(loaded.draw("dermis", 2, 3), loaded.draw([1, 1], seed=3))
        assert loaded.names == named.names
        assert loaded.mpp == 0.5
    with pytest.raises(InputError, match=r"^There is no folder someone/else, and no generator .* from the hub"):
        pfiles.Generator.from_pretrained("someone/else", cache_dir=tmp_path / "cache", token=False)
    server.shutdown()
    server.server_close()


def test_a_config_is_not_read_before_its_size_is_checked(tmp_path):
    (tmp_path / "config.json").write_text("[" * 2**21)
    with pytest.raises(InputError, match=r"config\.json is larger than 1 MB"):
        pfiles.Generator.from_pretrained(tmp_path)


def test_the_starter_is_a_pretrained_one_as_well():
    assert pfiles.Generator.from_pretrained("starter").n_clusters == 10


def test_one_cluster_by_number_or_name(generator):
    assert torch.equal(generator.draw(2, 3, 7), generator.draw([2, 2, 2], seed=7))
    named = replace(generator, names={1: "keratin", 3: "glass"})
    assert torch.equal(named.draw("glass", 3, 7), generator.draw(2, 3, 7))
    with pytest.raises(InputError, match=r"No cluster is called 'keratine': the nearest names are keratin;"):
        named.draw("keratine")
    with pytest.raises(InputError, match="no cluster has a name yet"):
        generator.draw("keratin")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "kmeans"])
def test_published_files_come_out_of_it_and_go_in_again(kind, tiny, tmp_path):
    vqvae, unet, clusterer = stage_networks(tiny, kind)
    generator = Generator(unet, ClusterBank([clusterer]), LatentSpace(vqvae), tiny)
    generator.save_checkpoints(tmp_path)
    overrides = TINY | PLAIN_LEARNING | {"speed": "off"}
    loaded = Generator.from_checkpoints(tmp_path, K, kind, "demo", overrides)
    assert torch.equal(loaded.draw([0, 1, 2], seed=3), generator.draw([0, 1, 2], seed=3))
    assert loaded.shares.tolist() == pytest.approx([1 / K] * K)
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    run = open_run("test", K, kind, tmp_path / "tiles.npy", "demo", {**overrides, "clusters_first": True}, 1, tmp_path)
    assert torch.equal(draw.tiles(run, [0, 1, 2], [5, 6, 7]), generator.draw([0, 1, 2], seeds=[5, 6, 7]))
    assert (loaded.names, loaded.mpp) == ({}, None)
    report.reading(run, "anna").save({2: {"name": "keratin"}})
    write_json(tmp_path / "summary.json", {"run": {"mpp": 0.5}})
    loaded = Generator.from_checkpoints(tmp_path, K, kind, "demo", overrides)
    assert (loaded.names, loaded.mpp) == ({2: "keratin"}, 0.5)
    with pytest.raises(InputError, match="holds checkpoints already"):
        generator.save_checkpoints(tmp_path)


def test_a_guide_goes_where_its_generator_goes(generator, tmp_path):
    """Into a folder and back, into the published files and back; the layout of diffusers has no room for it."""
    settings = {**TINY, **PLAIN_LEARNING, "sampling.guide": "training", "sampling.guidance": 2.0}
    settings |= {"diffusion.condition_dropout": 0.1}
    plain = replace(generator, settings=get_settings("demo", settings))
    guided = replace(plain, guide=another_unet(generator))
    tiles = guided.draw([0, 1, 2], seed=3)
    assert not torch.equal(tiles, plain.draw([0, 1, 2], seed=3))
    [part] = guided.split_by_k()
    assert torch.equal(part.draw([0, 1, 2], seed=3), tiles)
    guided.save(tmp_path / "folder")
    assert torch.equal(Generator.load(tmp_path / "folder").draw([0, 1, 2], seed=3), tiles)
    plain.save(tmp_path / "plain")  # such as the UNet after its first training, which nothing guides
    assert torch.equal(Generator.load(tmp_path / "plain").draw([0, 1, 2], seed=3), plain.draw([0, 1, 2], seed=3))
    guided.save(tmp_path / "half", half=True)
    short = Generator.load(tmp_path / "half")
    assert load_file(tmp_path / "half" / "model.safetensors")["guide.conv_in.weight"].dtype == torch.float8_e4m3fn
    assert (short.draw([0, 1, 2], seed=3).int() - tiles.int()).abs().float().mean() < 10  # levels of 255
    guided.save_checkpoints(tmp_path / "files")
    loaded = Generator.from_checkpoints(tmp_path / "files", K, "classifier", "demo", settings)
    assert torch.equal(loaded.draw([0, 1, 2], seed=3), tiles)
    with pytest.raises(InputError, match="room for one UNet"):
        guided.to_diffusers(tmp_path / "diffusers")
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "guide.conv_in.weight"},
              tmp_path / "folder" / "model.safetensors")  # fmt: skip
    with pytest.raises(InputError, match=r"guide\.conv_in\.weight"):
        Generator.load(tmp_path / "folder")


def test_the_scaling_of_latents_comes_through_the_published_files(generator, tmp_path):
    settings = {**TINY, **PLAIN_LEARNING, "diffusion.latent_scaling": True, "diffusion.prediction": "v"}
    settings["sampling.guide"] = "itself"
    generator = replace(generator, settings=get_settings("demo", settings))
    generator.save_checkpoints(tmp_path)
    loaded = Generator.from_checkpoints(tmp_path, K, "classifier", "demo", settings)
    assert torch.equal(loaded.draw([0, 1, 2], seed=3), generator.draw([0, 1, 2], seed=3))


@pytest.mark.slow
def test_the_published_classifier_and_table_go_in(tmp_path):
    """Networks of the paper's size, files without any JSON, as they are published."""
    models = tmp_path / "clusters_14" / "models_14"
    models.mkdir(parents=True)
    (tmp_path / "kpc_ldm").mkdir()
    with seeded(0):
        vqvae, unet = VQVAE(), UNet(16, 14)
    torch.save(vqvae.state_dict(), tmp_path / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth")
    torch.save(unet.state_dict(), models / "unet_finetuning2_ckpt_20250128_70_14.pth")
    published = shared("published/classifier_finetuning2_ckpt_20250128_70_14.pth")
    shutil.copy(published, models)
    shutil.copy(shared("published/HHH14_C14_D14.csv"), tmp_path / "clusters_14")
    generator = Generator.from_checkpoints(tmp_path)
    for name, tensor in torch.load(published, map_location="cpu", weights_only=True).items():
        assert torch.equal(generator.bank.state_dict()[name], tensor)
    table = np.loadtxt(tmp_path / "clusters_14" / "HHH14_C14_D14.csv", delimiter=",")
    assert generator.shares.tolist() == pytest.approx([(table[:, 16] == c).mean() for c in range(14)])
    generator.save_checkpoints(tmp_path / "out")
    layout = json.loads(shared("golden/checkpoint_layout.json").read_text())
    written = torch.load(next((tmp_path / "out").rglob("unet_finetuning2_ckpt_*_14.pth")), weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in written.items()} == layout["unet"]
