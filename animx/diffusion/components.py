"""The parts of a model, loaded strictly from released files or from their conversion, and written back.

Every part is built on the meta device (no memory), then given the file's memory-mapped tensors.  Every loader compares
names and shapes first and refuses with a report; nothing is filled in silently.  A folder may hold `animx.json` with
the sizes of a model that is not the released one (tests, small trainings).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from animx.diffusion.options import IMAGE_ENCODERS
from animx.errors import UsageError, WeightsError
from animx.kernel_plugins import open_door
from animx.model.checkpoint import compare, to_ours
from animx.model.config import UNetConfig
from animx.model.image_encoder import OpenClipEncoder, build_text, build_vision, empty_prompt, text_state, vision_state
from animx.model.tensor_file import ALIGNMENT, write_tensors
from animx.model.unet import AnimateXUNet
from animx.model.vae import build_vae, vae_state
from animx.weights import is_converted, read_state, released_file

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionModelWithProjection

open_door()  # operators by third parties, where ANIMX_KERNELS names one

SIZES = "animx.json"
PROMPT = "empty_prompt.safetensors"
VAE_PREFIX = "first_stage_model."


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts; the defaults are the release."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `build_vae`."""
    vision: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `build_vision`."""
    text: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `build_text`."""


@dataclass
class Components:
    """All parts of a model, in evaluation mode."""

    unet: AnimateXUNet
    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection | OpenClipEncoder
    prompt: Tensor  # [1, 77, D], the empty prompt's states

    def to(self, device: torch.device, dtype: torch.dtype) -> Components:
        """All parts on one device; the networks in `dtype`."""
        for part in (self.unet, self.vae, self.image_encoder):
            nn.Module.to(part, device=device, dtype=dtype)  # the libraries' own `to` talks to stderr
        return self


def read_sizes(folder: Path) -> Sizes:
    """The sizes in `animx.json`, or the released ones where it is absent."""
    path = folder / SIZES
    if not path.exists():
        return Sizes()
    try:
        content = json.loads(path.read_text())
        unet: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.get("unet", {}).items()}
        parts: dict[str, Any] = {k: dict(content.get(k, {})) for k in ("vae", "vision", "text")}
        if "multipliers" in parts["vae"]:
            parts["vae"]["multipliers"] = tuple(parts["vae"]["multipliers"])
        return Sizes(UNetConfig(**unet), **parts)
    except (OSError, ValueError, TypeError, AttributeError, UsageError, RecursionError) as error:
        raise WeightsError(f"{path}: not a table of model sizes ({error})") from error


def write_sizes(folder: Path, sizes: Sizes) -> None:
    """Write `animx.json`."""
    content = {
        "unet": asdict(sizes.unet),
        "vae": dict(sizes.vae),
        "vision": dict(sizes.vision),
        "text": dict(sizes.text),
    }
    (folder / SIZES).write_text(json.dumps(content, indent=2) + "\n")


def load_components(
    folder: Path, changes: Mapping[str, Any] | None = None, *, image_backend: str = "transformers", stored: bool = False
) -> Components:
    """All parts from a model folder, float32 on the CPU.  `changes` are `UNetConfig` fields (conditions, alpha).

    image_backend: library that runs the image encoder.  stored: keep the files' own precision (to convert them).
    Errors: `WeightsError` naming the file and what is missing, unexpected or of another shape or type.
    """
    if image_backend not in IMAGE_ENCODERS:
        raise UsageError(f"image backend '{image_backend}': use {' or '.join(IMAGE_ENCODERS)}")
    load = _load_converted if is_converted(folder) else _load_released
    components = load(folder, changes or {}, stored)
    if image_backend == "open_clip":
        components.image_encoder = OpenClipEncoder.of(components.image_encoder)
    return _ready(components)


def _load_released(folder: Path, changes: Mapping[str, Any], stored: bool) -> Components:
    sizes = read_sizes(folder)
    paths = {part: released_file(folder, part) for part in ("unet", "vae", "clip")}
    # A file that cannot be read is told before the seconds that building the largest network takes.
    states = {part: read_state(path) for part, path in paths.items()}
    unet_config = _changed(sizes.unet, changes)
    try:
        with torch.device("meta"):
            vae = build_vae(**sizes.vae)
            vision = build_vision(**sizes.vision)
            text = build_text(**sizes.text)
    except Exception as error:  # the libraries raise many kinds for sizes that do not go together
        raise WeightsError(f"{folder / SIZES}: its sizes describe no model ({_first_line(error)})") from error
    unet = _unet_of(states.pop("unet"), paths["unet"], unet_config, stored)
    state = states.pop("vae")
    inner = {k.removeprefix(VAE_PREFIX): v for k, v in state.items() if k.startswith(VAE_PREFIX)}
    _assign(vae, vae_state(vae, inner or state), paths["vae"], stored)
    clip = states.pop("clip")
    _assign(vision, vision_state(vision, clip), paths["clip"], stored)
    _assign(text, text_state(text, clip), paths["clip"])
    with torch.no_grad():
        prompt = empty_prompt(text.eval())
    return Components(unet, vae, vision, prompt)


def load_unet(path: Path, config: UNetConfig, stored: bool = False) -> AnimateXUNet:
    """The network from a released checkpoint, strictly; built without memory first, then given the file's tensors.

    The position table is the one entry that may have another length (longer training clips): it is recomputed.
    """
    return _unet_of(read_state(path), path, config, stored)


def _unet_of(state: Mapping[str, Tensor], path: Path, config: UNetConfig, stored: bool) -> AnimateXUNet:
    try:
        with torch.device("meta"):
            unet = AnimateXUNet.build(config)
    except Exception as error:  # torch raises many kinds for impossible shapes; each means the same to a user
        raise WeightsError(f"{path.parent / SIZES}: its sizes describe no network ({_first_line(error)})") from error
    table = "pose_embedding_before.pos_embed.pos_table"
    if table in state and config.motion != "none":
        own = unet.keypoint_encoder.positions
        if state[table].shape[2:] == own.shape[2:] and state[table].shape != own.shape:
            unet = _with_slots(config, int(state[table].shape[1]))
    report = compare(unet, state)
    if not report.is_exact:
        raise WeightsError(
            f"{path}: not the weights of this network: {_say(report.missing, report.unexpected, report.shapes)}"
        )
    _assign(unet, to_ours(unet, state), path, stored)
    return unet


def _with_slots(config: UNetConfig, slots: int) -> AnimateXUNet:
    with torch.device("meta"):
        return AnimateXUNet.build(replace(config, slots=slots))


def _changed(config: UNetConfig, changes: Mapping[str, Any]) -> UNetConfig:
    return replace(config, **changes)


def _assign(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, stored: bool = False, *, whole: bool = False
) -> None:
    """Give a meta-device model its tensors (no copy), strictly; buffers it computes itself are made anew.

    stored: keep the file's precision instead of float32.  whole: the file may hold nothing else.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("position_ids")]
    unexpected = sorted(state.keys() - own.keys()) if whole else []
    shapes = [f"{k}: file {list(state[k].shape)}, model {list(v.shape)}" for k, v in own.items()
              if k in state and state[k].shape != v.shape]  # fmt: skip
    if missing or unexpected or shapes:
        raise WeightsError(f"{path}: not the weights of this network: {_say(missing, unexpected, shapes)}")
    wrong = [k for k in own if k in state and not state[k].is_floating_point() and own[k].is_floating_point()]
    if wrong:
        raise WeightsError(f"{path}: {wrong[0]} holds {state[wrong[0]].dtype}, expected floating point")
    given = {k: v if stored else _settled(v) for k, v in state.items() if k in own}
    model.load_state_dict(given, strict=False, assign=True)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                fresh = torch.arange(buffer.shape[-1]).expand(buffer.shape) if name == "position_ids" else None
                value = torch.zeros(buffer.shape, dtype=buffer.dtype) if fresh is None else fresh.clone()
                module.register_buffer(name, value, persistent=False)


def _settled(value: Tensor) -> Tensor:
    """Float32 values in row order that begin at a multiple of 64 bytes; no copy where they do already.

    The libraries' kernels round differently for other layouts, so that without this a conversion would give other
    frames than the files it was made from.
    """
    value = value.float().contiguous()
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _say(missing: Any, unexpected: Any, shapes: Any) -> str:
    parts = [
        f"{len(names)} {what} (such as {names[0]})"
        for what, names in (
            ("missing", list(missing)),
            ("unexpected", list(unexpected)),
            ("of another shape", list(shapes)),
        )
        if names
    ]
    return ", ".join(parts)


def _ready(components: Components) -> Components:
    for part in (components.unet, components.vae, components.image_encoder):
        part.eval().requires_grad_(False)
    text = components.unet.text
    if components.prompt.shape[-1] != text.shape[-1]:
        raise WeightsError(
            f"the text states are {components.prompt.shape[-1]} wide, but the network wants {text.shape[-1]}"
        )
    components.unet.register_buffer("text", components.prompt.clone(), persistent=False)
    return components


def save_components(components: Components, folder: Path, version: str, dtype: torch.dtype | None = None) -> None:
    """Write the converted form into an existing, empty folder: three library folders, the prompt, the index.

    dtype: precision to store (None: as it is).  Tensors are written one at a time: no second copy in memory.
    """
    vision = components.image_encoder
    if isinstance(vision, OpenClipEncoder):
        vision = vision.as_transformers()
    components.unet.save_config(folder / "unet")
    components.vae.save_config(folder / "vae")
    vision.config.architectures = ["CLIPVisionModelWithProjection"]
    vision.config.save_pretrained(folder / "image_encoder")
    for part, model, name in (
        ("unet", components.unet, "diffusion_pytorch_model.safetensors"),
        ("vae", components.vae, "diffusion_pytorch_model.safetensors"),
        ("image_encoder", vision, "model.safetensors"),
    ):
        write_tensors(folder / part / name, nn.Module.state_dict(model), dtype)
    write_tensors(folder / PROMPT, {"prompt": components.prompt})
    index = {
        "_class_name": "AnimateXPipeline",
        "_animx_version": version,
        "unet": ["animx.model.unet", "AnimateXUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _load_converted(folder: Path, changes: Mapping[str, Any], stored: bool) -> Components:
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    prompt = read_state(folder / PROMPT).get("prompt")
    if prompt is None or prompt.ndim != 3 or not prompt.is_floating_point():
        raise WeightsError(f"{folder / PROMPT}: holds no table 'prompt' [1, 77, D] of floating point numbers")
    settings = {part: _settings(folder / part) for part in ("unet", "vae", "image_encoder")}
    try:
        with torch.device("meta"):
            unet = AnimateXUNet.from_config(settings["unet"])
            if changes:
                unet = AnimateXUNet.build(_changed(unet.shape, changes), int(unet.config["text_length"]))
            vae = AutoencoderKL.from_config(settings["vae"])
            vision = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(settings["image_encoder"]))
    except Exception as error:  # the libraries raise many kinds for damaged settings; each means the same to a user
        raise WeightsError(f"{folder}: its config.json files describe no model ({_first_line(error)})") from error
    for part, model in (("unet", unet), ("vae", vae), ("image_encoder", vision)):
        _assign(model, _part_state(folder / part), folder / part, stored, whole=True)
    return Components(unet, vae, vision, prompt.float())


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: missing, or not readable as JSON") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: not a table of settings")
    return content


def _part_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a part: one file, or the shards that the libraries write for very large models."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder}: holds no safetensors file")
    return {name: value for path in files for name, value in read_state(path).items()}
