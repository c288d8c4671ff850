"""Which form of the network runs: plain or fused, compiled, recorded; built where the weights lie, once.

`auto` is the fused network on CUDA (token-major, Triton) and the plain one elsewhere, whose layout a CPU prefers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from animx.diffusion.placing import Placing
from animx.model.conditions import Conditions
from animx.model.graph import Network, Recorded
from animx.model.layers import Times
from animx.model.unet import AnimateXUNet

log = logging.getLogger(__name__)


def resolved(stack: str, device: torch.device | str) -> str:
    """`plain` or `fused` for `auto`."""
    return stack if stack != "auto" else "fused" if torch.device(device).type == "cuda" else "plain"


@dataclass(frozen=True)
class Form:
    """How the network runs."""

    stack: str = "auto"
    """plain, fused or auto."""
    compiled: bool = False
    """Compile the parts of the plain network."""
    recorded: bool = False
    """Record a step as a CUDA graph."""


class Running:
    """The network of a placing in one form.  Built at the first pass; `clear` forgets it when the weights move."""

    def __init__(self, placing: Placing, form: Form) -> None:
        self.placing, self.form = placing, form
        self._network: Network | None = None

    def __call__(self, x: Tensor, t: Tensor, conditions: Conditions, times: Times) -> Tensor:
        """Velocity of latents x [B, 4, F, h, w] at timesteps t [B], in the network's precision."""
        if self._network is None:
            self._network = self._built()
        return self._network(x, t, conditions, times)

    def clear(self) -> None:
        """Before another network takes the device: let go of the weights there."""
        if self.placing.offload is not None:
            self._network = None

    def _built(self) -> Network:
        unet, device = self.placing.components.unet, self.placing.device
        # Without offloading the weights stay, and so does what was built on them.
        if self.placing.offload is not None:
            return _network(unet, self.form, device, offloaded=True)
        key = (self.form, id(unet), device, self.placing.dtype)
        kept = self.placing.kept
        if kept is None or kept[0] != key:
            self.placing.kept = kept = (key, _network(unet, self.form, device, offloaded=False))
        return kept[1]


def _network(unet: AnimateXUNet, form: Form, device: torch.device, *, offloaded: bool) -> Network:
    network: Network = unet
    if resolved(form.stack, device) == "fused":
        from animx.model.fused import FusedUNet, obstacle

        reason = obstacle(unet)
        if reason is None:
            network = FusedUNet(unet)
        else:
            log.warning("the plain network runs in place of the fused one: %s", reason)
    elif form.compiled:
        from animx.model.compiled import compile_parts

        network = compile_parts(unet)
    if form.recorded:
        if device.type == "cuda" and not offloaded:
            network = Recorded(network)
        else:
            log.info("no graph is recorded: %s", "the weights move" if offloaded else f"the device is {device.type}")
    return network
