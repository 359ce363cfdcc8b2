"""Builds a static web site of docs, API and, where a run was executed, its notebooks: python docs/site/build.py

Everything is put together in a temporary folder, without the network; a broken link or any other warning is an error.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pfiles", "MODULE")
PAGES = {  # files of the repository that become pages, beside docs/*.md, or are copied for them
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "weights/starter/README.md": "starter/index.md",
    "weights/starter/sheet.jpg": "starter/sheet.jpg",
    "weights/starter/config.json": "starter/config.json",
    "LICENSE": "LICENSE",
    "CITATION.cff": "CITATION.cff",
}
CONFIG = {
    "site_name": "kpc-ldm",
    "site_description": "Label-free conditional latent diffusion for histopathology",
    "theme": {
        "name": "material",
        "font": False,  # those of the reader's system: nothing is loaded from elsewhere
        "features": ["navigation.tabs", "navigation.indexes", "navigation.top", "content.code.copy"],
        "palette": [
            {"media": "(prefers-color-scheme: light)", "scheme": "default", "primary": "deep purple"},
            {"media": "(prefers-color-scheme: dark)", "scheme": "slate", "primary": "deep purple"},
        ],
    },
    "markdown_extensions": [
        "admonition",
        "attr_list",
        "md_in_html",
        "tables",
        "pymdownx.highlight",
        "pymdownx.superfences",
    ],
    "plugins": [
        "search",
        {
            "mkdocstrings": {
                "handlers": {
                    "python": {
                        "options": {
                            "docstring_style": None,  # plain sentences
                            "show_root_toc_entry": False,
                            "merge_init_into_class": True,
                            "show_source": False,
                            "members_order": "source",
                            "heading_level": 2,
                            "separate_signature": True,
                            "show_signature_annotations": True,
                        }
                    }
                }
            }
        },
        {"mkdocs-jupyter": {"execute": False, "include_source": True}},
    ],
    "validation": {"links": {"anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"}},
}


def site_path(target: str) -> str | None:
    """Where a file of the repository lies in the site; None where it is not part of it."""
    if target in PAGES:
        return PAGES[target]
    path = PurePosixPath(target)
    if path.parts[0] == "docs" and path.suffix != ".py":
        return str(path.relative_to("docs"))
    if path.parts[0] in PACKAGES and path.suffix == ".py":
        return f"api/{module_name(path)}.md"
    return None


def module_name(path: PurePosixPath) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)((?:#[^)\s]*)?)\)")


def led(text: str, lead: Callable[[str], str | None]) -> str:
    """A text whose relative links lead where `lead` says; a link for which it knows no place becomes text."""

    def replaced(match: re.Match[str]) -> str:
        bang, words, target, anchor = match.groups()
        if not target or ":" in target:
            return match[0]
        path = lead(target)
        return f"{bang}[{words}]({path}{anchor})" if path else words

    return LINK.sub(replaced, text)


def page(source: str) -> str:
    """The text of a page, whose links lead to the site's files; a link to a file that the site lacks becomes text."""
    here, there = PurePosixPath(source).parent, PurePosixPath(site_path(source)).parent

    def lead(target: str) -> str | None:
        path = site_path(os.path.normpath(here / target))
        return os.path.relpath(path, there) if path else None

    return led((ROOT / source).read_text(), lead)


def write_docs(folder: Path) -> list[dict[str, object]]:
    """Write the hand-written pages; returns their entries of the menu, in the order of README's table."""
    sources = [*PAGES, *(f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*"))]
    for source in sources:
        target = site_path(source)
        if target is None or (ROOT / source).is_dir():
            continue
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            (folder / target).write_text(page(source))
        else:
            shutil.copy(ROOT / source, folder / target)
    links = re.findall(r"^\| \[([^\]]+)\]\(docs/([\w.]+)\)", (ROOT / "README.md").read_text(), re.MULTILINE)
    project = {"Starter": "starter/index.md", "Contributing": "contributing.md", "Changes": "changelog.md"}
    return [
        {"Start": "index.md"},
        {"Guide": [{title: file} for title, file in links]},
        {"Project": [*({title: file} for title, file in project.items()), {"Security": "security.md"}]},
    ]


def write_api(folder: Path) -> dict[str, object]:
    """Write a page for each module; returns the entry of the menu."""
    (folder / "api").mkdir()
    entries = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = module_name(PurePosixPath(path.relative_to(ROOT)))
            if path.name == "__init__.py" or not path.stem.startswith("_"):
                (folder / "api" / f"{name}.md").write_text(f"# {name}\n\n::: {name}\n")
                entries.append({name: f"api/{name}.md"})
    return {"API": entries}


def write_notebooks(folder: Path, run: Path) -> dict[str, object] | None:
    """Copy the executed notebooks of a run; returns the entry of the menu, None where there are none."""
    notebooks = sorted((run / "executed").rglob("*.ipynb"), key=lambda path: path.stat().st_mtime)
    targets = {
        path.stem.removesuffix("_kmeans"): PurePosixPath("notebooks", *path.relative_to(run / "executed").parts)
        for path in notebooks
    }

    def address(page: PurePosixPath, link: str) -> str | None:
        """Where a link of an executed notebook leads in the site, seen from the notebook's `page`."""
        name, here = PurePosixPath(link), "clusters_14" if page.stem.startswith("part_") else ""
        file = (
            targets.get(name.stem)
            if name.suffix == ".ipynb"
            else site_path(os.path.normpath(f"{here}/{link}".lstrip("/")))
        )
        if file is None:
            return None
        path = PurePosixPath(file)
        if path.suffix not in (".ipynb", ".md"):
            return os.path.relpath(path, page.with_suffix(""))
        folder = path.parent if path.stem == "index" else path.with_suffix("")  # which mkdocs makes of a page
        return f"{os.path.relpath(folder, page.with_suffix(''))}/"

    for path in notebooks:
        target = targets[path.stem.removesuffix("_kmeans")]
        book = json.loads(path.read_text())
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = led("".join(cell["source"]), partial(address, target))
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(json.dumps(book))
    entries = [{name: str(target)} for name, target in targets.items()]
    return {"Demo run": entries} if entries else None


def build(out: Path, run: Path) -> None:
    """Build the site into `out`, which is replaced; exits with the warnings where there are any."""
    with tempfile.TemporaryDirectory() as temporary:
        docs = Path(temporary) / "docs"
        docs.mkdir()
        menu = write_docs(docs)
        notebooks = write_notebooks(docs, run)
        menu[2:2] = [*filter(None, [notebooks]), write_api(docs)]
        config = Path(temporary) / "mkdocs.yml"
        settings = {**CONFIG, "docs_dir": str(docs), "nav": menu}
        settings["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        site = Path(temporary) / "site"
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a banner of the theme's authors
        command += ["--site-dir", str(site)]
        done = subprocess.run(command, cwd=temporary, env=environment, capture_output=True, text=True)  # keeps a cache
        if done.returncode:
            sys.exit("\n".join(line for line in done.stderr.splitlines() if not line.startswith(("INFO", "DEBUG"))))
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(site, out)
    print(f"{len(list(out.rglob('*.html')))} pages, to be read from {out / 'index.html'} on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "site")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="whose executed notebooks are shown")
    arguments = parser.parse_args()
    build(arguments.out, arguments.run)
