"""Operators of the full model by third parties: plugin group `animx.kernels`, taken where `ANIMX_KERNELS` names one.

The contract is `animx_kernels.providers.Provider`: an object with `operator` (the name of one of ours), `supports` and
`call`.  Nothing is taken that was not named, and one that breaks is named with the package that brings it.
No torch is imported before a plugin is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from animx import plugins
from animx.errors import UsageError, nearest

if TYPE_CHECKING:
    import torch

    from animx_kernels.providers import Provider, Shapes

MEND = "Update or uninstall it, or leave it out of ANIMX_KERNELS"


class Named:
    """A provider that says who it is where it fails."""

    def __init__(self, plugin: plugins.Plugin, provider: Provider) -> None:
        self.plugin, self.provider = plugin, provider
        self.operator = provider.operator

    def supports(self, device: torch.device, dtype: torch.dtype, shapes: Shapes) -> bool:
        """See `Provider`."""
        try:
            return bool(self.provider.supports(device, dtype, shapes))
        except Exception as error:  # a third party's code may fail in any way
            raise self._failed(error) from error

    def call(self, *arguments: Any) -> Any:
        """See `Provider`.  Running out of memory stays what it is: the render goes on with less."""
        import torch

        try:
            return self.provider.call(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a third party's code may fail in any way
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UsageError:
        said = " ".join(str(error).split())[:200]
        return UsageError(
            f"plugin '{self.plugin.name}' of {self.plugin.origin} failed in operator '{self.operator}' "
            f"({type(error).__name__}: {said}). {MEND}"
        )


def provider(name: str) -> Named:
    """The third party's operator of this name.  Errors: `UsageError` for one that is unknown or broken."""
    found = plugins.find("kernels")
    if name not in found:
        from animx_kernels.providers import MODES

        off = " (ANIMX_PLUGINS=off loads none)" if os.environ.get("ANIMX_PLUGINS", "").lower() == "off" else ""
        raise UsageError(
            f"ANIMX_KERNELS: unknown '{name}'.{nearest(name, [*MODES, *found])} Known: {', '.join(MODES)}, and of "
            f"plugins {', '.join(found) or 'none'}{off}"
        )
    plugin = found[name]
    loaded = plugin.load()
    if reason := broken(loaded):
        raise UsageError(f"plugin '{name}' of {plugin.origin} is no operator of animx ({reason}). {MEND}")
    return Named(plugin, loaded)


def broken(loaded: Any) -> str | None:
    """Why an object does not keep the contract, or None."""
    from animx_kernels.dispatch import load_ops
    from animx_kernels.providers import broken as why

    return why(loaded, load_ops())


def open_door() -> None:
    """Operators find their providers here from now on."""
    from animx_kernels import providers

    providers.finder = provider


def taken() -> list[str]:
    """`name (operator, package)` of every plugin that `ANIMX_KERNELS` takes; each is loaded and must keep the contract.

    Errors: `UsageError` for what `ANIMX_KERNELS` says wrong, an unknown name, a broken plugin.
    """
    if not os.environ.get("ANIMX_KERNELS"):
        return []
    from animx_kernels import providers

    open_door()
    try:
        found = providers.taken()
    except ValueError as error:
        raise UsageError(str(error)) from error
    return [f"{name} ({operator}, {one.plugin.origin})" for operator, (name, one) in found.items()
            if isinstance(one, Named)]  # fmt: skip
