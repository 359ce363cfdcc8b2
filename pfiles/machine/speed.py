"""How a network runs fast on this machine while its numbers keep their meaning."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pfiles.machine.processes import world_size
from pfiles.settings import Settings


@dataclass(frozen=True)
class Speed:
    """Ways to do the same arithmetic faster. As it stands: plain PyTorch in float32.

    bf16: convolutions and matrix products in bfloat16 (autocast); weights, sums and losses stay float32. The only one
        that changes more than the last digits of a result.
    channels_last: weights and feature maps in the memory layout that convolutions like best.
    compiled: networks compiled by torch, on a GPU replayed as CUDA graphs; the first steps take a minute.
    fused: Adam updates all weights in one kernel.
    yield_cores: on a CPU trainings compute in no more threads than other programs leave cores for, see
        `follow_idle_cores`.
    """

    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False
    fused: bool = False
    yield_cores: bool = False

    def accelerate(self, forward: nn.Module | Callable[..., Any]) -> Callable[..., Any]:
        """`forward`, a network or a method of one, ready to be called often. The network itself stays as it is."""
        network = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__")  # noqa: B009 - a method
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        run = torch.compile(forward, mode="reduce-overhead", dynamic=False) if self.compiled else forward
        if not self.bf16:
            return run
        device = next(network.parameters()).device.type

        def autocast(*args: Any) -> Any:
            with torch.autocast(device, torch.bfloat16):
                return run(*args)

        return autocast

    def begin_step(self) -> None:
        """Call this before each step of a loop; earlier outputs of compiled networks may then be overwritten."""
        if self.compiled:  # the call itself takes seconds, as it loads the compiler
            torch.compiler.cudagraph_mark_step_begin()


EAGER = Speed()
PAYS = 0.9  # bfloat16 must take less than this share of float32's time


def pick_precision(device: torch.device) -> str:
    """ "bf16" where the hardware has instructions for it and a short measurement says that it pays, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    if not any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16")):
        return "fp32"
    return "bf16" if _step_seconds(bf16=True) < PAYS * _step_seconds(bf16=False) else "fp32"


def _step_seconds(bf16: bool) -> float:
    """What a training step of layers like the UNet's takes on the CPU, the shortest of five."""
    layers = [layer for _ in range(2) for layer in (nn.GroupNorm(8, 64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1))]
    unit = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.zeros(8, 64, 32, 32).to(memory_format=torch.channels_last)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = unit(x).square().mean()
        loss.backward()
        times.append(time.perf_counter() - began)
    return min(times)


def pick_speed(settings: Settings, device: torch.device) -> Speed:
    """What helps on `device` (setting speed="auto") or plain PyTorch ("off"), in the precision of the settings.

    Prints one line that says what was chosen.
    """
    auto = settings.speed == "auto"
    speed = Speed(
        bf16=settings.precision == "bf16",
        channels_last=auto,
        compiled=auto and device.type == "cuda" and find_spec("triton") is not None,
        fused=auto,
        yield_cores=auto and device.type == "cpu",
    )
    measures = [name for name in ("channels_last", "compiled", "fused", "yield_cores") if getattr(speed, name)]
    summary = " + ".join(measures) or "plain PyTorch"
    print(f"{settings.precision} on {device}, {summary} (setting speed={settings.speed!r}), {world_size()} process(es)")
    return speed
