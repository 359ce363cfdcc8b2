"""README and docs: short enough, their links lead somewhere, their commands parse, their settings are real and true."""

import ast
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass

import nbformat
import pytest

from pfiles.cli.parser import make_parser
from pfiles.paths import ROOT
from pfiles.settings import PRESETS, REMOVED, Settings, get_settings

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")), *DOCS]
NOTEBOOKS = sorted([*ROOT.glob("*.ipynb"), *ROOT.glob("clusters_14/*.ipynb")])
COMMAND = re.compile(r"-m ((?:pfiles|experiments\.\w+) --?\w.*|(?:pfiles|experiments\.\w+) \w+ .*)")


def name(path):
    return path.name


def text_of(path):
    """A page, or the markdown of a notebook."""
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text):
    """What follows `python -m` or `torchrun ... -m` in indented blocks, lines joined, and within backquotes."""
    blocks = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    return [match[1] for code in (*blocks, *re.findall(r"`([^`]+)`", text)) if (match := COMMAND.search(code))]


def leaves(settings, prefix=""):
    """{"training.epochs": 600, ...}"""
    flat = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        path = prefix + field.name
        flat |= leaves(value, f"{path}.") if is_dataclass(value) else {path: value}
    return flat


def as_written(value):
    """A setting's value as docs/settings.md prints it."""
    if isinstance(value, dict):
        return "its own" if value else "default"
    if isinstance(value, tuple):
        return ", ".join(map(as_written, value))
    words = {None: "none", True: "on", False: "off"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows(text):
    """The cells of every row of every table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for target, _, anchor in (link.partition("#") for link in links if "://" not in link):
        file = page if not target else page.parent / target
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_readme_names_every_page():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in readme] == []


def test_readme_is_short():
    """What a stranger reads first is read to its end."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_glossary_explains_each_term_once_and_is_linked():
    """25 to 40 terms, each under a heading of its own, so that pages can link to it."""
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    terms = [term for heading in headings for term in re.sub(r" \(.*\)", "", heading).split(", ")]
    assert 25 <= len(headings) <= 40
    assert len({term.lower() for term in terms}) == len(terms)
    linked = {page.name for page in PAGES if re.search(r"\((docs/)?glossary\.md#", page.read_text())}
    assert linked >= {
        "README.md",
        "numbers.md",
        "own_tiles.md",
        "settings.md",
        "slides.md",
        "choosing_k.md",
        "atlas.md",
    }


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_commands_parse(page):
    for command in commands(text_of(page)):
        module, *arguments = shlex.split(command)
        parser = make_parser() if module == "pfiles" else importlib.import_module(module)._parser()
        args = vars(parser.parse_args(arguments))
        changed = dict(pair.split("=") for pair in args.get("overrides") or [])
        assert changed.keys() <= leaves(Settings()).keys()
        if args.get("preset"):
            get_settings(args["preset"])


def test_commands_are_found_in_blocks_and_in_backquotes():
    """The other tests look at what they are meant to look at."""
    text = """Run `python -m pfiles watch --out DIR`, or

    torchrun --nproc-per-node 4 \\
        -m pfiles cells part_1_training --out DIR

and then python -m pfiles run: `python -m experiments.copies --size 64`, `make demo`."""
    assert commands(text) == [
        "pfiles cells part_1_training --out DIR", "pfiles watch --out DIR", "experiments.copies --size 64"
    ]  # fmt: skip
    assert "pfiles draw --from starter --number 64 --out drawn" in commands(text_of(ROOT / "README.md"))


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_settings_exist(page):
    text, settings = text_of(page), leaves(Settings())
    groups = {path.partition(".")[0] for path in settings if "." in path}
    code = re.findall(r"`([^`]+)`", text) + re.findall(r"^    .*$", text, re.MULTILINE)
    named = {path for part in code for path in re.findall(r"\b[a-z_0-9]+(?:\.[a-z_0-9]+)+\b", part)}
    assert {path for path in named if path.partition(".")[0] in groups} <= {*settings, *REMOVED}
    for overrides in re.findall(r"overrides = \{(.*?)\}", text, re.DOTALL):
        assert set(re.findall(r'"([\w.]+)":', overrides)) <= settings.keys()


def test_every_setting_is_explained_with_its_true_values():
    """Those of the stages stand in a table of their own, a row for each stage and preset."""
    table = rows((ROOT / "docs" / "settings.md").read_text())
    values = {preset: leaves(settings) for preset, settings in PRESETS.items()}
    stages = ("clusters", "training", "finetuning1", "finetuning2")
    explained = {row[0].strip("`"): row[1:] for row in table if len(row) == 5 and row[0].startswith("`")}
    expected = {path for path in values["paper"] if path.partition(".")[0] not in stages}
    assert explained.keys() == expected
    for path, (*cells, sentence) in explained.items():
        assert cells == [as_written(of[path]) for of in values.values()], path
        assert sentence.endswith("."), path

    [header] = [row for row in table if row[0] == "stage, preset"]
    names = [cell.strip("`") for cell in header[1:]]
    assert names == [field.name for field in fields(Settings().training)]
    assert set(names) <= {row[0].strip("`") for row in table if len(row) == 2}
    shown_stages = [row for row in table if len(row) == len(header) and row[0].startswith("`")]
    expected_rows = {f"`{s}`, {p}" for s in stages for p in PRESETS if s != "clusters" or PRESETS[p].clusters_first}
    assert {row[0] for row in shown_stages} == expected_rows
    for row in shown_stages:
        stage, preset = row[0].replace("`", "").split(", ")
        assert row[1:] == [as_written(values[preset][f"{stage}.{name}"]) for name in names], row[0]


def test_picture_of_artefacts_is_made_from_their_table():
    script = runpy.run_path(str(ROOT / "docs" / "site" / "artifacts.py"))
    assert script["diagram"]() == (ROOT / "docs" / "artifacts.svg").read_text()
    assert script["direct_parents"]("generated images") == ["UNet after finetuning2"]
    assert script["depth"]("generated images") == 6


def test_diagram_is_that_of_its_script():
    """Tiles in it are left out, as compressed pictures differ between versions of Pillow."""
    diagram = runpy.run_path(str(ROOT / "docs" / "site" / "pipeline.py"))["diagram"]
    svg = (ROOT / "docs" / "pipeline.svg").read_text()
    assert re.sub(r"base64,[^\"]*", "", diagram()) == re.sub(r"base64,[^\"]*", "", svg)
    assert len(svg) < 2**17


def build_site(docs, out, run):
    """docs/site/build.py of a copy of the repository's pages."""
    command = [sys.executable, str(docs / "site" / "build.py"), "--out", str(out), "--run", str(run)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_site_holds_pages_api_and_an_executed_run(tmp_path):
    """Warnings are errors, so that every link of every page leads somewhere."""
    book = nbformat.v4.new_notebook()
    output = nbformat.v4.new_output("stream", text="shown in the demo")
    links = "[one](part_2.ipynb), [two](../train.ipynb), [three](../docs/glossary.md#guidance), [four](absent.ipynb)"
    book.cells = [nbformat.v4.new_code_cell("print()", execution_count=1, outputs=[output])]
    book.cells.append(nbformat.v4.new_markdown_cell(links + " and $x^2$"))
    (tmp_path / "run" / "executed" / "clusters_6").mkdir(parents=True)
    for name in ("clusters_6/part_1_training", "clusters_6/part_2", "train"):
        nbformat.write(book, tmp_path / "run" / "executed" / f"{name}.ipynb")
    site = tmp_path / "site"
    done = build_site(ROOT / "docs", site, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "label-free" in (site / "index.html").read_text().lower()
    executed = site / "notebooks" / "clusters_6" / "part_1_training" / "index.html"
    assert "shown in the demo" in executed.read_text()
    assert "four and $x^2$" in re.sub(r"<[^>]+>", "", executed.read_text())
    leads = dict(re.findall(r'<a [^>]*href="([^"#]+/)[^"]*"[^>]*>(one|two|three)</a>', executed.read_text()))
    assert leads == {"../part_2/": "one", "../../train/": "two", "../../../glossary/": "three"}
    assert all((executed.parent / lead / "index.html").exists() for lead in leads)
    module = runpy.run_path(str(ROOT / "pfiles" / "errors.py"))
    assert module["__doc__"] in (site / "api" / "pfiles.errors" / "index.html").read_text()
    assert (site / "pipeline.svg").exists()
    pages = "".join(page.read_text() for page in site.rglob("*.html"))
    assert "fonts.googleapis.com" not in pages


@pytest.mark.slow
def test_site_refuses_a_link_that_leads_nowhere(tmp_path):
    for name in ("docs", "pfiles", "MODULE", "weights/starter"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for page in (*PAGES[:4], ROOT / "LICENSE", ROOT / "CITATION.cff"):
        shutil.copy(page, tmp_path)
    glossary = tmp_path / "docs" / "glossary.md"
    glossary.write_text(glossary.read_text() + "\n[more](numbers.md#no-such-heading)\n")
    done = build_site(tmp_path / "docs", tmp_path / "site", tmp_path / "run")
    assert done.returncode == 1
    assert "no-such-heading" in done.stderr
    assert not (tmp_path / "site").exists()


def sources():
    """Of every module and every notebook's code, by path."""
    code = {path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / "pfiles").rglob("*.py"))}
    for notebook in NOTEBOOKS:
        cells = (cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
        code[notebook.relative_to(ROOT)] = "\n".join(cells)
    return code


def test_every_picture_of_tiles_is_told_its_scale():
    """So that it has a bar wherever the scale is known."""
    pictures = {"show_tiles", "show_rows", "show_pairs", "show_pair_rows", "cluster_sheet"}
    for path, source in sources().items():
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in pictures:
                assert re.search(r"\bmpp\b", ast.unparse(call)), f"{path}: {ast.unparse(call)}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_no_figure_is_shown_twice(notebook):
    """A cell whose last value is a figure shows it once as its value, and once as an open figure."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        lines = cell.source.rstrip().splitlines() if cell.cell_type == "code" else []
        assert not lines or not re.match(r"figures\.(show|plot)_.*[^;]$", lines[-1]), lines[-1]
