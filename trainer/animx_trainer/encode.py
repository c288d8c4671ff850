"""Frames encoded beforehand: latents and image vectors stored beside the pictures, so that training needs no encoder.

Of each frame the mean and the deviation of the VAE's posterior are stored (scaled, float16), not one draw from it:
training draws anew each time, as it does from pictures.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.diffusion.components import Components, load_components
from animx.errors import InputError, WeightsError
from animx.model.image_encoder import encode_images, normalise
from animx.model.vae import SCALE
from animx.weights import find_model
from animx_trainer.data import decode_picture, fitted
from animx_trainer.shards import INDEX, Contents, StoredClip, read_index, write_folder

log = logging.getLogger("animx.data")

BATCH = 8
"""Frames encoded at once."""


def encode_clips(
    folders: Sequence[Path],
    model: str,
    device: str = "auto",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Add latents and vectors to the clip folders that have none yet; each is replaced whole."""
    todo = [folder for folder in folders if not all(_stored(folder).encoded)]
    if not todo:
        return
    components = load_components(find_model(model))
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    components.to(where, torch.float32)
    log.info("frames are encoded on %s", where)
    for number, folder in enumerate(todo):
        clip = _stored(folder)
        write_folder(folder.parent, encoded(clip, components, where))
        if on_progress is not None:
            on_progress("encode", number + 1, len(todo))


def _stored(folder: Path) -> StoredClip:
    return read_index(folder / INDEX, folder).clip(0)


@torch.no_grad()
def encoded(clip: StoredClip, components: Components, device: torch.device) -> Contents:
    """The clip's files with `clip.npy` [T, D] and per frame [2, C, h, w] added."""
    pictures = [decode_picture(clip, name) for name in clip.pictures]
    height, width = pictures[0].shape[:2]
    scale = 2 ** (len(components.vae.config["block_out_channels"]) - 1)
    if height % scale or width % scale:
        raise InputError(f"{clip}: {width}x{height} px is no multiple of {scale}, as this VAE wants it. Set --size")
    size = int(components.image_encoder.config.image_size)
    latents: list[NDArray[np.float16]] = []
    vectors: list[NDArray[np.float16]] = []
    for start in range(0, len(pictures), BATCH):
        some = pictures[start : start + BATCH]
        posterior = components.vae.encode((_tensor(some) * 2 - 1).to(device)).latent_dist
        moments = torch.stack([posterior.mean, posterior.std], dim=1) * SCALE  # [n, 2, C, h, w]
        latents += list(_half(moments, clip))
        small = _tensor([fitted(picture, Canvas(size, size)) for picture in some])
        vectors += list(_half(encode_images(components.image_encoder, normalise(small).to(device)), clip))
    whole = clip.contents()
    files = {name: data for name, data in whole.files.items() if not name.endswith(".npy")}
    first = {"clip.npy": _npy(np.stack(vectors))}
    return Contents(whole.key, files | first | {f"{t:05d}.npy": _npy(one) for t, one in enumerate(latents)})


def _tensor(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _half(values: torch.Tensor, clip: StoredClip) -> NDArray[np.float16]:
    found = values.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(found).all():
        raise WeightsError(f"{clip}: encoding gives NaN or numbers beyond half precision. Check the model's weights")
    return found


def _npy(array: NDArray[np.float16]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()
