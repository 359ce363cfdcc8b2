"""Full disks, folders that take no file, kills while a file is written: the old file or the new one, never a part."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from pfiles import paths as paths_module
from pfiles.__main__ import main
from pfiles.checkpoints import save_weights
from pfiles.classifier import Classifier
from pfiles.cli import notebooks
from pfiles.cli.execute import execute
from pfiles.learning.resume import last_resume_point, load_resume_point, save_resume_point
from pfiles.machine.runtime import make_rng, seeded
from pfiles.paths import ROOT, atomic_write, write_json
from pfiles.reporting.figures import save_figure
from pfiles.reporting.tables import record
from pfiles.tiles.files import decode, write_tiles
from pfiles.tiles.pixels import as_tensor
from tests.conftest import TINY, make_tiles

MB = 2**20


def tiles(version):
    return as_tensor(make_tiles(3, seed=version))


def network(version):
    with seeded(version, "disk"):
        return Classifier(4, 3, 8)


def picture(version):
    fig = Figure(figsize=(0.2, 0.2))
    fig.figimage(make_tiles(1, seed=version)[0])
    return fig


def table(path, version):
    """As part 5 writes its CSV."""
    with atomic_write(path) as file:
        pd.DataFrame(torch.rand(50, 18, generator=make_rng(version)).numpy()).to_csv(file, header=False)


# all ways in which a file comes onto the disk; each writes the same for the same version, and another for another
WRITERS = {
    "a.pth": lambda path, version: save_weights(network(version), path, {"version": version}),
    "resume.pt": lambda path, version: save_resume_point(path.parent, {"seed": 1}, network(version).state_dict()),
    "a.json": lambda path, version: write_json(path, {"version": version, "many": list(range(1000))}),
    "summary.json": lambda path, version: record(path, "section", {"version": version}),
    "a.csv": table,
    "1.png": lambda path, version: write_tiles(path.parent, [1], tiles(version)[:1]),
    "a.jpg": lambda path, version: save_figure(picture(version), path),
}


MOMENTS = ("open", 0, 30, "fsync", "replace")  # a number: once a file has as many bytes; all here have more


def fail_at(moment, patch, kill):
    """From now on this process gets an error from the disk at `moment`, or dies there."""

    def fail(*args):
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    if isinstance(moment, int):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment, resource.RLIM_INFINITY))
    elif moment == "open":
        patch.setattr(paths_module, "open", fail, raising=False)
    else:
        patch.setattr(os, moment, fail)


def exit_status(work, path=None):
    """Of a process that does `work`: 1 for an error of a full disk with the folder of `path`, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            work()
            status = 0
        except OSError as error:
            named = str(path.parent) in str(error)
            status = 1 if named and error.errno in (errno.ENOSPC, errno.EFBIG) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kill", [False, True], ids=["full", "killed"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_the_old_file(name, moment, kill, tmp_path, monkeypatch):
    path, write = tmp_path / name, WRITERS[name]
    write(path, 1)
    before = files(tmp_path)
    renames = name == "resume.pt" and moment != "replace"  # it moves aside before the next is written

    def work():
        fail_at(moment, monkeypatch, kill)
        write(path, 2)

    status = exit_status(work, path)
    assert status == (-(signal.SIGXFSZ if isinstance(moment, int) else signal.SIGKILL) if kill else 1)
    if renames:
        before["resume_previous.pt"] = before.pop("resume.pt")
    after = files(tmp_path)
    parts = {file for file in after if re.fullmatch(r"\..*\.[0-9a-f]{8}\.part", file)}  # names that nothing reads
    assert len(parts) <= kill
    assert {file: content for file, content in after.items() if file not in parts} == before

    write(path, 2)  # with room again
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, 2)
    assert path.read_bytes() == (tmp_path / "whole" / name).read_bytes() != before.get(name)


def test_one_of_two_resume_points_is_always_sound(tmp_path):
    """Whichever of the two renames of a save is the last thing that happens."""
    save_resume_point(tmp_path, {"seed": 1}, {"step": 1})
    for allowed in (0, 1):
        renames = []

        def replace(a, b, rename=os.replace, renames=renames, allowed=allowed):
            if len(renames) == allowed:
                os.kill(os.getpid(), signal.SIGKILL)
            renames.append(rename(a, b))

        def work(replace=replace):
            os.replace = replace
            save_resume_point(tmp_path, {"seed": 1}, {"step": 2})

        assert exit_status(work) == -signal.SIGKILL
        assert load_resume_point(tmp_path, {"seed": 1}) == {"step": 1}
    assert last_resume_point(tmp_path).name == "resume_previous.pt"


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_takes_no_file(name, tmp_path):
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(OSError, match=r"/file/.*'$"):
        WRITERS[name](tmp_path / "file" / name, 1)
    assert files(tmp_path) == {"file": b"keep me"}


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    for error in (RuntimeError("of the network"), OSError("cannot write mode F as PNG")):
        with pytest.raises(type(error)) as caught, atomic_write(tmp_path / "a"):
            raise error
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_no_permission_is_one_sentence_on_the_command_line(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(args[0]))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    arguments = ["--preset", "demo", "--data", "embedded", "--out", str(tmp_path / "out")]
    assert main(["cells", "save_training_images", *arguments]) == 1
    error = capfd.readouterr().err
    named = r"/org/made_from\.json"
    assert re.fullmatch(rf"error: [^\n]*Permission denied: '[^\n]*{named}': mend that and run [^\n]*\.\n", error)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PermissionError):
        main(["cells", "save_training_images", *arguments, "--debug"])


def test_a_read_only_disk_is_told_before_any_work(tmp_path, monkeypatch, capfd):
    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(notebooks, "execute", lambda *args: pytest.fail("a notebook was started"))
    monkeypatch.setattr(paths_module.Path, "mkdir", refuse)
    assert main(["run", "--preset", "demo", "--data", "embedded", "--out", str(tmp_path / "out")]) == 2
    sentence = rf"error: The output folder {tmp_path}/out takes no file \(Read-only file system\): [^\n]*\.\n"
    assert re.fullmatch(sentence, capfd.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_notebook_that_the_disk_stopped_tells_the_cause(tmp_path):
    """And not that its own copy could not be written either."""
    (tmp_path / "file").write_text("a path below it takes no file")
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("raise OSError(30, 'Read-only file system', 'resume.pt')"),
    ]
    nbformat.write(book, tmp_path / "fails.ipynb")
    error = execute(tmp_path / "fails.ipynb", tmp_path / "file" / "executed.ipynb", {})
    assert error == ("OSError", "[Errno 30] Read-only file system: 'resume.pt'")
    book.cells[1].source = "raise KeyboardInterrupt"
    nbformat.write(book, tmp_path / "fails.ipynb")
    error = execute(tmp_path / "fails.ipynb", tmp_path / "executed.ipynb", {})
    assert error == ("KeyboardInterrupt", "Stopped: run the same command again to go on.")


def test_a_disk_that_is_really_full(tmp_path, monkeypatch, capfd):
    """A training on 1 MB ends in one sentence, its results whole; given room, the same command goes on to the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MB}", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    monkeypatch.chdir(ROOT)
    tiny = {**TINY, "image_size_px": 64, "saving.every_epochs": 1}
    overrides = (part for name, value in tiny.items() for part in ("--set", f"{name}={json.dumps(value)}"))
    command = ["cells", "train_autoencoder", "--preset", "demo", "--data", "embedded", "--out", str(disk), *overrides]
    try:
        (disk / "ballast").write_bytes(bytes(MB * 7 // 8))
        assert main(command) == 1
        last = capfd.readouterr().err.rstrip("\n").splitlines()[-1]
        assert re.fullmatch(r"error: .*No space left on device: '.*resume\.pt': mend that and run .*\.", last)
        assert {path.name for path in disk.rglob("*") if path.is_file() and "events" not in path.name} == {
            "ballast", "log.csv", "progress.json",
        }  # fmt: skip
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", f"remount,size={64 * MB}", str(disk)], check=True)
        assert main(command) == 0
        assert (disk / "kpc_ldm" / "vqvae_autoencoder_ckpt.pth").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_tile_that_was_written_is_the_tile(tmp_path):
    write_tiles(tmp_path, [1, 2, 3], tiles(1))
    for number, tile in enumerate(tiles(1), start=1):
        assert (decode("x", (tmp_path / f"{number}.png").read_bytes()).image == tile).all()
