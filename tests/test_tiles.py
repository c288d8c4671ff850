"""The picture codec in tiles: whole frames are untouched, tiles keep the frame's tone and show no seams."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from torch.nn import functional as F  # noqa: E402

from animx.diffusion.tiny import fill  # noqa: E402
from animx.model.tiles import in_tiles, spans  # noqa: E402
from animx.model.vae import build_vae, decode, encode  # noqa: E402


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.set_num_threads(1)
    made = build_vae(width=32, multipliers=(1, 1, 1, 1), res_blocks=1).eval().requires_grad_(False).double()
    fill(made, torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def latents() -> Any:
    """One frame, 24 x 16 cells."""
    return torch.randn(1, 4, 24, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.2


def off(a: Any, b: Any) -> tuple[float, float]:
    """Greatest and root mean square difference, in deviations of b."""
    d = (a - b) / b.std()
    return float(d.abs().max()), float(d.square().mean().sqrt())


def test_spans_cover_all_with_at_least_a_quarter_shared() -> None:
    for length in range(16, 200, 7):
        for tile in (16, 24, 48, 64):
            found = spans(length, tile)
            assert found[0][0] == 0
            assert found[-1][1] == length
            assert all(b - a == min(tile, length) for a, b in found)
            assert all(a[1] - b[0] >= tile // 4 - 1 for a, b in pairwise(found))


@pytest.mark.parametrize("tile", [24, 64])
def test_a_frame_that_fits_is_decoded_whole_bit_by_bit(vae: Any, latents: Any, tile: int) -> None:
    assert torch.equal(decode(vae, latents, tile), (vae.decode(latents / 0.18215).sample * 0.5 + 0.5).clamp(0, 1))
    pictures = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    ours, theirs = (encode(vae, pictures, torch.Generator().manual_seed(0), t) for t in (tile, 0))
    assert torch.equal(ours, theirs)


def test_a_network_without_norms_is_cut_without_a_trace() -> None:
    convolution = torch.nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    x = torch.randn(1, 2, 40, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, cut = convolution(x), in_tiles(convolution, x, 16)
    assert (cut - whole).abs().max() <= 1e-5  # the padding at inner edges weighs a millionth


def test_norms_see_the_whole_frame() -> None:
    norm = torch.nn.GroupNorm(2, 4, dtype=torch.float64)
    ramp = torch.linspace(0, 5, 48, dtype=torch.float64)
    x = torch.randn(2, 4, 48, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + ramp[:, None]
    with torch.no_grad():
        whole, cut = norm(x), in_tiles(norm, x, 16)
        alone = norm(x[:, :, :16])
    assert (cut - whole).abs().max() <= 1e-6
    assert (alone - whole[:, :, :16]).abs().max() > 1
    assert torch.equal(norm(x), whole)  # the norms are their own again


def test_tiles_of_a_frame_meet_without_seams(vae: Any, latents: Any) -> None:
    whole = decode(vae, latents)
    largest, mean = off(decode(vae, latents, 16), whole)
    assert mean <= 0.03
    assert largest <= 0.2
    # Diffusers' tiling, whose tiles are normed on their own, on the same frame.
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 16 * 8
    theirs = (vae.tiled_decode(latents / 0.18215).sample * 0.5 + 0.5).clamp(0, 1)
    vae.disable_tiling()
    assert mean < 0.5 * off(theirs, whole)[1]


def test_a_picture_is_encoded_in_tiles_alike(vae: Any) -> None:
    small = torch.rand(1, 3, 12, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pictures = F.interpolate(small, (192, 128), mode="bicubic").clamp(0, 1)
    whole, cut = (encode(vae, pictures, torch.Generator().manual_seed(0), tile) for tile in (0, 16))
    assert off(cut, whole)[1] <= 0.02
