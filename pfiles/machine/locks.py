"""What only one process at a time works on; the kernel gives a lock back however its process ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pfiles.errors import InputError
from pfiles.machine.rank import is_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock on `folder`, which is made if it is missing, so that no other process enters such a block.

    busy: the sentence of the InputError if another process holds it; None: wait for that process. Of several processes
    that work together the first holds the lock for all. If the file system knows no locks, a line says so and nothing
    is locked.
    """
    if is_first():
        with suppress(OSError):  # the error surfaces at the first write
            folder.mkdir(parents=True, exist_ok=True)
    if not is_first() or not folder.is_dir():
        yield
        return
    handle = None
    try:
        try:
            handle = _open(folder, busy is None)
        except BlockingIOError as error:
            raise InputError(busy or "") from error
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}): start no second run in it while this one lasts.")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _open(folder: Path, wait: bool) -> int:
    """The folder, opened and locked; where only files are locked, as on NFS, a file in it."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no flock")
    operation = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    for path, mode in ((folder, os.O_RDONLY), (folder / ".lock", os.O_RDWR | os.O_CREAT)):
        handle = os.open(path, mode, 0o666)
        try:
            fcntl.flock(handle, operation)
            return handle
        except OSError as error:
            os.close(handle)
            if path != folder or isinstance(error, BlockingIOError):
                raise
    raise AssertionError


def hold(handle: int) -> None:
    """Lock an open file or folder until it is closed, so that `is_left` knows that its process lives."""
    if fcntl is not None:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)


def is_left(path: Path) -> bool | None:
    """Whether the process that had `path` to `hold` is gone; None: not known."""
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # AttributeError: on Windows
        return None
    finally:
        if handle is not None:
            os.close(handle)
    return True
