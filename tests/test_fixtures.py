"""Every released number beside the checkout is compared by some test, or stands here with the reason why not."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.canvas import Canvas  # noqa: E402
from animx.diffusion.preprocess import picture_tensor  # noqa: E402
from animx.model.conditions import Inputs  # noqa: E402
from animx.model.schedule import guided, sample, zero_snr_schedule  # noqa: E402
from animx.pose import rtm_glue as glue  # noqa: E402
from animx.pose.draw import draw_person  # noqa: E402

HERE = Path(__file__).parent

META = "sizes and seeds, read where they are needed"
WEIGHTS = "loaded, strictly, by the tests of what they give"
UNUSED = "a DDIM without fresh noise uses no posterior"

ENTRIES: dict[str, dict[str, str]] = {
    "clip.npz": {
        "img visual_out": "test_encoders.py::test_image_encoder_gives_the_released_vectors",
        "tokens text_penultimate": "test_encoders.py::test_text_encoder_gives_the_released_penultimate_states",
    },
    "diffusion.npz": {
        "f64/betas f64/alphas_cumprod": "test_schedule.py::test_tables_equal_the_released_ones",
        "f64/sqrt_*": "test_fixtures.py::test_derived_tables_equal_the_released_ones",
        "f64/posterior_*": UNUSED,
        "noise cond ddim*/final ddim*/t": "test_schedule.py::test_guided_sampling_ends_where_the_released_code_ends",
        "ddim*/xs ddim10_noguide/*": "test_fixtures.py::test_every_step_of_sampling_is_the_released_one",
        "q/*": "test_schedule.py::test_noising_and_velocity_equal_the_released_ones",
        "rng/noise": "test_schedule.py::test_the_same_seed_draws_the_released_noise",
        "rng/posterior_eps": "test_fixtures.py::test_the_posterior_is_drawn_before_the_noise",
    },
    "dwpose_glue.npz": {
        "det/ratio pose/center pose/scale pose/nobox_*": "test_fixtures.py::test_crops_lie_where_the_released_ones_do",
        "det/* pose/*": "test_pose_backends.py::test_the_glue_agrees_with_the_released_extraction",
    },
    "ipi.npz": {
        "b1/* b2/pose b2/enc_out zero/out": "test_model.py::test_reduced_pose_indicator_gives_the_released_tokens",
        "b2/clip b2/out zero/enc_out": "test_fixtures.py::test_motion_tokens_of_a_mixed_batch_and_of_nothing",
    },
    "ipi_full.npz": {
        "pose clip enc out": "test_model.py::test_full_width_pose_indicator_gives_the_released_tokens",
        "zero_out": "what ipi.npz shows at a small width; at full width only biases differ",
        "checksum": "of the recipe's weights: with others the outputs would not agree",
    },
    "loader.npz": {
        "vit_frame misc_data driving_vit": "test_preprocess.py::test_pictures_are_the_released_ones_exactly",
        "dwpose_data": "test_preprocess.py::test_pose_pictures_are_the_released_ones_exactly",
        "pose_embedding ref_pose_embedding": "test_preprocess.py::test_keypoints_are_the_released_ones_exactly",
        "video_data random_ref_*": "test_fixtures.py::test_what_the_released_loader_gives_the_other_conditions",
        "ref_rgb pose_rgb frames_rgb bodies": "inputs of the entries above",
        "ref_bodies": "the case has no pose file of the reference, so the released loader did not read them either",
    },
    "pose_align.npz": {
        "?/in/subset ?/ref/hands ?/ref/faces ?/in/* ?/ref/candidate ?/out/*":
            "test_align.py::test_released_alignment_matches_the_recorded_one",
        "?/img_first ?/img_last": "test_pose_draw.py::test_aligned_poses_of_the_other_tool_are_drawn_exactly",
        "?/img_ref ?/ref/subset": "test_fixtures.py::test_the_reference_of_the_other_tool_is_drawn_exactly",
    },
    "pose_draw.npz": {
        "?/kps* ?/scores* ?/candidate ?/subset ?/hands ?/faces":
            "test_pose_draw.py::test_detector_points_become_the_released_person_dictionary",
        "?/img_*": "test_pose_draw.py::test_drawing_is_bit_exact_with_the_released_one",
        "?/jpg_roundtrip_rgb": "test_pose_draw.py::test_released_files_are_the_drawing_with_red_and_blue_swapped",
    },
    "unet.npz": {
        "zero_y t in/* out/release out/all out/paper": "test_model.py::test_unet_gives_the_released_numbers",
        "out/uncond": "test_model.py::test_absent_conditions_give_the_released_unconditional_branch",
        "mid/release/*": "test_model.py::test_every_intermediate_of_the_released_network_is_met",
        "mid/all/* mid/paper/* mid/uncond/*": "test_fixtures.py::test_conditions_enter_as_released",
    },
    "unet_ddim.npz": {"*": "test_sampler.py::test_guided_unet_sampling_ends_where_the_released_code_ends"},
    "unet_grads.npz": {"*": "test_model.py::test_gradients_equal_the_released_ones"},
    "vae.npz": {"x mean logvar eps sample z dec": "test_encoders.py::test_vae_encodes_and_decodes_as_released"},
}  # fmt: skip
"""File -> patterns of entries -> the test that compares them, or why none does."""


@pytest.fixture(scope="module")
def released(shared: Path) -> Path:
    return shared / "reference" / "fixtures"


def test_every_released_entry_is_compared_or_excused(released: Path) -> None:
    files = sorted(path.name for path in released.glob("*.npz"))
    assert files == sorted(ENTRIES)
    for name in files:
        patterns = [one for words in ENTRIES[name] for one in words.split()]
        entries = [one for one in np.load(released / name).files if one != "meta" and not one.startswith("w/")]
        loose = [one for one in entries if not any(fnmatch(one, pattern) for pattern in patterns)]
        assert not loose, f"{name}: no test is named for {loose}"
        idle = [pattern for pattern in patterns if not any(fnmatch(one, pattern) for one in entries)]
        assert not idle, f"{name}: holds nothing like {idle}"


def test_the_tests_that_are_named_exist() -> None:
    named = {test for words in ENTRIES.values() for test in words.values() if "::" in test}
    for test in named:
        file, _, function = test.partition("::")
        text = (HERE / file).read_text(encoding="utf-8")
        assert f"\ndef {function}(" in text, test


def arrays(released: Path, name: str) -> Any:
    return np.load(released / f"{name}.npz", allow_pickle=False)


# ---- what no other test compares ----


def test_derived_tables_equal_the_released_ones(released: Path) -> None:
    f = arrays(released, "diffusion")
    ac = zero_snr_schedule().alphas_cumprod
    with np.errstate(divide="ignore"):
        derived = {"sqrt_alphas_cumprod": np.sqrt(ac), "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - ac),
                   "sqrt_recip_alphas_cumprod": np.sqrt(1 / ac),
                   "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / ac - 1)}  # fmt: skip
    for name, table in derived.items():
        np.testing.assert_allclose(table, f[f"f64/{name}"], rtol=1e-9, err_msg=name)
    signal, noise = zero_snr_schedule().signal_noise(500, torch.zeros(1, dtype=torch.float64))
    assert float(signal) == pytest.approx(f["f64/sqrt_alphas_cumprod"][500], rel=1e-12)
    assert float(noise) == pytest.approx(f["f64/sqrt_one_minus_alphas_cumprod"][500], rel=1e-12)


@pytest.mark.parametrize("case", ["ddim4", "ddim10", "ddim10_noguide"])
def test_every_step_of_sampling_is_the_released_one(released: Path, case: str) -> None:
    from test_schedule import toy

    f = arrays(released, "diffusion")
    noise, c = torch.from_numpy(f["noise"]), torch.from_numpy(f["cond"])
    steps, is_guided = int(case.removeprefix("ddim").partition("_")[0]), "noguide" not in case
    seen: list[Any] = []

    def velocity(x: Any, t: Any) -> Any:
        return guided(toy(x, t, c), toy(x, t, None)) if is_guided else toy(x, t, c)

    out = sample(velocity, noise, zero_snr_schedule(), steps, lambda _i, _n, x: seen.append(x))
    assert (out - torch.from_numpy(f[f"{case}/final"])).abs().max() <= 1e-4
    if is_guided:
        assert (torch.stack(seen) - torch.from_numpy(f[f"{case}/xs"])).abs().max() <= 1e-4


def test_the_posterior_is_drawn_before_the_noise(released: Path) -> None:
    f = arrays(released, "diffusion")
    generator = torch.Generator().manual_seed(5)
    posterior = torch.randn(1, 4, 6, 5, generator=generator)
    assert torch.equal(posterior, torch.from_numpy(f["rng/posterior_eps"]))
    # `released_noise` draws the same numbers first: what follows them is the released noise without its offset.
    rest = torch.randn(1, 4, 3, 6, 5, generator=generator)
    rest = rest + 0.1 * torch.randn(1, 4, 3, 1, 1, generator=generator)
    assert torch.equal(rest, torch.from_numpy(f["rng/noise"]))


def test_what_the_released_loader_gives_the_other_conditions(released: Path) -> None:
    f = arrays(released, "loader")
    canvas = Canvas(64, 96)
    reference = picture_tensor(f["ref_rgb"], canvas)[None]
    assert torch.equal(reference, torch.from_numpy(f["random_ref_frame"]))
    encoded: list[Any] = []

    class Spy:
        def encode(self, x: Any) -> Any:
            encoded.append(x)
            raise StopIteration

    from animx.model.vae import encode

    with pytest.raises(StopIteration):
        encode(Spy(), reference)  # type: ignore[arg-type]
    assert torch.equal(encoded[0], torch.from_numpy(f["video_data"]))  # what the codec is shown: -1..1
    # The released loader takes any entry of an unsorted folder for the reference's pose picture; here it was frame 6.
    assert torch.equal(picture_tensor(f["pose_rgb"][6], canvas)[None], torch.from_numpy(f["random_ref_dwpose"]))


def test_crops_lie_where_the_released_ones_do(released: Path) -> None:
    f = arrays(released, "dwpose_glue")
    picture = f["det/img"]
    assert glue.letterbox(picture, (64, 64))[1] == pytest.approx(float(f["det/ratio"]), rel=1e-12)
    for i, box in enumerate(f["pose/boxes"]):
        _, centre, region = glue.crop(picture, box, (72, 96))
        np.testing.assert_allclose(centre, f["pose/center"][i], rtol=1e-12)
        np.testing.assert_allclose(region, f["pose/scale"][i], rtol=1e-12)
    height, width = picture.shape[:2]
    pixels, centre, region = glue.crop(picture, np.array([0, 0, width, height]), (72, 96))
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), f["pose/nobox_crop"])
    np.testing.assert_allclose(centre, f["pose/nobox_center"])
    np.testing.assert_allclose(region, f["pose/nobox_scale"])


@pytest.mark.parametrize("case", ["0", "1"])
def test_the_reference_of_the_other_tool_is_drawn_exactly(released: Path, case: str) -> None:
    f = arrays(released, "pose_align")
    person = {name: f[f"{case}/ref/{name}"] for name in ("candidate", "subset", "hands", "faces")}
    assert np.array_equal(draw_person(person, Canvas(512, 768)), f[f"{case}/img_ref"])


@pytest.mark.parametrize("case", ["all", "paper", "uncond"])
def test_conditions_enter_as_released(released: Path, case: str) -> None:
    from test_model import LATENT, Fixture, _module_names, fixture_inputs, released_unet

    f = Fixture(released / "unet.npz")
    unet = released_unet(f, "release" if case == "uncond" else case)
    ours = {name: key for key, name in _module_names(unet).items()}
    prefix = f"mid/{case}/"
    wanted = {key.removeprefix(prefix): f[key] for key in f.arrays.files if key.startswith(prefix)}
    stacked = wanted.pop("stacked_input")
    seen: dict[str, Any] = {}
    for name in wanted:
        unet.get_submodule(ours[name]).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))

    def stop(_module: Any, given: Any) -> None:
        seen["stacked_input"] = given[0]
        raise StopIteration  # the rest of the network is another test's

    unet.get_submodule("down.0.0").register_forward_pre_hook(stop)
    inputs = Inputs() if case == "uncond" else fixture_inputs(f)
    with torch.no_grad(), pytest.raises(StopIteration):
        unet(f["in/x"], f["t"], unet.encode(inputs, frames=4, latent=LATENT))
    assert (seen.pop("stacked_input") - stacked).abs().max() <= 2e-5
    assert seen.keys() == wanted.keys()
    for name, value in seen.items():
        expected = wanted[name]
        layouts = [value]
        if value.ndim == 5:  # ours is [B, C, F, h, w]; the released encoders fold frames or pixels into the batch
            layouts += [value.transpose(1, 2), value.permute(0, 3, 4, 2, 1)]
        error = min((one.reshape(expected.shape) - expected).abs().max() for one in layouts)
        assert error <= 2e-5 + 2e-6 * expected.abs().max(), name


def test_motion_tokens_of_a_mixed_batch_and_of_nothing(released: Path) -> None:
    from test_model import TINY, Fixture, _indicator

    f = Fixture(released / "ipi.npz")
    m = f.meta
    config = replace(TINY, context_dim=m["d"], keypoint_heads=m["heads"], keypoint_ff=m["ff"],
                     resampler_heads=m["rh"], resampler_head_dim=m["dh"], slots=m["pos"])  # fmt: skip
    encoder, resampler = _indicator(config, f.weights())
    with torch.no_grad():
        nothing = encoder(torch.zeros(1, m["L"], 2, 18))
        # The released rows as they are, slots and samples mixed, for one clip: the resampler looks at each row alone.
        mixed = resampler(f["b2/enc_out"][None], f["b2/clip"].transpose(0, 1))
    assert (nothing[0] - f["zero/enc_out"]).abs().max() <= 1e-5
    assert (mixed[0] - f["b2/out"]).abs().max() <= 1e-5
