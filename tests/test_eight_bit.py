"""The network in 8 bits: which layers, how far it strays, that nothing changes where it is off, what is said, kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hall import refused

from animx.job import ChunkStore

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from torch import nn  # noqa: E402
from wet import Stage, good, side_car  # noqa: E402

from animx.diffusion.components import Components, load_components  # noqa: E402
from animx.diffusion.memory import EIGHT_BIT_PARAMETERS, TIERS, predicted_bytes  # noqa: E402
from animx.diffusion.options import EngineOptions  # noqa: E402
from animx.diffusion.pipeline import AnimateXPipeline  # noqa: E402
from animx.diffusion.placing import Placing  # noqa: E402
from animx.diffusion.precision import anywhere, obstacles, taken  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.model.conditions import Conditions, Inputs  # noqa: E402
from animx.model.config import UNetConfig  # noqa: E402
from animx.model.eight_bit import KEPT_EXACT, EightBit, eight_bit, large_attentions, large_linears, state_of  # noqa: E402
from animx.model.fused import FusedUNet  # noqa: E402
from animx.model.fused_parts import Grid  # noqa: E402
from animx.model.fused_transformers import FusedTemporal, SelfAttention  # noqa: E402
from animx.model.linear8 import Linear8  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from tests.small_unet import random_inputs  # noqa: E402
from tests.test_fused import latents, network  # noqa: E402

BOTH = EightBit(linears=True, attention=True)
SIZE = (8, 8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def away(found: Any, wanted: Any) -> float:
    """Relative difference (norms)."""
    return float((found - wanted).norm() / wanted.norm())


class Given:
    """A small exact network, a window for it, and its velocity."""

    def __init__(self) -> None:
        self.unet = network(torch.float32)
        self.t = torch.tensor([496])
        self.x = latents(1, 2, torch.float32, SIZE)
        with torch.no_grad():
            self.rows = [
                self.unet.encode(one, frames=2, latent=SIZE)
                for one in (random_inputs(2, torch.float32, latent=SIZE), Inputs())
            ]
            self.times = self.unet.times([496])
            self.exact = self.of(self.unet)

    def of(self, unet: Any) -> Any:
        with torch.no_grad():
            return unet(self.x, self.t, self.rows[0], self.times)


@pytest.fixture(scope="module")
def given() -> Given:
    torch.set_num_threads(1)
    return Given()


# ---- which layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temporal", ["transformer", "mamba"])
def test_the_memory_that_is_predicted_is_that_of_the_layers_in_8_bits(temporal: Any) -> None:
    config = UNetConfig() if temporal == "transformer" else UNetConfig(temporal=temporal, motion="cross")
    with torch.device("meta"):
        unet = AnimateXUNet.build(config)
    eight_bit(unet, EightBit(linears=True))
    found = sum(part.q.numel() for part in unet.modules() if isinstance(part, Linear8))
    assert found == EIGHT_BIT_PARAMETERS[temporal]
    assert found + sum(p.numel() for p in unet.parameters()) < 1.9e9
    less = [predicted_bytes(TIERS[0], (96, 64), config, linears=linears) for linears in ("exact", "fp8")]
    assert less[0] - less[1] == found  # 2 bytes each were 1


def test_only_large_layers_of_the_steps_are_in_8_bits(given: Given) -> None:
    eight = eight_bit(given.unet, BOTH, share=True)
    names = {name for name, part in eight.named_modules() if isinstance(part, Linear8)}
    ends = {name.rsplit(".", 1)[1] for name in names}
    assert ends == {"to_q", "to_k", "to_v", "proj", "out"}
    assert not [name for name in names if name.endswith(".out") and "feed_forward" not in name]
    assert not [name for name in names if "motion.block.cross_attention" in name]
    assert all(place.kind in KEPT_EXACT or isinstance(getattr(place.owner, place.name), Linear8)
               for place in large_linears(eight))  # fmt: skip
    attending = [part for part in eight.modules() if getattr(part, "in_eight_bits", False)]
    assert attending == list(large_attentions(eight))
    widths = {part.to_out.out_features for part in attending}  # levels 0 and 1 of 32, 32, 64, 64 channels
    assert widths == {32}


def test_a_layer_whose_sides_the_units_do_not_take_stays_exact() -> None:
    unet = network(torch.float32)
    owner = next(place for place in large_linears(unet) if place.kind == "qkv").owner
    owner.to_q = nn.Linear(32, 24)
    eight_bit(unet, BOTH)
    assert isinstance(owner.to_q, nn.Linear)


# ---- what is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "least", "most"),
    [(EightBit(linears=True), 3e-3, 0.05), (EightBit(attention=True), 1e-6, 2e-3), (BOTH, 3e-3, 0.05)],
    ids=["linears", "attention", "both"],
)
def test_8_bits_stray_a_little_and_leave_the_exact_network_alone(
    given: Given, how: EightBit, least: float, most: float
) -> None:
    eight = eight_bit(given.unet, how, share=True)
    plain = given.of(eight)
    assert torch.equal(given.of(eight), plain)
    assert least < away(plain, given.exact) < most
    assert least < away(given.of(FusedUNet(eight)), given.exact) < most
    assert torch.equal(given.of(given.unet), given.exact)


def test_nothing_in_8_bits_is_the_exact_network_to_the_last_bit(given: Given) -> None:
    assert torch.equal(given.of(eight_bit(given.unet, EightBit(), share=True)), given.exact)
    assert state_of(given.unet) == EightBit()


def test_windows_at_once_are_the_windows_one_after_the_other(given: Given) -> None:
    """Each token has scales of its own, so windows do not know of one another; what differs is rounding that flips."""
    fused = FusedUNet(eight_bit(given.unet, BOTH, share=True))
    x, t = latents(2, 2, torch.float32, SIZE), torch.tensor([496, 496])
    with torch.no_grad():
        together = fused(x, t, Conditions.stack(given.rows), given.times)
        apart = [fused(x[i : i + 1], t[:1], given.rows[i], given.times) for i in (0, 1)]
    assert away(together, torch.cat(apart)) < 0.03
    assert away(apart[0], apart[1]) > 0.1


def test_the_fused_blocks_are_the_plain_ones_in_8_bits_too() -> None:
    """Block by block and in float64: over a whole network each flipped rounding flips others."""
    unet = eight_bit(network(torch.float64), BOTH)
    block = cast(Any, unet.down[1])
    temporal, spatial = block[2], block[1]
    tokens = torch.randn(2 * 3, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picture = tokens.view(6, 8, 8, 32).permute(0, 3, 1, 2)
    with torch.no_grad():
        plain = temporal(picture, 3).permute(0, 2, 3, 1).flatten(1, 2)
        fused = FusedTemporal(temporal)(tokens, Grid(2, 3, 8, 8))
        assert away(fused, plain) < 1e-6
        y, branch = SelfAttention(spatial.block.norm1, spatial.block.self_attention)(None, tokens)
        assert away(branch, spatial.block.self_attention(spatial.block.norm1(tokens))) < 1e-6
        exact = network(torch.float64)
        other = FusedTemporal(cast(Any, exact.down[1])[2])(tokens, Grid(2, 3, 8, 8))
        assert away(other, plain) > 1e-4  # and it was in 8 bits
    assert torch.equal(y, tokens)


def test_casting_and_moving_a_network_leaves_its_8_bit_weights_alone() -> None:
    layer = Linear8.of(nn.Linear(32, 16))
    before = layer.q.view(torch.uint8).clone(), layer.scale.clone()
    for kind in (torch.bfloat16, torch.float64):
        nn.Sequential(layer).to(kind)
        assert layer.bias is not None
        assert (layer.q.dtype, layer.scale.dtype, layer.bias.dtype) == (torch.float8_e4m3fn, torch.float32, kind)
    layer.to("meta")
    assert layer.q.device.type == layer.scale.device.type == "meta"
    layer = Linear8(before[0].view(torch.float8_e4m3fn), before[1], None)
    both = Linear8.stacked([layer, Linear8(layer.q, layer.scale, None)])
    x = torch.randn(5, 32)
    assert torch.equal(both(x), layer(x).repeat(1, 2))
    assert layer.q.untyped_storage().data_ptr() == both.q.untyped_storage().data_ptr()
    assert torch.allclose(layer.times(0.3)(x), 0.3 * layer(x), rtol=1e-5, atol=1e-6)


def test_what_is_in_8_bits_compiles_as_one_graph() -> None:
    unet = eight_bit(network(torch.float32), BOTH)
    block = cast(Any, unet.down[1])[1].block
    parts = nn.Sequential(block.self_attention, block.feed_forward)
    x = torch.randn(2, 16, 32)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(parts, fullgraph=True, backend="aot_eager")(x), parts(x))


# ---- where it is kept -----------------------------------------------------------------------------------------------


def test_a_placing_computes_both_ways_and_keeps_the_exact_weights(given: Given) -> None:
    parts = cast(Any, SimpleNamespace)(unet=given.unet, vae=None, image_encoder=None, prompt=None)
    placing = Placing(Components(**vars(parts)))
    assert placing.computing(EightBit()) is placing
    eight = placing.computing(BOTH)
    assert eight is placing.computing(BOTH)
    assert state_of(eight.components.unet) == BOTH
    assert eight.computing(BOTH) is eight
    with pytest.raises(UsageError, match="Load the model again for exact linears"):
        eight.computing(EightBit())
    assert torch.equal(given.of(placing.components.unet), given.exact)
    moved = nn.Module.to(eight.components.unet, torch.float64)
    assert moved.out_conv.weight.dtype == torch.float64
    assert given.unet.out_conv.weight.dtype == torch.float32  # one of them moves, the other stays


def test_a_pipeline_in_8_bits_is_no_model_to_keep(stage: Stage, tmp_path: Path) -> None:
    pipeline = AnimateXPipeline(load_components(stage.release))
    before = sum(t.numel() * t.element_size() for t in pipeline.components.unet.state_dict().values())
    pipeline.to_eight_bits()
    after = sum(t.numel() * t.element_size() for t in pipeline.components.unet.state_dict().values())
    assert after < 0.75 * before
    with pytest.raises(UsageError, match="no model to keep"):
        pipeline.save_pretrained(tmp_path / "kept")


# ---- what is asked for and said -------------------------------------------------------------------------------------

CAN: dict[str, str | None] = {"linears": None, "attention": None}


def options(**given: Any) -> EngineOptions:
    return EngineOptions.of(given)


def test_auto_takes_what_the_device_has_and_tells_the_rest() -> None:
    cannot = obstacles("cpu", UNetConfig())
    found = taken(options(linears="auto", attention="auto"), cannot)
    assert (found.linears, found.attention) == ("exact", "exact")
    assert [line.split(":")[0] for line in found.left] == ["8-bit linears", "8-bit attention"]
    assert all("not on this device" in line and "cpu" in line for line in found.left)
    found = taken(options(speed="fastest"), {**CAN, "linears": "too old"})
    assert (found.linears, found.attention) == ("exact", "int8")
    assert found.told == ("8-bit attention: taken", *found.left)
    found = taken(options(linears="fp8"), cannot)
    assert (found.linears, found.attention, found.left) == ("fp8", "exact", ())
    assert "emulated" in found.told[0]
    assert taken(options(), CAN) == replace(found, linears="exact", told=())
    assert anywhere([CAN, {**CAN, "attention": "too old"}]) == {"linears": None, "attention": "too old"}
    assert taken(options(speed="fastest", linears="exact", attention="exact"), CAN).told == ()


@pytest.mark.parametrize(("name", "value"), [("linears", "fp16"), ("attention", "fp8")])
def test_another_word_is_refused_with_the_known_ones(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"animx?.*{name} {value}: use exact, "):
        options(**{name: value})


EIGHT = ("--set", "animate-x.linears=fp8", "--set", "animate-x.attention=int8", "--set", "animate-x.windows=1")


def test_fastest_on_a_device_without_8_bits_says_so_and_gives_the_exact_bytes(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = good(stage.render("auto.mp4", "--speed", "fastest", "--progress", "none"))
    assert "8-bit linears: not on this device" in ran.err
    assert "8-bit attention: not on this device" in ran.err
    exact = ("--set", "animate-x.linears=exact", "--set", "animate-x.attention=exact")
    ran = good(stage.render("exact.mp4", "--speed", "fastest", *exact, "--progress", "none"))
    assert "8-bit" not in ran.err
    recipes = [side_car(name)["options"] for name in ("auto.mp4", "exact.mp4")]
    assert recipes[0] == recipes[1]
    assert (recipes[0]["animate-x.linears"], recipes[0]["animate-x.attention"]) == ("exact", "exact")
    plan = good(stage.render("plan.mp4", "--speed", "fastest", "--dry-run", "--json")).json["plan"]
    assert sum("not on this device" in note for note in plan["notes"]) == 2


def test_a_render_in_8_bits_is_recorded_and_goes_on_only_in_8_bits(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two segments; the second run breaks after the first one was kept."""
    monkeypatch.chdir(tmp_path)
    ran = good(stage.render("whole.mp4", *EIGHT, "-v", "--progress", "none"))
    assert "8-bit linears: emulated, slowly" in ran.err
    recipe = side_car("whole.mp4")["options"]
    assert (recipe["animate-x.linears"], recipe["animate-x.attention"]) == ("fp8", "int8")

    def broken(self: ChunkStore, number: int, arrays: Any) -> None:
        real(self, number, arrays)
        raise KeyboardInterrupt

    real = ChunkStore.save
    monkeypatch.setattr(ChunkStore, "save", broken)
    assert stage.render("again.mp4", *EIGHT, "-q").code == 130
    monkeypatch.setattr(ChunkStore, "save", real)
    refused(stage.render("again.mp4", *EIGHT[4:], "-q", "--resume"), 2, "linears")
    good(stage.render("again.mp4", *EIGHT, "-q", "--resume"))
    assert Path("again.mp4").read_bytes() == Path("whole.mp4").read_bytes()


# ---- what is measured -----------------------------------------------------------------------------------------------


def test_the_drift_of_8_bits_is_told_beside_that_of_one_more_step() -> None:
    import numpy as np

    from animx.measuring.drift import Sampled, arithmetic_of, with_one_more_step
    from animx.measuring.stage import Setup

    way = Setup.of("exact,steps=26,linears=fp8")
    more = with_one_more_step(way)
    assert (more.settings.steps, more.settings.linears) == (28, "exact")  # 27 steps start at t = 999
    asked: list[tuple[int, str]] = []

    def sample(one: Setup) -> Sampled:
        asked.append((one.settings.steps, one.settings.linears))
        latents = torch.ones(1, 4, 1, 2, 2) * {26: 1.0, 28: 1.2}[one.settings.steps]
        latents = latents * (1.1 if one.settings.linears == "fp8" else 1.0)
        return Sampled((0,), (latents,), np.zeros((1, 16, 16, 3), np.uint8))

    found = arithmetic_of(way, sample)
    assert sorted(asked) == [(26, "exact"), (26, "fp8"), (28, "exact")]
    assert found["added_by_8_bits"]["latents"] == pytest.approx(0.1, rel=1e-3)
    assert found["one_more_step"]["latents"] == pytest.approx(0.2, rel=1e-3)
    assert found["share_of_one_more_step"] == pytest.approx(0.5, rel=1e-2)


def test_a_way_is_measured_in_8_bits_where_the_device_only_emulates_them_but_timed_without() -> None:
    from animx.measuring.stage import Setup

    emulated, timed = Setup.of("fastest", emulated=True).settings, Setup.of("fastest").settings
    assert (emulated.linears, emulated.attention) == ("fp8", "int8")
    assert (timed.linears, timed.attention) == ("exact", "exact")
