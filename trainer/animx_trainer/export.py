"""From a checkpoint to a model folder that `animx render --model DIR` loads: averaged weights, encoders, prompt.

The frozen parts of the UNet (conditions the run never used) are written as they were initialised.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import animx
from animx.atomic import check_folder_target, writing_folder
from animx.diffusion.components import save_components
from animx.errors import InputError, UsageError
from animx.model.unet import AnimateXUNet
from animx.weights import write_hashes
from animx_trainer import checkpointing
from animx_trainer.config import TrainConfig, differing, settled
from animx_trainer.encoders import find_encoders
from animx_trainer.initialise import build_unet, initialise

MODEL = "model"
OWN = ("unet", "vae", "image_encoder", "empty_prompt.safetensors", "model_index.json", "hashes.json")
"""What an exported model consists of."""


def export(config: TrainConfig, checkpoint: Path, target: Path, *, overwrite: bool = False) -> Path:
    """Write the model of a checkpoint into a new folder `target`; returns it.

    Weights are the averages where the run keeps them.  `overwrite` replaces an earlier export, never anything else.
    """
    if overwrite and target.is_dir():
        _check_own(target)
    else:
        check_folder_target(target)
    check_config(config, checkpoint)
    encoders, _ = find_encoders(config.model.encoders, config.seed)
    if encoders.components is None:
        raise UsageError("model.encoders: this run has none, so there is no model to write. Name a model folder")
    encoders.components.unet = trained_unet(config, checkpoint, encoders.prompt)
    if overwrite and target.is_dir():
        _remove(target)
    with writing_folder(target) as temporary:
        for part in (encoders.components.vae, encoders.components.image_encoder):
            nn.Module.to(part, dtype=torch.float32)
        save_components(encoders.components, temporary, animx.__version__)
        write_hashes(temporary)
    return target


def check_config(config: TrainConfig, checkpoint: Path) -> None:
    """Refuse (`UsageError`) a config with another network, encoders or seed than the checkpoint's."""
    other = [
        key
        for key in differing(checkpointing.read_state(checkpoint)["config"], settled(config))
        if key == "seed" or key.startswith("model.")
    ]
    if other:
        raise UsageError(
            f"{checkpoint}: was trained with another {', '.join(other[:4])}. Give the run's own config: the file "
            f"{checkpoint.parent.parent / 'config.yaml'}"
        )


def trained_unet(config: TrainConfig, checkpoint: Path, prompt: Tensor) -> AnimateXUNet:
    """The network of a checkpoint with its averaged weights, frozen and in evaluation mode, float32 on the CPU.

    Weights are those last trained where the run keeps no averages.  Another network's checkpoint is an `InputError`.
    """
    unet = build_unet(config.unet(), config.seed, prompt)
    initialise(unet, config.model.initialise)
    kind = "ema" if config.optimizer.ema > 0 else "weight"
    given = {name.removeprefix("unet."): value for name, value in checkpointing.read_weights(checkpoint, kind).items()}
    own = unet.state_dict()
    wrong = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    lacking = [name for name, p in unet.named_parameters() if p.requires_grad and name not in given]
    if wrong or not given:
        raise InputError(f"{checkpoint}: not a checkpoint of this network (such as {(wrong or lacking)[0]})")
    unet.load_state_dict({name: value.float() for name, value in given.items()}, strict=False)
    unet.eval().requires_grad_(False)
    return unet


def _check_own(target: Path) -> None:
    for entry in sorted(target.iterdir()):
        if entry.name not in OWN:
            raise UsageError(f"{target} also holds '{entry.name}' and would be replaced whole. Name a new folder")


def _remove(target: Path) -> None:
    import shutil

    shutil.rmtree(target)
