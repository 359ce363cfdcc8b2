"""A packed run is made again to the bit; what was changed is named; what is no sound crate is refused."""

import hashlib
import json
import shutil
import stat
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pfiles import checkpoints, pack, reproduce
from pfiles.__main__ import main
from pfiles.cli.notebooks import make_again
from pfiles.errors import InputError
from pfiles.paths import ROOT, read_json
from pfiles.reproduce import DIFFERENT, EQUAL, ROUNDED
from pfiles.run import open_run
from tests.conftest import TINY, make_tiles, parameters, tiny_options

ARTEFACTS = ["autoencoder", "training images", "clusters", "UNet after training", "UNet after finetuning1",
             "UNet after finetuning2", "latent CSV", "generated images"]  # fmt: skip


NOTEBOOKS = ["train_autoencoder", "autoencoder_output", "save_training_images", *(f"clusters_14/part_{n}" for n in (
    "1_training", "2_finetuning1", "3_finetuning2", "5_latent_space_extraction", "6_conditional_generation", "10_SSIM"
))]  # fmt: skip


def run_options(folder):
    return ["--data", str(folder / "tiles.npy"), "--preset", "demo", "--clusters", "3", "--clustering", "classifier",
            *tiny_options()]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished tiny run with the numbers of part 10, its tiles and its crate."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KPC_RUN_TOML", "")
        patch.chdir(ROOT)
        np.save(folder / "tiles.npy", make_tiles(44))
        make_again(NOTEBOOKS, parameters(folder), folder / "out")
    packed(folder, folder / "run.zip")
    return folder


def packed(folder, path, *options):
    assert main(["pack", "--run", str(folder / "out"), "--out", str(path), *run_options(folder), *options]) == 0
    return path


def made_again(crate, out, monkeypatch, *options):
    """The exit status, and what reproduction.json says: changed inputs, and (state, why) by artefact or number."""
    monkeypatch.chdir(ROOT)
    status = main(["reproduce", str(crate), "--out", str(out), *options])
    report = read_json(out / "reproduction.json")
    return status, report["changed"], {each["what"]: (each["state"], each["why"]) for each in report["verdicts"]}


@pytest.fixture(scope="module")
def again(run_dir, tmp_path_factory):
    """The same run, made again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KPC_RUN_TOML", "")
        out = tmp_path_factory.mktemp("again") / "out"
        return out, made_again(run_dir / "run.zip", out, patch, "--data", str(run_dir / "tiles.npy"))


def test_one_thread_makes_the_same_to_the_bit(again):
    """Eight artefacts, and every number of part 10 with its controls and intervals."""
    out, (status, changed, verdicts) = again
    assert (status, changed) == (0, [])
    assert [*verdicts][:8] == ARTEFACTS
    assert len(verdicts) > 60
    assert {state for state, _ in verdicts.values()} == {EQUAL}
    assert "pairs of 48 px" in (out / "reproduce.log").read_text()


@pytest.mark.parametrize(
    ("then", "now", "state"),
    [(1, 1, EQUAL), (1.0, 1 + 1e-6, ROUNDED), (1.0, 1 + 1e-4, DIFFERENT), ("a", "b", DIFFERENT), (1.0, None, DIFFERENT),
     (True, False, DIFFERENT), (float("nan"), float("nan"), EQUAL)],
)  # fmt: skip
def test_how_near(then, now, state):
    assert reproduce.same(then, now) == state


# What was changed, and that it is named. `again` is held against crates of runs that differ from it in one thing.


@pytest.fixture
def judged(run_dir, again, tmp_path):
    """What `compare` says of the run that was made again, where its crate had said something else."""

    def judged(change=lambda record: None, data=None, **overrides):
        with reproduce.opened(run_dir / "run.zip") as (archive, record):
            choices = reproduce.choices_for(archive, record, again[0], str(data or run_dir / "tiles.npy"))
        change(record)
        choices["overrides"] |= overrides
        run = open_run("reproduce", **choices, run_toml=False)
        changed = reproduce.changed_inputs(record, run)
        return changed, {each.what: each for each in reproduce.compare(record, run, changed)}

    return judged


def test_a_changed_tile_is_named(run_dir, judged, tmp_path):
    tiles = make_tiles(44)
    tiles[3, 5, 5] ^= 1
    np.save(tmp_path / "tiles.npy", tiles)
    changed, _ = judged(data=tmp_path / "tiles.npy")
    assert len(changed) == 1
    assert changed[0].startswith("tiles: was ")


def test_a_changed_setting_is_named(judged):
    changed, _ = judged(**{"finetuning1.epochs": 2})
    assert changed == ["setting finetuning1.epochs: was 1, is 2"]


def test_a_changed_package_and_other_threads_are_named_and_explain_what_differs(judged):
    def change(record):
        record["environment"]["packages"]["torch"] = "2.6.0"
        record["environment"]["threads"] = 8
        record["artefacts"]["UNet after training"]["content"] = "0" * 16
        record["numbers"]["clusters_3/part_10_SSIM"]["ssim"]["generated"] += 1

    changed, verdicts = judged(change)
    assert changed == [
        f"package torch: was '2.6.0', is '{torch.__version__.partition('+')[0]}'",
        "threads: was 8, is 1",
    ]
    assert verdicts["autoencoder"].state == EQUAL
    assert verdicts["UNet after training"].state == DIFFERENT
    assert verdicts["UNet after training"].why == "; ".join(changed)
    number = verdicts["clusters_3/part_10_SSIM: ssim.generated"]
    assert (number.state, number.why) == (DIFFERENT, "; ".join([*changed, "UNet after training differs"]))


def test_changed_code_is_named(judged):
    def change(record):
        record["environment"]["packages"]["pfiles"] = "1.1.0, code 0123456789abcdef"

    [said], _ = judged(change)
    assert said.startswith("package pfiles: was '1.1.0, code 0123456789abcdef', is '")


def test_changed_weights_are_named(run_dir, again, tmp_path, monkeypatch):
    """One weight of the autoencoder was changed by hand; a UNet began from other weights than its note says."""
    shutil.copytree(run_dir / "out", tmp_path / "out")
    shutil.copy(run_dir / "tiles.npy", tmp_path)
    path = tmp_path / "out" / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth"
    state = checkpoints.read_state(path)
    state["decoder_conv_out.bias"][0] += 1
    torch.save(state, path)
    crate = packed(tmp_path, tmp_path / "changed.zip")
    with reproduce.opened(crate) as (archive, record):
        choices = reproduce.choices_for(archive, record, again[0], str(run_dir / "tiles.npy"))
    run = open_run("reproduce", **choices, run_toml=False)
    record["artefacts"]["UNet after finetuning1"]["content"] = "0" * 16
    record["artefacts"]["UNet after finetuning1"]["provenance"]["starts_from"]["unet"] = "1" * 16
    verdicts = {each.what: each for each in reproduce.compare(record, run, [])}
    assert verdicts["autoencoder"].state == DIFFERENT
    assert verdicts["autoencoder"].why.startswith("in the crate it is foreign (it has no provenance")
    assert verdicts["UNet after finetuning1"].why.startswith("weights of unet: was '1111111111111111', is ")
    assert verdicts["clusters"].state == EQUAL


def test_the_notebooks_of_a_run_by_kmeans_are_all_named(run_dir):
    """Those that need no clusters have no mark of k-means in summary.json."""
    run = open_run("test", **parameters(run_dir, clustering="kmeans"), run_toml=False)
    assert pack.describe(run, NOTEBOOKS, {})["notebooks"] == NOTEBOOKS[:3]


def test_a_folder_of_maps_is_known_by_its_tables(tmp_path):
    """Its pictures are no tiles: they are neither square nor of one size."""
    Image.new("RGB", (9, 5)).save(tmp_path / "slide.jpg")
    (tmp_path / "tile_clusters.csv").write_text("cluster\n1\n")
    before = pack.content(tmp_path)
    (tmp_path / "slide.jpg").unlink()
    assert pack.content(tmp_path) == before
    (tmp_path / "tile_clusters.csv").write_text("cluster\n2\n")
    assert pack.content(tmp_path) != before


# Crates


def test_the_crate_says_what_the_profile_asks_for_and_names_no_path(run_dir):
    with zipfile.ZipFile(run_dir / "run.zip") as archive:
        graph = {each["@id"]: each for each in json.loads(archive.read("ro-crate-metadata.json"))["@graph"]}
        names = archive.namelist()
        texts = {name: archive.read(name).decode() for name in names if not name.endswith(".jpg")}
    assert "Figures/Figure 1/a.jpg" in names
    assert {"run.json", "workflow.sh", "summary.json", "clusters_3/HHH3_C3_D3.csv"} <= texts.keys()
    assert not any(name.endswith((".png", ".npy", ".pth")) for name in names)
    root = graph["./"]
    assert {each["@id"] for each in root["conformsTo"]} == pack.PROFILES.keys()
    workflow = graph[root["mainEntity"]["@id"]]
    assert "ComputationalWorkflow" in workflow["@type"]
    [action] = [each for each in graph.values() if each["@type"] == "CreateAction"]
    assert action["instrument"] == {"@id": "workflow.sh"}
    assert {each["@id"] for each in action["result"]} | {"run.json", "workflow.sh"} == {
        each["@id"] for each in root["hasPart"]
    }
    assert not any(str(run_dir) in text for text in texts.values())


def test_words_for_paths_replace_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    for data, of_data in (("tiles", []), ("runs/tiles", ["runs/tiles"])):
        words = pack._words(tmp_path, data)
        assert [*words] == [str(ROOT / data), *of_data, str(tmp_path), sys.prefix, str(ROOT)]
    assert words[str(ROOT)] == "CODE"


@pytest.mark.parametrize("name", ["a:b.png", "a\\b.png", "a b%20ä.png"])
def test_a_tile_whose_name_no_crate_takes_is_refused_as_it_is_packed(name, tmp_path):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / name).write_bytes(b"")
    paths = SimpleNamespace(root=tmp_path / "out", summary=tmp_path / "out" / "summary.json")
    run = SimpleNamespace(paths=paths, data=str(tmp_path / "tiles"), n_clusters=3)
    choices = {"preset": "demo", "n_clusters": 3, "clustering": "kmeans", "overrides": {}}
    record = {"choices": choices, "data": {"embedded": None, "fingerprint": ""}, "version": ""}
    files = pack._files(run, record, tmp_path / "texts", with_checkpoints=False, with_tiles=True)
    if name.startswith("a b"):
        assert f"data/tiles/{name}" in dict(files)
        return
    with pytest.raises(InputError, match="cannot lie in a crate"):
        dict(files)


def test_checkpoints_and_tiles_where_they_are_asked_for(run_dir, tmp_path):
    crate = packed(run_dir, tmp_path / "all.zip", "--checkpoints", "--tiles", "--licence", "CC-BY-4.0")
    with reproduce.opened(crate) as (archive, record):
        names = archive.namelist()
        tiles = reproduce.unpack_tiles(archive, tmp_path)
        assert json.loads(archive.read("ro-crate-metadata.json"))["@graph"][0]["license"] == "CC-BY-4.0"
    assert {"kpc_ldm/vqvae_autoencoder_ckpt.pth", "org/1.png", "clusters_3/gen_3/1.png", "data/tiles.npy"} <= {*names}
    assert tiles.read_bytes() == (run_dir / "tiles.npy").read_bytes()
    assert record["data"]["source"] == "tiles.npy"


def test_without_its_tiles_a_crate_asks_for_them(run_dir, tmp_path, capsys):
    assert main(["reproduce", str(run_dir / "run.zip"), "--out", str(tmp_path / "out")]) == 2
    assert "The crate holds no tiles: name tiles.npy (fingerprint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def rewritten(path, crate, change):
    """The crate with its members changed."""
    with zipfile.ZipFile(crate) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_format(members):
    return members | {
        "run.json": json.dumps(json.loads(members["run.json"]) | {"format": 2, "version": "9.0"}).encode()
    }


def forged(*keys, value):
    """A crate whose run.json was changed, and the hash of it too."""

    def change(members):
        record, metadata = (json.loads(members[name]) for name in ("run.json", "ro-crate-metadata.json"))
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        members |= {"run.json": json.dumps(record).encode()}
        for entity in metadata["@graph"]:
            if entity["@id"] == "run.json":
                entity["sha256"] = hashlib.sha256(members["run.json"]).hexdigest()
        return members | {"ro-crate-metadata.json": json.dumps(metadata).encode()}

    return lambda path, crate: rewritten(path, crate, change)


def with_flag(path, crate):
    """As if its members were encrypted."""
    content = bytearray(crate.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(signature, at + 4)
    path.write_bytes(content)
    return path


def flipped(path, crate):
    """A bit in the packed content of run.json."""
    content = bytearray(crate.read_bytes())
    content[content.find(b"run.json") + 200] ^= 0xFF
    path.write_bytes(content)
    return path


def linked(path, crate):
    shutil.copy(crate, path)
    info = zipfile.ZipInfo("data/tiles.npy")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


SPOILT = {
    "a number was edited": (
        lambda p, c: rewritten(p, c, lambda m: m | {"summary.json": b"{}"}),
        "edited after it was packed: summary.json is another file",
    ),
    "the record was edited": (
        lambda p, c: rewritten(p, c, lambda m: m | {"run.json": m["run.json"].replace(b'"seed"', b'"sead"') + b" "}),
        "edited after it was packed: run.json is another file",
    ),
    "a file was added": (
        lambda p, c: rewritten(p, c, lambda m: m | {"data/x.npy": b""}), "data/x.npy was put into it"
    ),
    "a file was taken": (
        lambda p, c: rewritten(p, c, lambda m: {n: v for n, v in m.items() if n != "summary.json"}),
        "summary.json is not in it",
    ),
    "another version": (
        lambda p, c: rewritten(p, c, with_format), "is of format 2 and pfiles 9.0, but this version reads format 1"
    ),
    "a path upwards": (
        lambda p, c: rewritten(p, c, lambda m: m | {"data/../../evil.npy": b""}), "leads out of the crate"
    ),
    "an absolute path": (lambda p, c: rewritten(p, c, lambda m: m | {"/tmp/evil.npy": b""}), "leads out of the crate"),
    "a path of Windows": (lambda p, c: rewritten(p, c, lambda m: m | {"C:\\evil.npy": b""}), "leads out of the crate"),
    "a link": (linked, "leads out of the crate"),
    "no crate": (lambda p, c: rewritten(p, c, lambda m: {"notes.txt": b"hello"}), "is not a crate of a run"),
    "a bit flipped": (flipped, "is not a sound .zip file"),
    "encrypted": (with_flag, "encrypted: get the crate again"),
    "its begin is missing": (lambda p, c: p.write_bytes(c.read_bytes()[9000:]) and p, "is not a sound .zip file"),
    "an artefact of no name": (forged("artefacts", "evil", value={}), "artefacts.evil.[key] in run.json is wrong"),
    "tiles of any path": (forged("data", "embedded", value="/etc/passwd"), "data.embedded in run.json is wrong"),
    "choices of another kind": (forged("choices", value=[]), "choices in run.json is wrong"),
    "no environment": (forged("environment", value={}), "environment.python in run.json is wrong"),
    "nothing to run": (forged("notebooks", value=[]), "notebooks in run.json is wrong"),
    "cut off": (lambda p, c: p.write_bytes(c.read_bytes()[:-200]) and p, "is not a sound .zip file"),
    "absent": (lambda p, c: p, "There is no crate"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_no_sound_crate_is_refused(case, run_dir, tmp_path, capsys):
    spoil, sentence = SPOILT[case]
    crate = spoil(tmp_path / "spoilt.zip", run_dir / "run.zip")
    out = tmp_path / "out"
    assert main(["reproduce", str(crate), "--data", str(run_dir / "tiles.npy"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_notebook_that_is_not_ours_is_not_run(run_dir, tmp_path, monkeypatch, capsys):
    """A crate may name any file as a notebook: only those of this version are run."""
    original = reproduce._json

    def lying(archive, name, path):
        value = original(archive, name, path)
        return value | {"notebooks": ["../evil"]} if name == "run.json" else value

    monkeypatch.setattr(reproduce, "_json", lying)
    arguments = [
        "reproduce",
        str(run_dir / "run.zip"),
        "--data",
        str(run_dir / "tiles.npy"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "There is no notebook '../evil' in this version" in capsys.readouterr().err


def test_what_cannot_be_packed(run_dir, tmp_path, capsys):
    for arguments, sentence in (
        (["--run", str(tmp_path / "none"), "--out", "x.zip"], "There is no folder"),
        (["--run", str(run_dir / "out"), "--out", str(tmp_path)], "--out must be the name of a file that ends in .zip"),
        (["--run", str(tmp_path), "--out", str(tmp_path / "x.zip"), *run_options(run_dir)], "has made nothing yet"),
    ):
        assert main(["pack", *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.zip").exists()


def test_a_folder_without_a_run_stays_as_it_is(tmp_path, capsys):
    assert main(["pack", "--run", str(tmp_path), "--out", str(tmp_path / "x.zip")]) == 2
    assert "has made nothing yet" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_the_precision_that_a_machine_chose_is_packed(run_dir):
    """`"auto"` may choose otherwise where the run is made again."""
    run = open_run("test", **parameters(run_dir, overrides={**TINY, "precision": "auto"}), run_toml=False)
    record = pack.describe(run, NOTEBOOKS, {"overrides": {"precision": "auto"}})
    assert record["choices"]["overrides"]["precision"] == run.settings.precision
    assert run.settings.precision in ("fp32", "bf16")
