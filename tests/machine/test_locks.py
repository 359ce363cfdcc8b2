"""Folders that one run at a time works in."""

import errno
import json
import multiprocessing
import os
import signal

import pytest

from pfiles.errors import InputError
from pfiles.machine import locks
from pfiles.machine.locks import locked
from pfiles.reporting.tables import record

BUSY = "Another run works here: wait."
context = multiprocessing.get_context("fork")


def hold(folder, inside, leave):
    with locked(folder, BUSY):
        inside.set()
        leave.wait()


@pytest.mark.parametrize("end", ["returns", "killed"])
def test_the_second_is_refused_while_the_first_lives(tmp_path, end):
    inside, leave = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "new", inside, leave), daemon=True)
    first.start()
    assert inside.wait(600)
    with pytest.raises(InputError, match=r"^Another run works here: wait\.$"), locked(tmp_path / "new", BUSY):
        pass
    if end == "killed":
        os.kill(first.pid, signal.SIGKILL)
    else:
        leave.set()
    first.join()
    with locked(tmp_path / "new", BUSY), pytest.raises(InputError), locked(tmp_path / "new", BUSY):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_system_that_locks_files_only(tmp_path, monkeypatch):
    """As NFS does: an exclusive lock needs a handle that can write, which a folder has not."""
    flock = locks.fcntl.flock

    def as_on_nfs(handle, mode):
        if os.fstat(handle).st_mode & 0o170000 == 0o040000:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, mode)

    monkeypatch.setattr(locks.fcntl, "flock", as_on_nfs)
    with locked(tmp_path, BUSY), pytest.raises(InputError), locked(tmp_path, BUSY):
        pass
    with locked(tmp_path, BUSY):
        pass


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch, capsys):
    def refuse(handle, mode):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locked(tmp_path, BUSY), locked(tmp_path, BUSY):
        pass
    assert "cannot be locked (No locks available): start no second run" in capsys.readouterr().out


def note(folder, name):
    for i in range(20):
        record(folder / "summary.json", f"{name} {i}", {"value": i})


def test_the_summary_keeps_what_every_process_records(tmp_path):
    many = [context.Process(target=note, args=(tmp_path, name)) for name in "abcd"]
    for process in many:
        process.start()
    for process in many:
        process.join()
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 80
