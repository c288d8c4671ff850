"""What a user may rely on between machines: shared passes, another memory tier, previews, commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from small_unet import LATENT, TINY, random_inputs, randomised  # noqa: E402
from wet import Stage, good, pictures, side_car  # noqa: E402

from animx.diffusion import memory, render  # noqa: E402
from animx.model.conditions import Conditions, Inputs  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from animx.pose.formats import write_poses  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


# ---- several windows in one pass ----


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_windows_and_branches_in_one_pass_equal_passes_of_their_own(dtype: str, bound: float) -> None:
    frames, kind = 3, getattr(torch, dtype)
    unet = randomised(AnimateXUNet.build(replace(TINY, res_blocks=1))).to(kind)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, frames, *LATENT, generator=g, dtype=torch.float64).to(kind)
    time = torch.tensor([501])
    with torch.no_grad():
        inputs = [random_inputs(frames, kind, seed) for seed in (1, 2)] + [Inputs()]
        rows = [unet.encode(one, frames=frames, latent=LATENT) for one in inputs]
        together = unet(x, time.expand(3), Conditions.stack(rows))
        alone = torch.cat([unet(x[i : i + 1], time, row) for i, row in enumerate(rows)])
        crossed = unet(x[:1], time, rows[1])
    largest = alone.abs().max()
    assert (together - alone).abs().max() <= bound * largest
    assert (crossed - alone[:1]).abs().max() > 1e3 * bound * largest  # the conditions of another row would be seen


def test_windows_at_once_are_recorded_and_differ_in_rounding_only(stage: Stage) -> None:
    good(stage.render("alone.mp4", "-q"))
    good(stage.render("both.mp4", "-q", "--set", "animate-x.window_batch=2"))
    assert side_car("alone.mp4")["options"]["animate-x.window_batch"] == 1
    assert side_car("both.mp4")["options"]["animate-x.window_batch"] == 2
    off = abs(pictures("alone.mp4").astype(int) - pictures("both.mp4").astype(int))
    assert off.mean() < 0.5


# ---- another memory tier on resume ----


def tier_of(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Let the device have room for this tier only."""
    tier = replace(memory.TIERS[-1], **changed)
    monkeypatch.setattr(memory, "choose_tier", lambda *_, **__: tier)


def test_a_resume_with_other_free_memory_goes_on_with_the_sizes_of_the_start(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stage.arguments("OUT", "-q", "--set", "animate-x.windows=1")
    at = given.index("--window")
    given = given[:at] + given[at + 4 :]  # neither window nor overlap is named: both follow from the memory

    def go(out: str, *more: str) -> Any:
        return animx(*(out if one == "OUT" else one for one in given), *more)

    large, small = {"window": 6, "decode_batch": 3}, {"window": 4, "decode_batch": 1}
    with monkeypatch.context() as patch:
        tier_of(patch, **large)
        good(go("whole.mp4"))
    with monkeypatch.context() as patch:
        tier_of(patch, **small)
        good(go("less.mp4"))
    assert Path("less.mp4").read_bytes() != Path("whole.mp4").read_bytes()  # the tier is felt
    real, count = AnimateXUNet.forward, [0]

    def forward(self: Any, *rest: Any) -> Any:
        count[0] += 1
        if count[0] > 3:  # two steps, both branches in one pass, are the first segment
            raise KeyboardInterrupt
        return real(self, *rest)

    with monkeypatch.context() as patch:
        tier_of(patch, **large)
        patch.setattr(AnimateXUNet, "forward", forward)
        assert go("out.mp4").code == 130
    assert list(Path("out.mp4.animx").glob("chunk_*.npz"))
    with monkeypatch.context() as patch:
        tier_of(patch, **small)
        good(go("out.mp4", "--resume"))
    assert Path("out.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert Path("out.mp4.json").read_bytes() == Path("whole.mp4.json").read_bytes()


# ---- previews ----


def test_a_preview_without_memory_is_left_out_and_the_film_is_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = ("--duration", "4f")
    good(stage.render("plain.mp4", "-q", *less))
    real = render.decode

    def decode(vae: Any, latents: Any, tile: int) -> Any:
        if len(latents) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vae, latents, tile)

    monkeypatch.setattr(render, "decode", decode)
    ran = good(stage.render("out.mp4", "--preview", 1, *less, "--set", "animate-x.decode_batch=4"))
    assert "no memory for the preview of step 1" in ran.err
    assert not Path("out.preview.png").exists()
    assert (pictures("out.mp4") == pictures("plain.mp4")).all()


# ---- poses that name no clip ----


def test_poses_that_came_from_a_pose_file_are_not_taken_for_their_own_clip(stage: Stage) -> None:
    """A pose file of another program names itself as its source: that is no clip to look at."""
    from animx.image import file_sha256
    from animx.pose.formats import read_poses

    write_poses(stage.poses.cut(0, 2), Path("source.npz"))
    named = replace(read_poses("source.npz"), source={"name": "source.npz", "hash": file_sha256(Path("source.npz"))})
    write_poses(named, Path("converted.pose.json"))
    refused(stage.render("out.mp4", "-q", drive="converted.pose.json", video=False), 2, "--driving-video")


# ---- the pages ----


def commands(page: str) -> list[str]:
    """Every call of `animx` a page shows: in its blocks, indented, or in its tables."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^    (animx .*)$", text, re.M) + re.findall(r"`(animx (?:batch|weights)[^`]*)`", text)


def test_the_commands_of_the_page_on_batches_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "batch.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.S)
    shutil.copytree(stage.release, "weights/animate-x")
    monkeypatch.setenv("ANIMX_WEIGHTS", str(Path("weights").absolute()))
    shutil.copy(stage.figure, "bear.png")
    shutil.copy(stage.clip, "dance.mp4")
    write_poses(stage.poses.cut(0, 5), Path("dance.pose.json"))
    # Poses in place of a clip to be detected in, and a small canvas: neither is what the page is about.
    small = {"driving": "dance.pose.json", "ref_pose": "fit", "size": "64x96", "fps": 6}
    jobs = [{**json.loads(line), **small} for line in block.splitlines()]
    for one in jobs:
        if one.get("engine") == "animate-x":
            one |= {"driving_video": "dance.mp4", "device": "cpu", "steps": 1, "end": "2f"}
        one.pop("start", None)
    Path("jobs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in jobs))
    (line,) = commands("batch.md")
    Path("out").mkdir()
    first = good(animx(*shlex.split(line)[1:], "-q"))
    assert [json.loads(one)["status"] for one in first.out.splitlines()] == ["done"] * 3, first.out + first.err
    again = good(animx(*shlex.split(line)[1:], "-q"))
    assert [json.loads(one)["status"] for one in again.out.splitlines()] == ["skipped"] * 3
    assert {path.name for path in Path("out").iterdir()} >= {"bear.mp4", "chibi.webm", "full.mp4"}


def test_the_commands_of_the_page_on_weights_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(stage.release, "weights/animate-x")
    monkeypatch.setenv("ANIMX_WEIGHTS", str(Path("weights").absolute()))
    found = commands("weights.md")
    assert {line.split()[2] for line in found} == {"list", "pull", "check", "convert"}
    for line in found:
        words = line.replace("MODEL", "animate-x").replace("FOLDER", "converted").split()[1:]
        if words[1] != "pull":  # the tests of fetching run it against a hub of their own
            good(animx(*words))
    assert Path("converted/model_index.json").exists()
    good(animx("weights", "check", "animate-x", "--write", "--load"))
    good(animx("weights", "convert", "animate-x", "-o", "half", "--dtype", "bfloat16"))
    sizes = [sum(f.stat().st_size for f in Path(name).rglob("*.safetensors")) for name in ("half", "converted")]
    assert 0.45 < sizes[0] / sizes[1] < 0.55
