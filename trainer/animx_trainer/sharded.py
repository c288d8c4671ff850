"""A network spread over processes by FSDP2 from the start: only the first process ever holds it whole, on the CPU.

The first process builds and initialises it; all lay it out without memory, shard it, make room for their shares, and
then fill them from the first one's tensors, one at a time.  The numbers are those of a network built whole.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from animx.errors import AnimxError, UsageError, WeightsError
from animx.model.attention import SpatialTransformer, TransformerBlock
from animx.model.layers import ResBlock
from animx.model.pose_indicator import KeypointEncoder, Resampler
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet
from animx_trainer.config import TrainConfig
from animx_trainer.denoiser import Denoiser
from animx_trainer.distributed import World
from animx_trainer.initialise import Report, build_unet, initialise

UNITS = (ResBlock, Temporal, KeypointEncoder, Resampler)
"""Modules whose weights FSDP2 gathers together."""


def build_sharded(config: TrainConfig, prompt: Tensor, world: World, dtype: torch.dtype) -> tuple[Denoiser, Report]:
    """The denoiser of `config` with its first weights, sharded over all processes; every process calls it.

    prompt: the empty prompt's states [1, L, D].  A checkpoint that does not fit is a `WeightsError` in all processes.
    Without other processes (no `torchrun`): `UsageError`.
    """
    if not dist.is_initialized():
        raise UsageError("parallel: fsdp needs several processes. Run: torchrun --nproc-per-node 2 -m animx train ...")
    report, whole = _first_weights(config, prompt, world)
    with torch.device("meta"):
        unet = AnimateXUNet.build(config.unet(), text_length=prompt.shape[1])
    denoiser = Denoiser(unet, checkpointing=config.activation_checkpointing).to(dtype).train()
    mesh = init_device_mesh(world.device.type, (world.size,))
    _shard(denoiser, mesh)
    denoiser.to_empty(device=world.device)
    with torch.no_grad():
        for name, tensor in [*denoiser.unet.named_parameters(), *denoiser.unet.named_buffers()]:
            _fill(tensor, whole.pop(name, None), world)
    return denoiser, report


def _first_weights(config: TrainConfig, prompt: Tensor, world: World) -> tuple[Report, dict[str, Tensor]]:
    """The report in every process; all tensors by name in the first one, none in the others."""
    told: list[Report | AnimxError | None] = [None]
    whole: dict[str, Tensor] = {}
    if world.is_first:
        try:
            unet = build_unet(config.unet(), config.seed, prompt)
            told[0] = initialise(unet, config.model.initialise)
            whole = {name: tensor.detach() for name, tensor in [*unet.named_parameters(), *unet.named_buffers()]}
        except AnimxError as error:
            told[0] = error
    dist.broadcast_object_list(told, device=world.device)
    found = told[0]
    if isinstance(found, AnimxError):
        raise found if world.is_first else WeightsError(f"the first process cannot begin: {found}")
    assert found is not None
    return found, whole


def _fill(tensor: Tensor, given: Tensor | None, world: World) -> None:
    """Copy the first process's `given` into a tensor that every process holds a share of, or a copy."""
    full = torch.empty(tensor.shape, dtype=tensor.dtype, device=world.device)
    if given is not None:
        full.copy_(given)
    if world.size > 1:
        dist.broadcast(full, 0)
    if isinstance(tensor, DTensor):
        share = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(share.to_local())
    else:
        tensor.copy_(full)


def _shard(denoiser: Denoiser, mesh: DeviceMesh) -> nn.Module:
    for module in list(denoiser.modules()):
        if isinstance(module, ResBlock):
            fully_shard(module.time, mesh=mesh)  # the shifts of all blocks are computed before the first one runs
        if isinstance(module, UNITS):
            fully_shard(module, mesh=mesh)
        elif isinstance(module, SpatialTransformer):
            # Keys and values of its cross-attentions are projected outside its own forward (`AnimateXUNet.encode`), so
            # they stay with the root, whose weights are whole during the forward.
            for block in module.modules():
                if isinstance(block, TransformerBlock):
                    fully_shard(block.self_attention, mesh=mesh)
                    fully_shard(block.feed_forward, mesh=mesh)
    # The root too gives its weights back after a forward: else a step after a sample strip would see the averages.
    fully_shard(denoiser, mesh=mesh, reshard_after_forward=True)
    return denoiser
