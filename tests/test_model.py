"""The network against numbers of the released code, and laws that need no fixture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.errors import UsageError  # noqa: E402
from animx.model.checkpoint import compare, released_names, to_ours, to_released  # noqa: E402
from animx.model.conditions import Inputs  # noqa: E402
from animx.model.config import UNetConfig, variant  # noqa: E402
from animx.model.pose_indicator import KeypointEncoder, Resampler  # noqa: E402
from animx.model.temporal import Mamba, selective_scan  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from tests.small_unet import LATENT, TINY, random_inputs, randomised  # noqa: E402


class Fixture:
    """Arrays of one released fixture file as tensors."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path, allow_pickle=False)
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key: str) -> Any:
        return torch.from_numpy(self.arrays[key])

    def weights(self) -> dict[str, Any]:
        return {k[2:]: self[k] for k in self.arrays.files if k.startswith("w/")}


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Fixture:
    return Fixture(shared / "reference" / "fixtures" / "unet.npz")


def released_unet(fixture: Fixture, conditions: str) -> AnimateXUNet:
    """The reduced network with the fixture's weights and one of its condition sets."""
    unet = AnimateXUNet.build(replace(TINY, conditions=tuple(fixture.meta["conditions"][conditions])), text_length=7)
    weights = fixture.weights()
    assert compare(unet, weights).is_exact
    unet.load_state_dict(to_ours(unet, weights))
    unet.text.copy_(fixture["zero_y"])
    return unet.eval()


def fixture_inputs(fixture: Fixture) -> Inputs:
    return Inputs(
        image=fixture["in/image"],
        local_image=fixture["in/local_image"],
        dwpose=fixture["in/dwpose"],
        randomref=fixture["in/randomref"],
        keypoints=fixture["in/pose"],
        clip=fixture["in/clip"].transpose(0, 1),
    )


@pytest.mark.parametrize("conditions", ["release", "all", "paper"])
def test_unet_gives_the_released_numbers(fixture: Fixture, conditions: str) -> None:
    unet = released_unet(fixture, conditions)
    with torch.no_grad():
        out = unet(fixture["in/x"], fixture["t"], unet.encode(fixture_inputs(fixture), frames=4, latent=LATENT))
    assert (out - fixture[f"out/{conditions}"]).abs().max() <= 2e-5


def test_absent_conditions_give_the_released_unconditional_branch(fixture: Fixture) -> None:
    unet = released_unet(fixture, "release")
    with torch.no_grad():
        out = unet(fixture["in/x"], fixture["t"], unet.encode(Inputs(), frames=4, latent=LATENT))
    assert (out - fixture["out/uncond"]).abs().max() <= 2e-5


def test_float64_run_stays_within_the_released_float32_noise(fixture: Fixture) -> None:
    unet = released_unet(fixture, "release").double()
    inputs = fixture_inputs(fixture).to(torch.float64)
    with torch.no_grad():
        out = unet(fixture["in/x"].double(), fixture["t"], unet.encode(inputs, frames=4, latent=LATENT))
    assert (out - fixture["out/release"]).abs().max() <= 1e-5


def test_every_intermediate_of_the_released_network_is_met(fixture: Fixture) -> None:
    unet = released_unet(fixture, "release")
    ours = {released: key for key, released in _module_names(unet).items()}
    inputs = fixture_inputs(fixture)
    assert inputs.local_image is not None
    inputs = replace(inputs, local_image=inputs.local_image.repeat(1, 1, 4, 1, 1))  # as the released code repeats it
    prefix = "mid/release/"
    wanted = {k.removeprefix(prefix): fixture[k] for k in fixture.arrays.files if k.startswith(prefix)}
    stacked = wanted.pop("stacked_input")
    seen: dict[str, Any] = {}
    for name in wanted:
        unet.get_submodule(ours[name]).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    unet.get_submodule("down.0.0").register_forward_hook(lambda _m, i, _o: seen.__setitem__("stacked_input", i[0]))
    with torch.no_grad():
        unet(fixture["in/x"], fixture["t"], unet.encode(inputs, frames=4, latent=LATENT))
    assert (seen.pop("stacked_input") - stacked).abs().max() <= 2e-5
    assert seen.keys() == wanted.keys()
    for name, value in seen.items():
        expected = wanted[name]
        layouts = [value]
        if value.ndim == 5:  # ours is [B, C, F, h, w]; the released encoders fold frames or pixels into the batch
            layouts += [value.transpose(1, 2), value.permute(0, 3, 4, 2, 1)]
        if value.ndim == 4:  # ours is [T, C, h, w], the released temporal blocks give [B, C, T, h, w]
            layouts.append(value.transpose(0, 1))
        error = min((v.reshape(expected.shape) - expected).abs().max() for v in layouts)
        # The released float32 run itself lies 4.4e-5 from float64 where activations reach 30: a relative part is due.
        assert error <= 2e-5 + 2e-6 * expected.abs().max(), name


def _module_names(unet: AnimateXUNet) -> dict[str, str]:
    """Our module path -> released module path, from the parameter names."""
    found = {}
    for key, released in released_names(unet).items():
        a, b = key.split("."), released.split(".")
        module = unet
        names = []
        for i, part in enumerate(a[:-1]):
            table = getattr(module, "RELEASED", {})
            names.append(table.get(part, part))
            module = module.get_submodule(part)
            found[".".join(a[: i + 1])] = ".".join(names)
        assert b
    return found


def test_gradients_equal_the_released_ones(fixture: Fixture, shared: Path) -> None:
    grads = Fixture(shared / "reference" / "fixtures" / "unet_grads.npz")
    unet = released_unet(fixture, "all").double()
    inputs = fixture_inputs(fixture).to(torch.float64)
    out = unet(fixture["in/x"].double(), fixture["t"], unet.encode(inputs, frames=4, latent=LATENT))
    loss = ((out - grads["target"]) ** 2).mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(grads["loss"]), rel=1e-5)
    ours = {released: dict(unet.named_parameters()).get(key) for key, released in released_names(unet).items()}
    norms = dict(zip(grads.arrays["keys"], grads.arrays["grad_norm"], strict=True))
    largest = max(norms.values())
    for name, norm in norms.items():
        # Softmax ignores a shift of all keys, so such gradients are rounding: judged against the largest norm.
        assert abs(ours[name].grad.norm().item() - norm) <= 1e-4 * norm + 1e-7 * largest, name
    for key in grads.arrays.files:
        if key.startswith("grad/"):
            expected = grads[key]
            assert (ours[key[5:]].grad - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_reduced_pose_indicator_gives_the_released_tokens(shared: Path) -> None:
    f = Fixture(shared / "reference" / "fixtures" / "ipi.npz")
    m = f.meta
    config = replace(
        TINY, context_dim=m["d"], keypoint_heads=m["heads"], keypoint_ff=m["ff"],
        resampler_heads=m["rh"], resampler_head_dim=m["dh"], slots=m["pos"],
    )  # fmt: skip
    encoder, resampler = _indicator(config, f.weights())
    with torch.no_grad():
        tokens = encoder(f["b1/pose"])
        out = resampler(tokens, f["b1/clip"].transpose(0, 1))
        zero = resampler(encoder(torch.zeros(1, m["L"], 2, 18)), torch.zeros(1, m["L"], m["d"]))
        two = encoder(f["b2/pose"])
    assert (tokens[0] - f["b1/enc_out"]).abs().max() <= 1e-5
    assert (out[0] - f["b1/out"]).abs().max() <= 1e-5
    assert (zero[0] - f["zero/out"]).abs().max() <= 1e-5
    # The released code mixes slots and samples at batch 2: its row r holds slot r // B of sample r % B.
    assert (two.transpose(0, 1).flatten(0, 1) - f["b2/enc_out"]).abs().max() <= 1e-5


@pytest.mark.slow
def test_full_width_pose_indicator_gives_the_released_tokens(shared: Path) -> None:
    f = Fixture(shared / "reference" / "fixtures" / "ipi_full.npz")
    config = UNetConfig()
    encoder, resampler = KeypointEncoder(config), Resampler(config)
    weights = {}
    for module, prefix in ((encoder, "pose_embedding_before."), (resampler, "pose_embedding_after.")):
        for ours, released in released_names(module).items():
            key = prefix + released
            if released.endswith("pos_table"):
                continue
            seed = int.from_bytes(hashlib.sha256(f"{f.meta['seed']}:{key}".encode()).digest()[:8], "little")
            shape = tuple(module.state_dict()[ours].shape)
            a = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
            if len(shape) >= 2:
                a *= np.float32(1 / np.sqrt(shape[-1]))
            else:
                a = a * 0.05 + (1 if key.endswith("weight") else 0)
            weights[key] = torch.from_numpy(np.asarray(a, np.float32))
    for module, prefix in ((encoder, "pose_embedding_before."), (resampler, "pose_embedding_after.")):
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        module.load_state_dict(to_ours(module, own), strict=False)
        module.eval()
    with torch.no_grad():
        tokens = encoder(f["pose"])
        out = resampler(tokens, f["clip"].transpose(0, 1))
    slots = f.meta["slots"]
    assert (tokens[0, slots] - f["enc"]).abs().max() <= 1e-5
    assert (out[0, slots] - f["out"]).abs().max() <= 1e-5


def _indicator(config: UNetConfig, weights: dict[str, Any]) -> tuple[KeypointEncoder, Resampler]:
    encoder, resampler = KeypointEncoder(config).eval(), Resampler(config).eval()
    prefixes = sorted({key.split(".")[0] for key in weights})
    for module, prefix in zip((encoder, resampler), sorted(prefixes, reverse=True), strict=True):
        own = {k.removeprefix(prefix + "."): v for k, v in weights.items() if k.startswith(prefix + ".")}
        report = compare(module, own)
        assert not report.unexpected, report
        assert not report.shapes, report
        assert set(report.missing) <= {"pos_embed.pos_table"}, report
        module.load_state_dict(to_ours(module, own), strict=False)
    return encoder, resampler


def test_full_size_network_has_the_released_keys_shapes_and_parameters(shared: Path) -> None:
    with torch.device("meta"):
        unet = AnimateXUNet.build(variant("release"))
    lines = (shared / "reference" / "unet_state_dict.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")][1:]
    wanted = {row[0]: row[2] for row in rows}
    names = released_names(unet)
    found = {names[key]: "x".join(map(str, value.shape)) for key, value in unet.state_dict().items()}
    assert found == wanted
    assert len(found) == 2100
    assert sum(p.numel() for p in unet.parameters()) == 1_817_708_556


def test_names_go_to_the_release_and_back_for_every_variant() -> None:
    for config in (TINY, replace(variant("paper"), width=32, head_dim=16, context_dim=64, resampler_heads=4)):
        with torch.device("meta"):
            unet = AnimateXUNet.build(config, text_length=7)
        released = to_released(unet)
        assert len(released) == len(unet.state_dict())
        assert compare(unet, released).is_exact
        assert to_ours(unet, released).keys() == unet.state_dict().keys()


def test_a_wrong_checkpoint_is_reported_by_name_and_shape() -> None:
    unet = AnimateXUNet.build(TINY, text_length=7)
    released = to_released(unet)
    released["out.2.weight"] = torch.zeros(3, 3)
    released["stranger"] = released.pop("out.2.bias")
    report = compare(unet, released)
    assert report.missing == ("out.2.bias",)
    assert report.unexpected == ("stranger",)
    assert report.shapes == ("out.2.weight: file [3, 3], model [4, 32, 3, 3]",)
    assert not report.is_exact


CHANGES: list[dict[str, Any]] = [
    {},
    {"motion": "none"},
    {"learned_query": False},
    {"keypoint_query": False},
    {"motion_query": "clip"},
    {"motion_order": "parallel"},
    {"alpha": 0.5},
    {"temporal": "mamba"},
    {"motion": "cross"},
    {"conditions": ("image", "dwpose", "randomref", "pose_embeddings")},
]


def test_every_ablation_changes_the_output() -> None:
    x = torch.randn(1, 4, 3, *LATENT, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([500])
    outputs = []
    for changes in CHANGES:
        unet = randomised(AnimateXUNet.build(replace(TINY, **changes), text_length=7))
        with torch.no_grad():
            out = unet(x, t, unet.encode(random_inputs(3, torch.float32), frames=3, latent=LATENT))
        assert torch.isfinite(out).all(), changes
        outputs.append(out)
    for i, changes in enumerate(CHANGES[1:], 1):
        assert (outputs[i] - outputs[0]).abs().max() > 1e-4, changes


def test_alpha_zero_equals_no_motion_attention_at_all() -> None:
    x = torch.randn(1, 4, 2, *LATENT, generator=torch.Generator().manual_seed(3))
    unet = randomised(AnimateXUNet.build(replace(TINY, alpha=0.0), text_length=7))
    without = AnimateXUNet.build(replace(TINY, motion="none"), text_length=7).eval()
    without.load_state_dict({k: v for k, v in unet.state_dict().items() if k in without.state_dict()})
    inputs = random_inputs(2, torch.float32)
    with torch.no_grad():
        a = unet(x, torch.tensor([9]), unet.encode(inputs, frames=2, latent=LATENT))
        b = without(x, torch.tensor([9]), without.encode(inputs, frames=2, latent=LATENT))
    assert torch.equal(a, b)


@pytest.mark.parametrize("latent", [(16, 8), (8, 8), (12, 20), (13, 9)])
@pytest.mark.parametrize("frames", [1, 5])
def test_any_size_and_length_comes_out_as_it_went_in(latent: tuple[int, int], frames: int) -> None:
    unet = AnimateXUNet.build(TINY, text_length=7).eval()
    inputs = replace(random_inputs(frames, torch.float32), randomref=None)
    x = torch.zeros(1, 4, frames, *latent)
    with torch.no_grad():
        assert unet(x, torch.tensor([1]), unet.encode(inputs, frames=frames, latent=latent)).shape == x.shape


def test_two_samples_in_a_batch_equal_two_runs() -> None:
    unet = randomised(AnimateXUNet.build(TINY, text_length=7)).double()
    runs = [random_inputs(3, torch.float64, seed) for seed in (1, 2)]
    both = Inputs(*(torch.cat([getattr(r, f) for r in runs]) for f in Inputs.__dataclass_fields__))
    x = torch.randn(2, 4, 3, *LATENT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = torch.tensor([700, 20])
    with torch.no_grad():
        together = unet(x, t, unet.encode(both, frames=3, latent=LATENT, batch=2))
        apart = [unet(x[i : i + 1], t[i : i + 1], unet.encode(runs[i], frames=3, latent=LATENT)) for i in (0, 1)]
    # Group statistics of the 5-D norms are per sample, so nothing leaks from one to the other.
    assert (together - torch.cat(apart)).abs().max() <= 1e-10


def test_a_shared_reference_picture_equals_the_repeated_one() -> None:
    unet = randomised(AnimateXUNet.build(TINY, text_length=7)).double()
    inputs = random_inputs(3, torch.float64)
    assert inputs.local_image is not None
    repeated = replace(inputs, local_image=inputs.local_image.repeat(1, 1, 3, 1, 1))
    with torch.no_grad():
        a = unet.encode(inputs, frames=3, latent=LATENT).dense
        b = unet.encode(repeated, frames=3, latent=LATENT).dense
    assert (a - b).abs().max() <= 1e-12


def test_a_window_of_the_inputs_keeps_the_reference_slot() -> None:
    inputs = random_inputs(6, torch.float32)
    cut = inputs.window(torch.tensor([2, 3]))
    assert inputs.dwpose is not None
    assert cut.dwpose is not None
    assert torch.equal(cut.dwpose, inputs.dwpose[:, :, [0, 3, 4]])
    assert cut.keypoints is not None
    assert cut.keypoints.shape[1] == 3


def test_mamba_is_causal_and_its_scan_solves_the_recurrence() -> None:
    mamba = Mamba(16, state=4).double()
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = mamba(x)
    changed = x.clone()
    changed[:, 6:] = 0
    assert torch.allclose(mamba(changed)[:, :6], y[:, :6], atol=1e-12)
    assert not torch.allclose(mamba(changed)[:, 6:], y[:, 6:])
    # With a constant decay the scan is a geometric sum that can be written down.
    length, one = 5, torch.ones(1, 1, 5, dtype=torch.float64)
    a = torch.full((1, 1), -0.5, dtype=torch.float64)
    out = selective_scan(one, one, a, one, one, torch.zeros(1, dtype=torch.float64), one)
    decay = float(np.exp(-0.5))
    gate = 1 / (1 + np.exp(-1.0))
    expected = [gate * sum(decay**k for k in range(i + 1)) for i in range(length)]
    assert out.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_mamba_has_the_parameter_layout_of_mamba_ssm() -> None:
    shapes = {k: tuple(v.shape) for k, v in Mamba(32).state_dict().items()}
    assert shapes == {
        "A_log": (64, 16), "D": (64,), "in_proj.weight": (128, 32), "conv1d.weight": (64, 1, 4), "conv1d.bias": (64,),
        "x_proj.weight": (34, 64), "dt_proj.weight": (64, 2), "dt_proj.bias": (64,), "out_proj.weight": (32, 64),
    }  # fmt: skip


def test_config_refuses_what_cannot_be_built() -> None:
    with pytest.raises(UsageError, match="local_image"):
        replace(TINY, conditions=("local_imag",))
    with pytest.raises(UsageError, match="needs 'dwpose'"):
        replace(TINY, conditions=("randomref",))
    with pytest.raises(UsageError, match="alpha"):
        replace(TINY, alpha=1.5)
    with pytest.raises(UsageError, match="paper"):
        variant("papr")


def test_a_saved_network_comes_back_with_its_config(tmp_path: Path) -> None:
    unet = randomised(AnimateXUNet.build(replace(TINY, alpha=0.5), text_length=7))
    unet.save_pretrained(tmp_path)
    again = AnimateXUNet.from_pretrained(tmp_path, local_files_only=True)
    assert again.shape == unet.shape
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))
