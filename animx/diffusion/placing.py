"""Where the networks are: all on one device, or on it only while they work.

`use(part)` is called before a network works and returns one of its parameters, whose device and precision its inputs
must have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from animx.diffusion.components import Components
from animx.errors import UsageError
from animx.model.eight_bit import EightBit, eight_bit, state_of

PARTS = ("image_encoder", "unet", "vae")


class Placing:
    """The networks of a pipeline and the device they work on."""

    def __init__(self, components: Components, offload: torch.device | None = None) -> None:
        self.components = components
        self.offload = offload
        """The device that a network visits while it works; None = all stay where they are."""
        self.kept: tuple[Any, Any] | None = None
        """What `Running` built on weights that stay: (form and place, network)."""
        self._other: Placing | None = None

    @property
    def device(self) -> torch.device:
        """Where the network of the denoising works."""
        return self.offload or next(self.components.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The networks' precision."""
        return next(self.components.unet.parameters()).dtype

    def computing(self, how: EightBit) -> Placing:
        """This placing, or one beside it with the same parts but a network that computes so; the last such one is kept.

        Errors: `UsageError` for exact linears where only their 8-bit weights are left.
        """
        own = state_of(self.components.unet)
        if own == how:
            return self
        if own.linears and not how.linears:
            raise UsageError("the network of this pipeline is in 8 bits. Load the model again for exact linears")
        if self._other is None or state_of(self._other.components.unet) != how:
            unet = eight_bit(self.components.unet, how, on=self.device, share=True)
            self._other = Placing(replace(self.components, unet=unet), self.offload)
        return self._other

    def use(self, name: str) -> Tensor:
        """Make the network `name` ready; with offloading the others leave the device first."""
        part: nn.Module = getattr(self.components, name)
        like = next(part.parameters())
        if self.offload is not None and like.device != self.offload:
            for other in PARTS:
                if other != name:
                    nn.Module.to(getattr(self.components, other), device="cpu")
            nn.Module.to(part, device=self.offload)
            like = next(part.parameters())
        return like
