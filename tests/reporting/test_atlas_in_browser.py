"""The atlas in headless Chromium: the page from the disk, the form in JupyterLab as a hub serves it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest

from pfiles.cli.execute import with_parameters
from pfiles.paths import ROOT
from pfiles.reporting import atlas
from tests.conftest import K, make_tiles, opened, parameters, train
from tests.reporting.conftest import HOSTILE, make_atlas

PATIENCE = 120  # seconds on a busy machine


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    *_, rows = make_atlas()
    atlas.write_page(rows, {1: HOSTILE, 2: "keratin"}, "test tiles", path)
    return path


@pytest.fixture
def page(browser, written):
    """The page, opened from the disk, with what it asked for and what it ran."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.urls, page.alerts = [], []
    page.on("request", lambda request: page.urls.append(request.url))
    page.on("dialog", lambda dialog: (page.alerts.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.alerts.append(str(error)))
    page.goto(written.as_uri())
    return page


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_the_page_needs_nothing_else(page, written, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert [url for url in page.urls if not url.startswith("data:")] == [written.as_uri()]
    assert page.alerts == []
    assert page.locator("h2").first.inner_text().endswith(HOSTILE)
    pictures = page.locator("img[src]")
    assert pictures.count() == 3 * 4  # three squares and a map
    assert pictures.evaluate_all("all => all.every(img => img.complete && img.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tile = page.locator(".square img").first.bounding_box()["width"] / 4
    assert page.locator(".scale").first.bounding_box()["width"] == pytest.approx(tile * 20 / 48, abs=1)
    tops = page.locator("#cluster-1 .square").evaluate_all("all => all.map(x => x.getBoundingClientRect().top)")
    assert len(set(tops)) == (1 if width >= 800 else 3)  # side by side, or one below the other


def test_the_page_is_used_from_the_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#cluster-1"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash === '#cluster-2'")
    page.keyboard.press("Tab")
    dialog = page.locator("dialog")
    assert not dialog.is_visible()
    page.keyboard.press("Enter")
    dialog.wait_for()
    assert dialog.locator("b").inner_text() == "Nearest to its centre: 16 tiles of cluster 2"
    page.keyboard.press("ArrowRight")
    assert dialog.locator("b").inner_text() == "At its border: 4 tiles of cluster 2"
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for_function("document.activeElement.alt === 'At its border: 4 tiles of cluster 2'")


@contextmanager
def lab(tmp_path, name, book, disabled=()):
    """JupyterLab below the address that a hub gives a user, with a notebook, and without some of its extensions."""
    home = tmp_path / "home"
    (home / name).parent.mkdir(parents=True)
    for package in ("pfiles", "MODULE"):
        (home / package).symlink_to(ROOT / package)
    nbformat.write(book, home / name)
    (tmp_path / "CONFIG" / "labconfig").mkdir(parents=True)
    without = {"disabledExtensions": dict.fromkeys(disabled, True)}
    (tmp_path / "CONFIG" / "labconfig" / "page_config.json").write_text(json.dumps(without))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with open(tmp_path / "server.txt", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
             "--ServerApp.port_retries=0", "--ServerApp.base_url=/user/me/", "--IdentityProvider.token=secret",
             f"--ServerApp.root_dir={home}", "--expose-app-in-browser"],
            env=os.environ | folders | {"IPYTHONDIR": str(tmp_path / "ipython")}, stdout=log, stderr=log,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}/user/me"
    try:
        wait_for(lambda: f"{address}/lab" in (tmp_path / "server.txt").read_text() or server.poll() is not None)
        yield f"{address}/lab/tree/{name}?token=secret"
    finally:
        server.terminate()
        server.wait()


def run_all_cells(page, address):
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.sessionContext.session?.kernel")
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")  # without waiting for its end


def wait_for(done):
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def atlas_in_lab(tmp_path):
    """The notebook of the atlas for a tiny run in JupyterLab, and where names go."""
    np.save(tmp_path / "tiles.npy", make_tiles(44))
    train(opened(tmp_path, clustering="kmeans"))
    name = "clusters_14/part_16_cluster_atlas.ipynb"
    book = with_parameters(ROOT / name, parameters(tmp_path, clustering="kmeans", reader="anna"))
    with lab(tmp_path, name, book) as address:
        yield address, tmp_path / "out" / f"clusters_{K}" / "names_anna.json"
    shutil.rmtree(tmp_path / "home" / "clusters_14")


def test_a_name_typed_in_jupyterlab_is_in_the_file(atlas_in_lab, browser):
    address, file = atlas_in_lab
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    urls = []
    page.on("request", lambda request: urls.append(urlsplit(request.url).hostname))
    run_all_cells(page, address)
    names = page.locator("input[placeholder=name]")
    names.nth(K - 1).wait_for()
    names.nth(1).press_sequentially("=<b>keratin</b>")
    wait_for(lambda: file.exists() and "keratin</b>" in file.read_text())
    [entries] = json.loads(file.read_text())["clusters"].values()
    assert {number: entry["name"] for number, entry in entries.items()} == {"2": "=<b>keratin</b>"}
    page.get_by_text("saved", exact=True).wait_for()
    images = page.locator(".atlas img")
    assert images.count() == 3 * K - page.get_by_text(": none").count()
    assert images.evaluate_all("all => all.every(img => img.naturalWidth > 0)")
    assert set(urls) - {None} == {"127.0.0.1"}


MANAGER = "@jupyter-widgets/jupyterlab-manager"  # JupyterLab's front end for widgets
BAR = """
import time
from pfiles.machine.processes import progress
for step in progress(range(30), desc="told", unit="step"):
    time.sleep(0.2)
"""


def test_a_bar_moves_where_the_widget_front_end_is_missing(tmp_path, browser):
    """A widget stays a line of text there, so that it is sure that the server lacks the front end."""
    widget = "import ipywidgets\nipywidgets.IntProgress(value=3, max=9)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (widget, BAR)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    with lab(tmp_path, "bar.ipynb", book, [MANAGER]) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        run_all_cells(page, address)
        page.locator("pre", has_text="IntProgress(value=3, max=9)").wait_for()
        assert page.locator(".jupyter-widgets").count() == 0
        texts = set()
        bar = page.locator("pre", has_text="told:")
        bar.wait_for()
        wait_for(lambda: texts.add(bar.inner_text().split("|")[0]) or "told: 100%" in texts)
        assert len(texts) > 4
        assert bar.count() == 1  # renewed in place
        assert "30/30" in bar.inner_text()
