"""First weights of a run: from scratch, or from a checkpoint of the same trunk, with a report of what came from where.

Read are files under the released names (video generation, UniAnimate, Animate-X) and under ours (converted models).
What the checkpoint lacks is new.  New parts must not disturb what was learned, so their last layer becomes zero and the
network starts as the checkpoint's own; a first convolution with fewer input channels gets zeros for the new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from animx.errors import WeightsError
from animx.model.attention import MotionCross, MotionTransformer, SpatialTransformer
from animx.model.checkpoint import released_names
from animx.model.condition_encoders import FrameTransformer, LatentEncoder, PictureEncoder
from animx.model.config import UNetConfig
from animx.model.layers import ResBlock, TemporalConv
from animx.model.pose_indicator import KeypointEncoder
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet
from animx.weights import find_model, is_converted, read_state, released_file

PREFIXES = ("", "module.", "unet.", "model.", "model.diffusion_model.", "diffusion_model.")
"""What other tools put before the names."""
LEAST = 0.05
"""Share of the trainable numbers that a checkpoint must bring to count as one of this network."""


@dataclass(frozen=True)
class Report:
    """What a checkpoint gave to a network; all names are ours."""

    source: str
    loaded: int = 0
    """Entries taken as they are."""
    share: float = 0.0
    """Share of the network's numbers that were taken."""
    new: tuple[str, ...] = ()
    """Entries the checkpoint lacks."""
    widened: tuple[str, ...] = ()
    """Entries whose missing input channels became zero."""
    reshaped: tuple[str, ...] = ()
    """`name: checkpoint shape, network shape` that differ otherwise; such entries count as new."""
    zeroed: tuple[str, ...] = ()
    """Last layers of new parts, set to zero."""
    ignored: tuple[str, ...] = ()
    """Names of the checkpoint that the network does not know."""

    def line(self) -> str:
        """The report in one line."""
        if self.source == "scratch":
            return "initialised from scratch"
        return (
            f"initialised from {self.source}: {self.loaded} entries ({self.share:.1%} of the network), {len(self.new)} "
            f"new, {len(self.widened)} widened, {len(self.reshaped)} of another shape, {len(self.ignored)} ignored"
        )

    def record(self) -> dict[str, Any]:
        """All fields, for `initialise.json`."""
        return asdict(self)


def build_unet(config: UNetConfig, seed: int, text: Tensor) -> AnimateXUNet:
    """The network with weights drawn from `seed` (the caller's random state is left alone); `text` [1, L, D]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: AnimateXUNet = AnimateXUNet.build(config, text_length=text.shape[1])
    unet.register_buffer("text", text.clone(), persistent=False)
    return unet


def initialise(unet: AnimateXUNet, source: str) -> Report:
    """Give `unet` the weights of `source` (`scratch`: those it has) and report.

    A missing or damaged file, or one that is no checkpoint of this network, is a `WeightsError`.
    """
    if source == "scratch":
        return Report("scratch")
    return load_partially(unet, read_unet(source), source)


def read_unet(source: str) -> dict[str, Tensor]:
    """The UNet's tensors of a file, a model folder or a model's name, under whatever names they have there."""
    path = Path(source)
    if path.is_file():
        return read_state(path)
    folder = find_model(source)
    if not is_converted(folder):
        return read_state(released_file(folder, "unet"))
    return {k: v for file in sorted((folder / "unet").glob("*.safetensors")) for k, v in read_state(file).items()}


def load_partially(unet: AnimateXUNet, state: Mapping[str, Tensor], source: str) -> Report:
    """Take every entry of `state` that fits, set new parts to start at zero, and report (see the module's head)."""
    theirs = _as_ours(unet, state)
    own = unet.state_dict()
    fresh = {name: value for name, value in own.items() if name not in COMPUTED}
    taken: dict[str, Tensor] = {}
    widened, reshaped = [], []
    for name, value in fresh.items():
        given = theirs.get(name)
        if given is None:
            continue
        if given.shape == value.shape:
            taken[name] = given
        elif name == "down.0.0.weight" and _is_narrower(given, value):
            taken[name] = torch.cat([given.float(), given.new_zeros(_rest(given, value)).float()], dim=1)
            widened.append(name)
        else:
            reshaped.append(f"{name}: {list(given.shape)} there, {list(value.shape)} here")
    total = sum(value.numel() for value in fresh.values())
    share = sum(fresh[name].numel() for name in taken) / total
    if share < LEAST:
        raise WeightsError(
            f"{source}: holds {share:.1%} of this network ({len(taken)} of {len(fresh)} entries). "
            "Name a checkpoint of the same trunk and size, or use initialise: scratch"
        )
    unet.load_state_dict({name: value.to(fresh[name].dtype) for name, value in taken.items()}, strict=False)
    new = tuple(name for name in fresh if name not in taken)
    # Behind new input channels of zeros, an encoder that gives zeros too would never get a gradient.
    heard = {name for name in new if not (widened and name.split(".")[0] in DENSE)}
    zeroed = tuple(_silence(unet, heard))
    ignored = tuple(sorted(set(theirs) - set(own)))
    return Report(source, len(taken), share, new, tuple(widened), tuple(reshaped), zeroed, ignored)


DENSE = ("local_image", "local_image_frames", "dwpose", "dwpose_frames")
"""Parts whose effect passes through the input channels beside the latent, and nowhere else."""
COMPUTED = ("keypoint_encoder.positions",)
"""Entries of the state dict that are computed, whatever a file says (the table's length follows the clips)."""


def _as_ours(unet: AnimateXUNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under our names, whichever prefix and naming fits best; unknown names stay as they are."""
    to_ours = {released: key for key, released in released_names(unet).items()}
    own = set(to_ours.values())
    best: dict[str, Tensor] = {}
    most = -1
    for prefix in PREFIXES:
        bare = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for table in (to_ours, {}):
            named = {table.get(k, k): v for k, v in bare.items()}
            found = len(own & named.keys())
            if found > most:
                best, most = named, found
    return best


def _is_narrower(given: Tensor, value: Tensor) -> bool:
    same = given.ndim == value.ndim and given.shape[0] == value.shape[0] and given.shape[2:] == value.shape[2:]
    return same and given.shape[1] < value.shape[1]


def _rest(given: Tensor, value: Tensor) -> tuple[int, ...]:
    return (value.shape[0], value.shape[1] - given.shape[1], *value.shape[2:])


def _silence(unet: AnimateXUNet, new: set[str]) -> Iterator[str]:
    """Zero the last layer of every part that has new entries and is added to something; yields the layers' names."""
    for prefix, module in unet.named_modules():
        for part, last in _branches(module):
            inside = ".".join(name for name in (prefix, part) if name) + "."
            touched = [name for name in new if name.startswith(inside) and not _of_motion(module, name, prefix)]
            if touched:
                for name in last:
                    layer = module.get_submodule(name)
                    _zero(layer)
                    yield f"{prefix}.{name}" if prefix else name


def _of_motion(module: nn.Module, name: str, prefix: str) -> bool:
    """The motion attention inside a spatial transformer is a branch of its own."""
    return isinstance(module, SpatialTransformer) and name.startswith(f"{prefix}.motion.")


def _branches(module: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """(part, its last layers) of a module: where all of the part's effect passes through."""
    if isinstance(module, SpatialTransformer | Temporal | MotionTransformer):
        return [("", ("proj_out",))]
    if isinstance(module, MotionCross):
        return [("", ("attention.to_out",))]
    if isinstance(module, TemporalConv):
        return [("", ("conv4",))]
    if isinstance(module, ResBlock):
        return [(part, ("conv2",)) for part in ("norm1", "conv1", "time", "norm2", "conv2")]
    if isinstance(module, KeypointEncoder):
        return [("", ("token2",))]
    if isinstance(module, PictureEncoder | LatentEncoder):
        return [("", ("conv3",))]
    if isinstance(module, FrameTransformer):
        return [("", ("to_out", "out"))]
    if isinstance(module, AnimateXUNet):
        return [("image_tokens", ("image_tokens.2",))]
    return []


def _zero(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
