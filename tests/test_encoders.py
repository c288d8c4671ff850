"""The frozen encoders under the released names, against the released numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.model.image_encoder import (  # noqa: E402
    build_text,
    build_vision,
    empty_prompt,
    encode_images,
    text_state,
    vision_state,
)
from animx.model.vae import build_vae, released_vae_name, vae_state  # noqa: E402


def load(shared: Path, name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    arrays = np.load(shared / "reference" / "fixtures" / f"{name}.npz", allow_pickle=False)
    weights = {k[2:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("w/")}
    return arrays, weights, json.loads(str(arrays["meta"]))


def rows(path: Path) -> dict[str, str]:
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")][1:]
    return {line[0]: line[2] for line in lines}


def test_vae_encodes_and_decodes_as_released(shared: Path) -> None:
    f, weights, meta = load(shared, "vae")
    vae = build_vae(meta["ch"], tuple(meta["ch_mult"]), meta["num_res_blocks"]).eval()
    vae.load_state_dict(vae_state(vae, weights), strict=True)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(f["x"])).latent_dist
        decoded = vae.decode(torch.from_numpy(f["z"])).sample
    sample = posterior.mean + posterior.std * torch.from_numpy(f["eps"])
    assert (posterior.mean - torch.from_numpy(f["mean"])).abs().max() <= 1e-4
    assert (posterior.logvar - torch.from_numpy(f["logvar"])).abs().max() <= 1e-4
    assert (sample - torch.from_numpy(f["sample"])).abs().max() <= 1e-4
    assert (decoded - torch.from_numpy(f["dec"])).abs().max() <= 1e-4


def test_vae_keys_are_the_released_248(shared: Path) -> None:
    with torch.device("meta"):
        vae = build_vae()
    names = {released_vae_name(key) for key in vae.state_dict()}
    assert {"first_stage_model." + n for n in names} == set(rows(shared / "reference" / "vae_state_dict.tsv"))
    assert len(names) == 248


def test_image_encoder_gives_the_released_vectors(shared: Path) -> None:
    f, weights, m = load(shared, "clip")
    model = build_vision(m["width"], m["layers"], m["heads"], m["out"], m["image_size"], m["patch"]).eval()
    model.load_state_dict(vision_state(model, weights), strict=True)
    with torch.no_grad():
        out = encode_images(model, torch.from_numpy(f["img"]))
    assert (out - torch.from_numpy(f["visual_out"])).abs().max() <= 1e-4


def test_text_encoder_gives_the_released_penultimate_states(shared: Path) -> None:
    f, weights, m = load(shared, "clip")
    model = build_text(m["tw"], m["tlayers"], m["theads"], m["vocab"]).eval()
    model.load_state_dict(text_state(model, weights), strict=True)
    with torch.no_grad():
        out = empty_prompt(model, torch.from_numpy(f["tokens"]).long())
    assert (out - torch.from_numpy(f["text_penultimate"])).abs().max() <= 1e-4


def test_full_size_encoders_take_the_released_shapes(shared: Path) -> None:
    with torch.device("meta"):
        vision, text = build_vision(), build_text()

        def empty(name: str) -> dict[str, Any]:
            table = rows(shared / "reference" / name)
            return {k: torch.empty([int(x) for x in v.split("x")] if v[0].isdigit() else []) for k, v in table.items()}

        visual, rest = empty("clip_visual_state_dict.tsv"), empty("clip_text_state_dict.tsv")
    for model, state in ((vision, vision_state(vision, visual)), (text, text_state(text, rest))):
        own = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("position_ids")}
        assert {k: v.shape for k, v in state.items()} == own
