"""`animx bench ops|unet|render|drift|compare`: checked before timed, ratios by name, worse results refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.bench_compare import compare, lower_is_better  # noqa: E402
from animx.diffusion import render as render_module  # noqa: E402
from animx.measuring import ops as measured_ops  # noqa: E402
from animx.measuring import subjects, timing  # noqa: E402
from animx.measuring.drift import Sampled, apart  # noqa: E402
from animx.measuring.stage import Setup  # noqa: E402
from animx_kernels.dispatch import load_ops  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- operators ----------------------------------------------------------------------------------------------------


def test_every_operator_passes_its_check_at_small_shapes() -> None:
    found = animx("bench", "ops", "--check", "--shapes", "small", "--device", "cpu", "--json").json
    assert {row["op"] for row in found["rows"]} == set(load_ops())
    for row in found["rows"]:
        assert row["errors"]["animx"] <= 1e-5
        assert "times" not in row
    assert found["ratios"] == {}
    assert found["ceilings"] is None


def test_times_stand_beside_ratios_floors_and_what_the_machine_reaches() -> None:
    asked = ("--op", "geglu", "--shapes", "small", "--seconds", 0.01, "--device", "cpu", "--json")
    found = animx("bench", "ops", *asked).json
    row = found["rows"][0]
    assert set(row["times"]) == {"reference", "torch", "animx"}
    assert set(row["ratios"]) == {"reference", "torch"}
    assert row["times"]["animx"]["p20_ms"] <= row["times"]["animx"]["ms"] <= row["times"]["animx"]["p80_ms"]
    ratio = row["times"]["torch"]["ms"] / row["times"]["animx"]["ms"]
    assert found["ratios"][f"geglu {row['shape']}/torch_over_animx"] == pytest.approx(ratio, rel=0.01)
    assert "another function" in row["unavailable"]["library"]
    assert found["ceilings"]["copy_gb_s"] > 0
    assert found["schema"] == timing.SCHEMA
    assert {"machine", "commit", "date", "dtype"} <= set(found)


def test_no_speed_is_shown_for_an_operator_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    load_ops()
    from animx_kernels.dispatch import OPS

    op = OPS["geglu"]
    monkeypatch.setitem(OPS, "geglu", replace(op, function=lambda x: 1.001 * op.function(x)))
    ran = animx("bench", "ops", "--op", "geglu", "--shapes", "small", "--device", "cpu")
    assert ran.code == 1
    assert ran.out == ""
    assert "geglu at small is off by 0.001" in ran.error


def test_memory_that_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load_ops()
    from animx_kernels.dispatch import OPS

    op = OPS["geglu"]

    def forgetful(x: Any) -> Any:
        out, right = torch.empty(x.shape[0], x.shape[1] // 2), op.function(x)
        out[:-1] = right[:-1]
        return out

    monkeypatch.setitem(OPS, "geglu", replace(op, function=forgetful))
    assert "is off by inf" in animx("bench", "ops", "--op", "geglu", "--shapes", "small", "--device", "cpu").error


def test_another_way_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(subjects, "_eager", lambda name, inputs: broken)
    found = measured_ops.bench_ops(["geglu"], ["torch", "animx"], ["small"], seconds=0.01)
    assert found["rows"][0]["unavailable"]["torch"] == "RuntimeError: no such thing"
    assert found["ratios"] == {}


def test_the_shapes_of_the_claims_are_measured_against_the_loop_and_the_unfolded_attention() -> None:
    op = load_ops()
    shapes = [
        (one.shape, one.eager is not None)
        for name in ("motion_attention", "selective_scan")
        for one in subjects.subjects(op[name], ["claims"], torch.device("cpu"), torch.float32)
    ]
    assert shapes == [
        *((f"4x1536x{channels}", True) for channels in (320, 640, 1280)),
        ("1x33x512x640, 16 states", False),
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--op", "gegl"), ("gegl", "Did you mean 'geglu'")),
        (("--providers", "animx,xla"), ("xla", "library")),
        (("--device", "cuda"), ("no CUDA device",)),
        (("--device", "tpu"), ("use cpu, cuda",)),
        (("--providers", ","), ("names nothing",)),
        (("--seconds", "-1", "--device", "cpu"), ("--seconds -1", "above 0")),
        (("--seconds", "nan", "--device", "cpu"), ("--seconds nan",)),
        (("--seconds", "inf", "--device", "cpu"), ("--seconds inf",)),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(animx("bench", "ops", *asked), 2, *words)


def test_a_bar_that_is_no_number_is_refused(tmp_path: Path) -> None:
    refused(animx("bench", "compare", tmp_path / "a", tmp_path / "b", "--fail-below", "nan"), 2, "--fail-below nan")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_operators_at_the_official_sizes_on_a_gpu() -> None:
    found = measured_ops.bench_ops(shapes=["official"], device="cuda", dtype="bfloat16", seconds=0.2)
    assert all(row["errors"]["animx"] <= 1.6e-2 for row in found["rows"])


# ---- the network and whole renders --------------------------------------------------------------------------------


def test_forms_of_the_network_are_compared_with_more_digits_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("bench", "unet", "--seconds", 0.01, "--device", "cpu")
    found = animx(*asked, "--json").json
    assert set(found["times"]) == {"released", "plain", "fused"}
    assert set(found["ratios"]) == {"released_over_plain", "fused_over_plain"}
    assert max(found["errors"].values()) < 2e-5
    assert found["setting"]["weights"] == "random weights"
    from animx.measuring import unet

    monkeypatch.setattr(unet, "released_velocity", lambda net, x, t, given: torch.zeros_like(x))
    ran = animx(*asked)
    assert ran.code == 1
    assert "released is off by 1" in ran.error
    refused(animx("bench", "unet", "--size", "official", "--device", "cpu"), 2, "--device cuda")


def test_a_render_is_measured_by_stages_and_its_overlap_gives_the_same_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("bench", "render", "--frames", 4, "--size", "64x64", "--device", "cpu",
             "--speed", "exact,steps=4", "--speed", "fast,steps=2")  # fmt: skip
    found = animx(*asked, "--json").json
    assert {"exact,steps=4_over_fast,steps=2", "serial_over_overlapped", "released_over_plain"} == set(found["ratios"])
    rows = found["renders"]
    assert rows["exact,steps=4"]["passes_per_window"] == 8
    for row in rows.values():
        parts = {name: value for name, value in row["seconds"].items() if name != "whole"}
        assert set(parts) == {"cond", "denoise", "vae_dec", "encode"}
        assert all(value > 0 for value in parts.values())
        assert sum(parts.values()) == pytest.approx(row["seconds"]["whole"], abs=0.01)
    assert found["weights"] == "random weights (tiny)"
    assert found["peak_memory_mb"] > 0

    real = render_module.decoded
    wrong = lambda *given, own_stream=False: (frame ^ own_stream for frame in real(*given))  # noqa: E731
    monkeypatch.setattr(render_module, "decoded", wrong)
    ran = animx(*asked)
    assert ran.code == 1
    assert "differ from those decoded after it" in ran.error


def test_drift_is_told_for_every_step_and_says_that_weights_are_random() -> None:
    ran = animx("bench", "drift", "exact,steps=4", "fast,steps=3", "--many", 8, "--frames", 2, "--size", "64x64",
                "--device", "cpu", "--json")  # fmt: skip
    found = ran.json
    assert found["weights"] == "random weights (tiny)"
    assert found["passes"] == {"exact,steps=4": 8, "fast,steps=3": 4, "exact,steps=8": 16}
    assert found["ratios"] == {"passes_fast,steps=3_per_exact,steps=4": 0.5}
    far = found["against_first"]["fast,steps=3"]
    assert len(far["steps"]) == 3
    assert 0 < far["latents"] < 2
    assert far["psnr_db"] > 5
    assert set(found["against_many_steps"]) == {"exact,steps=4", "fast,steps=3"}


def test_drift_of_a_thing_from_itself_is_none_and_grows_with_the_change() -> None:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 2, 8, 8, generator=g)
    frames = torch.randint(0, 200, (2, 32, 32, 3), generator=g, dtype=torch.uint8).numpy()
    one = Sampled((500, 0), (latents, latents), frames)
    same = apart(one, one)
    assert (same["latents"], same["psnr_db"], same["ssim"]) == (0, None, 1)
    little, much = (apart(Sampled((500, 0), (latents, 1.1 * latents), frames + by), one) for by in (1, 9))
    assert little["latents"] == pytest.approx(0.1, rel=1e-3)
    assert little["psnr_db"] == pytest.approx(48.13, abs=0.01)
    assert much["psnr_db"] < little["psnr_db"]
    assert little["steps"][0]["latents"] == 0


def test_ways_to_sample_are_a_speed_options_or_both() -> None:
    assert Setup.of("fast,steps=16").settings.steps == 16
    assert Setup.of("scheduler=ddim,guidance=1").passes == 30
    refused(animx("bench", "drift", "exact", "fast,stps=3"), 2, "stps")
    refused(animx("bench", "drift", "exact"), 2, "two ways")


# ---- two results side by side -------------------------------------------------------------------------------------


def result(path: Path, bench: str = "ops", **ratios: Any) -> Path:
    path.write_text(json.dumps({"bench": bench, "schema": 1, "ratios": ratios}))
    return path


def test_a_ratio_is_better_higher_or_lower_by_its_name(tmp_path: Path) -> None:
    old = result(tmp_path / "old.json", torch_over_animx=4.0, frame_per_remap=2.0, gone=1.0)
    new = result(tmp_path / "new.json", torch_over_animx=5.0, frame_per_remap=4.0, fresh=1.0)
    found = compare(old, new)
    assert found["kept"] == {"frame_per_remap": 0.5, "torch_over_animx": 1.25}
    assert (found["only_old"], found["only_new"]) == (["gone"], ["fresh"])
    assert lower_is_better("x per_y/mp4_per_jpg")
    assert not lower_is_better("scan_per_pixel 3x3/torch_over_animx")


def test_a_worse_result_is_exit_8_and_an_equal_one_is_fine(tmp_path: Path) -> None:
    old = result(tmp_path / "old.json", torch_over_animx=4.0)
    new = result(tmp_path / "new.json", torch_over_animx=3.8)
    assert animx("bench", "compare", old, new, "--fail-below", 0.9).code == 0
    assert animx("bench", "compare", old, old, "--fail-below", 1).code == 0
    ran = animx("bench", "compare", old, new, "--fail-below", 0.97)
    assert ran.code == 8
    assert "torch_over_animx kept 0.950" in ran.error


def test_results_that_are_none_are_refused(tmp_path: Path) -> None:
    good = result(tmp_path / "good.json", a_over_b=1.0)
    (tmp_path / "text.json").write_text("hello")
    refused(animx("bench", "compare", good, tmp_path / "text.json"), 3, "no JSON")
    refused(animx("bench", "compare", good, tmp_path / "missing.json"), 3, "missing.json")
    refused(animx("bench", "compare", good, result(tmp_path / "zero.json", a_over_b=0)), 3, "a_over_b")
    refused(animx("bench", "compare", good, result(tmp_path / "io.json", "io", a_over_b=1)), 2, "bench io")
    refused(animx("bench", "compare", good, result(tmp_path / "other.json", c_over_d=1)), 2, "in common")
