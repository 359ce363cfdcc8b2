"""Tensors that are computed once and kept in a file, with what they are made from."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfiles.checkpoints import read_state, same_note
from pfiles.errors import InputError
from pfiles.paths import atomic_write


def cached_tensor(path: Path, key: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """Compute a tensor once; cache it in `path` under the `key`, which says what it is made from."""
    if path.exists():
        with suppress(InputError, KeyError, TypeError, ValueError, AttributeError):
            cached = read_state(path)
            if same_note(json.loads(cached["made_from"]), key):
                return cached["tensor"]
    tensor = make()
    with atomic_write(path) as file:
        torch.save({"made_from": json.dumps(key, sort_keys=True), "tensor": tensor.cpu()}, file)
    return tensor
