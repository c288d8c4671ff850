"""Gates every operator of `animx_kernels` passes: `tests/test_kernels*.py` run them over `OPS`.

Where there is a CUDA device the Triton bodies run on it, else in Triton's interpreter on the CPU.  Each gate compares
with the float64 reference, on inputs as they are stored (rounded to the type first).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from animx_kernels.dispatch import Case, Inputs, Op

torch.set_num_threads(1)

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    """Within: `ANIMX_KERNELS=name`."""
    before = os.environ.get("ANIMX_KERNELS")
    os.environ["ANIMX_KERNELS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["ANIMX_KERNELS"]
        else:
            os.environ["ANIMX_KERNELS"] = before


@contextlib.contextmanager
def triton_bodies() -> Iterator[None]:
    """Within: operators run their Triton bodies, and every new tensor is full of NaN until it is written."""
    fill, strict = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[assignment]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with mode("auto" if CUDA else "interpret"):
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[assignment]
        torch.use_deterministic_algorithms(strict, warn_only=warn)


def small_cases(op: Op) -> dict[str, Case]:
    """The cases that a CPU, or an interpreter, can run."""
    return {name: case for name, case in op.cases().items() if not case.official}


def results(found: Any) -> tuple[torch.Tensor, ...]:
    """One tensor or several as a tuple."""
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def widened(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""

    def widen(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return Inputs(tuple(map(widen, inputs.args)), {name: widen(value) for name, value in inputs.kwargs.items()})


def spread(inputs: Inputs) -> Inputs:
    """The same numbers in tensors that are not contiguous (rows lie apart; the last axis stays adjacent)."""

    def apart(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim < 2 or not value.is_floating_point():
            return value
        room = torch.full(
            (*value.shape[:-1], value.shape[-1] + 3), float("nan"), dtype=value.dtype, device=value.device
        )
        room[..., 2:-1] = value
        return room[..., 2:-1]

    return Inputs(tuple(map(apart, inputs.args)), {name: apart(value) for name, value in inputs.kwargs.items()})


def worst(op: Op, found: Any, truth: Any) -> float:
    """Largest error of any result, relative to the largest value of its truth; NaN or infinity count as infinite."""
    mine, theirs = op.compared(results(found)), op.compared(results(truth))
    assert len(mine) == len(theirs)
    error = 0.0
    for one, true in zip(mine, theirs, strict=True):
        assert one.shape == true.shape, (op.name, tuple(one.shape), tuple(true.shape))
        if one.numel():
            away = (one.double() - true.double()).abs().max() / true.double().abs().max().clamp_min(1e-30)
            error = max(error, float(away.nan_to_num(nan=float("inf"))))
    return error


def check_forward(op: Op, case: Case, dtype: torch.dtype, *, apart: bool = False, seed: int = 0) -> float:
    """The Triton body against the float64 reference: value, shape and type.  Returns the relative error."""
    inputs = case.make(DEVICE, dtype, seed)
    truth = op.reference(*widened(inputs).args, **widened(inputs).kwargs)
    given = spread(inputs) if apart else inputs
    before = [value.clone() if isinstance(value, torch.Tensor) else value for value in given.args]
    with triton_bodies():
        found = op.function(*given.args, **given.kwargs)
    for was, now in zip(before, given.args, strict=True):
        if isinstance(was, torch.Tensor):
            assert torch.equal(was, now), f"{op.name} writes into its input"
    with mode("reference"):
        plain = op.function(*given.args, **given.kwargs)
    for one, other in zip(results(found), results(plain), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), op.name
    error = worst(op, found, truth)
    assert error <= op.tolerance[dtype], f"{op.name}: relative error {error:.2e} in {dtype}"
    assert worst(op, plain, truth) <= op.tolerance[dtype], f"{op.name}: the reference itself in {dtype}"
    return error


def check_gradients(op: Op, case: Case, dtype: torch.dtype, *, seed: int = 0) -> float:
    """Gradients through the Triton bodies against those of the float64 reference by autograd.  Returns the error."""

    def gradients(function: Any, inputs: Inputs) -> list[torch.Tensor]:
        args = list(inputs.args)
        wanted = [i for i in op.gradients if isinstance(args[i], torch.Tensor)]
        for i in wanted:
            args[i] = args[i].detach().requires_grad_()
        found = results(function(*args, **inputs.kwargs))
        weights = [torch.linspace(-1, 1, one.numel(), dtype=torch.float64).view(one.shape).to(one) for one in found]
        total = sum(((one * w).sum() for one, w in zip(found, weights, strict=True)), torch.zeros(()))
        return list(torch.autograd.grad(total, [args[i] for i in wanted]))

    inputs = case.make(DEVICE, dtype, seed)
    truth = gradients(op.reference, widened(inputs))
    with triton_bodies():
        found = gradients(op.function, inputs)
    error = 0.0
    for one, true in zip(found, truth, strict=True):
        assert (one.dtype, one.shape) == (dtype, true.shape)
        away = (one.double() - true).abs().max() / true.abs().max().clamp_min(1e-30)
        error = max(error, float(away.nan_to_num(nan=float("inf"))))
    assert error <= 4 * op.tolerance[dtype], f"{op.name}: relative error of a gradient {error:.2e} in {dtype}"
    return error


def check_opcheck(op: Op, case: Case) -> None:
    """Schema, fake implementation, autograd registration and compilation agree with what the operator does."""
    inputs = case.make("cpu", torch.float32, 0)
    args = list(inputs.args)
    for i in op.gradients:
        if isinstance(args[i], torch.Tensor):
            args[i] = args[i].detach().requires_grad_()
    with mode("reference"):
        torch.library.opcheck(getattr(torch.ops.animx, op.name).default, tuple(args), inputs.kwargs)


def check_compiles(op: Op, case: Case) -> None:
    """`torch.compile(fullgraph=True)` takes the operator whole and changes nothing."""
    inputs = case.make("cpu", torch.float32, 0)
    with mode("reference"):
        compiled = torch.compile(lambda *a: op.function(*a, **inputs.kwargs), fullgraph=True, backend="aot_eager")
        for one, other in zip(
            results(compiled(*inputs.args)), results(op.function(*inputs.args, **inputs.kwargs)), strict=True
        ):
            assert torch.equal(one, other)
