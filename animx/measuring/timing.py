"""Times of several ways to do the same, taken in turns, and what the machine itself reaches in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from animx.bench import commit, machine
from animx.provenance import version_of

SCHEMA = 1
"""Of the JSON of every measurement here; grows when a name changes its meaning."""


@dataclass(frozen=True)
class Spread:
    """Seconds of one call: the median, and what a fifth of the calls fell below and stayed above."""

    median: float
    low: float
    high: float
    calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """Of at least one measurement."""
        ordered = sorted(seconds)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(statistics.median(ordered), at(0.2), at(0.8), len(ordered))

    def as_json(self) -> dict[str, Any]:
        """Milliseconds."""
        return {"ms": _round(1e3 * self.median), "p20_ms": _round(1e3 * self.low), "p80_ms": _round(1e3 * self.high),
                "calls": self.calls}  # fmt: skip


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """One call: by events on CUDA (the last-level cache holds none of its inputs), by CPU time elsewhere.

    CPU time of all threads is no more than wall time on one thread, and does not count what other programs take.
    """
    if device.type != "cuda":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.empty(64 << 20, dtype=torch.float32, device=device).zero_()  # 256 MB pass through the cache
    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float = 1.0,
    most: int = 50,
    *,
    elsewhere: Mapping[str, Callable[[], float]] | None = None,
) -> dict[str, Spread]:
    """Time every call by name, one after the other, again and again, so that a busy machine slows all alike.

    One round is left out (first use); then rounds for about `seconds` of measured time, at least 3, at most `most`.

    elsewhere: clocks of another process that return the seconds of a call there, after one that is not measured; calls
    here then begin with one that is not measured, too.  Their place in the round changes from round to round.
    """
    other = elsewhere or {}
    for call in calls.values():
        call()
    for clock in other.values():
        clock()

    def here(call: Callable[[], object]) -> float:
        if other:
            call()
        return seconds_of(call, device)

    clocks: dict[str, Callable[[], float]] = {**other, **{name: partial(here, call) for name, call in calls.items()}}
    found: dict[str, list[float]] = {name: [] for name in clocks}
    spent, rounds = 0.0, 0
    while rounds < 3 or (spent < seconds and rounds < most):
        for name in reversed(clocks) if other and rounds % 2 else clocks:
            took = clocks[name]()
            found[name].append(took)
            spent += took
        rounds += 1
    return {name: Spread.of(times) for name, times in found.items()}


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches with nothing but copying, and nothing but multiplying."""

    copy: float
    """Bytes read and written [B/s]."""
    matmul: float
    """[FLOP/s] in the type that was asked for."""

    def floor(self, flops: float, moved: float) -> float:
        """Least seconds for so many FLOPs and bytes."""
        return max(flops / self.matmul, moved / self.copy)

    def as_json(self) -> dict[str, float]:
        """GB/s and TFLOP/s."""
        return {"copy_gb_s": _round(self.copy / 1e9), "matmul_tflop_s": _round(self.matmul / 1e12)}


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measured now: a copy that no cache holds, and a square product."""
    on_cuda = device.type == "cuda"
    count, side = (1 << 28, 8192) if on_cuda else (1 << 25, 512)
    source = torch.zeros(count, dtype=torch.uint8, device=device).view(torch.float32)
    target = torch.empty_like(source)
    a = torch.randn(side, side, device=device).to(dtype)
    spreads = in_turns({"copy": lambda: target.copy_(source), "matmul": lambda: a @ a}, device, 0.2, 20)
    return Ceilings(2 * count / spreads["copy"].low, 2 * side**3 / spreads["matmul"].low)


def surroundings(device: torch.device) -> dict[str, Any]:
    """Machine, versions, device and commit, for the JSON."""
    found = machine()
    names = ("torch", "triton", "diffusers", "transformers")
    found["versions"] = {**found["versions"], **{n: v for n in names if (v := version_of(n)) is not None}}
    found["threads"] = torch.get_num_threads()
    found["device"] = str(device)
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["driver"] = torch.version.cuda
    return {"machine": found, "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def error_of(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference relative to the truth's largest value; what is no number counts as infinite."""
    away = (found.double() - truth.double()).abs()
    scale = float(truth.double().abs().max()) if truth.numel() else 0.0
    worst = float(away.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) if truth.numel() else 0.0
    return worst / scale if scale else worst
