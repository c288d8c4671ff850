"""`animx bench`: ratios and machine in the JSON, and no speed without a passed check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hall import FAKE_POSE, animx, installed, make_package

from animx import bench
from animx.image import write_picture


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    site = tmp_path / "site"
    site.mkdir()
    make_package(site, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    monkeypatch.chdir(tmp_path)
    with installed(site):
        yield


def test_io_measures_after_its_check_and_tells_the_machine() -> None:
    found = animx("bench", "io", "--frames", "12", "--json").json
    assert found["bench"] == "io"
    assert found["checks"]["frames"] == 12
    assert found["checks"]["psnr_db"] >= bench.MIN_PSNR
    assert found["ratios"]["decode_cpu_per_encode_cpu"] > 0
    assert found["speeds"]["encode_fps"] > 0
    assert {"processor", "cores", "load", "python", "versions"} <= set(found["machine"])
    assert "commit" in found


def test_no_speed_is_shown_when_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MIN_PSNR", 98.0)
    ran = animx("bench", "io", "--frames", "12")
    assert ran.code == 1
    assert ran.out == ""
    assert "98 are expected" in ran.error
    assert "fps" not in ran.error


def test_ratios_come_first() -> None:
    lines = animx("bench", "io", "--frames", "12").out.splitlines()
    kinds = [line.split()[0] for line in lines if line.startswith("  ")]
    assert kinds == sorted(kinds, key=["ratio", "speed", "check"].index)


def test_pose_is_checked_for_the_same_bits_twice(tiny_clip: Path) -> None:
    found = animx("bench", "pose", tiny_clip, "--backend", "fake", "--json").json
    assert found["checks"] | {"backend": ""} == {"frames": 12, "found": 1.0, "backend": "", "same_twice": True}
    assert found["speeds"]["fps"] > 0


def test_a_pose_backend_that_wavers_gets_no_speed(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from animx import plugins

    kind = plugins.load("pose_backends", "fake")
    true, rng = kind.detect, np.random.default_rng(1)

    def wavering(self, frame, *, still=False):  # type: ignore[no-untyped-def]
        found = true(self, frame, still=still)
        found.keypoints[:] += rng.normal(size=2)
        return found

    monkeypatch.setattr(kind, "detect", wavering)
    ran = animx("bench", "pose", tiny_clip, "--backend", "fake")
    assert ran.code == 1
    assert "differ" in ran.error


def test_the_chain_is_set_against_extraction_and_encoding(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from animx.pose import backend

    real = backend.choose_backend
    monkeypatch.setattr(backend, "choose_backend", lambda name=None, **options: real("fake", **options))
    alpha = np.zeros((192, 128), np.uint8)
    alpha[20:180, 40:90] = 255
    write_picture("block.png", np.dstack([np.full((192, 128, 3), 120, np.uint8), alpha]))
    monkeypatch.setattr(bench, "_shell", lambda *_: bench.Cost(1.0, 1.0))  # another process would not know the fake
    found = bench.bench_chain(Path("block.png"), tiny_clip, rounds=1)
    assert found.ratios["render_cpu_per_extraction_and_encoding_cpu"] > 0
    assert found.checks["frames"] == 12


@pytest.mark.slow
def test_puppet_is_set_against_a_plain_remap() -> None:
    found = animx("bench", "puppet", "--json").json
    assert found["ratios"]["frame_per_remap"] > 0
    assert found["checks"]["marker_error"] <= 0.003


@pytest.mark.long
def test_the_whole_chain_costs_at_most_1_6_times_extraction_and_encoding(root: Path) -> None:
    pytest.importorskip("mediapipe", reason="needs the 'offline' extra")
    examples = root / "examples"
    measured = bench.bench_chain(examples / "characters" / "bottle.png", examples / "dance.mp4", rounds=3)
    assert str(measured.checks["backend"]).startswith("mediapipe")
    # Medians of three; found: 1.50 with this pair, 1.53 with a 664x1024 photo and 120 frames, both on busy cores, where
    # CPU times waver by a third.  The bar is 1.6; 15 % are for the noise (before the speed work it was 1.96 to 2.23).
    assert measured.ratios["render_cpu_per_extraction_and_encoding_cpu"] <= 1.6 * 1.15
    assert measured.speeds["shell_32_frames_s"] > 0
