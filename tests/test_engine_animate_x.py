"""The full model through the command line, on a tiny random release: drives, sizes, options, memory, previews."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hall import FAKE_POSE, animx, installed, make_package, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from wet import Stage, good, pictures, side_car  # noqa: E402

from animx.diffusion import engine as engine_module  # noqa: E402
from animx.diffusion import memory  # noqa: E402
from animx.diffusion.engine import AnimateXEngine  # noqa: E402
from animx.diffusion.options import NAMES, EngineOptions  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from animx.request import choose_engine  # noqa: E402


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A pose backend that needs no net."""
    folder = tmp_path_factory.mktemp("site")
    make_package(folder, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    with installed(folder):
        yield


@pytest.fixture(scope="module")
def plain(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny render with no further option."""
    out = tmp_path_factory.mktemp("plain") / "out.mp4"
    good(stage.render(out, "-q"))
    return out


# ---- drives ----


@pytest.mark.usefixtures("fake")
def test_a_video_drives_and_the_recipe_tells_all(stage: Stage) -> None:
    began = time.process_time()
    ran = good(stage.render("out.mp4", "--backend", "fake", "--json", "--seed", 5, drive=stage.clip, video=False))
    assert time.process_time() - began < 10
    assert ran.json["frames"] == 12
    assert ran.json["engine"] == "animate-x"
    assert pictures("out.mp4").shape == (12, 96, 64, 3)
    recipe = side_car("out.mp4")
    assert recipe["seed"] == 5
    assert len(recipe["weights"]) == 64
    options = recipe["options"]
    assert {key: options[f"animate-x.{key}"] for key in ("steps", "window", "guidance", "scheduler", "dtype")} == {
        "steps": 2, "window": 6, "guidance": 2.5, "scheduler": "released", "dtype": "float32"}  # fmt: skip
    assert "aligned" in recipe["pose_images"]
    assert "not aligned" in recipe["motion_keypoints"]
    assert str(stage.release) not in json.dumps(recipe)
    assert not list(Path().glob("*.animx"))


def test_windows_are_no_longer_than_the_clips_the_network_was_trained_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(memory.config_of(stage.release), slots=5)  # four frames and the reference
    monkeypatch.setattr(memory, "config_of", lambda folder: short)
    refused(stage.render("out.mp4", "--dry-run"), 2, "--window 6", "at most 4 frames", "Use --window 4")
    arguments = stage.arguments("out.mp4", "--dry-run")
    at = arguments.index("--window")
    assert "window(s) of 4 frames" in good(animx(*arguments[:at], *arguments[at + 2 :])).out


@pytest.mark.usefixtures("fake")
def test_a_pose_file_finds_the_clip_it_was_made_from(stage: Stage) -> None:
    shutil.copy(stage.clip, "dance.mp4")
    good(animx("pose", "extract", "dance.mp4", "-o", "dance.pose.json", "--backend", "fake", "-q"))
    given: dict[str, Any] = {"video": False}
    good(stage.render("by_poses.mp4", "-q", drive="dance.pose.json", **given))
    good(stage.render("by_video.mp4", "-q", "--backend", "fake", drive="dance.mp4", **given))
    good(stage.render("named.mp4", "-q", "--driving-video", "dance.mp4", drive="dance.pose.json", **given))
    assert np.array_equal(pictures("by_poses.mp4"), pictures("by_video.mp4"))
    assert np.array_equal(pictures("by_poses.mp4"), pictures("named.mp4"))
    Path("dance.mp4").write_bytes(Path("dance.mp4").read_bytes() + b"\0")
    refused(stage.render("other.mp4", "-q", drive="dance.pose.json", **given), 2, "--driving-video")


def test_pose_pictures_are_aligned_and_motion_keypoints_are_not(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from animx.diffusion.pipeline import AnimateXPipeline

    seen: list[Any] = []
    real = AnimateXPipeline.prepare

    def prepare(self: Any, picture: Any, poses: Any, driving: Any, **more: Any) -> Any:
        seen.append((poses, more["keypoints"]))
        return real(self, picture, poses, driving, **more)

    monkeypatch.setattr(AnimateXPipeline, "prepare", prepare)
    good(stage.render("out.mp4", "-q", "--set", "legs=0.5"))
    ((poses, keypoints),) = seen
    assert poses.canvas.size == (64, 96)
    assert np.array_equal(keypoints.keypoints, stage.poses.keypoints)
    assert keypoints.canvas == stage.poses.canvas


def test_poses_without_pictures_are_refused_with_the_mend(stage: Stage) -> None:
    refused(stage.render("out.mp4", "-q", video=False), 2, "animate-x", "dance.pose.json", "--driving-video")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("frames", [1, 4])
def test_clips_shorter_than_a_window_work(stage: Stage, frames: int) -> None:
    good(stage.render("out.mp4", "-q", "--duration", f"{frames}f"))
    assert len(pictures("out.mp4")) == frames


@pytest.mark.parametrize(("size", "shape"), [("96x64", (64, 96)), ("75x101", (100, 74))])
def test_any_size_and_aspect_work(stage: Stage, size: str, shape: tuple[int, int]) -> None:
    good(stage.render("out.mp4", "-q", "--duration", "2f", "--size", size))
    found = pictures("out.mp4")
    assert found.shape[1:3] == shape
    assert found.std() > 1


def test_a_named_size_is_rendered_at_that_size_and_others_within_the_trained_area() -> None:
    from animx.canvas import Canvas

    assert engine_module.model_canvas(Canvas(832, 1216), fixed=True) == Canvas(832, 1216)
    free = engine_module.model_canvas(Canvas(832, 1216))
    assert free.width % 8 == free.height % 8 == 0
    assert free.width * free.height <= 512 * 768 * 1.05
    assert engine_module.model_canvas(Canvas(512, 768)) == Canvas(512, 768)


@pytest.mark.slow
def test_the_same_job_gives_the_same_bytes_and_the_seed_counts(stage: Stage, plain: Path) -> None:
    good(stage.render("again.mp4", "-q"))
    assert Path("again.mp4").read_bytes() == plain.read_bytes()
    good(stage.render("other.mp4", "-q", "--seed", 1))
    assert not np.array_equal(pictures("other.mp4"), pictures(plain))


@pytest.mark.slow
def test_two_frames_of_a_clip_differ_and_the_pose_steers_them(stage: Stage, plain: Path) -> None:
    found = pictures(plain).astype(int)
    assert (np.abs(np.diff(found, axis=0)).mean(axis=(1, 2, 3)) > 0).all()
    good(stage.render("stiff.mp4", "-q", "--drop", "arms"))
    assert not np.array_equal(pictures("stiff.mp4"), found)


# ---- options ----


BAD = [
    (("--steps", 0), "--steps 0"),
    (("--steps", 27), "--scheduler ddim"),
    (("--window", 4, "--overlap", 4), "--overlap 4"),
    (("--overlap", -1), "--overlap -1"),
    (("--dtype", "float8"), "--dtype float8"),
    (("--device", "cuda"), "--device cpu"),
    (("--device", "abacus"), "--device abacus"),
    (("--device", "meta"), "--device meta"),
    (("--scheduler", "unipcc"), "unipc"),
    (("--vram", 0), "--vram"),
    (("--preview", 0), "--preview"),
    (("--set", "animate-x.eta=0.5"), "--scheduler ddim"),
    (("--set", "animate-x.eta=2"), "eta"),
    (("--set", "animate-x.guidance_start=0.8", "--set", "animate-x.guidance_end=0.2"), "guidance_start"),
    (("--set", "animate-x.windows=0"), "animate-x.windows"),
    (("--set", "animate-x.windows=many"), "a whole number"),
    (("--set", "animate-x.window_batch=0"), "animate-x.window_batch"),
    (("--set", "animate-x.tile=8"), "animate-x.tile"),
    (("--set", "animate-x.colour=3"), "true or false"),
    (("--set", "animate-x.guidance=.nan"), "a number"),
    (("--set", "animate-x.stepz=3"), "steps"),
    (("--set", "animate-x.stack=fast"), "animate-x.stack"),
    (("--set", "puppet.cell=3"), "puppet.cell"),
]


@pytest.mark.parametrize(("more", "word"), BAD, ids=[" ".join(map(str, more)) for more, _ in BAD])
def test_bad_options_are_refused_before_any_work(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], word: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("animx.pipeline._gather", lambda *_: pytest.fail("work was begun"))
    refused(stage.render("out.mp4", "-q", *more), 2, word)


def test_help_names_every_option_of_the_engine_with_its_default() -> None:
    text = " ".join(animx("render", "--help").out.split())
    named = {name for name in NAMES if f"--{name} " in text}
    assert named == {"speed", "steps", "guidance", "scheduler", "window", "overlap", "model", "device", "dtype",
                     "vram", "preview", "resume"}  # fmt: skip
    defaults = EngineOptions()
    for name in ("steps", "guidance", "scheduler"):
        line = text.split(f"--{name} ", 1)[1].split(" --", 1)[0]
        assert f"[{getattr(defaults, name)}" in line


def test_options_that_change_no_byte_stay_out_of_the_recipe(stage: Stage, plain: Path) -> None:
    good(stage.render("out.mp4", "-q", "--vram", 80, "--preview", 1, "--set", "animate-x.stream=true"))
    assert Path("out.mp4").read_bytes() == plain.read_bytes()
    assert side_car("out.mp4") == side_car(plain)


@pytest.mark.parametrize(
    "more",
    [("--set", "animate-x.guidance_end=0.5"), ("--scheduler", "unipc"),
     *(pytest.param(more, marks=pytest.mark.slow)
       for more in (("--guidance", 1), ("--steps", 4), ("--scheduler", "ddim"), ("--overlap", 1)))],
    ids=str,
)  # fmt: skip
def test_every_option_is_felt(stage: Stage, plain: Path, more: tuple[object, ...]) -> None:
    good(stage.render("out.mp4", "-q", "--duration", "7f", *more))
    assert not np.array_equal(pictures("out.mp4")[:5], pictures(plain)[:5])


def test_the_fused_network_gives_the_same_frames_up_to_rounding(stage: Stage, plain: Path) -> None:
    good(stage.render("out.mp4", "-q", "--set", "animate-x.stack=fused"))
    # The encoder of the video makes more of a last bit than the network does: the mean tells.
    assert np.abs(pictures("out.mp4").astype(int) - pictures(plain)).mean() <= 0.1
    assert side_car("out.mp4")["options"]["animate-x.stack"] == "fused"
    assert side_car(plain)["options"]["animate-x.stack"] == "plain"


# ---- what is said ----


def test_progress_names_every_stage_and_counts_to_the_end(stage: Stage) -> None:
    ran = good(stage.render("out.mp4", "--progress", "json", "--set", "animate-x.windows=1", "--duration", "7f"))
    lines = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    last = {line["stage"]: line for line in lines}
    assert list(last) == ["load", "encode", "denoise", "decode"]
    assert last["load"]["done"] == last["load"]["total"] == 1
    assert last["encode"]["done"] == last["encode"]["total"] == 1 + 7  # the reference, then the driving frames
    assert last["denoise"]["done"] == last["denoise"]["total"] == 2 * 2
    assert last["decode"]["done"] == last["decode"]["total"] == 7
    assert any(line["eta_s"] is not None for line in lines if line["stage"] == "denoise")


def test_a_dry_run_prints_the_memory_of_every_tier_and_writes_nothing(stage: Stage) -> None:
    ran = good(stage.render("out.mp4", "--dry-run", "--json"))
    notes = "\n".join(ran.json["plan"]["notes"])
    for tier in ("full", "offload", "small", "tiny"):
        assert f"\n{tier} " in notes
    assert notes.count("GiB") == 4
    assert ran.json["recipe"]["options"]["animate-x.window"] == 6
    assert not list(Path().iterdir())


def test_the_colour_drift_of_later_segments_is_measured_and_mended(stage: Stage) -> None:
    more = ("--set", "animate-x.windows=1")
    ran = good(stage.render("out.mp4", "--json", *more))
    measured = ran.json["measured"]
    assert measured["colour_drift"] > measured["colour_drift_corrected"] > 0
    assert side_car("out.mp4")["measured"] == measured
    kept = good(stage.render("kept.mp4", "--json", *more, "--set", "animate-x.colour=false")).json["measured"]
    assert kept["colour_drift"] == kept["colour_drift_corrected"] > 0


def test_previews_lie_beside_the_output(stage: Stage) -> None:
    ran = good(stage.render("out.mp4", "--json", "--preview", 2))
    assert ran.json["previews"] == ["out.preview.mp4", "out.preview.png"]
    assert pictures("out.preview.mp4").shape == (9, 96, 64, 3)
    Path("out.mp4").unlink()
    Path("out.mp4.json").unlink()
    refused(stage.render("out.mp4", "-q", "--preview", 2), 2, "out.preview.mp4", "exists")


# ---- memory ----


def limited(monkeypatch: pytest.MonkeyPatch, fits: Callable[[Any], bool]) -> list[int]:
    """Let the network run out of memory where `fits(latents)` is false; returns the frames of each pass tried."""
    real, tried = AnimateXUNet.forward, []

    def forward(self: Any, x: Any, *given: Any) -> Any:
        tried.append(x.shape[2])
        if not fits(x):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, x, *given)

    monkeypatch.setattr(AnimateXUNet, "forward", forward)
    return tried


def test_out_of_memory_halves_the_window_says_so_and_records_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = ("--set", "animate-x.guidance_batched=false")
    good(stage.render("asked.mp4", "-q", "--window", 3, "--overlap", 0, *alone))
    tried = limited(monkeypatch, lambda x: x.shape[2] <= 4)
    ran = good(stage.render("out.mp4"))
    assert tried[:3] == [6, 6, 3]  # both branches of the guidance, then one, then half the window
    assert "out of memory" in ran.err
    assert "windows of 3 frames" in ran.err
    assert side_car("out.mp4")["options"]["animate-x.window"] == 3
    assert Path("out.mp4").read_bytes() == Path("asked.mp4").read_bytes()


def test_both_guidance_branches_share_a_pass_where_it_pays_and_the_plan_and_the_recipe_say_so(stage: Stage) -> None:
    def said(*more: Any) -> bool:
        ran = good(stage.render("out.mp4", "--dry-run", "--json", *more))
        told: bool = ran.json["recipe"]["options"]["animate-x.guidance_batched"]
        assert ("both branches of the guidance in one pass" in " ".join(ran.json["plan"]["notes"])) is told
        return told

    # 7 slots of 8 x 12 cells pay; 7 of 24 x 16 do not, nor does a pass without guidance.
    assert said()
    assert not said("--size", "192x128")
    assert not said("--guidance", 1)
    assert not said("--set", "animate-x.guidance_batched=false")
    assert said("--size", "192x128", "--set", "animate-x.guidance_batched=true")


def test_batched_guidance_gives_way_to_memory(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    from animx.diffusion import memory

    real = memory.predicted_bytes

    def tight(tier: Any, *given: Any, branches: int = 1, **how: Any) -> int:
        return 1 << 63 if branches == 2 and tier.name == "full" else real(tier, *given, branches=branches, **how)

    monkeypatch.setattr(memory, "predicted_bytes", tight)
    ran = good(stage.render("out.mp4", "--dry-run", "--json"))
    found = ran.json["recipe"]["options"]
    assert found["animate-x.guidance_batched"] is False
    assert found["animate-x.window"] == 6


def test_out_of_memory_at_the_smallest_window_is_exit_5_with_the_mend(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = limited(monkeypatch, lambda x: False)
    ran = stage.render("out.mp4", "-q")
    refused(ran, 5, "out of memory", "windows of 1 frames", "--size")
    assert tried == [6, 6, 3, 1]
    assert not Path("out.mp4").exists()


def test_out_of_memory_while_decoding_halves_only_that(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from animx.diffusion import render

    real = render.decode

    def decode(vae: Any, latents: Any, tile: int) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vae, latents, tile)

    monkeypatch.setattr(render, "decode", decode)
    good(stage.render("out.mp4"))
    options = side_car("out.mp4")["options"]
    assert (options["animate-x.window"], options["animate-x.decode_batch"]) == (6, 2)


def test_out_of_memory_with_windows_at_once_halves_their_number_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("-q", "--set", "animate-x.window_batch=4")
    rows: list[int] = []
    limited(monkeypatch, lambda x: rows.append(len(x)) or len(x) < 2)
    good(stage.render("out.mp4", *more))
    options = side_car("out.mp4")["options"]
    assert (options["animate-x.window"], options["animate-x.window_batch"]) == (6, 1)
    assert rows[:3] == [4, 2, 1]  # the clip has two windows, each with both branches of the guidance


def test_halving_goes_in_a_fixed_order_and_ends() -> None:
    from animx.diffusion.halving import decoding_halved, halved
    from animx.diffusion.render import Settings

    tried = []
    s: Settings | None = Settings(window=8, overlap=2, windows=3, window_batch=4, guidance_batched=True)
    while (s := halved(s, 100)) is not None:
        assert not s.guidance_batched
        tried.append((s.window_batch, s.window, s.overlap))
    assert tried == [(4, 8, 2), (1, 8, 2), (1, 4, 1), (1, 2, 0), (1, 1, 0)]
    tried = []
    s = Settings(decode_batch=4)
    while (s := decoding_halved(s, (96, 64))) is not None:
        tried.append((s.decode_batch, s.tile))
    assert tried == [(2, 0), (1, 0), (1, 48), (1, 24), (1, 16)]


@pytest.mark.slow
def test_out_of_memory_after_a_part_keeps_it_for_resume(
    stage: Stage, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--set", "animate-x.windows=1", "-q")
    good(stage.render("whole.mp4", *more))
    with monkeypatch.context() as patch:
        left = [3]
        limited(patch, lambda x: left.append(left.pop() - 1) or left[0] >= 0)
        refused(stage.render("out.mp4", *more), 5, "--resume")
    assert list(Path("out.mp4.animx").glob("chunk_*.npz"))
    good(stage.render("out.mp4", *more, "--resume"))
    assert Path("out.mp4").read_bytes() == Path("whole.mp4").read_bytes()


# ---- the engine behind --engine auto ----


def test_auto_takes_the_full_model_when_weights_and_cuda_are_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("animx.weights.find_model", lambda name: stage.release)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine, reason = choose_engine("auto")
    assert engine.name == "animate-x"
    assert "CUDA" in reason
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine, reason = choose_engine("auto")
    assert engine.name == "puppet"
    assert "no CUDA device" in reason


def test_auto_takes_the_puppet_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine, reason = choose_engine("auto")
    assert engine.name == "puppet"
    assert "weights" in reason


def test_options_of_the_wrong_type_are_named_as_they_were_given() -> None:
    with pytest.raises(UsageError, match="--steps '4': expected a whole number"):
        EngineOptions.of({"steps": "4"})
    assert EngineOptions.of({"guidance": 3, "steps": None}) == EngineOptions(guidance=3.0)
    assert AnimateXEngine.options == NAMES
