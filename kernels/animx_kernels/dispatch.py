"""Which implementation of an operator runs, and what is known about each operator.

`ANIMX_KERNELS` unset or `auto`: CUDA tensors take the Triton body where it supports them, all else the reference.
`reference`: the reference everywhere.  `interpret`: CPU tensors run the Triton body too, in Triton's interpreter (slow;
for tests).  A third party's name beside it: see `providers`.  float64 always goes to the reference, in float64.  A
reference taken where a body would be faster is said once per reason on the logger `animx.kernels` (shown by `-v`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from animx_kernels.providers import Mode, asked, replaceable
from animx_kernels.tuning import looked_up

log = logging.getLogger("animx.kernels")

MODULES = (
    "geglu", "group_norm_silu", "add_layer_norm", "temporal_conv", "motion_attention", "temporal_attention",
    "guided_step", "causal_conv", "selective_scan", "quantise8", "linear8", "attention8", "layer_norm8",
)  # fmt: skip
"""The files of the operators; importing one registers what it defines in `OPS`."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Storage types the Triton bodies take; arithmetic is float32 in each."""

LEAST_CAPABILITY = 80
"""Compute capability (major * 10 + minor) below which CUDA tensors go to the reference."""


class Cost(NamedTuple):
    """What one call of an operator does on a GPU, checked in the interpreter; what two launches read counts twice.

    `flops` are those of matrix products (2 per multiply-add), as the tables of the counter have them; norms,
    activations and sums count as bytes only.
    """

    launches: int
    flops: int
    bytes_read: int
    bytes_written: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


class Inputs(NamedTuple):
    """Arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Case(NamedTuple):
    """Inputs to try an operator with: `make(device, dtype, seed)`; `official`: as in the full model at 768x512x33."""

    make: Callable[[torch.device | str, torch.dtype, int], Inputs]
    official: bool = False


class Build(NamedTuple):
    """One compilation ahead of time: a kernel as the operator launches it on one card."""

    kernel: Any
    """The `triton.jit` function."""
    signature: dict[str, str]
    """Type of each argument, as Triton writes it (`*bf16`, `i32`, `constexpr`)."""
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    multiples: tuple[str, ...] = ()
    """Arguments known to be multiples of 16 (pointers: aligned to 16 bytes), as the launcher would find."""


@dataclass(frozen=True)
class Op:
    """An operator: `torch.ops.animx.<name>` and what is known about it."""

    name: str
    function: Callable[..., Any]
    """The operator as users call it."""
    reference: Callable[..., Any]
    """The truth, in plain torch: same arguments, float64 in and out where the inputs are."""
    cases: Callable[[], dict[str, Case]]
    cost: Callable[..., Cost]
    """Takes what `torch.ops.animx.<name>` takes; looks at shapes and types only."""
    aot: Callable[[int], list[Build]]
    """Takes a compute capability (80, 89, 90); needs triton, not interpreted."""
    note: str
    """What bounds it: the floor against which its time is to be read."""
    gradients: tuple[int, ...] = ()
    """Positions of the arguments that have gradients; empty: not for training."""
    compared: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda found: found
    """What of the results is compared with the reference (partial sums: their total)."""
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)
    """Allowed error relative to the largest value of the float64 reference, by storage type."""


TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

OPS: dict[str, Op] = {}
"""Every registered operator by name; `load_ops()` fills it."""


def register(op: Op) -> Op:
    """Add an operator.  A name is taken once."""
    if op.name in OPS:
        raise ValueError(f"operator '{op.name}' is registered twice")
    replaceable(op.name)
    OPS[op.name] = op
    return op


def load_ops() -> dict[str, Op]:
    """Import the file of every operator and return `OPS`."""
    for module in MODULES:
        importlib.import_module(f"animx_kernels.{module}")
    return OPS


def mode() -> Mode:
    """The mode that `ANIMX_KERNELS` asks for."""
    return asked().mode


def wide(x: Tensor) -> torch.dtype:
    """The type of the arithmetic for storage `x`: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@cache
def has_triton() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def use_triton(name: str, *tensors: Tensor | None, refusal: str | None = None) -> bool:
    """Whether this call goes to the Triton body.

    `refusal`: why the body does not take these shapes, or None.  In the mode `interpret` the body is prepared for the
    interpreter, and a missing triton is an `ImportError`: a comparison of the reference with itself proves nothing.
    """
    if _plans:
        return refusal is None
    kind = mode()
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device
    if kind == "reference" or (device.type == "cpu" and kind != "interpret"):
        return False
    if any(tensor.dtype == torch.float64 for tensor in given):
        return False
    reason = refusal or _obstacle(given, kind)
    if reason:
        _say(name, reason)
        return False
    if kind == "interpret":
        _interpret()
    return True


def _obstacle(given: list[Tensor], kind: Mode) -> str | None:
    device = given[0].device
    if device.type not in ("cpu", "cuda"):
        return f"device {device.type}"
    if any(tensor.device != device for tensor in given):
        return "tensors on several devices"
    odd = [str(tensor.dtype).removeprefix("torch.") for tensor in given if tensor.dtype not in FLOATS]
    if odd:
        return f"type {odd[0]}"
    if not has_triton():
        if kind == "interpret":
            raise ImportError("ANIMX_KERNELS=interpret needs triton. Run: pip install 'animx[kernels]'")
        return "triton is not installed (pip install 'animx[kernels]')"
    if device.type == "cuda" and card(device) < LEAST_CAPABILITY:
        return f"compute capability {card(device)} is below {LEAST_CAPABILITY}"
    return None


_said: set[tuple[str, str]] = set()


def _say(name: str, reason: str) -> None:
    if (name, reason) not in _said:
        _said.add((name, reason))
        log.info("%s: plain PyTorch is used (%s)", name, reason)


@cache
def _interpret() -> None:
    """Let Triton decorate everything from now on for its interpreter, its own library (tl.sum ...) included.

    Triton looks at `TRITON_INTERPRET` when a function is decorated, and other libraries import it before anyone can ask
    for the interpreter; what is decorated by then is decorated anew.
    """
    bodies = [name for name in sys.modules if name.startswith("animx_kernels.") and name.endswith("_triton")]
    os.environ["TRITON_INTERPRET"] = "1"
    import triton
    import triton.language
    from triton.runtime.jit import JITFunction

    for name, module in list(sys.modules.items()):
        if name.startswith("triton.language") or name in bodies:
            for key, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, key, triton.jit(value.fn))


def interpreted() -> bool:
    """Whether Triton bodies run in the interpreter: bfloat16 arithmetic and `tl.dot` on it are wrong there."""
    return not _plans and mode() == "interpret"


_plans: list[tuple[int, list[Any]]] = []


@contextmanager
def planning(capability: int) -> Iterator[list[Any]]:
    """Within: bodies plan their launches for a card that is not there and make none; see `launch.planned`."""
    found: list[Any] = []
    _plans.append((capability, found))
    try:
        yield found
    finally:
        _plans.pop()


def planned_into() -> list[Any] | None:
    """Where launches go instead of to a card, within `planning`."""
    return _plans[-1][1] if _plans else None


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def card(device: torch.device) -> int:
    """Compute capability of a device (90 for an H100); 90 for a CPU and where no CUDA device can be asked."""
    if _plans:
        return _plans[-1][0]
    if device.type != "cuda" or not torch.cuda.is_available():
        return 90
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


class LookUp(NamedTuple):
    """One question to the tables."""

    op: str
    key: str
    capability: int


_overrides: dict[str, dict[str, Any]] = {}
_watchers: list[set[LookUp]] = []


def tuned(op: str, key: str, capability: int = 90) -> dict[str, Any]:
    """The launch configuration of `op` for shape `key` on a card: the tables of `tuning.py`, from general to special.

    Later ones win, entry by entry: `any/default`, `any/<key>`, `sm_<card>/default`, `sm_<card>/<key>`, the same of the
    user's table, `configured()`.
    """
    for seen in _watchers:
        seen.add(LookUp(op, key, capability))
    return {**looked_up(op, key, capability), **_overrides.get(op, {})}


@contextmanager
def watched() -> Iterator[set[LookUp]]:
    """Within: what `tuned` is asked for, so that a search knows which entries decide a call."""
    seen: set[LookUp] = set()
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers[:] = [one for one in _watchers if one is not seen]


@contextmanager
def configured(op: str, **config: Any) -> Iterator[None]:
    """Within: launch `op` with these entries instead of the table's (tuning, and tests of small blocks)."""
    before = _overrides.get(op)
    _overrides[op] = {**(before or {}), **config}
    try:
        yield
    finally:
        if before is None:
            del _overrides[op]
        else:
            _overrides[op] = before


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of the elements of these tensors (None counts nothing)."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def draw(shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype, seed: int, scale: float = 1) -> Tensor:
    """Normal random numbers for a `Case`, the same on every device and, up to rounding, in every type."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float32) * scale).to(device=device, dtype=dtype)
