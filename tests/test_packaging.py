"""What installs the project: the package, and the files that set an environment up."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from pfiles.paths import ROOT

INSTRUCTIONS = {"ARG", "FROM", "RUN", "USER", "ENV", "WORKDIR", "COPY", "EXPOSE", "CMD"}


def read(name):
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as pip installs it, in a folder of its own; what it needs is there already."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pfiles", "MODULE", "weights/starter"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(folder / "source")], check=True)
    return folder / "site"


def test_every_module_and_data_file_is_installed(installed):
    sources = [path for name in ("pfiles", "MODULE") for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in sources if "__pycache__" not in path.parts}
    wanted |= {f"pfiles/starter/{path.name}" for path in (ROOT / "weights" / "starter").glob("*[!d].[!j]*")}
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert wanted - found == set()


def test_the_installed_command_draws_and_starts_where_it_is_called(installed):
    code = """if True:
        import sys, pfiles
        assert "torch" not in sys.modules
        from pathlib import Path
        from pfiles import Generator
        from pfiles.__main__ import main
        from pfiles.drawing import generator
        from pfiles.paths import ROOT
        assert ROOT == Path.cwd(), ROOT
        assert main(["draw", "--number", "2", "--out", "drawn"]) == 0
        print("drawn", file=sys.stderr)
        assert main(["demo"]) == 2
        generator.STARTER = Path("none")
        assert main(["draw", "--out", "other"]) == 2
    """
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=installed.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((installed.parent / "drawn" / "tiles").glob("*.png"))) == 2
    notebooks, starter = done.stderr.splitlines()[-2:]
    assert notebooks.startswith("error: The notebooks do not come with the installed package: run this in a checkout")
    assert starter.startswith("error: The starter generator is not installed here (none): name the folder of another")
    assert "from pfiles.__main__ import main" in (installed / "bin" / "kpc-ldm").read_text()


def test_requirements_are_pinned():
    """Each by name in constraints.txt, and the versions there are those that this environment was tested with."""
    pinned = {
        name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", read("constraints.txt"), re.MULTILINE)
    }
    for file in ("requirements.txt", "requirements-dev.txt"):
        named = re.findall(r"^([a-z][\w.-]*)[><=]", read(file), re.MULTILINE)
        assert {name.lower().replace("_", "-") for name in named} - pinned == set()


def test_environments_and_citation():
    files = ("environment.yml", "binder/environment.yml", "CITATION.cff")
    conda, binder, citation = (yaml.safe_load(read(file)) for file in files)
    [pip] = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--requirement requirements.txt", "--constraint constraints.txt"]
    [pip] = [entry["pip"] for entry in binder["dependencies"] if isinstance(entry, dict)]
    assert (ROOT / "binder" / pip[0].removeprefix("--requirement ")).resolve() == ROOT / "requirements.txt"
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["preferred-citation"]["doi"] in read("README.md")


def test_dockerfile():
    """Its instructions, stages and copied files are such as there are; what builds it says more."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert {word for word, _ in lines} <= INSTRUCTIONS
    stages = {match[1] for word, rest in lines if word == "FROM" and (match := re.search(r" AS (\w+)$", rest))}
    default = dict(rest.split("=") for word, rest in lines if word == "ARG")["DEVICE"]
    assert {default, "cuda"} <= stages
    for word, rest in lines:
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            assert all((ROOT / source).exists() for source in sources)
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
