"""What the libraries beneath the full model say does not reach the user: only animx talks on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hall import make_package
from wet import Stage

pytest.importorskip("torch", reason="needs the 'model' extra")

CHATTY = '''
from animx.diffusion.engine import AnimateXEngine


class Chatty(AnimateXEngine):
    """The full model, with libraries in a talking mood."""

    name = "chatty"

    def render(self, job, on_progress=None):
        import logging
        import warnings

        import diffusers.utils.logging
        import huggingface_hub.utils
        import torch
        import tqdm
        import transformers.utils.logging

        for library in (diffusers.utils.logging, transformers.utils.logging, huggingface_hub.utils.logging):
            library.get_logger(f"{library.__name__.split('.')[0]}.models").warning("a library talks")
        warnings.warn("a library warns")
        torch.nested.nested_tensor([torch.zeros(1)])  # a prototype: torch warns
        for bar in (tqdm.tqdm, huggingface_hub.utils.tqdm, transformers.utils.logging.tqdm):
            list(bar([1, 2]))
        yield from super().render(job, on_progress)
'''


def test_a_render_says_nothing_that_animx_did_not_say(stage: Stage, tmp_path: Path) -> None:
    make_package(tmp_path, "chatty_engine", CHATTY, {"animx.engines": {"chatty": "chatty_engine:Chatty"}})
    paths = [str(tmp_path), *(str(Path(__file__).parents[1] / part) for part in ("", "kernels", "trainer"))]
    spoken = ("VERBOSITY", "TQDM", "PROGRESS", "PYTHONWARNINGS")
    calm = {name: value for name, value in os.environ.items() if not any(word in name for word in spoken)}
    arguments = stage.arguments(tmp_path / "out.mp4", "-q", "--progress", "none", "--end", "1f", "--engine", "chatty")
    done = subprocess.run(
        [sys.executable, "-m", "animx", *arguments],
        capture_output=True,
        text=True,
        env={**calm, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out.mp4").exists()
