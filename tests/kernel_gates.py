"""Gates every operator of `animx_kernels` passes: `tests/test_kernels*.py` run them over `OPS`.

Where there is a CUDA device the Triton bodies run on it, else in Triton's interpreter on the CPU.  Each gate compares
with the float64 reference, on inputs as they are stored (rounded to the type first).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
def fenced() -> Iterator[None]:
    """Within: a load or store in the interpreter outside the memory of the kernel's own arguments is an error."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, launch = builder.create_masked_load, builder.create_masked_store, executor.__call__
    fields: list[tuple[int, int]] = []

    def check(pointers: Any, mask: Any) -> None:
        at = np.asarray(pointers.data)[np.asarray(mask.data).astype(bool)].astype(np.uint64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        if at.size and not any(start <= at.min() and at.max() + size <= end for start, end in fields):
            allowed = np.zeros(at.shape, bool)
            for start, end in fields:
                allowed |= (at >= start) & (at + size <= end)
            assert allowed.all(), f"{(~allowed).sum()} of {at.size} addresses lie outside the arguments"

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def checked_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [value.untyped_storage() for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        fields[:] = [(memory.data_ptr(), memory.data_ptr() + memory.nbytes()) for memory in given]
        return launch(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    executor.__call__ = checked_launch
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store, executor.__call__ = load, store, launch


@contextlib.contextmanager
def triton_bodies() -> Iterator[None]:
    """Within: operators run their Triton bodies, and every new tensor is full of NaN until it is written."""
    fill, strict = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[assignment]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with mode("auto" if CUDA else "interpret"), contextlib.nullcontext() if CUDA else fenced():
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[assignment]
        torch.use_deterministic_algorithms(strict, warn_only=warn)


def environment(root: Path) -> dict[str, str]:
    """For a child process: the checkout's packages, no mode, no interpreter."""
    path = os.pathsep.join(str(root / folder) for folder in ("", "kernels", "trainer"))
    clean = {name: value for name, value in os.environ.items() if name not in ("ANIMX_KERNELS", "TRITON_INTERPRET")}
    return {**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def small_cases(op: Op) -> dict[str, Case]:
    """The cases that a CPU, or an interpreter, can run."""
    return {name: case for name, case in op.cases().items() if not case.official}


def results(found: Any) -> tuple[torch.Tensor, ...]:
    """One tensor or several as a tuple."""
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def widened(inputs: Inputs, dtype: torch.dtype = torch.float64) -> Inputs:
    """The same numbers in float64, or in `dtype`."""

    def widen(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

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


class Traffic(NamedTuple):
    """What launches of Triton bodies did in the interpreter, each byte once per launch that touches it."""

    launches: int
    bytes_read: int
    bytes_written: int


@contextlib.contextmanager
def watched() -> Iterator[list[Traffic]]:
    """Within: count launches, loads and stores in the interpreter; the total is appended at the end."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, launch = builder.create_masked_load, builder.create_masked_store, executor.__call__
    touched: list[tuple[list[Any], list[Any]]] = []

    def note(pointers: Any, mask: Any, which: int) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        touched[-1][which].append((np.asarray(pointers.data)[np.asarray(mask.data).astype(bool)].ravel(), size))

    def watch_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, 0)
        return load(self, pointers, mask, *rest)

    def watch_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, 1)
        return store(self, pointers, value, mask, *rest)

    def watch_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        touched.append(([], []))
        return launch(self, *args, **kwargs)

    def total(which: int) -> int:
        found = 0
        for one in touched:
            for size in {size for _, size in one[which]}:
                found += size * np.unique(np.concatenate([at for at, width in one[which] if width == size])).size
        return found

    result: list[Traffic] = []
    builder.create_masked_load, builder.create_masked_store = watch_load, watch_store
    executor.__call__ = watch_launch
    try:
        yield result
    finally:
        builder.create_masked_load, builder.create_masked_store, executor.__call__ = load, store, launch
    result.append(Traffic(len(touched), total(0), total(1)))


def check_cost(op: Op, case: Case, dtype: torch.dtype = torch.float16) -> None:
    """The declared launches and bytes are those of the Triton body, to the byte."""
    inputs = case.make("cpu", dtype, 0)
    told = op.cost(*inputs.args, **inputs.kwargs)
    with triton_bodies():
        op.function(*inputs.args, **inputs.kwargs)  # the interpreter is prepared
        with watched() as seen:
            op.function(*inputs.args, **inputs.kwargs)
    assert seen == [Traffic(told.launches, told.bytes_read, told.bytes_written)], op.name


@contextlib.contextmanager
def last_program_only() -> Iterator[None]:
    """Within: of each launch in the interpreter only the program with the highest number runs, along every axis.

    Tensors are not copied back, so that outputs of many gigabytes take memory only where that program writes.
    """
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    launch, place, restore = executor.__call__, builder.set_grid_idx, executor._restore_args_dev

    def launch_last(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = [*self.grid, 1, 1, 1][:3]

        def place_last(me: Any, *_: int) -> None:
            interpreter.interpreter_builder.grid_dim = tuple(asked)
            place(me, *(size - 1 for size in asked))

        self.grid, builder.set_grid_idx = (1, 1, 1), place_last
        try:
            return launch(self, *args, **kwargs)
        finally:
            builder.set_grid_idx = place

    executor.__call__, executor._restore_args_dev = launch_last, lambda *_: None
    try:
        yield
    finally:
        executor.__call__, executor._restore_args_dev = launch, restore


def check_opcheck(op: Op, case: Case) -> None:
    """Schema, fake implementation, autograd registration and compilation agree with what the operator does."""
    inputs = case.make("cpu", torch.float32, 0)
    args = list(inputs.args)
    for i in op.gradients:
        if isinstance(args[i], torch.Tensor):
            args[i] = args[i].detach().requires_grad_()
    # The last of the four traces with symbolic shapes, backward too; `check_compiles` is enough where there is none.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    given = getattr(torch.ops.animx, op.name).default, tuple(args), inputs.kwargs
    with mode("reference"):
        torch.library.opcheck(*given, test_utils=utils if op.gradients else utils[:3])


def check_compiles(op: Op, case: Case) -> None:
    """`torch.compile(fullgraph=True)` takes the operator whole and changes nothing."""
    inputs = case.make("cpu", torch.float32, 0)
    torch._dynamo.reset()  # each operator is compiled anew, not the eighth variant of one lambda
    with mode("reference"):
        compiled = torch.compile(lambda *a: op.function(*a, **inputs.kwargs), fullgraph=True, backend="aot_eager")
        for one, other in zip(
            results(compiled(*inputs.args)), results(op.function(*inputs.args, **inputs.kwargs)), strict=True
        ):
            assert torch.equal(one, other)
