"""Weights through the command line: bad ones are one line and exit 6, good ones load, convert and render alike."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from wet import Stage, good  # noqa: E402

from animx.diffusion.components import Sizes, load_components  # noqa: E402
from animx.diffusion.tiny import TINY, write_tiny_release  # noqa: E402
from animx.weights import read_state, write_hashes  # noqa: E402

FILES = {"unet": "animate-x_ckpt.pth", "vae": "v2-1_512-ema-pruned.ckpt", "clip": "open_clip_pytorch_model.bin"}


SMALLEST = Sizes(
    unet=replace(TINY.unet, multipliers=(1,), context_dim=16),
    vae={"width": 32, "multipliers": (1,), "res_blocks": 1},
    vision={"width": 16, "layers": 1, "heads": 2, "out": 16, "image": 28, "patch": 14},
    text={"width": 16, "layers": 2, "heads": 2, "vocabulary": 49408},
)
"""Sizes for what is loaded often and never run: a third of the tensors of `TINY`."""


@pytest.fixture(scope="module")
def smallest(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that loads fast.  Do not write into it."""
    return write_tiny_release(tmp_path_factory.mktemp("smallest") / "model", sizes=SMALLEST)


@pytest.fixture
def release(smallest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smallest, tmp_path / "release"))


@pytest.fixture(scope="module")
def converted(smallest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest release in safetensors.  Do not write into it."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    good(animx("weights", "convert", smallest, "-o", folder, "-q"))
    return folder


class Bomb:
    """Makes a file when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def state_of(path: Path) -> dict[str, Any]:
    return {name: value.clone() for name, value in read_state(path).items()}


def spoil(folder: Path, part: str, how: str, witness: Path) -> None:
    path = folder / FILES[part]
    if how == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another model":
        shutil.copy(folder / FILES["clip" if part != "clip" else "unet"], path)
    elif how == "renamed keys":
        torch.save({"module." + name: value for name, value in state_of(path).items()}, path)
    elif how == "one key missing":
        state = state_of(path)
        first = next(name for name in sorted(state) if "resblocks.0" in name or "encoder" in name or "input" in name)
        del state[first]
        torch.save(state, path)
    elif how == "code alone":
        path.write_bytes(pickle.dumps(Bomb(witness)))
    elif how == "code in torch's format":
        torch.save(Bomb(witness), path)
    elif how == "code among keys":
        torch.save({**state_of(path), "extra.weight": Bomb(witness)}, path, pickle_protocol=4)
        if part != "unet":
            path.write_bytes(path.read_bytes()[:-200])
        else:
            torch.save({"model": {**state_of(path), "x": Bomb(witness)}}, path, pickle_protocol=4)
    elif how == "whole numbers":
        torch.save({name: (value * 100).to(torch.int16) for name, value in state_of(path).items()}, path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "missing":
        path.unlink()


HOW = ("cut short", "empty", "another model", "renamed keys", "one key missing", "code alone", "code in torch's format",
       "code among keys", "whole numbers", "a folder", "missing")  # fmt: skip


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("how", HOW)
def test_bad_files_are_exit_6_in_one_line_and_run_nothing(release: Path, tmp_path: Path, part: str, how: str) -> None:
    witness = tmp_path / "ran"
    spoil(release, part, how, witness)
    (release / "hashes.json").unlink()
    if how not in ("a folder", "missing"):
        write_hashes(release)
    else:
        (release / "hashes.json").write_text("{}")
    line = refused(animx("weights", "check", release, "--load"), 6, str(release))
    assert len(line) < 600
    refused(animx("weights", "convert", release, "-o", tmp_path / "out"), 6)
    assert not (tmp_path / "out").exists()
    assert not witness.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".animx")]


def test_a_changed_file_is_noticed_by_its_hash(release: Path) -> None:
    assert animx("weights", "check", release).code == 0
    path = release / FILES["vae"]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    refused(animx("weights", "check", release), 6, FILES["vae"], "changed")
    path.unlink()
    refused(animx("weights", "check", release), 6, FILES["vae"], "missing")


@pytest.mark.parametrize("content", ["", "[1", "[]", '{"animate-x_ckpt.pth": 3}', "\x00", "[" * 100_000])
def test_a_bad_hash_file_is_exit_6(release: Path, content: str) -> None:
    (release / "hashes.json").write_text(content)
    refused(animx("weights", "check", release), 6, "hashes.json")


def test_render_refuses_bad_weights_in_one_line(stage: Stage, release: Path, tmp_path: Path) -> None:
    def attempt(model: object) -> Any:
        return stage.render(tmp_path / "out.mp4", "--model", model)

    witness = tmp_path / "ran"
    refused(attempt(tmp_path / "nowhere"), 6, "no weights for")
    refused(attempt(stage.figure), 6, "is a file")
    (tmp_path / "empty").mkdir()
    refused(attempt(tmp_path / "empty"), 6, "no model in this folder")
    spoil(release, "unet", "code alone", witness)
    refused(attempt(release), 6, FILES["unet"])
    assert not witness.exists()
    assert not (tmp_path / "out.mp4").exists()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that everybody may enter, while this process is nobody."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        shutil.rmtree(folder)


@pytest.mark.parametrize("form", ["release", "converted", "folder"])
def test_weights_that_may_not_be_read_are_exit_6(
    smallest: Path, converted: Path, unprivileged: Path, form: str
) -> None:
    source = converted if form == "converted" else smallest
    model = Path(shutil.copytree(source, unprivileged / "model"))
    good(animx("weights", "check", model, "--load"))  # and all modules are imported while they can be
    for path in (model, *model.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    locked = {"release": model / FILES["unet"], "converted": model / "vae" / "diffusion_pytorch_model.safetensors",
              "folder": model}[form]  # fmt: skip
    locked.chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    refused(animx("weights", "check", model, "--load"), 6, str(locked), "ermission")


# ---- precision ----


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_load_convert_and_render(stage: Stage, tmp_path: Path, dtype: str) -> None:
    half = getattr(torch, dtype)
    release = Path(shutil.copytree(stage.release, tmp_path / "release"))
    for name in FILES.values():
        torch.save({key: value.to(half) for key, value in state_of(release / name).items()}, release / name)
    write_hashes(release)
    good(animx("weights", "convert", release, "-o", tmp_path / "c", "--dtype", dtype))
    stored = read_state(tmp_path / "c" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {half}
    for name, model in (("a.mp4", release), ("b.mp4", tmp_path / "c")):
        good(stage.render(tmp_path / name, "--model", model, "--end", "1f"))
    assert _frames(tmp_path / "a.mp4") == _frames(tmp_path / "b.mp4")


def _frames(path: Path) -> bytes:
    from wet import pictures

    return bytes(pictures(path).tobytes())


# ---- conversion ----


def test_a_converted_model_renders_the_same_frames(stage: Stage, tmp_path: Path) -> None:
    good(animx("weights", "convert", stage.release, "-o", tmp_path / "converted", "-q"))
    good(stage.render(tmp_path / "a.mp4"))
    good(stage.render(tmp_path / "b.mp4", "--model", tmp_path / "converted"))
    assert _frames(tmp_path / "a.mp4") == _frames(tmp_path / "b.mp4")


def test_a_conversion_is_one_that_the_libraries_read(converted: Path) -> None:
    from diffusers import AutoencoderKL
    from safetensors import safe_open
    from transformers import CLIPVisionModelWithProjection

    from animx.model.unet import AnimateXUNet

    ours = load_components(converted)
    for kind, part, mine in ((AnimateXUNet, "unet", ours.unet), (AutoencoderKL, "vae", ours.vae),
                             (CLIPVisionModelWithProjection, "image_encoder", ours.image_encoder)):  # fmt: skip
        theirs = kind.from_pretrained(converted / part, local_files_only=True).state_dict()
        assert theirs.keys() == mine.state_dict().keys()
        assert all(torch.equal(theirs[name], value) for name, value in mine.state_dict().items()), part
    with safe_open(str(converted / "vae" / "diffusion_pytorch_model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_libraries_save_is_read_back(converted: Path, tmp_path: Path) -> None:
    ours = load_components(converted)
    shutil.copytree(converted, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "unet")
    ours.unet.save_pretrained(tmp_path / "m" / "unet", max_shard_size="500KB")
    assert len(list((tmp_path / "m" / "unet").glob("*.safetensors"))) > 1, "one file tests nothing"
    again = load_components(tmp_path / "m").unet.state_dict()
    assert all(torch.equal(again[name], value) for name, value in ours.unet.state_dict().items())


def test_the_same_release_converts_to_the_same_bytes(smallest: Path, converted: Path, tmp_path: Path) -> None:
    good(animx("weights", "convert", smallest, "-o", tmp_path / "again"))
    names = sorted(path.relative_to(converted) for path in converted.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert all((converted / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_convert_does_not_replace_unasked(smallest: Path, converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused(animx("weights", "convert", smallest, "-o", out), 2, "exists")
    refused(animx("weights", "convert", converted, "-o", converted, "-y"), 2, "is the source")
    assert (out / "mine.txt").read_text() == "mine"
    (out / "unet" / "mine").mkdir(parents=True)
    refused(animx("weights", "convert", smallest, "-o", out, "-y"), 2, "would be replaced whole")


def test_a_conversion_may_be_made_anew(smallest: Path, tmp_path: Path) -> None:
    for more in ((), ("-y", "--dtype", "float16")):
        good(animx("weights", "convert", smallest, "-o", tmp_path / "out", *more))
    assert read_state(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")[
        "post_quant_conv.bias"
    ].dtype == (torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", "gone"), ("unet/config.json", "[]"), ("vae/config.json", "{"),
        ("image_encoder/config.json", '{"hidden_size": "x"}'), ("unet/config.json", '{"width": -3}'),
        ("unet/diffusion_pytorch_model.safetensors", "gone"), ("vae/diffusion_pytorch_model.safetensors", "cut"),
        ("image_encoder/model.safetensors", "less"), ("unet/diffusion_pytorch_model.safetensors", "more"),
        ("vae/diffusion_pytorch_model.safetensors", "less"), ("empty_prompt.safetensors", "gone"),
        ("empty_prompt.safetensors", "less"), ("unet/diffusion_pytorch_model.safetensors", "huge header"),
    ],
)  # fmt: skip
def test_a_damaged_conversion_is_exit_6(converted: Path, tmp_path: Path, file: str, change: str) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(converted, tmp_path / "m"))
    path = model / file
    if change == "gone":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif change in ("less", "more"):
        state = {name: value.clone() for name, value in load_file(path).items()}
        path.unlink()
        if change == "less":
            state.pop(next(iter(sorted(state))))
        save_file(
            {**state, **({"another.weight": torch.zeros(2)} if change == "more" else {"_": torch.zeros(1)})}, path
        )
    elif change == "huge header":
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    else:
        path.write_text(change)
    (model / "hashes.json").unlink()
    write_hashes(model)
    refused(animx("weights", "check", model, "--load"), 6, str(model))


def test_check_says_what_it_checked(release: Path) -> None:
    ran = good(animx("weights", "check", release, "--load", "--json"))
    assert ran.json["loads"] is True
    assert set(ran.json["files"]) == {*FILES.values(), "animx.json"}
    assert set(ran.json["files"].values()) == {"ok"}
    (release / "hashes.json").unlink()
    refused(animx("weights", "check", release), 6, "--write")
    good(animx("weights", "check", release, "--write"))
    assert json.loads((release / "hashes.json").read_text())


def test_list_tells_what_is_there(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIMX_WEIGHTS", str(release.parent))
    (release / FILES["clip"]).unlink()
    rows = {row["name"]: row for row in good(animx("weights", "list", "--json")).json["models"]}
    assert rows["animate-x"]["form"] == "absent"
    assert rows["animate-x"]["repositories"]
    assert (rows["release"]["form"], rows["release"]["missing"]) == ("incomplete", [FILES["clip"]])
    (release / FILES["unet"]).rename(release / "animate-x.pth")  # as the readme of the released code calls it
    shutil.copy(release / FILES["vae"], release / FILES["clip"])
    rows = {row["name"]: row for row in good(animx("weights", "list", "--json")).json["models"]}
    assert (rows["release"]["form"], rows["release"]["missing"]) == ("released", [])
    monkeypatch.setenv("ANIMX_WEIGHTS", str(release / "nowhere"))
    assert [row["form"] for row in good(animx("weights", "list", "--json")).json["models"]] == ["absent"]


def test_a_folder_that_only_shares_its_name_does_not_hide_the_model(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from animx.weights import find_model

    monkeypatch.setenv("ANIMX_WEIGHTS", str(release.parent))
    (tmp_path / "elsewhere" / "release").mkdir(parents=True)  # such as a checkout of the released code
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_model("release") == release
    refused(animx("weights", "check", "./release/"), 6, "no model in this folder")


def test_touched_files_are_hashed_anew(release: Path) -> None:
    from animx.weights import model_hash

    before = model_hash(release)
    path = release / FILES["clip"]
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=((release / "hashes.json").stat().st_mtime_ns + 10**9,) * 2)
    assert model_hash(release) != before, "a stale hash would name other weights than the ones used"
