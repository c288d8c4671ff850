"""What else a render runs on the GPU, counted the same way: the picture codec and the image encoder."""

from __future__ import annotations

import torch

from animx.counting.fakes import blank, faked, pretend
from animx.counting.log import Entry, listen
from animx.errors import UsageError
from animx.model.image_encoder import build_vision
from animx.model.vae import build_vae


def decoding(frames: int, width: int, height: int, dtype: torch.dtype = torch.float16) -> tuple[Entry, ...]:
    """The log of the picture codec decoding `frames` frames of width x height px at once."""
    if width % 8 or height % 8:
        raise UsageError(f"--res {width}x{height}: use multiples of 8 in both")
    vae = blank(build_vae)
    with pretend():
        faked(vae, dtype)
        latents = torch.zeros(frames, 4, height // 8, width // 8, dtype=dtype, device="cuda")
        return tuple(listen(lambda: vae.decode(latents).sample, vae)[1])


def encoding(width: int, height: int, dtype: torch.dtype = torch.float16) -> tuple[Entry, ...]:
    """The log of the picture codec encoding one frame to its moments."""
    vae = blank(build_vae)
    with pretend():
        faked(vae, dtype)
        picture = torch.zeros(1, 3, height, width, dtype=dtype, device="cuda")
        return tuple(listen(lambda: vae._encode(picture), vae)[1])


def image_vectors(pictures: int, dtype: torch.dtype = torch.float16) -> tuple[Entry, ...]:
    """The log of the image encoder (ViT-H/14) on `pictures` pictures of 224 px."""
    model = blank(build_vision)
    with pretend():
        faked(model, dtype)
        pixels = torch.zeros(pictures, 3, 224, 224, dtype=dtype, device="cuda")
        return tuple(listen(lambda: model(pixel_values=pixels).image_embeds, model)[1])
