"""`animx bench ops`: every operator of `animx_kernels` against other ways to compute the same.

Providers: `reference` (the operator's plain PyTorch truth), `torch` (what one would write with PyTorch's own modules),
`compile` (the reference as one graph through torch.compile), `animx` (the operator), `library` (somebody else's
kernel, see `libraries`), and plugins by their names.  One that is not there is named with the reason.  `base` is the
operator of another commit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from animx import kernel_plugins, plugins
from animx.bench import CheckError
from animx.errors import UsageError, nearest
from animx.measuring.base import Base, other_commit
from animx.measuring.libraries import way
from animx.measuring.subjects import SHAPES, Subject, poisoned, several, subjects, widened
from animx.measuring.timing import SCHEMA, Ceilings, ceilings, error_of, in_turns, surroundings
from animx_kernels import providers as third_party
from animx_kernels.dispatch import Op, load_ops

PROVIDERS = ("reference", "torch", "compile", "animx", "library")


@dataclass
class Row:
    """What was found about one subject."""

    op: str
    shape: str
    errors: dict[str, float]
    """Largest error of each provider, relative to float64."""
    unavailable: dict[str, str]
    """Providers that are not there, and why."""
    timed: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As one object."""
        return {
            "op": self.op,
            "shape": self.shape,
            "errors": {name: float(f"{value:.3g}") for name, value in self.errors.items()},
            "unavailable": self.unavailable,
            **self.timed,
        }


@dataclass(frozen=True)
class _Bench:
    """What is alike for all rows."""

    providers: Sequence[str]
    named: dict[str, kernel_plugins.Named]
    """Plugins among the providers."""
    base: Base | None
    device: torch.device
    dtype: torch.dtype
    seconds: float
    top: Ceilings | None
    """None: nothing is timed."""


def bench_ops(
    names: Sequence[str] = ("all",),
    providers: Sequence[str] = PROVIDERS,
    shapes: Sequence[str] = ("small", "claims"),
    *,
    device: str = "cpu",
    dtype: str = "float32",
    check_only: bool = False,
    seconds: float = 1.0,
    base: str | None = None,
) -> dict[str, Any]:
    """Check, then time, operators by name.  Errors: `CheckError` where an operator's own result is wrong.

    base: a commit whose operators are measured too.  The result's `ratios` are named `op shape/provider_over_animx`:
    how many times the operator's time it takes; those of the base come first.
    """
    kernel_plugins.taken()  # what ANIMX_KERNELS says wrong is refused before anything is measured
    ops = load_ops()
    chosen = list(ops) if "all" in names else list(names)
    known("--op", chosen, ops)
    known("--providers", providers, [*PROVIDERS, *plugins.find("kernels")])
    known("--shapes", shapes, SHAPES)
    named = _named(providers, chosen)
    place, kind = torch.device(device), getattr(torch, dtype)
    with torch.no_grad(), ExitStack() as stack:
        other = None if base is None else stack.enter_context(other_commit(base, place, kind))
        absent = [] if other is None else [name for name in chosen if name not in other.operators]
        if other is not None and len(absent) == len(chosen):
            raise UsageError(f"--base {base}: commit {other.commit[:7]} has none of {', '.join(chosen)}")
        top = None if check_only else ceilings(place, kind)
        asked = _Bench(providers, named, other, place, kind, seconds, top)
        rows = [_row(one, asked) for name in chosen for one in subjects(ops[name], shapes, place, kind)]
    if not rows:
        raise UsageError(
            f"--shapes {','.join(shapes)}: {', '.join(chosen)} has no such shapes. Known: {', '.join(SHAPES)}"
        )
    ratios = {
        f"{row.op} {row.shape}/{name}_over_animx": value
        for row in rows
        for name, value in row.timed.get("ratios", {}).items()
    }
    return {
        "bench": "ops",
        "schema": SCHEMA,
        "ratios": dict(sorted(ratios.items(), key=lambda one: not one[0].endswith("/base_over_animx"))),
        "rows": [row.as_json() for row in rows],
        "base": None if other is None else {"ref": base, "commit": other.commit[:7], "without": absent},
        "kernels": os.environ.get("ANIMX_KERNELS") or "auto",
        "ceilings": None if top is None else top.as_json(),
        "dtype": dtype,
        **surroundings(place),
    }


def known(option: str, given: Iterable[str], words: Iterable[str]) -> None:
    """Refuse (`UsageError`, with the nearest) what of `given` is not one of `words`."""
    words = list(words)
    for one in given:
        if one not in words:
            raise UsageError(f"{option} {one}: unknown.{nearest(one, words)} Known: {', '.join(words)}")


def _named(providers: Sequence[str], chosen: Sequence[str]) -> dict[str, kernel_plugins.Named]:
    """The plugins among the providers; each must be for an operator that is measured."""
    found = {name: kernel_plugins.provider(name) for name in providers if name not in PROVIDERS}
    for name, one in found.items():
        if one.operator not in chosen:
            raise UsageError(f"--providers {name}: it is for operator '{one.operator}'. Add --op {one.operator}")
    return found


def _row(subject: Subject, asked: _Bench) -> Row:
    op = subject.op
    ways, missing = _ways(subject, asked)
    wide = widened(subject.inputs)
    truth = op.compared(several(op.reference(*wide.args, **wide.kwargs)))
    allowed = op.tolerance[asked.dtype]
    errors: dict[str, float] = {}
    for name, one in ways.items():
        try:
            found = one.result(op)
            if len(found) != len(truth) or any(a.shape != b.shape for a, b in zip(found, truth, strict=False)):
                raise ValueError(f"results of other shapes: {[tuple(x.shape) for x in found]}")
        except Exception as problem:  # another project's code may fail in any way: it is named as missing; ours may not
            if name == "animx":
                raise
            missing[name] = _first_line(problem)
            continue
        errors[name] = max((error_of(a.to(b.device), b) for a, b in zip(found, truth, strict=True)), default=0.0)
        if not errors[name] <= allowed and name != "animx":
            missing[name] = f"its result is off by {errors[name]:.2g} (allowed {allowed:g})"
    if not errors.get("animx", 0.0) <= allowed:
        raise CheckError(
            f"bench ops: {op.name} at {subject.shape} is off by {errors['animx']:.2g}, allowed is {allowed:g}; no "
            "speed is shown"
        )
    row = Row(op.name, subject.shape, errors, missing)
    if asked.top is not None:
        right = {name: one for name, one in ways.items() if name not in missing}
        row.timed = _timed(subject, right, asked.top, asked)
    return row


@dataclass(frozen=True)
class _Way:
    """One provider at one shape."""

    call: Callable[[], Any]
    back: Callable[[Any], Any] = lambda found: found
    """What `call` returned, in the operator's layout."""
    base: Base | None = None
    """Called and timed elsewhere."""

    def result(self, op: Op) -> tuple[Any, ...]:
        """What is compared, from memory that was full of NaN before."""
        if self.base is not None:
            told = self.base.results()
            if isinstance(told, str):
                raise UsageError(told)
            return tuple(told)
        with poisoned():
            found: tuple[Any, ...] = op.compared(several(self.back(self.call())))
        return found


def _timed(subject: Subject, ways: dict[str, _Way], top: Ceilings, asked: _Bench) -> dict[str, Any]:
    here = {name: one.call for name, one in ways.items() if one.base is None}
    elsewhere = {name: one.base.seconds for name, one in ways.items() if one.base is not None}
    spreads = in_turns(here, asked.device, asked.seconds, elsewhere=elsewhere)
    cost = subject.op.cost(*subject.inputs.args, **subject.inputs.kwargs)
    least = top.floor(cost.flops, cost.bytes)
    own = spreads.get("animx")
    times: dict[str, Any] = {}
    for name, spread in spreads.items():
        times[name] = {
            **spread.as_json(),
            "gb_s": float(f"{cost.bytes / spread.median / 1e9:.3g}"),
            "tflop_s": float(f"{cost.flops / spread.median / 1e12:.3g}"),
            "share_of_floor": float(f"{least / spread.median:.3g}"),
        }
    ratios = {name: round(s.median / own.median, 3) for name, s in spreads.items() if name != "animx"} if own else {}
    return {"ratios": ratios, "times": times, "floor": subject.op.note}


def _ways(subject: Subject, asked: _Bench) -> tuple[dict[str, _Way], dict[str, str]]:
    """Every provider that is there, the base first, and why the others are not."""
    op, inputs = subject.op, subject.inputs
    found: dict[str, _Way] = {}
    missing: dict[str, str] = {}

    def put(name: str, made: _Way | str) -> None:
        if isinstance(made, str):
            missing[name] = made
        else:
            found[name] = made

    if asked.base is not None:
        put("base", asked.base.take(subject) or _Way(lambda: None, base=asked.base))
    for name in asked.providers:
        if name == "animx":
            put(name, _Way(lambda: op.function(*inputs.args, **inputs.kwargs)))
        elif name == "reference":
            put(name, _Way(lambda: op.reference(*inputs.args, **inputs.kwargs)))
        elif name == "torch" and subject.eager is not None:
            put(name, _Way(subject.eager))
        elif name == "torch":
            put(name, "PyTorch has no module of the kind; the reference is plain PyTorch")
        elif name == "compile":
            put(name, _compiled(subject))
        elif name == "library":
            made = _guarded(lambda: way(op.name, inputs, asked.device))
            put(name, made if isinstance(made, str) else _Way(*made))
        elif asked.named[name].operator == op.name:
            put(name, _plugin(subject, name, asked.named[name]))
    return found, missing


def _guarded(work: Callable[[], Any]) -> Any:
    """What `work` returns, or why it fails: other people's code may fail in any way."""
    try:
        return work()
    except Exception as problem:
        return _first_line(problem)


def _first_line(problem: Exception) -> str:
    if isinstance(problem, UsageError):
        return str(problem)
    said = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {said[0][:160] if said else ''}"


def _compiled(subject: Subject) -> _Way | str:
    """The reference as one graph; compiled here, since a graph that was given up would run uncompiled later.

    Compilers are told to forget what they know first: they give a function up after some shapes, and say so nowhere.
    """
    args, kwargs = subject.inputs
    torch.compiler.reset()
    compiled = torch.compile(subject.op.reference, dynamic=False, fullgraph=True)
    failed = _guarded(lambda: None if compiled(*args, **kwargs) is not None else "it returned nothing")
    return failed if isinstance(failed, str) else _Way(partial(compiled, *args, **kwargs))


def _plugin(subject: Subject, name: str, one: kernel_plugins.Named) -> _Way | str:
    arguments = third_party.arguments_of(subject.op.name, *subject.inputs)
    found = _guarded(lambda: third_party.given(subject.op.name, name, one, arguments))
    if found is None or isinstance(found, str):
        return found or "it does not take this shape or type"
    return _Way(lambda: one.call(*arguments))
