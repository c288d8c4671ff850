"""What of the network runs in 8 bits on a device, and what a user is told about it.

`auto` takes 8 bits where the device's own units multiply them; the words `fp8` and `int8` take them anywhere, emulated
by plain PyTorch where there are no such units: the same numbers, slower.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from animx.diffusion.options import EngineOptions
from animx.model.config import UNetConfig
from animx_kernels.attention8 import attention8_refusal
from animx_kernels.quantise8 import refusal8

log = logging.getLogger(__name__)

NAMES = {"linears": "8-bit linears", "attention": "8-bit attention"}


@dataclass(frozen=True)
class Arithmetic:
    """What is taken."""

    linears: str = "exact"
    """exact or fp8."""
    attention: str = "exact"
    """exact or int8."""
    told: tuple[str, ...] = ()
    """What was asked for and how it came out, a sentence each; empty where nothing was asked for."""
    left: tuple[str, ...] = ()
    """Those of `told` that say what `auto` did not take."""


def obstacles(device: torch.device | str, config: UNetConfig) -> dict[str, str | None]:
    """Why the device gains nothing from each of `NAMES`, or None."""
    return {
        "linears": refusal8(device, config.width, config.width),
        "attention": attention8_refusal(device, config.head_dim),
    }


def anywhere(found: Sequence[dict[str, str | None]]) -> dict[str, str | None]:
    """The obstacles of several devices that have to compute alike: what one has, all have."""
    return {name: next((one[name] for one in found if one[name]), None) for name in NAMES}


def taken(options: EngineOptions, found: dict[str, str | None]) -> Arithmetic:
    """What is made of the options where `found` stands in the way (`obstacles`)."""
    taken, told, left = {}, [], []
    for name, word in (("linears", "fp8"), ("attention", "int8")):
        asked, why = getattr(options, name), found[name]
        taken[name] = word if asked == word or (asked == "auto" and why is None) else "exact"
        if asked == "exact":
            continue
        if why is None:
            told.append(f"{NAMES[name]}: taken")
        elif asked == word:
            told.append(f"{NAMES[name]}: emulated, slowly ({why})")
        else:
            left.append(f"{NAMES[name]}: not on this device, exact in their place ({why})")
    return Arithmetic(**taken, told=(*told, *left), left=tuple(left))


def say(found: Arithmetic) -> None:
    """Tell what was not taken to everyone, the rest to those who listen closely (`-v`)."""
    for sentence in found.told:
        (log.warning if sentence in found.left else log.info)("%s", sentence)
