"""The frozen CLIP encoders: transformers' ViT-H-14 and text model under OpenCLIP names (released facts 7.2, 7.3).

`OpenClipEncoder` runs the same image encoder through open_clip, which is imported only when it is asked for.

Image: RGB [B, 3, H, W] in 0..1 -> pooled, projected vectors [B, D], not normalised.
Text: the empty prompt's penultimate states [1, 77, D]; constant, so it is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from animx.errors import MissingExtraError, UsageError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
EMPTY_PROMPT = (49406, 49407)
"""Start and end token; the rest of the 77 are zeros."""


def build_vision(
    width: int = 1280, layers: int = 32, heads: int = 16, out: int = 1024, image: int = 224, patch: int = 14
) -> CLIPVisionModelWithProjection:
    """An OpenCLIP vision tower; the defaults are ViT-H-14."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=out,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=image,
            patch_size=patch,
            hidden_act="gelu",
        )
    )


def build_text(width: int = 1024, layers: int = 24, heads: int = 16, vocabulary: int = 49408) -> CLIPTextModel:
    """An OpenCLIP text tower without its last block: the released states are the penultimate ones."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers - 1,
            num_attention_heads=heads,
            max_position_embeddings=77,
            hidden_act="gelu",
            projection_dim=width,
        )
    )


_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _layer_entry(rest: str, prefix: str, released: Mapping[str, Tensor]) -> Tensor | None:
    """One entry of a transformer layer; q, k and v are thirds of the fused OpenCLIP projection."""
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        if rest.startswith(f"self_attn.{name}."):
            fused = released.get(f"{prefix}.attn.in_proj_{rest.rsplit('.', 1)[1]}")
            return None if fused is None else fused.chunk(3)[i]
    for ours, theirs in _LAYER.items():
        if rest.startswith(ours + "."):
            return released.get(f"{prefix}.{theirs}.{rest.rsplit('.', 1)[1]}")
    return None


def vision_state(model: CLIPVisionModelWithProjection, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `visual.*` part of an OpenCLIP state dict for `model`; entries the file lacks are left out."""
    table = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
        "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight",
        "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    }
    found: dict[str, Tensor] = {}
    for key in model.state_dict():
        if key == "visual_projection.weight":
            value = released["visual.proj"].T if "visual.proj" in released else None
        elif key in table:
            value = released.get(table[key])
        else:
            number, rest = key.removeprefix("vision_model.encoder.layers.").split(".", 1)
            value = _layer_entry(rest, f"visual.transformer.resblocks.{number}", released)
        if value is not None:
            found[key] = value
    return found


def text_state(model: CLIPTextModel, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text part of an OpenCLIP state dict for `model` (which has one block less than the file)."""
    table = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    found: dict[str, Tensor] = {}
    for key in model.state_dict():
        bare = key.removeprefix("text_model.")
        if bare in table:
            value = released.get(table[bare])
        else:
            number, rest = bare.removeprefix("encoder.layers.").split(".", 1)
            value = _layer_entry(rest, f"transformer.resblocks.{number}", released)
        if value is not None:
            found[key] = value
    return found


def encode_images(model: CLIPVisionModelWithProjection | OpenClipEncoder, pictures: Tensor) -> Tensor:
    """Normalised pictures [B, 3, S, S] -> pooled, projected vectors [B, D], by whichever backend `model` is."""
    found = model(pixel_values=pictures)
    vectors: Tensor = found if isinstance(found, Tensor) else found.image_embeds
    return vectors


def open_clip_state(model: CLIPVisionModelWithProjection) -> dict[str, Tensor]:
    """The weights of `model` under OpenCLIP's names (without `visual.`): the inverse of `vision_state`."""
    state = model.state_dict()
    top = "vision_model."
    found = {
        "class_embedding": state[f"{top}embeddings.class_embedding"],
        "conv1.weight": state[f"{top}embeddings.patch_embedding.weight"],
        "positional_embedding": state[f"{top}embeddings.position_embedding.weight"],
        "proj": state["visual_projection.weight"].T,
    }
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        found |= {f"{theirs}.{kind}": state[f"{top}{ours}.{kind}"] for kind in ("weight", "bias")}
    for i in range(model.config.num_hidden_layers):
        at, to = f"{top}encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            fused = [state[f"{at}self_attn.{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")]
            found[f"{to}attn.in_proj_{kind}"] = torch.cat(fused)
            found |= {f"{to}{theirs}.{kind}": state[f"{at}{ours}.{kind}"] for ours, theirs in _LAYER.items()}
    return found


class OpenClipEncoder(nn.Module):
    """The image encoder run by open_clip (extra `openclip`): same weights, same call, same vectors as transformers'."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = _open_clip_tower(config)

    @classmethod
    def of(cls, model: CLIPVisionModelWithProjection | OpenClipEncoder) -> OpenClipEncoder:
        """The same weights in open_clip's tower.  `MissingExtraError` without open_clip."""
        if isinstance(model, OpenClipEncoder):
            return model
        with torch.device("meta"):
            made = cls(model.config)
        made.visual.load_state_dict(open_clip_state(model), strict=True, assign=True)
        return made

    def as_transformers(self) -> CLIPVisionModelWithProjection:
        """The same weights in transformers' model, to be saved."""
        with torch.device("meta"):
            made = CLIPVisionModelWithProjection(self.config)
        state = vision_state(made, {f"visual.{k}": v for k, v in self.visual.state_dict().items()})
        made.load_state_dict(state, strict=False, assign=True)
        return made

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pictures [B, 3, S, S] -> pooled, projected vectors [B, D]."""
        vectors: Tensor = self.visual(pixel_values)
        return vectors


def _open_clip_tower(config: CLIPVisionConfig) -> nn.Module:
    """open_clip's vision transformer of these sizes, with weights not yet set."""
    try:
        from open_clip.transformer import VisionTransformer
    except ImportError as error:
        raise MissingExtraError("image backend 'open_clip'", "openclip") from error
    except Exception as error:  # it needs torchvision, which breaks at import when it is of another torch
        first = " ".join(str(error).split())
        raise UsageError(
            f"open_clip is installed but cannot be imported ({first}). Install the torchvision that belongs to torch "
            f"{torch.__version__}, or use image backend 'transformers'"
        ) from error
    made: Any = VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        output_dim=config.projection_dim,
    )
    return cast(nn.Module, made)


def empty_prompt(model: CLIPTextModel, tokens: Tensor | None = None) -> Tensor:
    """Penultimate states of the empty prompt (or of `tokens` [1, 77]) after the final norm, [1, 77, D]."""
    if tokens is None:
        tokens = torch.zeros(1, 77, dtype=torch.int64)
        tokens[0, : len(EMPTY_PROMPT)] = torch.tensor(EMPTY_PROMPT)
    states: Tensor = model(input_ids=tokens.to(model.device)).last_hidden_state
    return states


def normalise(pictures: Tensor) -> Tensor:
    """RGB [B, 3, H, W] in 0..1 to the CLIP mean and deviation."""
    mean, std = (torch.tensor(x, device=pictures.device, dtype=pictures.dtype).view(3, 1, 1) for x in (MEAN, STD))
    return (pictures - mean) / std
