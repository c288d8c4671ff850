"""Operators by third parties: another way to compute one of ours, taken only where `ANIMX_KERNELS` names it.

`ANIMX_KERNELS=quick` or `reference,quick`: at most one mode (see `dispatch`), and names of providers.  A provider
stands in for the forward pass of one operator; shapes it does not take, float64 and everything else go the way they
would go without it.  Who finds a provider by its name is not known here: `finder` is set by animx's plugin door.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS

log = logging.getLogger("animx.kernels")

Mode = Literal["auto", "reference", "interpret"]
MODES = ("auto", "reference", "interpret")

Shapes = tuple[tuple[int, ...] | None, ...]
"""The shape of each argument of a call, None for what is no tensor or absent."""


class Provider(Protocol):
    """Another way to compute one of our operators."""

    operator: str
    """Its name: `geglu` for `torch.ops.animx.geglu`."""

    def supports(self, device: torch.device, dtype: torch.dtype, shapes: Shapes) -> bool:
        """Whether it takes a call of these shapes; device and type are those of the first tensor, never float64."""

    def call(self, *arguments: Any) -> Any:
        """The operator's arguments, all of them in its order -> its results: new, contiguous tensors as the
        operator's own in shape, type and device.  No argument may be changed."""


class ProviderError(RuntimeError):
    """A provider does not keep the contract."""


finder: Callable[[str], Provider] | None = None
"""Loads a provider by its name, or raises with a reason; set by animx."""


class Asked(NamedTuple):
    """What `ANIMX_KERNELS` says."""

    mode: Mode
    names: tuple[str, ...]
    """Providers, in the order they were named."""


def asked() -> Asked:
    """The mode and the providers that `ANIMX_KERNELS` asks for; two modes are a `ValueError`."""
    text = os.environ.get("ANIMX_KERNELS")
    return _parsed(text) if text else _NOTHING


_NOTHING = Asked("auto", ())


@functools.cache
def _parsed(text: str) -> Asked:
    words = [word.strip() for word in text.split(",") if word.strip()]
    modes = [word.lower() for word in words if word.lower() in MODES]
    if len(modes) > 1:
        raise ValueError(f"ANIMX_KERNELS={text}: {modes[0]} and {modes[1]} are two modes")
    return Asked(cast(Mode, modes[0] if modes else "auto"), tuple(word for word in words if word.lower() not in MODES))


_taken: dict[tuple[str, ...], dict[str, tuple[str, Provider]]] = {}


def taken() -> dict[str, tuple[str, Provider]]:
    """(name, provider) of every operator that `ANIMX_KERNELS` gives to one; each is loaded once.

    Errors: `ValueError` for a name that nobody knows and for two providers of one operator; what `finder` raises.
    """
    names = asked().names
    if names not in _taken:
        found: dict[str, tuple[str, Provider]] = {}
        for name in names:
            if finder is None:
                raise ValueError(
                    f"ANIMX_KERNELS={name}: known are {', '.join(MODES)}; plugins are loaded by animx only"
                )
            provider = finder(name)
            if provider.operator in found:
                other = found[provider.operator][0]
                raise ValueError(f"ANIMX_KERNELS: {other} and {name} are both for {provider.operator}. Name one")
            found[provider.operator] = name, provider
        for operator, (name, _) in found.items():
            log.warning("%s: '%s' stands in for animx's own, as ANIMX_KERNELS asks", operator, name)
        _taken[names] = found
    return _taken[names]


def forget() -> None:
    """Load providers anew when they are asked for again."""
    _taken.clear()
    _agreed.clear()
    _refused.clear()


def broken(provider: object, operators: object) -> str | None:
    """Why this object is no provider of one of `operators` (a container of names), or None."""
    operator = getattr(provider, "operator", None)
    missing = [name for name in ("supports", "call") if not callable(getattr(provider, name, None))]
    if isinstance(provider, type):
        return f"it is a class: give an instance of {provider.__name__}"
    if not isinstance(operator, str):
        return "it has no 'operator' (the name of one of animx's)"
    if operator not in operators:  # type: ignore[operator]
        return f"animx has no operator '{operator}'"
    return f"it has no function '{missing[0]}'" if missing else None


def replaceable(name: str) -> None:
    """From now on `torch.ops.animx.<name>` asks `taken()` before it runs its own body.

    Below autograd and opaque to torch.compile, as the body itself; gradients stay animx's own.
    """
    definition: Any = OPDEFS[f"animx::{name}"]
    body: Callable[..., Any] = definition._init_fn
    signature = inspect.signature(body)

    @functools.wraps(body)
    def entry(*args: Any, **kwargs: Any) -> Any:
        if not asked().names or name not in taken():
            return body(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        found = given(name, *taken()[name], tuple(bound.arguments.values()))
        return body(*args, **kwargs) if found is None else found

    definition.register_kernel(None)(entry)


_agreed: set[Any] = set()
_refused: set[tuple[str, str]] = set()


def given(operator: str, name: str, provider: Provider, arguments: tuple[Any, ...]) -> Any:
    """What the provider makes of a call, or None where it does not take it.

    Errors: `ProviderError` where results have another number, shape, type or device than the operator's own.
    """
    tensors = [one for one in arguments if isinstance(one, Tensor)]
    device, dtype = tensors[0].device, tensors[0].dtype
    shapes = tuple(tuple(one.shape) if isinstance(one, Tensor) else None for one in arguments)
    wide = any(one.dtype == torch.float64 for one in tensors)
    if device.type == "meta" or wide or not provider.supports(device, dtype, shapes):
        if not wide and (operator, name) not in _refused:
            _refused.add((operator, name))
            log.info("%s: '%s' does not take shapes %s in %s on %s", operator, name, shapes, dtype, device)
        return None
    found = provider.call(*arguments)
    key = (operator, name, shapes, tuple(one.dtype for one in tensors), device)
    if key not in _agreed:
        _agree(operator, name, arguments, found)
        _agreed.add(key)
    return found


def _agree(operator: str, name: str, arguments: tuple[Any, ...], found: Any) -> None:
    device = next(one.device for one in arguments if isinstance(one, Tensor))
    bare = [one.to("meta") if isinstance(one, Tensor) else one for one in arguments]
    wanted = getattr(torch.ops.animx, operator)(*bare)

    def told(results: Any) -> list[tuple[Any, ...]]:
        several = results if isinstance(results, tuple | list) else (results,)
        if not all(isinstance(one, Tensor) for one in several):
            raise ProviderError(f"'{name}' gave {type(results).__name__} for {operator}, not tensors")
        return [(tuple(one.shape), one.dtype, one.is_contiguous()) for one in several]

    got, right = told(found), told(wanted)
    places = {one.device for one in (found if isinstance(found, tuple | list) else (found,))}
    if got != right or places != {device}:
        shown = ", ".join(f"{shape} {dtype}{'' if flat else ' (not contiguous)'}" for shape, dtype, flat in got)
        due = ", ".join(f"{shape} {dtype}" for shape, dtype, _ in right)
        where = "" if places == {device} else f" on {', '.join(map(str, places))}"
        raise ProviderError(f"'{name}' gave {shown}{where} for {operator}, whose results are {due} on {device}")


def arguments_of(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments of a call of `torch.ops.animx.<operator>` in their order, defaults filled in."""
    definition: Any = OPDEFS[f"animx::{operator}"]
    bound = inspect.signature(definition._init_fn).bind(*args, **kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())
