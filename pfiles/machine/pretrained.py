"""Pretrained weights of others: in torch's cache, downloaded on first use, their hash checked."""

import hashlib
from pathlib import Path

import torch

from pfiles.errors import InputError


def pretrained_file(url: str, need: str, otherwise: str) -> Path:
    """The file of `url` in torch's cache, whose name carries the start of its SHA-256, as torchvision's do.

    need: who needs which weights; otherwise: what a user can do without them. Both are parts of the sentence that is
    the InputError if the file can be neither found nor downloaded, or is another one.
    """
    name = url.rsplit("/", 1)[-1]
    expected = name.removesuffix(".pth").rsplit("-", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{need}, but {name} is neither in {path.parent} nor could it be downloaded ({error}): fetch {url} "
                f"(SHA-256 starts with {expected}) and put it there, or do without: {otherwise}."
            ) from error
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(expected):
        raise InputError(
            f"{need}, but {path} is another file: its SHA-256 should start with {expected}, but starts with "
            f"{sha256[: len(expected)]}; delete it and fetch {url} again."
        )
    return path
