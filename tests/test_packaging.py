"""What installs the project: the package, its extras, and the files that set an environment up."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution

import pytest
import yaml
from packaging.requirements import Requirement

import pfiles
from pfiles.paths import ROOT, Paths

INSTRUCTIONS = {"ARG", "FROM", "RUN", "USER", "ENV", "WORKDIR", "COPY", "EXPOSE", "CMD"}


def read(name):
    return (ROOT / name).read_text()


def project():
    """The table of that name in pyproject.toml."""
    return tomllib.loads(read("pyproject.toml"))["project"]


def install_layer(folder, extras):
    """Link into `folder` what pip would install with the package and these extras, taken from this environment."""
    tables = [project()["dependencies"], *(project()["optional-dependencies"][extra] for extra in extras)]
    waiting = [Requirement(line) for table in tables for line in table]
    keys = set()
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name, *sorted(requirement.extras))
        if key in keys:
            continue
        keys.add(key)
        package = distribution(requirement.name)
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                waiting.append(needed)
        for name in {path.parts[0] for path in package.files} - {"..", "__pycache__"}:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(package.locate_file(name))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as pip installs it, in a folder of its own; what it needs is there already."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pfiles", "MODULE", "weights/starter"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(folder / "source")], check=True)
    return folder / "site"


@pytest.mark.slow
def test_every_module_and_data_file_is_installed(installed):
    sources = [path for name in ("pfiles", "MODULE") for path in (ROOT / name).rglob("*") if path.is_file()]
    sources_of = {str(path.relative_to(ROOT)) for path in sources if "__pycache__" not in path.parts}
    sources_of |= {f"pfiles/starter/{path.name}" for path in (ROOT / "weights" / "starter").glob("*[!d].[!j]*")}
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert sources_of - files == set()


@pytest.mark.slow
def test_the_installed_command_draws_and_starts_where_it_is_called(installed):
    code = """if True:
        import sys, pfiles
        assert "torch" not in sys.modules
        from pathlib import Path
        from pfiles import Generator
        from pfiles.__main__ import main
        from pfiles.drawing import generator
        from pfiles.paths import ROOT, Paths
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


IN_CORE = """if True:
    import importlib, json, pkgutil, sys
    import pfiles
    from pfiles.__main__ import main
    from pfiles.errors import InputError

    refused, lacking = {}, {}
    for module in pkgutil.walk_packages(pfiles.__path__, "pfiles."):
        try:
            importlib.import_module(module.name)
        except (InputError, ModuleNotFoundError) as error:
            refused[module.name] = str(error)
    for extra, code in json.loads(sys.argv[1]).items():
        try:
            exec(code)
        except InputError as error:
            lacking[extra] = str(error)
    main(["draw", "--number", "2", "--out", "drawn"])
    print(json.dumps([[*refused], lacking]))
"""
NEEDS = {  # what an extra is needed for, and a line that needs nothing else
    "notebooks": "from pfiles.cli import execute",
    "slides": "from pfiles.tiles.builtin import he_tiles; he_tiles(stride=512)",
    "metrics": "from pfiles.measuring.morphometry import measure; import torch; "
    "measure(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)); import torch_fidelity",
}
SENTENCE = r"The package \w+ is not installed here: run pip install 'kpc-ldm\[{}\]', or, in a checkout, "


def run_in(layer, installed, code, *arguments):
    """Run code where only the package and a layer of what it needs are installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (installed, layer))), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-c", code, *arguments]  # -S: nothing of this environment
    return subprocess.run(command, cwd=layer, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_without_extras_all_but_theirs_is_there(installed, tmp_path):
    install_layer(tmp_path, [])
    done = run_in(tmp_path, installed, IN_CORE, json.dumps(NEEDS))
    assert done.returncode == 0, done.stderr
    refused, lacking = json.loads(done.stdout.splitlines()[-1])
    assert {*refused} == {
        "pfiles.cli.execute",
        "pfiles.cli.notebooks",
        "pfiles.drawing.in_diffusers",
        "pfiles.reporting.naming",
        "pfiles.reporting.painting",
        "pfiles.tiles.arrays",
        "pfiles.tiles.jpeg_slide",
        "pfiles.tiles.ome",
    }
    assert len(list((tmp_path / "drawn" / "tiles").glob("*.png"))) == 2, done.stderr
    assert lacking.keys() == NEEDS.keys()
    for extra, sentence in lacking.items():
        assert re.match(SENTENCE.format(extra), sentence), sentence


@pytest.mark.slow
@pytest.mark.parametrize("extra", NEEDS)
def test_an_extra_brings_what_it_is_needed_for(extra, installed, tmp_path):
    install_layer(tmp_path, [extra])
    done = run_in(tmp_path, installed, NEEDS[extra])
    assert done.returncode == 0, done.stderr


def test_requirements_are_those_of_the_package_and_its_extras():
    def named(file):
        return {line for line in read(file).splitlines() if line and not line.startswith(("#", "-r "))}

    extras = project()["optional-dependencies"]
    assert extras.keys() == {"notebooks", "slides", "ome", "coordinates", "spatial", "metrics", "dev"}
    needed = {line for name in ("notebooks", "slides", "metrics") for line in extras[name]} | {
        *project()["dependencies"]
    }
    assert named("requirements.txt") == needed
    assert (
        named("requirements-dev.txt")
        == {*extras["dev"]}
        >= {*extras["ome"], *extras["coordinates"], *extras["spatial"]}
    )


def test_requirements_are_pinned():
    """Each by name in constraints.txt, and the versions there are those that this environment was tested with."""
    pinned = {
        name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", read("constraints.txt"), re.MULTILINE)
    }
    for file in ("requirements.txt", "requirements-dev.txt"):
        named = re.findall(r"^([a-z][\w.-]*)[\[><=]", read(file), re.MULTILINE)
        assert {name.lower().replace("_", "-") for name in named} - pinned == set()


def test_environments_citation_and_changes():
    files = ("environment.yml", "binder/environment.yml", "CITATION.cff")
    conda, binder, citation = (yaml.safe_load(read(file)) for file in files)
    [pip] = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--requirement requirements.txt", "--constraint constraints.txt"]
    [pip] = [entry["pip"] for entry in binder["dependencies"] if isinstance(entry, dict)]
    assert (ROOT / "binder" / pip[0].removeprefix("--requirement ")).resolve() == ROOT / "requirements.txt"
    assert citation["version"] == pfiles.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["references"][0]["doi"] in read("README.md")
    newest = re.search(r"^## (\S+?),? ", read("CHANGELOG.md"), re.MULTILINE)
    assert newest[1] == pfiles.__version__


def test_the_workflow_calls_targets_of_the_makefile():
    """Of each system and Python that is promised; the oldest is the one that pyproject.toml asks for."""
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {word for line in lines if line.startswith("make ") for word in line.split()[1:] if "=" not in word}
    assert {"quick", "test", "site"} <= called <= targets
    matrix = jobs["quick"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    assert ">=" + matrix["python"][0] == project()["requires-python"]


def test_hooks_have_the_versions_that_lint_has():
    hooks = {
        repo["repo"].rpartition("/")[2]: repo["rev"]
        for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    }
    pinned = dict(re.findall(r"^(\S+)==(\S+)", read("constraints.txt"), re.MULTILINE))
    for repository, package in {"ruff-pre-commit": "ruff", "nbstripout": "nbstripout", "typos": "typos"}.items():
        assert hooks[repository].removeprefix("v") == pinned[package]


def test_dockerfile():
    """Its instructions, stages and copied files are such as there are; what builds it says more."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert {word for word, _ in lines} <= INSTRUCTIONS
    stages = {
        match[1] for word, arguments in lines if word == "FROM" and (match := re.search(r" AS (\w+)$", arguments))
    }
    default = dict(arguments.split("=") for word, arguments in lines if word == "ARG")["DEVICE"]
    assert {default, "cuda"} <= stages
    for word, arguments in lines:
        if word == "COPY":
            *sources, _ = [part for part in arguments.split() if not part.startswith("--")]
            assert all((ROOT / source).exists() for source in sources)
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", arguments], check=True)


def test_docker_keeps_results_on_the_host(tmp_path):
    """The printed line, given to a stand-in for docker in a folder whose name has a space: results are written below
    the working directory of the image, which is that folder, by the user who called."""
    text = read("Dockerfile")
    printed = re.search(r"^#     (docker run .*)$", text, re.MULTILINE)[1]
    checkout, programs = tmp_path / "my checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    (programs / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > given.txt\n')
    (programs / "docker").chmod(0o755)
    subprocess.run(["sh", "-c", printed], check=True, cwd=checkout, env={"PATH": f"{programs}:{os.environ['PATH']}"})
    docker_arguments = (checkout / "given.txt").read_text().splitlines()
    options = dict(itertools.pairwise(docker_arguments))
    assert docker_arguments[0] == "run"
    assert docker_arguments[-1] == re.search("docker build --tag (\\S+) ", text)[1]
    host, inside = options["-v"].split(":")
    assert host == str(checkout)
    assert re.findall(r"^(?:WORKDIR|VOLUME) (.*)$", text, re.MULTILINE) == [inside]
    assert options["--user"] == f"{os.getuid()}:{os.getgid()}"
    assert options["-e"] == "HOME=/tmp"  # that user has no home in the image
    assert Paths().root == ROOT  # what notebooks write lies in the checkout, wherever that is mounted
