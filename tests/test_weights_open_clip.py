"""The image encoder run by open_clip: same weights, same call, same vectors; without open_clip the mend is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hall import refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from wet import Stage, good, side_car  # noqa: E402

from animx.diffusion.components import load_components, save_components  # noqa: E402
from animx.diffusion.tiny import fill  # noqa: E402
from animx.errors import MissingExtraError, UsageError  # noqa: E402
from animx.model.image_encoder import (  # noqa: E402
    OpenClipEncoder,
    build_vision,
    encode_images,
    open_clip_state,
    vision_state,
)


def test_names_go_to_open_clip_and_back_without_loss() -> None:
    model = build_vision(width=32, layers=3, heads=4, out=24, image=56, patch=14)
    fill(model, torch.Generator().manual_seed(0))
    there = open_clip_state(model)
    back = vision_state(model, {f"visual.{name}": value for name, value in there.items()})
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], value) for name, value in own.items())


def test_without_open_clip_the_mend_is_named(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_clip", "open_clip.transformer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install .*animx\[openclip\]"):
        load_components(tiny_release, image_backend="open_clip")
    load_components(tiny_release)


def test_the_option_names_the_mend_before_any_work(stage: Stage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr("animx.pipeline._gather", lambda *_: pytest.fail("work was begun"))
    ask = ("--set", "animate-x.image_encoder=open_clip")
    line = refused(stage.render(tmp_path / "out.mp4", *ask), 2, "animate-x.image_encoder=open_clip")
    assert "pip install -c constraints.txt 'animx[openclip]'" in line
    refused(stage.render(tmp_path / "out.mp4", "--set", "animate-x.image_encoder=clip"), 2, "transformers or open_clip")


def test_the_option_reaches_the_encoder_and_the_recipe(stage: Stage, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "open_clip.py").write_text("")  # stands in for the library, which a CPU machine cannot install
    monkeypatch.syspath_prepend(tmp_path)
    swapped: list[object] = []
    monkeypatch.setattr(OpenClipEncoder, "of", lambda model: swapped.append(model) or model)
    out = tmp_path / "out.mp4"
    for encoder, times in (("transformers", 0), ("open_clip", 1)):
        good(stage.render(out, "-q", "-y", "--end", "1f", "--set", f"animate-x.image_encoder={encoder}"))
        assert len(swapped) == times
        assert side_car(out)["options"]["animate-x.image_encoder"] == encoder


def test_another_backend_is_refused(tiny_release: Path) -> None:
    with pytest.raises(UsageError, match="open_clip"):
        load_components(tiny_release, image_backend="clip")


def test_the_library_is_not_loaded_unasked(tiny_release: Path) -> None:
    before = "open_clip" in sys.modules
    load_components(tiny_release)
    assert ("open_clip" in sys.modules) == before


def test_both_backends_give_the_same_vectors_and_files(tiny_release: Path, tmp_path: Path) -> None:
    try:
        import open_clip.transformer  # noqa: F401
    except Exception as error:  # it is not installed, or the torchvision it needs is of another torch
        pytest.skip(f"needs the 'openclip' extra ({' '.join(str(error).split())[:80]})")
    ours, theirs = load_components(tiny_release), load_components(tiny_release, image_backend="open_clip")
    assert isinstance(theirs.image_encoder, OpenClipEncoder)
    pictures = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (encode_images(one.image_encoder, pictures) for one in (ours, theirs))
    assert a.shape == (3, 32)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert theirs.image_encoder.config.image_size == 224
    for name, parts in (("a", ours), ("b", theirs)):
        (tmp_path / name).mkdir()
        save_components(parts, tmp_path / name, "0")
    weights = [(tmp_path / name / "image_encoder" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
