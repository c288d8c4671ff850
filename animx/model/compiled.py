"""The plain network with its repeated parts compiled by `torch.compile`: an option for cards without our kernels.

Regional: residual blocks, spatial and temporal transformers are compiled, not the whole network, so that parts of one
shape share their code and the wait is minutes less.  What is compiled is kept in a folder for the next process.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch._dynamo
import torch._inductor.config
from torch import nn

from animx.model.attention import SpatialTransformer
from animx.model.layers import ResBlock
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet

SHAPES = 64
"""Shapes that one part may be compiled for (levels, skips, windows, branches)."""


def cache_folder() -> Path:
    """Where compiled code is kept: $TORCHINDUCTOR_CACHE_DIR, else ~/.cache/animx/compiled."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "animx" / "compiled")


def compile_parts(
    unet: AnimateXUNet, kinds: tuple[type[nn.Module], ...] = (ResBlock, SpatialTransformer, Temporal)
) -> AnimateXUNet:
    """Compile the parts of a network in place, at their first pass; returns it.  Calling it again changes nothing."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    torch._inductor.config.fx_graph_cache = True
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for part in unet.modules():
        if isinstance(part, kinds) and part._compiled_call_impl is None:
            part.compile(dynamic=False)
    return unet
