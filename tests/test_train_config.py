"""Training configs: the shipped ones, refusals in the user's words, and the size of a run without allocating it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

import yaml

from animx.errors import InputError, UsageError
from animx_trainer.config import SHIPPED, TrainConfig, differing, load_config, presets_folder, settled
from animx_trainer.loop import whole_config
from animx_trainer.plan import plan
from animx_trainer.sources import SOURCES, open_source


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_presets_are_read_and_name_a_source_that_exists(name: str) -> None:
    config = load_config(name)
    assert config.data.source in SOURCES
    assert config.unet().slots == config.data.frames + 1
    assert (presets_folder() / f"{name}.yaml").is_file()


def test_a_whole_config_written_out_is_the_same_config(tmp_path: Path) -> None:
    config = load_config("nano", ["optimizer.lr=1e-4"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(whole_config(config)))
    again = load_config(str(path))
    assert settled(again) == settled(config)
    assert again.steps == config.steps
    assert config.optimizer.lr == 1e-4


def test_the_paper_preset_is_the_paper_s_recipe_at_full_size() -> None:
    """Appendix D.4: AdamW, 5e-7 for the implicit pose indicator and 5e-5 for the rest, 32 frames at 768x512, 8 GPUs."""
    config = load_config("paper")
    assert (config.data.frames, config.data.size, config.batch) == (32, (512, 768), 8)
    assert config.unet().temporal == "mamba"
    assert config.unet().conditions == ("image", "dwpose", "randomref", "pose_embeddings")
    found = plan(config)
    assert found.groups["ipi"][1:] == (5e-7, 0.01)
    assert found.groups["rest, no decay"][1:] == (5e-5, 0.0)
    # The released facts count 24,697,344 and 102,817,792 parameters in keypoint encoder and resampler.
    assert found.groups["ipi"][0] + found.groups["ipi, no decay"][0] == 24_697_344 + 102_817_792


def test_the_released_network_needs_29_gb_to_train() -> None:
    found = plan(TrainConfig())
    # 1,817,708,556 entries of the released file, less the unused reference encoders (16,300 + 16,012).
    assert found.trained == 1_817_708_556 - 32_312
    assert found.training_bytes / 1e9 == pytest.approx(29.1, abs=0.05)
    assert found.per_process(8, "fsdp") == pytest.approx((29.08 + 7.27) / 8, abs=0.01)
    paper = plan(load_config("paper"))
    page = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text()
    assert f"({paper.training_bytes / 1e9:.1f} GB for `paper`, {found.training_bytes / 1e9:.1f} GB for" in page
    assert plan(replace(TrainConfig(), optimizer=replace(TrainConfig().optimizer, ema=0))).ema_bytes == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimiser: {lr: 1}", ("'optimizer'", ":1")),
        ("optimizer: {lr: -1}", ("optimizer.lr", "not above 0")),
        ("optimizer: {lr_ipy: 1e-5}", ("lr_ipi",)),
        ("optimizer: {ema: 1}", ("ema", "never change")),
        ("model: {variant: papre}", ("papre", "paper")),
        ("model: {unet: {widht: 64}}", ("widht", "width")),
        ("model: {unet: {slots: 4}}", ("slots 4", "32 frames")),
        ("model: {unet: {width: 40}}", ("40", "32")),
        ("precision: fp16", ("precision", "bf16")),
        ("batch: 6\naccumulate: 4", ("batch", "multiple")),
        ("loss: {drop_all: 0.7, drop_none: 0.7}", ("drop_all", "exceed 1")),
        ("data: {size: [512]}", ("data.size", "expected 2")),
    ],
)
def test_a_wrong_config_is_refused_with_file_and_key(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((InputError, UsageError)) as found:
        load_config(str(path))
    assert "mine.yaml" in str(found.value)
    for word in words:
        assert word in str(found.value)


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["optimizer.lr=-1"], "--set optimizer.lr=-1: optimizer.lr: -1 is not above 0"),
        (["seed=3", "optimiser.lr=1", "steps=9"], "--set optimiser.lr=1: unknown key 'optimiser'. Did you mean"),
        (["model.unet={widht: 64}"], "--set model.unet={widht: 64}: model.unet: unknown key 'widht'"),
        (["seed=-1", "steps=0"], "--set seed=-1: seed: -1 is less than 0"),
        (["batch=6", "accumulate=4"], "is not a multiple of accumulate 4"),
    ],
)
def test_a_wrong_set_is_named_and_no_file_that_the_user_never_wrote(sets: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=r"^--set ") as found:
        load_config("smoke", sets)
    assert says in str(found.value)
    assert "smoke" not in str(found.value)
    assert "yaml" not in str(found.value)


def test_a_wrong_file_is_still_named_beside_a_good_set(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("steps: 5\noptimizer: {lr: -1}\n")
    with pytest.raises(InputError, match=r"mine\.yaml:2: optimizer\.lr"):
        load_config(str(tmp_path / "mine.yaml"), ["seed=3"])


def test_names_that_are_no_preset_get_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'smoke'"):
        load_config("smok")
    with pytest.raises(InputError, match="no such file"):
        load_config("nowhere/x.yaml")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("source", "syth", "Did you mean 'synth'"),
        ("options", "{clps: 3}", "Did you mean 'clips'"),
        ("options", "{families: [blub]}", "Did you mean 'blob'"),
        ("options", "{fps: fast}", "expected a number"),
        ("options", "{epi: epj}", "Did you mean 'epi'"),
        ("options", "{epi: {base: epi, lambda: 1}}", "unknown key 'lambda'"),
    ],
)
def test_what_a_source_cannot_be_told_is_the_file_s_fault_or_that_of_a_set(
    key: str, value: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"^--set data.{key}=") as found:
        load_config("smoke", [f"data.{key}={value}"])
    assert says in str(found.value)
    file = tmp_path / "mine.yaml"
    file.write_text(f"steps: 5\ndata:\n  {'source: synth' if key == 'options' else 'frames: 2'}\n  {key}: {value}\n")
    with pytest.raises(InputError, match=r"mine\.yaml:4: data: ") as found:
        load_config(str(file))
    assert says in str(found.value)


def test_a_config_without_a_source_is_for_clips_that_are_handed_over() -> None:
    with pytest.raises(UsageError, match="hand over the clips"):
        open_source(replace(load_config("smoke").data, source="", options={}), 0)


def test_what_changes_no_number_may_differ_between_starts() -> None:
    config = load_config("smoke")
    free = replace(config, steps=99, accumulate=2, log=replace(config.log, every=7))
    assert differing(settled(config), settled(free)) == []
    cosine = replace(config, optimizer=replace(config.optimizer, schedule="cosine"))
    assert differing(settled(cosine), settled(replace(cosine, steps=99))) == ["steps"]
    assert differing(settled(config), settled(replace(config, seed=1))) == ["seed"]
