"""Experiments that are no speed benchmark: `python -m experiments.<name>`."""

import pfiles  # noqa: F401 - before torch, which it tells how threads wait
