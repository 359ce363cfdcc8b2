"""Wrong input, made by the hundred: each ends in one clear sentence, exit status 2 and nothing written.

The lists are built at import, so that they can be counted. What a damaged file may look like is left to hypothesis.
"""

import copy
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from MODULE import all_indices
from pfiles import checkpoints, latents
from pfiles.__main__ import main
from pfiles.checkpoints import load_autoencoder, load_weights, save_weights
from pfiles.classifier import Classifier
from pfiles.cluster_bank import ClusterBank
from pfiles.errors import InputError
from pfiles.latents import LatentSpace, read_latent_csv
from pfiles.learning.diffusion import train_stage
from pfiles.learning.loop import Job
from pfiles.learning.resume import load_resume_point, save_resume_point
from pfiles.machine.speed import EAGER
from pfiles.paths import Paths
from pfiles.reporting import tables
from pfiles.settings import Settings, get_settings
from pfiles.tiles.dataset import load_tiles
from pfiles.tiles.files import decode
from pfiles.tiles.pixels import as_array
from pfiles.unet_cond_base import UNet
from pfiles.vqvae import VQVAE, make_vqvae
from tests.conftest import TINY, make_tiles

pytestmark = [  # a warning would be a second line; these Python does not show
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
fuzz = settings(
    derandomize=True, deadline=None, database=None, max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the same folder and networks do for every example
)  # fmt: skip


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def refused(folder, *words):
    """The block must end in an InputError of one sentence that has `words`, and leave `folder` as it was."""
    before = contents(folder)
    with pytest.raises(InputError) as caught:
        yield
    sentence = str(caught.value)
    assert re.fullmatch(r"[^\n]{30,}\.", sentence)
    assert all(word in sentence for word in words), sentence
    assert contents(folder) == before


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def flip(content, bits):
    content = bytearray(content)
    for bit in bits:
        content[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(content)


TILES = make_tiles(24, 64)
TILE = TILES[0]
NPY, PNG, JPEG = npy(TILES), encode(TILE), encode(TILE, "JPEG")


# settings: every field of every group, each with values that no such field can have

WRONG = {
    int: ["text", 1.5, True, None, [1], {"a": 1}, -1, float("nan"), 10**10],
    float: ["text", False, None, [0.5], -1, float("nan"), float("inf"), 10**400],
    bool: [1, 0.0, "true", None, [True]],
    str: ["nonsense", "", 3, None, ["a"], True],
    tuple: [3, "text", [], [0.5], ["a", "b", "c"], [-1, 0.5, 300], [1, 1, 1, 1], [float("nan")] * 3],
    dict: [3, None, "text", [1], {"a": "text"}, {"a": None}, {"a": 0}, {"a": []}, {"a": [8, -8]}, {"a": True}],
}
UNLIMITED = ("discriminator_start_step", "warmup_steps")  # steps may be as many as one likes


def leaves(group=Settings, prefix=""):
    for name, kind in get_type_hints(group).items():
        if is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def wrong_settings():
    for name, kind in leaves():
        kinds = get_args(kind) if type(None) in get_args(kind) else (kind,)
        base = get_origin(kinds[0]) or kinds[0]
        base = str if base is Literal else base
        for value in WRONG[base if base in WRONG else dict]:
            allowed = (value is None and type(None) in kinds) or (value == 10**10 and name.endswith(UNLIMITED))
            if not allowed:
                yield name, value


def test_every_setting_has_wrong_values():
    assert {name for name, _ in wrong_settings()} == {name for name, _ in leaves()}


SETTINGS = [f"{name}={json.dumps(value)}" for name, value in wrong_settings()]
SETTINGS += [
    "nonsense=1", "=1", ".=1", "training=1", "training.=1", ".training=1", "training.epochs.x=1", "Training.epochs=1",
    "training.epochs", "training", "", "training.epochs=", "training epochs=1", "image_size_px=100", "image_size_px=32",
    "image_size_px=4096", "sampling.steps=1001", "sampling.num_generated=1", "diffusion.condition_dropout=0",
    "start_from=nowhere",
    "diffusion.beta_start=0.5",
    'autoencoder.vqvae={"z": 3}', 'autoencoder.vqvae={"im_channels": 4}', 'autoencoder.vqvae={"num_heads": 7}',
    'autoencoder.vqvae={"norm_channels": 5}', 'autoencoder.vqvae={"down_channels": 16}',
    'autoencoder.vqvae={"down_channels": [16, 33, 64]}', 'autoencoder.vqvae={"down_channels": [8, 8, 8, 8, 8, 8, 64]}',
    'autoencoder.discriminator={"conv_channels": [8, 8, 8, 8, 8, 8, 8]}', 'autoencoder.discriminator={"channels": 8}',
    'autoencoder.polish.discriminator={"conv_channels": [8, 16]}', 'autoencoder.polish.discriminator={"channels": 9}',
    'diffusion.unet={"num_layers": 0}',
    'diffusion.unet={"t_emb_dim": 0}',
    'diffusion.unet={"cls": 5}', 'diffusion.unet={"im_channels": 16}', 'diffusion.unet={"t_emb_dim": 63}',
    'diffusion.unet={"down_channels": [64]}', 'diffusion.unet={"down_channels": [64, 60, 64]}',
    'diffusion.unet={"num_heads": 5}', 'diffusion.unet={"conv_out_channels": 9}', "diffusion.num_timesteps=11",
    'autoencoder.vqvae={"codebook_size": 10000000000000000000000}',
]  # fmt: skip

ARGUMENTS = [
    [], ["nonsense"], ["--debugging"], ["run", "nonsense"], ["demo", "--data", "x"], ["cells"], ["cells", "part_99"],
    ["cells", ""], ["cells", "../README.md"], ["run", "--clusters"], ["run", "--clusters", "many"],
    ["run", "--clusters", "2.5"], ["run", "--clusters", "1"], ["run", "--clusters", "-3"], ["run", "--clusters", "0"],
    ["run", "--clusters", "1000000000000"], ["run", "--seed", "x"], ["run", "--seed", "1.5"], ["run", "--preset", ""],
    ["run", "--preset", "Paper"], ["run", "--clustering", "KMeans"], ["run", "--clustering", ""], ["run", "--set"],
    ["run", "--data", "nowhere.npy"], ["run", "--data", "~nobody_of_this_name/x"], ["run", "--data", "a" * 5000],
    ["run", "--data", "/dev/null"], ["run", "--data", "README.md"], ["run", "--data", "https://example.org/x.zip"],
    ["run", "--out", "/dev/null"], ["run", "--out", "/dev/null/x"], ["run", "--out", "a" * 5000],
    ["run", "--out", "~nobody_of_this_name/x"], ["run", "--restart=maybe"], ["run", "--out"],
    ["run", "--set", "sampling.sampler=dpm-solver++", "--set", "sampling.steps=1000"],
]  # fmt: skip


def assert_command_refused(arguments, tmp_path, capfd):
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert re.fullmatch(r"error: [^\n]{20,}\.\n", printed.err), printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KPC_DATA", "embedded")
    arguments = ["run", "--preset", "demo", "--out", str(tmp_path / "out"), "--set", setting]
    assert_command_refused(arguments, tmp_path, capfd)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda arguments: " ".join(arguments)[:50] or "none")
def test_arguments(arguments, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KPC_DATA", "embedded")
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ["run"] and "--out" not in arguments:
        arguments = [*arguments[:1], "--out", str(tmp_path / "out"), *arguments[1:]]
    assert_command_refused(arguments, tmp_path, capfd)


def test_debug_shows_where(tmp_path):
    with pytest.raises(InputError):
        main(["run", "--debug", "--preset", "nonsense", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [(None, {}), (["demo"], {}), (3, {}), ("demo", [1]), ("demo", "training.epochs=2"), ("demo", {3: 1}), ("demo", 5)],
)
def test_settings_in_a_notebook(preset, overrides, tmp_path):
    with refused(tmp_path):
        get_settings(preset, overrides)


@pytest.mark.parametrize("out", [3, ["a"], "/dev/null/x", "~nobody_of_this_name", "a" * 5000])
def test_out_in_a_notebook(out, tmp_path):
    with refused(tmp_path):
        Paths(14, out)


# tiles


def header(text, version=b"\x01\x00"):
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + NPY[128:]


def described(descr="'|u1'", order="False", shape="(24, 64, 64, 3)", more=""):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}")


ARRAYS = {
    "empty": b"",
    "text": b"tiles, many of them",
    "magic alone": NPY[:6],
    "half a header": NPY[:60],
    "header alone": NPY[:128],
    "half": NPY[: len(NPY) // 2],
    "one byte short": NPY[:-1],
    "version 0": NPY.replace(b"NUMPY\x01", b"NUMPY\x00", 1),
    "version 9": NPY.replace(b"NUMPY\x01", b"NUMPY\x09", 1),
    "pickle": pickle.dumps(TILES),
    "objects": npy(np.array([{}, None], dtype=object), allow_pickle=True),
    "npz": (lambda b: np.savez(b, TILES) or b.getvalue())(io.BytesIO()),
    "zeros": bytes(1000),
    **{f"header {text[:30]!r}": header(text) for text in (
        "", "{", "{}", "[1, 2]", "None", "__import__('os').mkdir('pwned')", "(" * 116, "{'shape': (24,)}", "\x00" * 50,
        "{'descr': '|u1', 'fortran_order': False, 'shape': (24, 64, 64, 3), 'descr': '|u1', 'x': 0L}", "1_0a", "  \t",
    )},
    **{f"shape {shape}": described(shape=shape) for shape in (
        "24", "()", "(24,)", "(-24, 64, 64, 3)", "(24.0, 64, 64, 3)", "('24', 64, 64, 3)", "(0, 64, 64, 3)", "None",
        "(24, 0, 0, 3)", "(24, 64, 64)", "(24, 64, 64, 4)", "(24, 3, 64, 64)", "(24, 32, 128, 3)", "(24, 0, 64, 64, 3)",
        "(24000000, 64, 64, 3)", "(9999999999999999999999, 64, 64, 3)", "(2, 24, 64, 32, 3)", "[24, 64, 64, 3]",
        "(4, 6, 64, 64, 3, 1)", "(294912, 1)", "(1, 4096, 24, 3)", "(24, True, 4096, 3)",
    )},
    **{f"descr {descr}": described(descr) for descr in (
        "'nonsense'", "'|O'", "'<f8'", "'<u2'", "'|i1'", "'|b1'", "'<U3'", "'|S1'", "[('a', '|u1')]", "3", "None",
        "'|V1'", "('|u1', (3,))", "[]", "'<M8[ns]'", "'|u0'", "{'names': []}",
    )},
    **{f"order {order}": described(order=order) for order in ("0", "'C'", "None")},
    "a long header": NPY[:8] + struct.pack("<H", 60_000) + NPY[10:127].ljust(59_999) + NPY[127:],
    "one key more": described(more="'x': 1"),
    "float": npy(TILES / 255.0),
    "few": npy(TILES[:5]),
    "grey": npy(TILES[..., 0]),
    "flat": npy(TILES.reshape(24, -1)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiles.npy"
    path.write_bytes(ARRAYS[name])
    with refused(tmp_path, str(path)):
        load_tiles(path, 64)


@fuzz
@given(changes=st.lists(st.tuples(st.integers(6, 127), st.sampled_from(b"()[]{}'\",:0123456789 \n|uifOVS<>\0\xff-aT")),
                        min_size=1, max_size=8))  # fmt: skip
def test_array_headers(changes, tmp_path):
    content = bytearray(NPY)
    for place, byte in changes:
        content[place] = byte
    path = tmp_path / "tiles.npy"
    path.write_bytes(content)
    try:
        images = load_tiles(path, 64).images
    except InputError as error:
        assert re.fullmatch(r"[^\n]{30,}\.", str(error))  # noqa: PT017 - either may come
    else:
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 64, 64))


def png_of_size(width, height, depth=8, colour=2, data=b""):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(data))]
    parts = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def in_mode(mode, kind):
    image = Image.fromarray(TILE).convert("L" if mode in ("I;16", "F") else mode)
    buffer = io.BytesIO()
    (image.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(image).astype(np.uint16))).save(buffer, kind)
    return buffer.getvalue()


IMAGES = {
    "empty": b"",
    "text": b"not an image, whatever its name says",
    "zeros": bytes(500),
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "an array": NPY[:2000],
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nquit\n",
    "GIF": encode(TILE[..., 0], "GIF"),
    "BMP": encode(TILE, "BMP"),
    "WebP": encode(TILE, "WEBP"),
    "no width": png_of_size(0, 64),
    "no size": png_of_size(0, 0),
    "a decompression bomb": png_of_size(60_000, 60_000),
    "a smaller decompression bomb": png_of_size(10_000, 10_000),
    "claims more than it holds": png_of_size(64, 64),
    "colour type 9": png_of_size(64, 64, colour=9, data=bytes(64 * 193)),
    "depth 3": png_of_size(64, 64, depth=3, data=bytes(64 * 193)),
    "not square": encode(TILE[:32]),
    "another size": encode(TILES[1][:32, :32]),
    **{f"mode {mode}": in_mode(mode, kind) for mode, kind in (
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("F", "TIFF"), ("LAB", "TIFF"),
        ("L", "JPEG"), ("YCbCr", "TIFF"), ("I", "TIFF"),
    ) if mode != "YCbCr"},
    **{f"PNG cut at {share}": PNG[: int(len(PNG) * share)] for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)},
    **{f"JPEG cut at {share}": JPEG[: int(len(JPEG) * share)] for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)},
    **{f"PNG with bit {bit} flipped": flip(PNG, [bit]) for bit in range(8 * 41, 8 * len(PNG) - 200, len(PNG) // 2)},
    "PNG and JPEG": PNG[: len(PNG) // 2] + JPEG,
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, tmp_path, capfd):
    for number, tile in enumerate(TILES):
        (tmp_path / f"{number:02}.png").write_bytes(encode(tile))
    (tmp_path / "99.png").write_bytes(IMAGES[name])
    why = ["decompression bomb"] if "bomb" in name else []  # before its pixels take any memory
    with refused(tmp_path, str(tmp_path / "99.png"), *why):
        load_tiles(tmp_path, 64)
    assert capfd.readouterr().err == ""


@fuzz
@given(kind=st.sampled_from(["PNG", "JPEG"]), cut=st.floats(0, 0.98))
def test_images_that_end_too_soon(kind, cut, tmp_path):
    content = {"PNG": PNG, "JPEG": JPEG}[kind]
    (tmp_path / "99.png").write_bytes(content[: int(len(content) * cut)])
    with refused(tmp_path, "99.png"):
        load_tiles(tmp_path, 64)


@fuzz
@given(bits=st.lists(st.integers(0, 8 * len(PNG)), min_size=1, max_size=20))
def test_images_with_flipped_bits(bits):
    """A PNG has checksums: no pixel may change unnoticed."""
    try:
        image = decode("tile.png", flip(PNG, bits)).image
    except InputError as error:
        assert re.fullmatch(r"[^\n]{30,}\.", str(error))  # noqa: PT017 - either may come
    else:
        np.testing.assert_array_equal(image.permute(1, 2, 0), TILE)


def packed(compression=zipfile.ZIP_STORED, tiles=TILES):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for number, tile in enumerate(tiles):
            archive.writestr(f"slide/{number:02}.png", encode(tile))
    return buffer.getvalue()


ZIP = packed()
ENCRYPTED = bytearray(ZIP)
for place in [m.start() + 6 for m in re.finditer(b"PK\x03\x04", ZIP)] + [
    m.start() + 8 for m in re.finditer(b"PK\x01\x02", ZIP)
]:
    ENCRYPTED[place] |= 1  # the flag that says so
DIRECTORY = ZIP.index(b"PK\x01\x02")
FIRST = ZIP.index(b"IDAT") + 20  # inside the first tile's pixels

ARCHIVES = {
    "empty": b"",
    "text": b"not an archive",
    "start alone": ZIP[:500],
    "without its end": ZIP[:-30],
    "half": ZIP[: len(ZIP) // 2],
    "without its start": ZIP[len(ZIP) // 2 :],
    "encrypted": bytes(ENCRYPTED),
    "wrong checksum": flip(ZIP, [8 * FIRST]),
    "unknown compression": ZIP.replace(ZIP[DIRECTORY : DIRECTORY + 12], ZIP[DIRECTORY : DIRECTORY + 10] + b"\x63\x00"),
    "no files": (lambda b: zipfile.ZipFile(b, "w").close() or b.getvalue())(io.BytesIO()),
    "too few tiles": packed(tiles=TILES[:3]),
    "a tar": b"slide/00.png".ljust(100, b"\0") + b"0000644\0" + bytes(404) + PNG,
    **{f"damaged {kind}": flip(packed(kind), [8 * 300 + 1, 8 * 310 + 5]) for kind in (
        zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA,
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name, tmp_path):
    path = tmp_path / "tiles.zip"
    path.write_bytes(ARCHIVES[name])
    with refused(tmp_path, str(path)):
        load_tiles(path, 64)


@fuzz
@given(bits=st.lists(st.integers(0, 8 * len(ZIP)), min_size=1, max_size=20))
def test_archives_with_flipped_bits(bits, tmp_path):
    path = tmp_path / "tiles.zip"
    path.write_bytes(flip(ZIP, bits))
    try:
        images = load_tiles(path, 64).images
    except InputError as error:
        assert re.fullmatch(r"[^\n]{30,}\.", str(error))  # noqa: PT017 - either may come
    else:  # a name may have changed, a pixel may not
        assert {tile.tobytes() for tile in as_array(images)} <= {tile.tobytes() for tile in TILES}


@pytest.mark.parametrize("name", ["empty", "half"])
def test_wrong_tiles_on_the_command_line(name, tmp_path, monkeypatch, capfd):
    data = tmp_path.parent / f"{tmp_path.name}.zip"
    data.write_bytes(ARCHIVES[name])
    arguments = ["run", "--preset", "demo", "--data", str(data), "--out", str(tmp_path / "out")]
    assert_command_refused(arguments, tmp_path, capfd)


# the CSV of part 5

ROW = b"0.25,0.75,1,0.9\n"
TABLES = {
    "empty": b"",
    "blank lines": b"\n\n\n",
    "text": b"no numbers here",
    "a header": b"a,b,cluster,probability\n" + ROW,
    "a word": b"0.25,many,1,0.9\n",
    "two columns": b"1,0.9\n" * 3,
    "one column": b"1\n2\n",
    "semicolons": ROW.replace(b",", b";"),
    "a longer row": ROW + b"0.25,0.75,1,0.9,3\n",
    "a shorter row": ROW + b"0.25,0.75,1\n",
    "an empty field": b"0.25,,1,0.9\n",
    "no cluster": b"0.25,0.75,,0.9\n",
    "NaN": b"0.25,nan,1,0.9\n",
    "cluster NaN": b"0.25,0.75,nan,0.9\n",
    "infinite": b"0.25,inf,1,0.9\n",
    "cluster 1.5": ROW + b"0.25,0.75,1.5,0.9\n",
    "cluster -1": b"0.25,0.75,-1,0.9\n",
    "cluster k": b"0.25,0.75,3,0.9\n",
    "cluster 1e30": b"0.25,0.75,1e30,0.9\n",
    "decimal commas": b'"0,25","0,75",1,"0,9"\n',
    "open quote": b'0.25,"0.75,1,0.9\n',
    "not UTF-8": b"\xff\xfe0\x00.\x002\x00,\x00",
    "zero bytes": bytes(100),
    "an image": PNG,
    "a web page": IMAGES["a web page"],
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    path = tmp_path / "HHH3_C3_D3.csv"
    path.write_bytes(TABLES[name])
    with refused(tmp_path, str(path)):
        read_latent_csv(path, 3)
    if name not in ("cluster k", "cluster 1e30"):  # parts 10 to 12 need no more than one cluster a tile
        with refused(tmp_path, str(path)):
            latents.pair_cluster_ids(path, ["1"])


def test_a_right_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(ROW + b"0.5,0.5,0,1.0\n")
    features, clusters, _ = read_latent_csv(tmp_path / "a.csv", 3)
    assert features.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert clusters.tolist() == [1, 0]


@fuzz
@given(content=st.binary(max_size=60) | st.text("0123456789.,-+eEnaif\n\"' ;\t", max_size=60).map(str.encode))
def test_tables_of_anything(content, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    try:
        features, clusters, _ = read_latent_csv(path, 3)
    except InputError as error:
        assert re.fullmatch(r"[^\n]{30,}\.", str(error))  # noqa: PT017 - either may come
    else:
        assert np.isfinite(features).all()
        assert set(clusters.tolist()) <= {0, 1, 2}


POINTS = [[0.0, 0.0], [1.0, 0.0], [4.0, 4.0], [5.0, 4.0]]
CLUSTERINGS = {
    "one cluster": (POINTS, [0, 0, 0, 0]),
    "a cluster for each point": (POINTS, [0, 1, 2, 3]),
    "too few labels": (POINTS, [0, 0, 1]),
    "labels in two columns": (POINTS, [[0, 0], [0, 1], [1, 0], [1, 1]]),
    "missing label": (POINTS, [0.0, 0.0, 1.0, float("nan")]),
    "NaN": ([*POINTS[:3], [5.0, float("nan")]], [0, 0, 1, 1]),
    "infinite": ([*POINTS[:3], [5.0, float("inf")]], [0, 0, 1, 1]),
    "one axis": ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]),
    "no points": (np.empty((0, 2)), []),
    "text": ([["a", "b"]] * 4, [0, 0, 1, 1]),
}


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_indices(name):
    with pytest.raises(ValueError, match=r"^[^\n]{20,}$"):
        all_indices(*CLUSTERINGS[name])


# checkpoints

STATE = Classifier(4, 3, 8).state_dict()
WEIGHT = "classifier.conv1.weight"


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def changed(name=WEIGHT, value=None, **more):
    state = {**copy.deepcopy(STATE), name: value, **more}
    return {key: tensor for key, tensor in state.items() if tensor is not None}


def with_one(value):
    weight = STATE[WEIGHT].clone()
    weight.view(-1)[5] = value
    return changed(value=weight)


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


SOUND = saved(STATE)
W = STATE[WEIGHT]
VALUES = {
    "payload": {WEIGHT: Payload()},
    "payload beside": changed(extra=Payload()),
    "whole network": Classifier(4, 3, 8),
    "list": [1, 2],
    "number": 3,
    "text": "weights",
    "None": None,
    "tensor": W,
    "nothing": {},
    "numbers": dict.fromkeys(STATE, 1.0),
    "wrapped": {"state_dict": STATE},
    "names of DataParallel": {f"module.{name}": tensor for name, tensor in STATE.items()},
    "one missing": changed(),
    "one more": changed(extra=torch.zeros(3)),
    "one renamed": changed(weight=W),
    "number for a name": changed(name=5, value=W),
    "another k": Classifier(4, 5, 8).state_dict(),
    "another width": Classifier(4, 3, 16).state_dict(),
    "other latents": Classifier(16, 3, 8).state_dict(),
    "autoencoder": VQVAE(**get_settings("demo", TINY).autoencoder.vqvae).state_dict(),
    "transposed": changed(value=W.transpose(0, 1)),
    "flat": changed(value=W.flatten()),
    "scalar": changed(value=torch.tensor(1.0)),
    "empty": changed(value=torch.empty(0)),
    "sparse": changed(value=W.to_sparse()),
    "without memory": changed(value=W.to("meta")),
    **{str(kind): changed(value=W.to(kind)) for kind in (
        torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64,
    )},
    "count as float": changed(name="classifier.bnor1.num_batches_tracked", value=torch.tensor(1.0)),
    **{f"one {number}": with_one(number) for number in (float("nan"), float("inf"), -float("inf"))},
}  # fmt: skip
CHECKPOINTS = {name: saved(value) for name, value in VALUES.items()} | {
    "payload, old format": saved(VALUES["payload"], _use_new_zipfile_serialization=False),
    "payload, plain pickle": pickle.dumps(Payload()),
    "plain pickle": pickle.dumps({WEIGHT: W.numpy()}),
    "no bytes": b"",
    "plain text": b"not a checkpoint",
    "an image": PNG,
    "an archive": ZIP,
    "a web page": IMAGES["a web page"],
    **{f"cut at {share}": SOUND[: int(len(SOUND) * share)] for share in (0.01, 0.3, 0.6, 0.9, 0.99)},
    "old format, cut": saved(STATE, _use_new_zipfile_serialization=False)[:-100],
    "flipped bit of a weight": flip(SOUND, [8 * (SOUND.index(W.numpy().tobytes()) + 41)]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "classifier.pth"
    path.write_bytes(CHECKPOINTS[name])
    network = Classifier(4, 3, 8)
    before = checkpoints.fingerprint(network)
    with refused(tmp_path, str(path)):  # also: nothing in the file was executed
        load_weights(network, path)
    assert checkpoints.fingerprint(network) == before
    assert capfd.readouterr().err == ""


@fuzz
@given(bits=st.lists(st.integers(0, 8 * len(SOUND)), min_size=1, max_size=20))
def test_checkpoints_with_flipped_bits(bits, tmp_path):
    path = tmp_path / "classifier.pth"
    path.write_bytes(flip(SOUND, bits))
    network = Classifier(4, 3, 8)
    try:
        load_weights(network, path)
    except InputError as error:
        assert re.fullmatch(r"[^\n]{30,}\.", str(error))  # noqa: PT017 - either may come
    else:  # the bits were none of a weight's
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in network.state_dict().items())


NOTES = {"text": "{", "list": "[1]", "number": "3", "NaN": "{NaN}", "deep": "[" * 100_000, "bytes": "\0\0", "empty": ""}


@pytest.mark.parametrize("name", NOTES)
def test_notes_beside_checkpoints(name, tmp_path):
    paths = Paths(3, tmp_path)
    path = paths.models / "classifier_training_ckpt_20250127_600_3.pth"
    save_weights(Classifier(16, 3), path, {"clustering": "classifier"})
    path.with_suffix(".json").write_text(NOTES[name])
    with refused(tmp_path, "json"):
        checkpoints.find_checkpoint(paths, "classifier", "training", "classifier")
    paths.summary.write_text(NOTES[name])
    with refused(tmp_path, "json"):
        tables.record(paths.summary, "section", {})


def test_an_autoencoder_that_is_a_folder(tmp_path):
    paths = Paths(3, tmp_path)
    paths.autoencoder.mkdir(parents=True)
    with refused(tmp_path, str(paths.autoencoder)):
        load_autoencoder(paths, get_settings("demo", TINY), "cpu")


# resume points

IDENTITY = {"seed": 1, "settings": {"epochs": 2}}
KEPT = {"step": 1, "history": [], "sums": {}, "counts": {}, "seconds": 0.0, "counters": {}, "parts": {}}
POINTS_TO_RESUME = {
    "payload": {"identity": json.dumps(IDENTITY), "state": Payload()},
    "list": [1, 2],
    "nothing": {},
    "state alone": {"state": KEPT},
    "identity alone": {"identity": json.dumps(IDENTITY)},
    "identity as a list": {"identity": "[1]", "state": KEPT},
    "identity as a number": {"identity": 3, "state": KEPT},
    "identity as text": {"identity": "seed 1", "state": KEPT},
    "state as text": {"identity": json.dumps(IDENTITY), "state": "step 1"},
    "no state": {"identity": json.dumps(IDENTITY), "state": None},
    "another seed": {"identity": json.dumps({**IDENTITY, "seed": 2}), "state": KEPT},
    "a checkpoint": STATE,
}
RESUME_FILES = {name: saved(value) for name, value in POINTS_TO_RESUME.items()} | {
    "text": b"not a resume point", "no bytes": b"", "truncated": SOUND[:5000], "an image": PNG,
}  # fmt: skip


@pytest.mark.parametrize("name", RESUME_FILES)
def test_resume_points(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resume.pt").write_bytes(RESUME_FILES[name])
    with refused(tmp_path, "resume.pt"):
        load_resume_point(tmp_path, IDENTITY)


LACKING = {
    **{f"no {name}": {key: value for key, value in KEPT.items() if key != name} for name in ("step", "parts")},
    "sums of text": {**KEPT, "sums": {"mse": "many"}},
    "parts of nothing": KEPT,
    "parts of text": {**KEPT, "parts": {"unet": "weights", "optimizer": {}}},
    "another network": {**KEPT, "parts": {"unet": STATE, "optimizer": {}}},
    "an empty optimiser": {**KEPT, "parts": {"unet": None, "optimizer": {}}},
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_resume_points_of_something_else(name, tmp_path, tiny):
    unet, clusters = UNet(16, 3, **tiny.diffusion.unet), Classifier(16, 3)
    state = copy.deepcopy(LACKING[name])
    if state.get("parts", {}).get("unet", 0) is None:
        state["parts"]["unet"] = unet.state_dict()
    save_resume_point(tmp_path, IDENTITY, state)
    job = Job("finetuning1", 7, 8, tmp_path, IDENTITY, tiny.saving, EAGER)
    codes = torch.zeros(24, 12, 12, dtype=torch.uint8)
    vqvae = make_vqvae(tiny.autoencoder)
    with refused(tmp_path, "resume.pt", "set restart = True"):
        train_stage(
            unet=unet, bank=ClusterBank([clusters]), space=LatentSpace(vqvae), images=codes, codes=codes,
            settings=tiny.diffusion, stage=tiny.finetuning1, job=job,
        )  # fmt: skip
