"""Conversion holds the model once at most: what is read is mapped, what is written goes out tensor by tensor."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.diffusion.tiny import TINY, write_tiny_release  # noqa: E402

MB = 1_000_000

RUN = """
import sys
import torch
from animx.cli import run

torch.set_num_threads(1)
small, large, out, dtype = sys.argv[1:]


def peak(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))


def convert(folder, to):
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
    before, own = peak("VmRSS"), peak("RssAnon")
    assert run(["weights", "convert", folder, "-o", to, "--dtype", dtype, "-q"]) == 0
    return peak("VmHWM") - before, own


convert(small, out + "-small")  # libraries are imported, pools are filled
print(convert(large, out)[0])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = replace(TINY, unet=replace(TINY.unet, width=192, head_dim=32, context_dim=64),
                    text={**TINY.text, "width": 64, "heads": 2})  # fmt: skip
    return write_tiny_release(tmp_path_factory.mktemp("large") / "model", sizes=sizes)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_converting_needs_little_more_memory_than_the_files_are_long(
    tiny_release: Path, large: Path, tmp_path: Path, dtype: str
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc to measure")
    length = sum(path.stat().st_size for path in large.glob("*.*"))
    assert length > 150 * MB, "too small to tell"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_release), str(large), str(tmp_path / "out"), dtype],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split()[-1])
    print(f"files {length / MB:.0f} MB, peak growth {grown / MB:.0f} MB = {grown / length:.2f}x ({dtype})")
    # The files are mapped, so their pages count; a second copy would make it 2.
    assert grown < 1.35 * length
