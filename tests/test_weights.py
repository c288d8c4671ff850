"""Weights: read without running anything, loaded strictly, converted without loss, refused with one clear line."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.diffusion.components import load_components, save_components  # noqa: E402
from animx.diffusion.tiny import write_tiny_release  # noqa: E402
from animx.errors import WeightsError  # noqa: E402
from animx.weights import check_hashes, find_model, model_hash, write_hashes  # noqa: E402
from animx.weights import read_state as read_mapped  # noqa: E402


def read_state(path: Path) -> dict[str, Any]:
    """The tensors of a file, copied: rewriting a file that is still memory-mapped would pull the ground away."""
    return {k: v.clone() for k, v in read_mapped(path).items()}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def test_a_release_loads_strictly_and_survives_conversion(release: Path, tmp_path: Path) -> None:
    before = load_components(release)
    save_components(before, tmp_path, "0")
    after = load_components(tmp_path)
    for name in ("unet", "vae", "image_encoder"):
        a, b = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert torch.equal(before.prompt, after.prompt)
    assert torch.equal(before.unet.text, before.prompt)


def test_the_same_seed_writes_the_same_model(release: Path, tmp_path: Path) -> None:
    assert model_hash(write_tiny_release(tmp_path / "again")) == model_hash(release)
    assert model_hash(write_tiny_release(tmp_path / "other", seed=1)) != model_hash(release)


def test_half_precision_files_load_as_float32(copy: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        path = copy / "animate-x_ckpt.pth"
        torch.save({k: v.to(dtype) for k, v in read_state(path).items()}, path)
        assert {p.dtype for p in load_components(copy).unet.parameters()} == {torch.float32}


def test_an_outer_state_dict_and_a_step_are_unwrapped(copy: Path) -> None:
    path = copy / "animate-x_ckpt.pth"
    plain = read_state(path)
    torch.save({"state_dict": plain, "step": 7}, path)
    assert read_state(path).keys() == plain.keys()


class Bomb:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(copy: Path, tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "ran"
    path = copy / "animate-x_ckpt.pth"
    torch.save(
        {"state_dict": read_state(path), "callbacks": Bomb(str(witness))}, path, _use_new_zipfile_serialization=zipped
    )
    load_components(copy)
    assert not witness.exists()
    path.write_bytes(pickle.dumps(Bomb(str(witness))))
    with pytest.raises(WeightsError):
        load_components(copy)
    assert not witness.exists()


def damaged(folder: Path, how: str) -> None:
    path = folder / "animate-x_ckpt.pth"
    state = read_state(path)
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:100_000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404 not found</html>")
    elif how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "renamed keys":
        torch.save({"model." + k: v for k, v in state.items()}, path)
    elif how == "another shape":
        state["out.2.weight"] = torch.zeros(4, 16, 3, 3)
        torch.save(state, path)
    elif how == "whole numbers":
        torch.save({k: v.to(torch.int32) for k, v in state.items()}, path)
    elif how == "no tensors":
        torch.save({"a": 1}, path)
    elif how == "a list":
        torch.save([1, 2], path)
    elif how == "another model":
        shutil.copy(folder / "open_clip_pytorch_model.bin", path)
    elif how == "sizes not a table":
        (folder / "animx.json").write_text("[1")
    elif how == "unknown size":
        (folder / "animx.json").write_text('{"unet": {"widht": 3}}')


@pytest.mark.parametrize(
    "how",
    ["cut short", "empty", "text", "missing", "a folder", "renamed keys", "another shape", "whole numbers",
     "no tensors", "a list", "another model", "sizes not a table", "unknown size"],
)  # fmt: skip
def test_wrong_weights_are_refused_in_one_line(copy: Path, how: str) -> None:
    damaged(copy, how)
    with pytest.raises(WeightsError) as caught:
        load_components(copy)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


def test_hashes_tell_changed_missing_and_unlisted_files(copy: Path) -> None:
    assert set(check_hashes(copy).values()) == {"ok"}
    (copy / "animate-x_ckpt.pth").write_bytes(b"x")
    (copy / "v2-1_512-ema-pruned.ckpt").unlink()
    (copy / "extra.bin").write_bytes(b"y")
    assert check_hashes(copy) == {
        "animate-x_ckpt.pth": "changed",
        "animx.json": "ok",
        "extra.bin": "unlisted",
        "open_clip_pytorch_model.bin": "ok",
        "v2-1_512-ema-pruned.ckpt": "missing",
    }
    write_hashes(copy)
    assert set(check_hashes(copy).values()) == {"ok"}


def test_a_model_is_found_by_path_and_by_name(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIMX_WEIGHTS", str(release.parent))
    assert find_model("tiny") == release
    assert find_model(str(release)) == release
    with pytest.raises(WeightsError, match="animx weights pull animate-x"):
        find_model("animate-x")
    with pytest.raises(WeightsError, match="no model in this folder"):
        find_model(str(tmp_path))
