"""What a training run is: `TrainConfig`, read from YAML (`presets/train/*.yaml` or a file of one's own).

Defaults are the paper's recipe (Animate-X, arXiv 2410.10306, sections 3.4 and D.4) where it says something; what it
leaves open is settled in docs/training.md.  No torch is imported here.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from animx.config import FieldError, Located, Range, as_mapping, build, build_with, read_yaml
from animx.errors import InputError, UsageError, nearest
from animx.model.config import UNetConfig, variant

SUFFIXES = (".yaml", ".yml")
BASES = 4
"""How many configs may be laid over each other."""
RUN_CONFIG = "config.yaml"
"""What the folder of a run holds it as."""
SHIPPED = ("paper", "finetune", "nano", "smoke")


@dataclass(frozen=True)
class ModelConfig:
    """Which network is trained, from which weights, behind which frozen encoders."""

    variant: Literal["release", "paper"] = "release"
    """The released network, or the paper's (Mamba, one cross-attention, reference latent)."""
    unet: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `UNetConfig` that differ from the variant: sizes, ablations, conditions."""
    initialise: str = "scratch"
    """`scratch`, or a checkpoint of the same trunk: a model's name, its folder, or a file (video generation,
    UniAnimate, Animate-X)."""
    encoders: str = "animate-x"
    """Model (name or folder) whose VAE, image encoder and prompt are used, frozen; `random` draws tiny ones, which
    serve to try the machinery and mean nothing."""


@dataclass(frozen=True)
class LossConfig:
    """Noise, the condition drop, and the weight of each noise level."""

    offset_noise: Annotated[float, Range(0, 1)] = 0.1
    """Share of noise that is equal over a whole frame of a channel."""
    min_snr: Annotated[float, Range(0)] = 0.0
    """Min-SNR gamma: weight min(SNR, gamma) / (SNR + 1) of the velocity error; 0 = weight 1 everywhere."""
    drop_all: Annotated[float, Range(0, 1)] = 0.1
    """Share of samples that lose every condition (the unconditional branch of guidance)."""
    drop_none: Annotated[float, Range(0, 1)] = 0.1
    """Share of samples that keep every condition."""
    drop_each: Annotated[float, Range(0, 1)] = 0.5
    """Chance of each of image, local_image and dwpose to be dropped in the other samples."""
    drop_motion: bool = True
    """Whether a sample that loses everything also loses motion and reference slot, as in guidance; false leaves them
    in, as the released module does."""

    def __post_init__(self) -> None:
        if self.drop_all + self.drop_none > 1:
            raise FieldError(f"drop_all {self.drop_all:g} and drop_none {self.drop_none:g} exceed 1", ("drop_all",))


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on float32 master weights."""

    lr: Annotated[float, Range(0, 1, above=True)] = 5e-5
    """Learning rate of everything but the implicit pose indicator."""
    lr_ipi: Annotated[float, Range(0, 1)] | None = 5e-7
    """Learning rate of the implicit pose indicator (keypoint encoder, resampler, pose tokens); null = `lr`."""
    weight_decay: Annotated[float, Range(0, 1)] = 0.01
    """Decay of weights; norms, biases and tables have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Memory of the gradient's mean and square, each below 1."""
    eps: Annotated[float, Range(0, above=True)] = 1e-8
    """Added to the root of the squares."""
    warmup: Annotated[int, Range(0)] = 500
    """Steps over which the rates rise from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the rates do after the warm-up: stay, or fall to 0 at the last step."""
    clip: Annotated[float, Range(0)] = 1.0
    """Largest norm of the whole gradient; 0 = no limit."""
    ema: Annotated[float, Range(0, 1)] = 0.9999
    """Decay of the averaged weights that are exported; 0 = none are kept."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise FieldError(f"betas: {list(self.betas)} are not within 0..1 (1 excluded)", ("betas",))
        if self.ema == 1:
            raise FieldError("ema: 1 would never change; use 0.9999, or 0 for none", ("ema",))


@dataclass(frozen=True)
class DataConfig:
    """Which clips are shown."""

    source: str = "shards"
    """`shards` (made by `animx data prepare` or `synth`), or `synth` (characters drawn while training); empty: the
    clips are handed over in Python."""
    path: str = ""
    """Folder of the shards."""
    frames: Annotated[int, Range(1, 512)] = 32
    """Frames of a sample [frames]."""
    size: tuple[Annotated[int, Range(16, 4096)], Annotated[int, Range(16, 4096)]] = (512, 768)
    """Width and height of frames and pose pictures [px]."""
    workers: Annotated[int, Range(0, 256)] = 2
    """Processes that prepare samples; the numbers do not depend on it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only this source knows (such as `clips`, `epi`, `stride`)."""

    def __post_init__(self) -> None:
        from animx_trainer.sources import check_source

        check_source(self)


@dataclass(frozen=True)
class LogConfig:
    """What is said and kept on the way."""

    every: Annotated[int, Range(1)] = 1
    """Steps between two lines of `log.jsonl` and two points of TensorBoard."""
    strips_every: Annotated[int, Range(0)] = 1000
    """Steps between two sample strips; 0 = none."""
    strip_steps: Annotated[int, Range(1, 500)] = 20
    """Denoising steps of a strip."""
    tensorboard: bool = True
    """Whether to write TensorBoard files."""
    checkpoint_every: Annotated[int, Range(1)] = 1000
    """Steps between two checkpoints; one more is written at the end, and when the run is terminated."""
    keep: Annotated[int, Range(1)] = 2
    """Newest checkpoints that are kept."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Every random number of the run follows from it, the step and the sample."""
    steps: Annotated[int, Range(1)] = 100_000
    """Optimiser steps of the whole run."""
    batch: Annotated[int, Range(1, 65_536)] = 8
    """Samples of one step, over all processes and accumulation rounds."""
    accumulate: Annotated[int, Range(1)] = 1
    """Rounds in which each process works its share of a step, to save memory."""
    precision: Literal["float32", "bf16", "float64"] = "bf16"
    """Arithmetic of the network; weights and optimiser stay float32 (float64: everything, for tests)."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With several processes: every process holds all (ddp), or a share (fsdp) of the weights; auto = ddp."""
    activation_checkpointing: bool = False
    """Compute block activations twice to keep only those between blocks; saves memory, changes no number."""

    def __post_init__(self) -> None:
        if self.batch % self.accumulate:
            raise FieldError(f"batch: {self.batch} is not a multiple of accumulate {self.accumulate}", ("batch",))
        self.unet()

    def unet(self) -> UNetConfig:
        """The network of this run; its position table is as long as the clips."""
        given = {"slots": self.data.frames + 1, **self.model.unet}
        base = as_mapping(variant(self.model.variant))
        config = build(UNetConfig, {**base, **given}, "model.unet", error=UsageError)
        if config.slots < self.data.frames + 1:
            raise FieldError(f"model.unet: slots {config.slots} is too short for {self.data.frames} frames", ("model",))
        return config


def presets_folder() -> Path:
    """The folder of the shipped training presets."""
    checkout = Path(__file__).resolve().parents[2] / "presets" / "train"
    if checkout.is_dir():
        return checkout  # importlib.resources cannot open a namespace package of an editable install
    return Path(str(importlib.resources.files("animx_presets.train").joinpath("")))


def find_config(name: str) -> Path:
    """The file of a training config: a path, a run's folder, or a shipped preset's name.  Unknown: `InputError`."""
    path = Path(name)
    if name not in SHIPPED and (path / RUN_CONFIG).is_file():
        return path / RUN_CONFIG
    if path.suffix in SUFFIXES or "/" in name:
        if not path.is_file():
            raise InputError(f"{name}: no such file")
        return path
    if name not in SHIPPED:
        raise InputError(f"no training preset '{name}'.{nearest(name, SHIPPED)} Known: {', '.join(SHIPPED)}, or a file")
    return presets_folder() / f"{name}.yaml"


def load_config(name: str, sets: Iterable[str] = ()) -> TrainConfig:
    """The config of a file, a run or a shipped preset, with `--set a.b=c` laid over it.

    The key `base` of a file names another one (a preset, or a file seen from its own folder) that it is laid over.
    Unknown keys, wrong types and values out of range are an `InputError` with file, line and key; those of a `--set` a
    `UsageError` that names it.
    """
    path = find_config(name)
    return build_with(TrainConfig, _read(path), path, sets)


def _read(path: Path, depth: int = 0) -> Mapping[str, Any]:
    """The mapping of a file laid over its `base`."""
    mapping = read_yaml(path)
    if "base" not in mapping:
        return mapping
    name = mapping.pop("base")
    if not isinstance(name, str) or depth >= BASES:
        raise InputError(f"{path}:{mapping.lines['base']}: base: {name!r} is no config to start from")
    beside = path.parent / name
    return _over(_read(beside if beside.is_file() else find_config(name), depth + 1), mapping)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Located:
    """`above` laid over `below`, mapping by mapping; lines are those of `above`.  Options of another source go."""
    lines = above.lines if isinstance(above, Located) else {}
    whole = Located({**below}.items(), lines)
    if "source" in above and above["source"] != below.get("source"):
        whole.pop("options", None)
    for key, value in above.items():
        under = whole.get(key)
        whole[key] = _over(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return whole


FREE = ("log", "steps", "data.workers", "data.path", "parallel", "accumulate", "activation_checkpointing")
"""What may differ when a run is taken up again: it changes no number of the run, or its rounding only (`accumulate`,
`parallel`); `steps` only with a constant rate."""


def settled(config: TrainConfig) -> dict[str, Any]:
    """What decides about the numbers of a run, as plain values: two equal ones may continue each other."""
    content: dict[str, Any] = as_mapping(config)
    for key in FREE:
        if key == "steps" and config.optimizer.schedule != "constant":
            continue
        *way, last = key.split(".")
        level = content
        for part in way:
            level = level[part]
        level.pop(last)
    return content


def differing(one: Mapping[str, Any], two: Mapping[str, Any], way: tuple[str, ...] = ()) -> list[str]:
    """Keys (`a.b`) at which two configs of `settled` differ."""
    found: list[str] = []
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, (*way, key))
        elif a != b:
            found.append(".".join((*way, key)))
    return found


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """The same run with another number of steps."""
    return replace(config, steps=steps)
