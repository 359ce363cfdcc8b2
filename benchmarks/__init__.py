"""Speed and memory, measured: `python -m benchmarks.<name>`."""

import pfiles  # noqa: F401 - before torch, which it tells how threads wait
