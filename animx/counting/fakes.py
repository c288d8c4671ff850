"""Fake CUDA tensors on a machine without CUDA: shapes, types, devices and autocast rules are real, numbers are not.

A few methods of `Tensor` (indexing, `contiguous`, `copy_`, moves between devices) want a device guard that a PyTorch
without CUDA does not have.  While `pretend` lasts they are said in operators that need none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

aten = torch.ops.aten


def _get(x: Tensor, key: Any) -> Tensor:
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(one, (Tensor, list)) for one in keys):
        if any(one is None or one is Ellipsis or isinstance(one, int) for one in keys):
            raise NotImplementedError("a count of an index that mixes tensors with other keys")
        rows = [one if isinstance(one, Tensor) else None for one in keys]
        kept: Tensor = aten.index.Tensor(x, rows)
        return kept
    used = sum(one is not None and one is not Ellipsis for one in keys)
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    spread = keys.index(Ellipsis)
    keys[spread : spread + 1] = [slice(None)] * (x.ndim - used)
    dim = 0
    for one in keys:
        if one is None:
            x = aten.unsqueeze.default(x, dim)
            dim += 1
        elif isinstance(one, slice):
            if one != slice(None):
                x = aten.slice.Tensor(x, dim, one.start, one.stop, one.step or 1)
            dim += 1
        else:
            x = aten.select.int(x, dim, one)
    return x


def _set(x: Tensor, key: Any, value: Any) -> None:
    part = _get(x, key)
    if isinstance(value, Tensor):
        aten.copy_.default(part, value)
    else:
        aten.fill_.Scalar(part, value)


def _contiguous(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    if x.is_contiguous(memory_format=memory_format):
        return x
    made: Tensor = aten.clone.default(x, memory_format=memory_format)
    return made


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    made: Tensor = aten.copy_.default(x, source, non_blocking)
    return made


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    always = bool(kwargs.pop("copy", False))
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    same = (device is None or torch.device(device).type == x.device.type) and (dtype is None or dtype == x.dtype)
    if same and not always and (layout is None or x.is_contiguous(memory_format=layout)):
        return x
    made: Tensor = aten._to_copy.default(x, dtype=dtype, device=device, non_blocking=non_blocking, memory_format=layout)
    return made


_IN_OTHER_WORDS: dict[str, Callable[..., Any]] = {
    "__getitem__": _get,
    "__setitem__": _set,
    "contiguous": _contiguous,
    "copy_": _copy,
    "to": _to,
}


def _conv_layout(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """The layout of a convolution's result as cuDNN has it: channels-last as soon as the input or the weights are.

    A PyTorch without cuDNN would answer for the convolutions it has itself.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None and last in (suggest_memory_format(x), suggest_memory_format(weight)):
        return last
    return torch.contiguous_format


@contextlib.contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Inside, the attribute `name` of a class or module is `new`."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _said(name: str, other: Callable[..., Any]) -> Callable[..., Any]:
    own = getattr(Tensor, name)

    def method(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        is_fake = isinstance(x, FakeTensor) and (x.device.type == "cuda" or name == "to")
        return (other if is_fake else own)(x, *args, **kwargs)

    return method


@contextlib.contextmanager
def pretend() -> Iterator[None]:
    """Inside, tensors on "cuda" are fakes; no GPU and no memory is needed."""
    with contextlib.ExitStack() as stack:
        for name, other in _IN_OTHER_WORDS.items():
            stack.enter_context(replaced(Tensor, name, _said(name, other)))
        stack.enter_context(replaced(torch._C, "_conv_determine_backend_memory_format", _conv_layout))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


@contextlib.contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """CUDA autocast rules at `dtype` (None: none), also where `torch.autocast` would switch itself off."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    if dtype is not None:
        torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def blank(build: Callable[[], nn.Module]) -> Any:
    """The module that `build` makes, without memory and values, for inference.  Faster outside of `pretend`."""
    with torch.device("meta"):
        module = build()
    return module.eval().requires_grad_(False)


def faked(module: Any, dtype: torch.dtype) -> Any:
    """A `blank` module with fakes of `dtype` on CUDA as its weights.  Call inside `pretend`."""
    for one in module.modules():
        for name, tensor in (*one._parameters.items(), *one._buffers.items()):
            if tensor is not None:
                kind = dtype if tensor.is_floating_point() else tensor.dtype
                fake = torch.empty(tensor.shape, dtype=kind, device="cuda")
                if name in one._buffers:
                    one._buffers[name] = fake
                else:
                    one._parameters[name] = nn.Parameter(fake, requires_grad=False)
    return module
