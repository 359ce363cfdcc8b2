"""What commands make of their arguments."""

import pytest

from pfiles.cli import commands
from pfiles.errors import InputError


def test_features_are_a_name_or_files():
    assert commands._features([]) == {}
    assert commands._features(["random"]) == {"features": "random"}
    files = commands._features(["/a/real.npy", "/a/generated.npy"])["feature_files"]
    assert [str(path) for path in files] == ["/a/real.npy", "/a/generated.npy"]
    with pytest.raises(InputError, match=r"takes one name, or files ending in \.npy, but got random inception"):
        commands._features(["random", "inception"])
