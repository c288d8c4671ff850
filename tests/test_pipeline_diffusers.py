"""`AnimateXPipeline` in the manner of diffusers, and what its denoising loop computes once instead of every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.canvas import Canvas, place  # noqa: E402
from animx.diffusion.clip import Clip  # noqa: E402
from animx.diffusion.pipeline import AnimateXPipeline  # noqa: E402
from animx.diffusion.placing import PARTS, Placing  # noqa: E402
from animx.diffusion.render import Hooks, Settings, render_clip  # noqa: E402
from animx.diffusion.sampler import Guidance  # noqa: E402
from animx.diffusion.steppers import scheduler_named  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.model.attention import Attention  # noqa: E402
from animx.model.conditions import Conditions, Inputs  # noqa: E402
from animx.pose.sequence import PoseSequence  # noqa: E402

CANVAS = Canvas(64, 64)
FRAMES = 5
SETTINGS = Settings(steps=2, window=4, overlap=2)


@dataclass(frozen=True)
class Given:
    picture: NDArray[np.uint8]
    poses: PoseSequence
    driving: list[NDArray[np.uint8]]

    def call(self, pipeline: AnimateXPipeline, **more: Any) -> NDArray[np.uint8]:
        more.setdefault("settings", SETTINGS)
        return pipeline(self.picture, self.poses, self.driving, **more).frames


@pytest.fixture(scope="module")
def given(tiny_poses: PoseSequence) -> Given:
    poses = tiny_poses.cut(0, FRAMES).on(CANVAS, place(tiny_poses.canvas, CANVAS))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 30, 3)).astype(np.uint8) for _ in range(FRAMES + 1)]
    return Given(pictures[0], poses, pictures[1:])


@pytest.fixture(scope="module")
def loaded(tiny_release: Path) -> AnimateXPipeline:
    return AnimateXPipeline.from_pretrained(tiny_release)


@pytest.fixture
def pipeline(loaded: AnimateXPipeline) -> Iterator[AnimateXPipeline]:
    yield loaded
    loaded.scheduler = "released"
    loaded.placing = Placing(loaded.components)


@pytest.fixture(scope="module")
def plain(loaded: AnimateXPipeline, given: Given) -> NDArray[np.uint8]:
    return given.call(loaded)


@pytest.fixture(scope="module")
def clip(loaded: AnimateXPipeline, given: Given) -> Clip:
    return loaded.prepare(given.picture, given.poses, given.driving)


def test_a_call_gives_one_picture_per_pose(plain: NDArray[np.uint8]) -> None:
    assert plain.shape == (FRAMES, 64, 64, 3)
    assert plain.dtype == np.uint8
    assert plain.std() > 1


def test_saved_and_loaded_it_gives_the_same_frames(
    pipeline: AnimateXPipeline, given: Given, plain: NDArray[np.uint8], tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = AnimateXPipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(given.call(again), plain)
    with pytest.raises(UsageError, match="not empty"):
        pipeline.save_pretrained(tmp_path / "saved")


def test_a_fresh_generator_equals_its_seed(pipeline: AnimateXPipeline, given: Given, plain: NDArray[np.uint8]) -> None:
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    assert np.array_equal(given.call(pipeline, generator=generator), plain)
    assert not np.array_equal(given.call(pipeline, generator=generator), plain)  # it has moved on


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["unipc", pytest.param("ddim", marks=SLOW), pytest.param("dpm++2m", marks=SLOW)])
def test_a_scheduler_by_name_equals_the_object(pipeline: AnimateXPipeline, given: Given, name: str) -> None:
    by_name = given.call(pipeline, settings=replace(SETTINGS, scheduler=name))
    pipeline.scheduler = scheduler_named(name)
    assert np.array_equal(given.call(pipeline), by_name)
    assert np.array_equal(given.call(pipeline), by_name)  # it keeps no history of the first call


@SLOW
def test_schedulers_differ(pipeline: AnimateXPipeline, given: Given, plain: NDArray[np.uint8]) -> None:
    found = [given.call(pipeline, settings=replace(SETTINGS, scheduler=name, steps=4)) for name in ("ddim", "unipc")]
    assert not np.array_equal(*found)
    assert not np.array_equal(found[0], plain)


def test_schedulers_of_another_kind_are_refused(pipeline: AnimateXPipeline, given: Given) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(UsageError, match="v_prediction"):
        given.call(pipeline)
    pipeline.scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    with pytest.raises(UsageError, match="start noise"):
        given.call(pipeline)


def test_eta_adds_noise_that_the_seed_decides(pipeline: AnimateXPipeline, given: Given) -> None:
    def run(eta: float, seed: int = 1) -> NDArray[np.uint8]:
        return given.call(pipeline, settings=replace(SETTINGS, scheduler="ddim", eta=eta, seed=seed, steps=3))

    assert np.array_equal(run(0.8), run(0.8))
    assert not np.array_equal(run(0.8), run(0.0))
    assert not np.array_equal(run(0.8), run(0.8, seed=2))
    with pytest.raises(UsageError, match="ddim"):
        given.call(pipeline, settings=replace(SETTINGS, eta=0.5))


def test_a_callback_sees_every_step_and_may_change_the_latents(
    pipeline: AnimateXPipeline, given: Given, plain: NDArray[np.uint8]
) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def look(pipe: AnimateXPipeline, index: int, timestep: int, values: dict[str, Any]) -> None:
        assert pipe is pipeline
        seen.append((index, timestep, tuple(values["latents"].shape)))

    assert np.array_equal(given.call(pipeline, callback_on_step_end=look), plain)
    assert seen == [(0, 501, (1, 4, FRAMES, 8, 8)), (1, 1, (1, 4, FRAMES, 8, 8))]

    def grey(pipe: AnimateXPipeline, index: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(values["latents"])} if index == 1 else {}

    flat = given.call(pipeline, callback_on_step_end=grey)
    # Black latents decode to the same picture; a batch of another size may round otherwise.
    assert np.abs(flat.astype(int) - flat[0]).max() <= 1
    with pytest.raises(ValueError, match="latents"):
        given.call(pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})


def test_batched_guidance_equals_one_after_the_other_up_to_rounding(
    pipeline: AnimateXPipeline, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = pipeline.components.unet
    sizes: list[int] = []
    real = type(unet).forward
    monkeypatch.setattr(type(unet), "forward", lambda self, x, *more: sizes.append(len(x)) or real(self, x, *more))

    def latents(batched: bool) -> Any:
        found: list[Any] = []
        hooks = Hooks(on_latents=lambda segment, index, t, x: found.append(x))
        list(render_clip(pipeline.placing, clip, replace(SETTINGS, guidance_batched=batched), hooks=hooks))
        return found[-1]

    one, both = latents(False), latents(True)
    assert sizes == [1] * 8 + [2] * 4
    assert (one - both).abs().max() <= 1e-4 * one.abs().max()


def test_the_rows_of_a_batch_are_conditional_then_unconditional(pipeline: AnimateXPipeline, clip: Clip) -> None:
    unet = pipeline.components.unet
    with torch.no_grad():
        rows = [unet.encode(clip.window(0, 4), frames=4, latent=clip.latent),
                unet.encode(Inputs(), frames=4, latent=clip.latent)]  # fmt: skip
        x, t = torch.randn(1, 4, 4, 8, 8), torch.tensor([501])
        both = unet(torch.cat([x, x]), t.expand(2), Conditions.stack(rows))
        for i in range(2):
            assert torch.allclose(both[i : i + 1], unet(x, t, rows[i]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_decoding_in_a_thread_changes_no_byte(pipeline: AnimateXPipeline, clip: Clip) -> None:
    settings = replace(SETTINGS, window=2, overlap=1, windows=1)
    frames = [
        np.stack(list(render_clip(pipeline.placing, clip, settings, hooks=Hooks(stream=stream))))
        for stream in (False, True)
    ]
    assert len(frames[0]) == FRAMES
    assert np.array_equal(*frames)


def test_a_thread_denoises_the_next_segment_while_frames_are_taken(pipeline: AnimateXPipeline, clip: Clip) -> None:
    import threading

    later = threading.Event()
    hooks = Hooks(stream=True, on_latents=lambda segment, *_: later.set() if segment else None)
    frames = render_clip(pipeline.placing, clip, replace(SETTINGS, window=2, overlap=1, windows=1), hooks=hooks)
    next(frames)
    assert later.wait(60)  # nothing more was asked for
    frames.close()  # type: ignore[attr-defined]


def test_offloading_keeps_one_network_at_a_time_on_the_device(
    pipeline: AnimateXPipeline, given: Given, plain: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.enable_model_cpu_offload("cpu")
    assert np.array_equal(given.call(pipeline), plain)
    # No second device here: let the parts say that they are elsewhere, and watch them move.
    moved: list[tuple[str, str]] = []
    names = {id(getattr(pipeline.components, name)): name for name in PARTS}
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append((names[id(self)], str(device))))
    placing = Placing(pipeline.components, torch.device("cuda"))
    placing.use("vae")
    assert moved == [("image_encoder", "cpu"), ("unet", "cpu"), ("vae", "cuda")]
    assert placing.device == torch.device("cuda")


@SLOW
def test_guidance_acts_only_in_its_interval(pipeline: AnimateXPipeline, clip: Clip) -> None:
    def run(*interval: float) -> NDArray[np.uint8]:
        settings = replace(SETTINGS, steps=4, guidance=Guidance(2.5, *interval))
        return np.stack(list(render_clip(pipeline.placing, clip, settings)))

    assert np.array_equal(run(), run(0.0, 1.0))
    assert not np.array_equal(run(), run(0.0, 0.5))
    assert not np.array_equal(run(0.0, 0.5), run(0.5, 1.0))


def test_driving_pictures_must_reach_for_all_poses(pipeline: AnimateXPipeline, given: Given) -> None:
    with pytest.raises(Exception, match="3 frames, but there are 5 poses"):
        pipeline.prepare(given.picture, given.poses, given.driving[:3])


# ---- computed once ----


def test_cached_conditions_equal_recomputed_ones(pipeline: AnimateXPipeline, clip: Clip) -> None:
    """Keys and values projected once, against projecting the context of every slot anew in every step, in float64."""
    import copy

    unet = copy.deepcopy(pipeline.components.unet).double()
    inputs = clip.window(0, 4).to(torch.float64)
    with torch.no_grad():
        cached = unet.encode(inputs, frames=4, latent=clip.latent)
        image = unet.image_tokens(inputs.image[:, 0]).unflatten(1, (4, -1))
        context = torch.cat([unet.text, image], dim=1).repeat(5, 1, 1)  # one copy per slot, as released
        x = torch.randn(1, 4, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for t in (981, 501, 1):
            tokens = unet.motion_tokens(inputs, 1, 5).flatten(0, 1)
            layers = list(unet.spatial_transformers())
            fresh = Conditions(
                cached.dense,
                cached.reference,
                tuple(layer.block.cross_attention.key_value(context) for layer in layers),
                tuple(layer.motion.attention.key_value(tokens) for layer in layers),
            )
            time = torch.tensor([t])
            one, other = unet(x, time, cached), unet(x, time, fresh)
            assert (one - other).abs().max() <= 1e-12 * other.abs().max()
            x = x - 0.1 * one


def test_no_condition_encoder_runs_in_the_loop(pipeline: AnimateXPipeline, clip: Clip) -> None:
    unet = pipeline.components.unet
    watched: dict[str, Any] = {
        name: getattr(unet, name)
        for name in ("image_tokens", "keypoint_encoder", "resampler", "local_image", "local_image_frames", "dwpose",
                     "dwpose_frames", "reference_pose", "reference_latent")
    }  # fmt: skip
    for number, layer in enumerate(unet.spatial_transformers()):
        for attention in (layer.block.cross_attention, layer.motion.attention):
            assert isinstance(attention, Attention)
            watched |= {f"{number}.{id(attention)}.{name}": getattr(attention, name) for name in ("to_k", "to_v")}
    calls: dict[str, int] = {}
    steps: list[dict[str, int]] = []
    handles = [
        module.register_forward_hook(lambda *_, n=name: calls.__setitem__(n, calls.get(n, 0) + 1))
        for name, module in watched.items()
    ]
    handles.append(unet.register_forward_hook(lambda *_: steps.append(dict(calls))))
    try:
        list(render_clip(pipeline.placing, clip, replace(SETTINGS, steps=4)))
    finally:
        for handle in handles:
            handle.remove()
    assert calls["image_tokens"] == 2  # two windows
    assert calls["dwpose"] == 2
    assert len(steps) == 4 * 2 * 2
    assert all(count == calls for count in steps)  # before the first pass, and never again
