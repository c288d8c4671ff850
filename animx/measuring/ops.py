"""`animx bench ops`: every operator of `animx_kernels` against other ways to compute the same.

Providers: `reference` (the operator's plain PyTorch truth), `torch` (what one would write with PyTorch's own modules),
`compile` (the reference through torch.compile), `animx` (the operator), `library` (somebody else's kernel).  One that
is not there is named with the reason.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx.bench import CheckError
from animx.errors import UsageError, nearest
from animx.measuring.timing import SCHEMA, Ceilings, ceilings, error_of, in_turns, surroundings
from animx_kernels.dispatch import Inputs, Op, draw, load_ops
from animx_kernels.motion_attention import fold_motion

PROVIDERS = ("reference", "torch", "compile", "animx", "library")
SHAPES = ("small", "claims", "official")

LIBRARIES = {"selective_scan": "mamba_ssm", "geglu": "liger_kernel"}
"""Who else has the operator."""


@dataclass
class Subject:
    """An operator at one shape."""

    op: Op
    shape: str
    inputs: Inputs
    eager: Callable[[], Any] | None = None
    """The same by PyTorch's own modules."""


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


def bench_ops(
    names: Sequence[str] = ("all",),
    providers: Sequence[str] = PROVIDERS,
    shapes: Sequence[str] = ("small", "claims"),
    *,
    device: str = "cpu",
    dtype: str = "float32",
    check_only: bool = False,
    seconds: float = 1.0,
) -> dict[str, Any]:
    """Check, then time, operators by name.  Errors: `CheckError` where an operator's own result is wrong.

    The result's `ratios` are named `op shape/provider_over_animx`: how many times the operator's time it takes.
    """
    ops = load_ops()
    chosen = list(ops) if "all" in names else list(names)
    known("--op", chosen, ops)
    known("--providers", providers, PROVIDERS)
    place, kind = torch.device(device), getattr(torch, dtype)
    rows, ratios = [], {}
    with torch.no_grad():
        top = None if check_only else ceilings(place, kind)
        for name in chosen:
            for subject in subjects(ops[name], shapes, place, kind):
                row = _row(subject, providers, top, place, kind, seconds)
                rows.append(row)
                for other, value in row.timed.get("ratios", {}).items():
                    ratios[f"{row.op} {row.shape}/{other}_over_animx"] = value
    return {
        "bench": "ops",
        "schema": SCHEMA,
        "ratios": ratios,
        "rows": [row.as_json() for row in rows],
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


def subjects(op: Op, shapes: Sequence[str], device: torch.device, dtype: torch.dtype) -> Iterator[Subject]:
    """The operator at the shapes of these kinds: `small` and odd ones, `official` ones, CPU `claims`."""
    for name, case in op.cases().items():
        if ("official" if case.official else "small") in shapes:
            inputs = case.make(device, dtype, 0)
            yield Subject(op, name, inputs, _eager(op.name, inputs))
    if "claims" in shapes and op.name == "motion_attention":
        yield from (_motion(op, channels, device, dtype) for channels in (320, 640, 1280))
    if "claims" in shapes and op.name == "selective_scan":
        yield _scan(op, device, dtype)


def _motion(op: Op, channels: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """4 slots of 1536 tokens; eager: layer norm, query projection, attention to 4 tokens, projection, residual."""
    heads, slots = channels // 64, 4

    def some(seed: int, scale: float, *shape: int) -> Tensor:
        return draw(shape, device, dtype, seed, scale)

    x, shift, bias = some(0, 1, slots, 1536, channels), some(2, 0.2, channels), some(5, 1, channels)
    norm = 1 + some(1, 0.2, channels)
    to_q, to_out = (some(seed, channels**-0.5, channels, channels) for seed in (3, 4))
    k, v = some(6, 1, slots, heads, 4, 64), some(7, 1, slots, heads, 4, 64)
    folded = fold_motion(norm, shift, to_q, to_out, bias, k, v)

    def eager() -> Tensor:
        q = torch.unflatten(F.linear(F.layer_norm(x, (channels,), norm, shift), to_q), -1, (heads, -1)).transpose(1, 2)
        return x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2), to_out, bias)

    return Subject(op, f"4x1536x{channels}", Inputs((x, *folded, heads, 1e-5), {}), eager)


def _scan(op: Op, device: torch.device, dtype: torch.dtype) -> Subject:
    """512 pixels of 33 slots, 640 channels, 16 states, one direction; the reference is the loop over time."""

    def some(seed: int, *shape: int) -> Tensor:
        return draw(shape, device, dtype, seed)

    u, z = some(0, 1, 33, 512, 640), some(1, 1, 33, 512, 640)
    delta = (some(2, 1, 33, 512, 640).float().abs() * 0.1).to(dtype)
    a = -torch.arange(1, 17, device=device, dtype=torch.float32).expand(640, -1).contiguous()
    b, c = some(3, 1, 33, 512, 16), some(4, 1, 33, 512, 16)
    arguments = (u, delta, a, b, c, some(5, 640), z, None, None, None, False, False)
    return Subject(op, "1x33x512x640, 16 states", Inputs(arguments, {}))


def _eager(name: str, inputs: Inputs) -> Callable[[], Any] | None:
    """The operator by PyTorch's own modules, in the layout they like; None where they have nothing of the kind."""
    given = (*inputs.args, *inputs.kwargs.values())
    if name == "geglu":
        (x,) = given
        return lambda: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1])
    if name == "geglu_linear":
        x, weight, bias = given

        def gated() -> Tensor:
            value, gate = F.linear(x, weight, bias).chunk(2, -1)
            return value * F.gelu(gate)

        return gated
    if name == "layer_norm":
        x, weight, bias, eps = given
        return lambda: F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if name == "add_layer_norm":
        x, residual, weight, bias, eps = given

        def added() -> tuple[Tensor, Tensor]:
            total = x + residual
            return total, F.layer_norm(total, x.shape[-1:], weight, bias, eps)

        return added
    if name == "temporal_attention":
        q, k, v, heads = given

        def attended() -> Tensor:
            rows = [t.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4).contiguous() for t in (q, k, v)]
            return F.scaled_dot_product_attention(*rows).permute(0, 3, 1, 2, 4).flatten(-2).contiguous()

        return attended
    return None


def _row(
    subject: Subject, providers: Sequence[str], top: Ceilings | None, device: torch.device, dtype: torch.dtype,
    seconds: float,
) -> Row:  # fmt: skip
    op, inputs = subject.op, subject.inputs
    calls, missing = _calls(subject, providers, device)
    wide = widened(inputs)
    truth = op.compared(several(op.reference(*wide.args, **wide.kwargs)))
    allowed = op.tolerance[dtype]
    errors = {}
    for name, call in list(calls.items()):
        try:
            with poisoned():
                found = op.compared(several(call()))
        except Exception as problem:  # another project's code may fail in any way: it is named as missing; ours may not
            if name == "animx":
                raise
            missing[name] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:120] if str(problem) else ''}"
            del calls[name]
            continue
        errors[name] = max(error_of(a, b) for a, b in zip(found, truth, strict=True))
        if errors[name] > allowed and name != "animx":
            missing[name] = f"its result is off by {errors[name]:.2g} (allowed {allowed:g})"
            del calls[name]
    if errors.get("animx", 0.0) > allowed:
        raise CheckError(
            f"bench ops: {op.name} at {subject.shape} is off by {errors['animx']:.2g}, allowed is {allowed:g}; no "
            "speed is shown"
        )
    row = Row(op.name, subject.shape, errors, missing)
    if top is not None:
        row.timed = _timed(subject, calls, top, device, seconds)
    return row


def _timed(
    subject: Subject, calls: dict[str, Callable[[], Any]], top: Ceilings, device: torch.device, seconds: float
) -> dict[str, Any]:
    spreads = in_turns(calls, device, seconds)
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


def _calls(
    subject: Subject, providers: Sequence[str], device: torch.device
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    op, inputs = subject.op, subject.inputs
    calls: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for name in providers:
        if name == "animx":
            calls[name] = lambda: op.function(*inputs.args, **inputs.kwargs)
        elif name == "reference":
            calls[name] = lambda: op.reference(*inputs.args, **inputs.kwargs)
        elif name == "torch" and subject.eager is not None:
            calls[name] = subject.eager
        elif name == "torch":
            missing[name] = "PyTorch has no module of the kind; the reference is plain PyTorch"
        elif name == "compile":
            compiled = torch.compile(op.reference, dynamic=False)
            calls[name] = lambda compiled=compiled: compiled(*inputs.args, **inputs.kwargs)  # type: ignore[misc]
        else:
            missing[name] = _library(op.name, device)
    return calls, missing


def _library(name: str, device: torch.device) -> str:
    """Why no library stands beside this operator."""
    module = LIBRARIES.get(name)
    if module is None:
        return "no library has this operator"
    if device.type != "cuda":
        return f"{module} runs on CUDA only"
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if module == "liger_kernel":
        return "liger_kernel's GEGLU takes the tanh approximation: another function"
    return "use the network's field scan=mamba-ssm: animx bench unet"


def widened(inputs: Inputs) -> Inputs:
    """The same arguments with every floating-point tensor in float64."""

    def widen(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return Inputs(tuple(map(widen, inputs.args)), {name: widen(value) for name, value in inputs.kwargs.items()})


def several(found: Any) -> tuple[Tensor, ...]:
    """One result or several, as several."""
    return tuple(found) if isinstance(found, tuple | list) else (found,)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within, memory of new tensors is full of NaN until it is written."""
    memory: Any = torch.utils.deterministic
    fill, strict = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    memory.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(strict, warn_only=warn)
