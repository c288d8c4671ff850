"""The frozen encoders of a run: pictures to latents, CLIP pictures to vectors, and the empty prompt.

They come from a model folder and are exported with the trained network, so that what was trained renders as it was
trained.  Samples that hold latents and vectors already pass by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from animx.diffusion.components import Components, Sizes, load_components, read_sizes
from animx.diffusion.tiny import TINY, fill
from animx.errors import InputError, UsageError
from animx.model.image_encoder import build_vision, encode_images, normalise
from animx.model.vae import SCALE, build_vae, decode
from animx.weights import find_model, is_converted
from animx_trainer.batch import Batch
from animx_trainer.sample import generator

CHUNK = 8
"""Pictures that are encoded at once."""


@dataclass
class Encoders:
    """VAE, image encoder (both frozen, in evaluation mode) and the empty prompt's states."""

    components: Components | None
    """Everything of the model folder but its UNet; None where the samples bring latents and vectors."""
    prompt: Tensor  # [1, L, D]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def to(self, device: torch.device, dtype: torch.dtype) -> Encoders:
        """The encoders on `device`; the networks compute in `dtype`."""
        if self.components is not None:
            for part in (self.components.vae, self.components.image_encoder):
                nn.Module.to(part, device=device, dtype=dtype)
        return Encoders(self.components, self.prompt, device)

    def latents(self, batch: Batch, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Scaled latents [B, C, F, h, w] of the frames, and [B, C, h, w] of the reference; posterior noise is keyed.

        Latents encoded beforehand are taken as they are.
        """
        if batch.latents is not None:
            return batch.latents.transpose(1, 2), batch.reference_latent
        assert batch.video is not None
        pictures = torch.cat([batch.reference[:, None], batch.video], dim=1)  # [B, T, 3, H, W], reference first
        made = torch.stack([self._sampled(row, seed, step, key) for row, key in zip(pictures, batch.keys, strict=True)])
        return made[:, 1:].transpose(1, 2), made[:, 0]

    def _sampled(self, pictures: Tensor, seed: int, step: int, key: int) -> Tensor:
        """One sample's pictures [N, 3, H, W] in -1..1 -> latents [N, C, h, w] drawn from the posterior."""
        assert self.components is not None
        vae = self.components.vae
        rng = generator(seed, step, key, "posterior")
        found = []
        with torch.no_grad():
            for part in torch.split(pictures.to(self.device, vae.dtype), CHUNK):
                posterior = vae.encode(part).latent_dist
                eps = torch.from_numpy(rng.standard_normal(tuple(posterior.mean.shape)))
                found.append((posterior.mean + posterior.std * eps.to(posterior.mean)) * SCALE)
        return torch.cat(found)

    def vectors(self, batch: Batch) -> Tensor:
        """CLIP vectors [B, T, D] of all slots; vectors made beforehand are taken as they are."""
        if batch.clip.ndim == 3:
            return batch.clip
        assert self.components is not None
        encoder = self.components.image_encoder
        dtype = next(encoder.parameters()).dtype
        flat = normalise(batch.clip.flatten(0, 1)).to(self.device, dtype)
        with torch.no_grad():
            found = torch.cat([encode_images(encoder, part) for part in torch.split(flat, CHUNK)])
        return found.view(*batch.clip.shape[:2], -1)

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents [C, F, h, w] -> RGB [F, 3, H, W] in 0..1, clamped."""
        assert self.components is not None
        vae = self.components.vae
        with torch.no_grad():
            parts = torch.split(latents.transpose(0, 1).to(self.device, vae.dtype), CHUNK)
            return torch.cat([decode(vae, part) for part in parts]).float()

    def check_network(self, context: int, channels: int) -> None:
        """Refuse a network that these encoders do not fit, before anything is made: text width, latent channels."""
        width = self.prompt.shape[-1]
        if width != context:
            raise UsageError(
                f"model.encoders: its text states are {width} wide, the network's context is {context}. "
                "Set model.unet.context_dim, or use other encoders"
            )
        if self.components is not None and self.components.vae.config.latent_channels != channels:
            own = self.components.vae.config.latent_channels
            raise UsageError(
                f"model.encoders: its VAE gives {own} channels, the network takes {channels}. "
                f"Set model.unet.in_channels={own}, or use other encoders"
            )

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse frames (width, height) [px] that the VAE would silently cut at an edge."""
        if self.components is None:
            return
        scale = 2 ** (len(self.components.vae.config["block_out_channels"]) - 1)
        if size[0] % scale or size[1] % scale:
            raise UsageError(f"data.size: {size[0]}x{size[1]} px is no multiple of {scale}, as this VAE wants it")

    def check(self, batch: Batch, context: int, channels: int) -> None:
        """Refuse samples that do not fit the network: width of the CLIP vectors, channels of the latents."""
        if batch.clip.ndim == 3 and batch.clip.shape[-1] != context:
            raise InputError(f"data: CLIP vectors are {batch.clip.shape[-1]} wide, the network's context is {context}")
        if batch.latents is not None and batch.latents.shape[2] != channels:
            raise InputError(f"data: latents have {batch.latents.shape[2]} channels, the network {channels}")


def find_encoders(name: str, seed: int) -> tuple[Encoders, Sizes]:
    """The encoders of `model.encoders`, float32 on the CPU, and the sizes of their model (to write it again).

    `random`: tiny ones drawn from `seed`.  A missing or damaged folder is a `WeightsError`.
    """
    if name == "random":
        return random_encoders(seed), TINY
    folder = find_model(name)
    components = load_components(folder)
    return Encoders(components, components.prompt), Sizes() if is_converted(folder) else read_sizes(folder)


def random_encoders(seed: int, sizes: Sizes = TINY) -> Encoders:
    """Encoders that mean nothing, drawn from `seed`: to try the machinery without weights."""
    from animx.model.unet import AnimateXUNet

    stream = torch.Generator().manual_seed(seed)
    vae, vision = build_vae(**sizes.vae), build_vision(**sizes.vision)
    fill(vae, stream)
    fill(vision, stream)
    width = int(sizes.text["width"])
    prompt = torch.randn(1, 77, width, generator=stream)
    with torch.device("meta"):
        unet = AnimateXUNet.build(sizes.unet)
    for part in (vae, vision):
        part.eval().requires_grad_(False)
    return Encoders(Components(unet, vae, vision, prompt), prompt)
