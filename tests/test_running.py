"""The form of the network is a choice: the frames are the same up to rounding, the recipe says which."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.diffusion.components import Components  # noqa: E402
from animx.diffusion.options import EngineOptions  # noqa: E402
from animx.diffusion.placing import Placing  # noqa: E402
from animx.diffusion.running import Form, Running, resolved  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from tests.small_unet import random_inputs, randomised  # noqa: E402
from tests.test_graph import LATENT, LEAST, latents  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def placed(offload: Any = None) -> tuple[Placing, tuple[Any, ...]]:
    """A placing of a small network alone, and what a pass takes."""
    unet = randomised(AnimateXUNet.build(LEAST, text_length=7)).requires_grad_(False)
    with torch.no_grad():
        row = unet.encode(random_inputs(2, torch.float32, latent=LATENT, size=(32, 32)), frames=2, latent=LATENT)
    given = (latents(2, 0), torch.tensor([496]), row, unet.times([991, 496]))
    return Placing(cast(Components, SimpleNamespace(unet=unet)), offload), given


def test_forms_give_the_same_up_to_rounding_but_run_differently() -> None:
    placing, given = placed()
    with torch.no_grad():
        plain, fused = (Running(placing, Form(stack))(*given) for stack in ("plain", "fused"))
    difference = (plain - fused).abs().max().item()
    assert 0 < difference <= 1e-5 * plain.abs().max().item()


def test_auto_is_fused_on_cuda_only() -> None:
    assert [resolved("auto", "cuda"), resolved("auto", "cuda:1"), resolved("auto", "cpu")] == [
        "fused",
        "fused",
        "plain",
    ]
    assert resolved("plain", "cuda") == "plain"
    placing, given = placed()
    with torch.no_grad():
        assert torch.equal(Running(placing, Form())(*given), Running(placing, Form("plain"))(*given))


def test_what_was_built_stays_with_the_weights_and_goes_with_them() -> None:
    placing, given = placed()
    with torch.no_grad():
        Running(placing, Form("fused"))(*given)
        first = placing.kept
        Running(placing, Form("fused"))(*given)
        assert placing.kept is first  # the next segment and the next job build nothing
        Running(placing, Form("plain"))(*given)
        assert placing.kept is not first
        moving, given = placed(torch.device("cpu"))
        running = Running(moving, Form("fused"))
        running(*given)
        assert moving.kept is None  # weights that come and go are held by nothing but the pass
        assert running._network is not None
        running.clear()
        assert running._network is None


def test_a_network_that_cannot_be_fused_runs_plain_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    placing, given = placed()
    placing.components.unet.train()
    with torch.no_grad():
        Running(placing, Form("fused"))(*given)
    assert "the plain network runs in place of the fused one: the network is in training mode" in caplog.text


def test_forms_are_options_that_refuse_what_they_cannot_be() -> None:
    assert EngineOptions.of({"stack": "fused"}).stack == "fused"
    with pytest.raises(UsageError, match=r"animate-x.stack fast: use plain, fused or auto"):
        EngineOptions.of({"stack": "fast"})
    with pytest.raises(UsageError, match=r"Add --set animate-x.stack=plain"):
        EngineOptions.of({"stack": "fused", "compiled": True})
