"""First weights: other checkpoints of the trunk fit in, new parts keep quiet, and strangers are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
torch.set_num_threads(1)

from training import UNET, tiny_config, tiny_run  # noqa: E402

from animx.diffusion.tiny import fill  # noqa: E402
from animx.errors import WeightsError  # noqa: E402
from animx.model.checkpoint import to_released  # noqa: E402
from animx.model.conditions import Inputs  # noqa: E402
from animx.model.config import UNetConfig, variant  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from animx_trainer.config import ModelConfig  # noqa: E402
from animx_trainer.initialise import build_unet, initialise  # noqa: E402

CONFIG = UNetConfig(**{**UNET, "slots": 3})
TEXT = torch.zeros(1, 5, 16)


def _learned(config: UNetConfig = CONFIG) -> AnimateXUNet:
    unet = AnimateXUNet.build(config, text_length=5)
    fill(unet, torch.Generator().manual_seed(3))
    return unet.eval()


def _file(path: Path, state: dict[str, Any]) -> str:
    torch.save(state, path)
    return str(path)


def _run(unet: AnimateXUNet, conditions: bool) -> Any:
    stream = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Any:
        return torch.randn(*shape, generator=stream)

    x = some(1, 4, 2, 4, 4)
    inputs = Inputs(
        some(1, 1, 16), some(1, 3, 1, 16, 16), some(1, 3, 3, 16, 16), None, some(1, 3, 2, 18), some(1, 3, 16)
    )
    with torch.no_grad():
        given = inputs if conditions else Inputs()
        return unet.eval()(x, torch.tensor([400]), unet.encode(given, frames=2, latent=(4, 4)))


NEW_IN_VIDEO = ("pose_", "local_image", "dwpose", "randomref", "pre_image_condition")


def _video_state(unet: AnimateXUNet) -> dict[str, Any]:
    """The trunk alone, as a video-generation model holds it: 4 input channels, no pose attention, no conditions."""
    state = {
        name: value
        for name, value in to_released(unet).items()
        if not any(name.startswith(word) for word in NEW_IN_VIDEO) and "pose_attention" not in name
    }
    stem = "input_blocks.0.0.weight"
    return {**state, stem: state[stem][:, :4].clone(), "fps_embedding.weight": torch.zeros(3)}


def test_a_released_checkpoint_is_taken_whole_under_any_prefix(tmp_path: Path) -> None:
    learned = _learned()
    state = {f"module.{name}": value for name, value in to_released(learned).items()}
    unet = build_unet(CONFIG, 0, TEXT)
    report = initialise(unet, _file(tmp_path / "a.pth", {"state_dict": state}))
    assert (report.new, report.zeroed, report.ignored, report.reshaped) == ((), (), (), ())
    assert report.share == 1
    assert all(torch.equal(value, learned.state_dict()[name]) for name, value in unet.state_dict().items())


def test_a_video_model_starts_as_itself_whatever_the_conditions_say(tmp_path: Path) -> None:
    learned = _learned()
    path = _file(tmp_path / "video.pth", _video_state(learned))
    unet = build_unet(CONFIG, 0, TEXT)
    report = initialise(unet, path)
    assert report.widened == ("down.0.0.weight",)
    assert report.ignored == ("fps_embedding.weight",)
    assert "down.1.1.motion.proj_out" in report.zeroed
    assert "keypoint_encoder.token2" in report.zeroed
    assert "image_tokens.2" in report.zeroed
    assert "down.1.1.proj_out" not in report.zeroed
    assert not unet.down[0][0].weight[:, 4:].any()
    # The same trunk without motion attention and conditions, its other input channels fed with nothing:
    plain = AnimateXUNet.build(replace(CONFIG, motion="none", conditions=()), text_length=5)
    plain.load_state_dict(learned.state_dict(), strict=False)
    assert (_run(unet, True) - _run(plain, False)).abs().max() < 1e-5
    assert (_run(unet, True) - _run(learned, True)).abs().max() > 1e-2


def test_new_parts_have_gradients_although_they_start_at_zero(tmp_path: Path) -> None:
    path = _file(tmp_path / "video.pth", _video_state(_learned()))
    run = tiny_run(tiny_config(model=ModelConfig(unet=UNET, encoders="none", initialise=path)))
    from training import samples

    from animx_trainer.loop import take_step

    for step in range(3):
        take_step(run, samples(run, step), step)
    unet = run.denoiser.unet
    for layer in (unet.dwpose.conv3, unet.down[1][1].motion.proj_out, unet.keypoint_encoder.token2):
        assert layer.weight.any()


def test_the_paper_variant_takes_the_spatial_trunk_and_starts_without_time(tmp_path: Path) -> None:
    path = _file(tmp_path / "release.pth", to_released(_learned()))
    unet = build_unet(variant("paper", **{**UNET, "slots": 3}), 0, TEXT)
    report = initialise(unet, path)
    assert "down.1.2.proj_out" in report.zeroed  # a Mamba block is new, so its place adds nothing yet
    assert "down.1.1.motion.attention.to_out" in report.zeroed
    assert "down.1.0.conv2" not in report.zeroed
    assert "local_image.conv1" not in report.zeroed
    assert 0.2 < report.share < 1


def test_longer_clips_get_a_longer_position_table(tmp_path: Path) -> None:
    path = _file(tmp_path / "release.pth", to_released(_learned()))
    unet = build_unet(replace(CONFIG, slots=9), 0, TEXT)
    report = initialise(unet, path)
    assert report.reshaped == ()
    assert unet.keypoint_encoder.positions.shape[1] == 9


def test_scratch_is_the_seed_s_and_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (build_unet(CONFIG, seed, TEXT).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert initialise(build_unet(CONFIG, 1, TEXT), "scratch").line() == "initialised from scratch"


@pytest.mark.parametrize("kind", ["stranger", "missing", "text"])
def test_what_is_no_checkpoint_of_this_network_is_refused(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "x.pth")
    if kind == "stranger":
        torch.save({"conv.weight": torch.zeros(3, 3), "input_blocks.0.0.bias": torch.zeros(32)}, path)
    elif kind == "text":
        Path(path).write_text("no tensors")
    with pytest.raises(WeightsError) as found:
        initialise(build_unet(CONFIG, 0, TEXT), path)
    assert "x.pth" in str(found.value)
    if kind == "stranger":
        assert "of this network" in str(found.value)
