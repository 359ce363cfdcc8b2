"""Tensors that are computed once and kept in a file, with what they are made from."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfiles.checkpoints import read_state, same_note
from pfiles.errors import InputError
from pfiles.machine import processes
from pfiles.machine.processes import progress
from pfiles.machine.rank import is_first, rank
from pfiles.paths import atomic_write

AT_ONCE = 512  # tiles that are encoded between two looks at the bar, a multiple of a batch


def cached_tensor(path: Path, key: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """Compute a tensor once; cache it in `path` under the `key`, which says what it is made from."""
    tensor = _read(path, key)
    if tensor is None:
        tensor = make()
        _write(path, key, tensor.cpu())
    return tensor


def cached_codes(
    path: Path, key: Mapping[str, Any], number: int, make: Callable[[int, int], Tensor], device: torch.device
) -> Tensor:
    """The codes of tiles (V, N, h, w), mapped from the file `path`, where they are cached under the `key`.

    number: N. make: gives the codes (V, n, h, w) of the tiles from one place to before another. device: where it does.

    All processes of a job call this, and each makes the codes of its range. They pass through a file each, so that in
    no process more than a few codes are in memory.
    """
    codes = _read(path, key)
    if not processes.agree(int(codes is None), device):
        assert codes is not None
        return codes
    ranges = [(begin, min(begin + AT_ONCE, number)) for begin in range(0, number, AT_ONCE)]
    shares = [processes.share(ranges, of) for of in range(processes.world_size())]
    _write_range(_file_of(path, rank()), shares[rank()], make)
    processes.wait_for_all()
    if is_first():
        files = [_file_of(path, of) for of, share in enumerate(shares) if share]
        parts = [np.load(file, mmap_mode="c") for file in files]
        whole = parts[0]
        if len(parts) > 1:
            views, _, *places = whole.shape
            whole = np.lib.format.open_memmap(_file_of(path, len(shares)), "w+", whole.dtype, (views, number, *places))
            for share, part in zip(shares, parts, strict=False):
                whole[:, share[0][0] : share[-1][1]] = part
        _write(path, key, torch.from_numpy(whole))
        for file in path.parent.glob(_file_of(path, "*").name):  # those of a job with more processes too
            file.unlink()
    processes.wait_for_all()
    codes = _read(path, key)
    if codes is None:
        raise InputError(
            f"{path} was changed while it was written: stop the other program that writes there, and run this again."
        )
    return codes


def _file_of(path: Path, of: int | str) -> Path:
    """The file in which the process of that rank leaves its codes."""
    return path.with_name(f".{path.stem}_{of}.npy")


def _write_range(file: Path, ranges: list[tuple[int, int]], make: Callable[[int, int], Tensor]) -> None:
    """Write the codes of ranges of tiles, which follow each other, to a file of NumPy."""
    mapped = None
    for begin, end in progress(ranges, desc="encode tiles", unit="part", leave=False, delay=2):
        codes = make(begin, end).cpu().numpy()
        if mapped is None:
            first, rows = begin, ranges[-1][1] - begin
            file.parent.mkdir(parents=True, exist_ok=True)
            mapped = np.lib.format.open_memmap(file, "w+", codes.dtype, (len(codes), rows, *codes.shape[2:]))
        mapped[:, begin - first : end - first] = codes
    if mapped is not None:
        mapped.flush()


def _read(path: Path, key: Mapping[str, Any]) -> Tensor | None:
    """The tensor in `path`, memory-mapped; None if there is none, or it has another key."""
    if path.exists():
        with suppress(InputError, KeyError, TypeError, ValueError, AttributeError):
            cached = read_state(path, mapped=True)
            if same_note(json.loads(cached["made_from"]), key):
                return cached["tensor"]
    return None


def _write(path: Path, key: Mapping[str, Any], tensor: Tensor) -> None:
    with atomic_write(path) as file:
        torch.save({"made_from": json.dumps(key, sort_keys=True), "tensor": tensor}, file)
