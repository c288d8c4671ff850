"""Listening to a network: every operator that would launch a kernel, with its cost and the place it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from animx.counting.costs import attention, price, tensors_of
from animx.counting.fakes import replaced
from animx.errors import AnimxError

_place: ContextVar[tuple[str, ...]] = ContextVar("place", default=())


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """What runs inside belongs to the place `name`, below the one it is in."""
    token = _place.set((*_place.get(), name))
    try:
        yield
    finally:
        _place.reset(token)


class HostWaitError(AnimxError):
    """The network looks at a number on the host: a fake has none, and a CUDA graph could not hold it."""


@dataclass(frozen=True)
class Entry:
    """One logged operator."""

    operator: str
    kind: str
    place: str
    """Names of modules or sections from the outside in, such as `down.1.2:Temporal/block:TransformerBlock`."""
    weights: tuple[str, ...]
    """Names of the parameters it reads, views of them included."""
    launches: int
    flops: int
    read: int
    """Bytes."""
    written: int
    """Bytes."""
    dtype: str
    """Of the first result."""
    shape: tuple[int, ...]
    """Of the first result."""

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class _Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[Entry] = []
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostWaitError(f"bench count: {func} asks for a value of the GPU, so the host waits for it") from error
        cost = price(func, args, kwargs, result)
        if cost is not None:
            first = next(iter(tensors_of(result)), None)
            memory = (_memory(tensor) for tensor in tensors_of((args, kwargs)))
            read = tuple(self.names[one] for one in memory if one in self.names)
            self.entries.append(
                Entry(
                    str(func), cost.kind, "/".join(_place.get()), read, cost.launches, cost.flops, cost.read,
                    cost.written,
                    "" if first is None else str(first.dtype).removeprefix("torch."),
                    () if first is None else tuple(first.shape),
                )
            )  # fmt: skip
        return result


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attention stays one operator: without a GPU PyTorch would take it apart into products no GPU runs."""
    if attn_mask is not None or dropout_p or is_causal or any(options[name] for name in options if name != "scale"):
        raise NotImplementedError("a count of attention with a mask, dropout or grouped heads")
    lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])  # type: ignore[no-untyped-call]
    key, value = key.expand(*lead, *key.shape[-2:]), value.expand(*lead, *value.shape[-2:])
    return attention(query, key, value)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def listen(work: Callable[[], Any], *roots: nn.Module) -> tuple[Any, list[Entry]]:
    """Run `work` and log its operators; those of the modules and parameters of `roots` carry their names.

    A weight that several roots hold has the name of the last one.  Works on fake tensors, and on real ones of a GPU.
    """
    handles = []
    tokens: list[Any] = []

    def enter(name: str, kind: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            above = ".".join(one.partition(":")[0] for one in _place.get())
            last = name.removeprefix(f"{above}.") if above else name
            tokens.append(_place.set((*_place.get(), f"{last}:{kind}")))

        return hook

    def leave(*_: Any) -> None:
        _place.reset(tokens.pop())

    names: dict[int, str] = {}
    heard: set[nn.Module] = set()
    for root in roots:
        names |= {_memory(tensor): name for name, tensor in (*root.named_buffers(), *root.named_parameters())}
        for name, module in root.named_modules():
            if name and module not in heard:
                heard.add(module)
                kind = type(module).__name__
                handles += [module.register_forward_pre_hook(enter(name, kind)), module.register_forward_hook(leave)]
    listener = _Listener(names)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide what it launches
    try:
        with torch.no_grad(), replaced(F, "scaled_dot_product_attention", _attend), listener:
            result = work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return result, listener.entries
