"""A log as tables: operators by row and level, floors of named cards, the figures that gates look at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from animx.counting.log import Entry
from animx.counting.parts import decoding, encoding, image_vectors
from animx.counting.stacks import Counted, Setting


@dataclass(frozen=True)
class Card:
    """Rates that a GPU reaches at 16 bits: what floors are reckoned with."""

    matmul: float
    """Matrix products and convolutions [TFLOP/s]."""
    attention: float
    """Attention with heads of 64 [TFLOP/s]."""
    memory: float
    """Reading and writing [TB/s]."""
    matmul8: float
    """Matrix products of 8-bit floating point numbers [TFLOP/s]; a card without them: as 16 bits."""

    @property
    def attention8(self) -> float:
        """Attention with scores of 8-bit integers, at twice the rate, and 16-bit products with the values [TFLOP/s]."""
        return self.attention * 4 / 3


CARDS: Mapping[str, Card] = {
    "H200": Card(790, 500, 4.3, 1580),
    "A100": Card(260, 190, 1.75, 260),
    "4090": Card(150, 140, 0.92, 300),
}
"""H200: matmul and memory measured, the rest assumed; the others assumed.  docs/benchmarks/README.md tells more."""

RATES = {
    **dict.fromkeys(("animx::linear8", "animx::geglu_linear8", "animx::geglu_rows8"), "matmul8"),
    "animx::attention8": "attention8",
}
"""Operators that compute in 8 bits, and the rate of a card that bounds them."""


@dataclass
class Row:
    """Sums of several operators."""

    calls: int = 0
    launches: int = 0
    flops: int = 0
    moved: int = 0
    """Bytes read and written."""
    level_flops: dict[int, int] = field(default_factory=dict)
    level_moved: dict[int, int] = field(default_factory=dict)

    def add(self, entry: Entry, level: int | None) -> None:
        """Take one operator in, at a level of the network or at none."""
        self.calls += 1
        self.launches += entry.launches
        self.flops += entry.flops
        self.moved += entry.moved
        if level is not None:
            self.level_flops[level] = self.level_flops.get(level, 0) + entry.flops
            self.level_moved[level] = self.level_moved.get(level, 0) + entry.moved

    def as_json(self) -> dict[str, Any]:
        """Calls, launches, TFLOP and GB, the last two also by level."""
        return {
            "calls": self.calls,
            "launches": self.launches,
            "teraflops": round(self.flops / 1e12, 4),
            "gigabytes": round(self.moved / 1e9, 3),
            "teraflops_by_level": {str(n): round(v / 1e12, 4) for n, v in sorted(self.level_flops.items())},
            "gigabytes_by_level": {str(n): round(v / 1e9, 3) for n, v in sorted(self.level_moved.items())},
        }


def total(entries: Iterable[Entry]) -> Row:
    """All operators as one row."""
    row = Row()
    for entry in entries:
        row.add(entry, None)
    return row


PICTURES = ("local_image", "dwpose", "reference_pose", "reference_latent")
TOKENS = ("keypoint_encoder", "resampler", "motion_tokens", "image_tokens")


_CONTEXT = re.compile(r"(cross_attention|motion\.attention)\.to_[kv]\.")
_TEMPORAL = re.compile(r":(Fused)?(Temporal|Mamba)/")


def is_condition(entry: Entry) -> bool:
    """Whether the operator encodes conditions: by the module it runs in, or by the weights it reads.

    Projecting a context to keys and values belongs here too, because the context is the same on every step.
    """
    if any(name.startswith((*PICTURES, *TOKENS)) for name in (entry.place, *entry.weights)):
        return True
    is_temporal = _TEMPORAL.search(f"{entry.place}/") is not None  # its second attention is one to itself
    return not is_temporal and any(_CONTEXT.search(name) for name in entry.weights)


def row_of(entry: Entry) -> str:
    """The row of the table that the operator belongs to."""
    kind, place = entry.kind, entry.place
    if place.startswith(PICTURES):
        return "pose and local-image encoders"
    if place.startswith(("keypoint_encoder", "resampler", "motion_tokens")):
        return "implicit pose indicator"
    if kind.startswith("animx::"):
        return kind
    if kind in ("cast", "copy"):
        return {"cast": "casts", "copy": "copies: transposes, contiguous, cat"}[kind]
    if place.startswith(("start", "embeddings", "time_embedding", "image_tokens")):
        return "embeddings and the rest"
    if kind.startswith("conv ") and kind not in ("conv 1",):
        return {"conv 3x3": "conv 3x3", "conv 1x1": "conv 1x1 skip"}.get(kind, "temporal conv")
    if kind in ("group norm", "layer norm", "silu"):
        return kind
    part = "temporal" if _TEMPORAL.search(f"{place}/") else "pose twin" if "/motion:" in place else "spatial"
    if kind == "attention":
        if part == "temporal":
            return "temporal self-attention"
        if "cross_attention" in place or "cross:" in place or "MotionCross" in place:
            return f"cross-attention, {'motion tokens' if part == 'pose twin' else 'context'}"
        return f"{part} self-attention"
    if kind in ("matmul", "conv 1"):
        if "feed_forward" in place or "end:" in place:
            return "feed-forward"
        if part != "temporal" and "key_value" in place and "cross_attention" in place:
            return "cross K/V projections"
        if "ResBlock" in place:
            return "embeddings and the rest" if ":ResBlock" in place else "conv 1x1 skip"
        return f"linears {part}"
    if kind == "gelu" or ("feed_forward" in place and ".mul." in entry.operator):
        return "GEGLU"
    if kind == "pointwise":
        return "adds of residuals and shifts"
    return "embeddings and the rest"


class Levels:
    """Finds the level of the network an operator works at by the sizes of its result.

    Operators whose result tells nothing (a chunk of rows, a shift per slot) count to the level before them.
    """

    def __init__(self, setting: Setting) -> None:
        h, w = setting.latent
        count = len(setting.config.multipliers)
        self.sides = [(h >> n, w >> n) for n in range(count)]
        slots, batch = setting.slots, setting.batch
        heads = {setting.config.width * m // setting.config.head_dim for m in setting.config.multipliers}
        self.sizes: list[set[int]] = []
        for high, wide in self.sides:
            pixels = high * wide
            several = {1, slots, batch, batch * slots, *heads, setting.config.stem_heads}
            self.sizes.append({pixels * n for n in several} | {pixels * batch * n for n in several})
        self.last: int | None = None

    def of(self, entry: Entry) -> int | None:
        """The level, from 0 (full resolution); None for what runs outside of the network's trunk."""
        if is_condition(entry) or entry.place.startswith(("start", "embeddings", "time_embedding", *TOKENS)):
            return None
        if ":Downsample" in entry.place:
            return self.last  # halving counts to the level it leaves
        pairs = list(zip(entry.shape, entry.shape[1:], strict=False))
        for level, (sides, sizes) in enumerate(zip(self.sides, self.sizes, strict=True)):
            if sides in pairs or sizes & set(entry.shape[:-1]):
                self.last = level
                break
        return self.last


def table(entries: Sequence[Entry], setting: Setting) -> dict[str, Row]:
    """Rows by name, the ones with the most FLOPs first, then by bytes."""
    levels = Levels(setting)
    rows: dict[str, Row] = {}
    for entry in entries:
        rows.setdefault(row_of(entry), Row()).add(entry, levels.of(entry))
    return dict(sorted(rows.items(), key=lambda one: (-one[1].flops, -one[1].moved, one[0])))


def floor(entries: Iterable[Entry], card: Card) -> tuple[float, float]:
    """Least time on a card [s], each operator at its own bound; and the part of those bound by memory [s]."""
    whole = bound = 0.0
    for entry in entries:
        usual = "attention" if "attention" in entry.kind else "matmul"
        rate: float = getattr(card, RATES.get(entry.kind, usual))
        work, moving = entry.flops / (rate * 1e12), entry.moved / (card.memory * 1e12)
        whole += max(work, moving)
        bound += moving if moving >= work else 0.0
    return whole, bound


def figures(counted: Counted) -> dict[str, float]:
    """The figures of one forward pass that gates look at.

    copies: operators that only move data, whatever their reason; conditions: operators of encoders on a step after the
    first.
    """
    whole = total(counted.forward)

    def calls(kind: str) -> int:
        return sum(entry.kind == kind for entry in counted.forward)

    return {
        "launches": whole.launches,
        "teraflops": whole.flops / 1e12,
        "gigabytes": whole.moved / 1e9,
        "casts": calls("cast"),
        "copies": calls("copy"),
        "conditions": sum(map(is_condition, counted.forward)),
    }


def as_json(counted: Counted) -> dict[str, Any]:
    """Everything counted: setting, figures, rows by operator and level, floors, and what is prepared once."""
    setting = counted.setting
    floors = {name: floor(counted.forward, card) for name, card in CARDS.items()}
    return {
        "stack": setting.stack,
        "setting": {
            "frames": setting.frames,
            "slots": setting.slots,
            "size": f"{setting.width}x{setting.height}",
            "batch": setting.batch,
            "conditional": setting.conditional,
            "dtype": str(setting.dtype).removeprefix("torch."),
        },
        "figures": {name: round(value, 4) for name, value in figures(counted).items()},
        "rows": {name: row.as_json() for name, row in table(counted.forward, setting).items()},
        "prepared": {
            name: value for name, value in total(counted.prepared).as_json().items() if not name.endswith("by_level")
        },
        "predicted_least_ms": {
            name: {"forward": round(1e3 * whole, 1), "bound_by_memory": round(1e3 * bound, 1)}
            for name, (whole, bound) in floors.items()
        },
    }


def lines(counted: Counted) -> list[str]:
    """The same for a person at a terminal."""
    setting, found = counted.setting, figures(counted)
    levels = range(len(setting.config.multipliers))
    branch = "" if setting.conditional else ", unconditional"
    out = [
        f"{setting.stack}: one forward pass of {setting.frames} + 1 frames at {setting.width}x{setting.height}, "
        f"batch {setting.batch}{branch}",
        f"{'operator':<38} {'n':>5} {'launches':>8} {'TFLOP':>8} {'GB':>8}   TFLOP by level",
    ]
    for name, row in (*table(counted.forward, setting).items(), ("total", total(counted.forward))):
        shares = "  ".join(f"{row.level_flops.get(n, 0) / 1e12:6.2f}" for n in levels) if row.level_flops else ""
        out.append(
            f"{name:<38} {row.calls:>5} {row.launches:>8} {row.flops / 1e12:>8.2f} {row.moved / 1e9:>8.2f}   "
            f"{shares if row.flops else ''}".rstrip()
        )
    out.append(f"casts {found['casts']}, copies {found['copies']}, condition operators {found['conditions']}")
    if counted.prepared:
        once = total(counted.prepared)
        out.append(f"once per window before: {once.launches} launches, {once.flops / 1e12:.3f} TFLOP, "
                   f"{once.moved / 1e9:.2f} GB")  # fmt: skip
    for name, card in CARDS.items():
        whole, bound = floor(counted.forward, card)
        share = bound / whole if whole else math.nan
        out.append(f"predicted least on {name}: {1e3 * whole:.0f} ms, {share:.0%} of it bound by memory")
    return out


RATIOS = ("launches", "teraflops", "gigabytes", "casts", "copies")


def against(ours: Counted, theirs: Counted) -> dict[str, float]:
    """The figures of one log as shares of another's."""
    mine, other = figures(ours), figures(theirs)
    return {name: round(mine[name] / other[name], 4) for name in RATIOS if other[name]}


def denoising(passes: Iterable[tuple[Counted, float]]) -> Row:
    """What a run of the sampler costs: forward passes with how often each is made.

    A number need not be whole: a step that takes over cached features counts as the share of the pass that it runs.
    """
    row = Row()
    for counted, times in passes:
        whole = total(counted.forward)
        row.calls += round(whole.calls * times)
        row.launches += round(whole.launches * times)
        row.flops += round(whole.flops * times)
        row.moved += round(whole.moved * times)
    return row


def parts(frames: int, width: int, height: int) -> tuple[dict[str, Any], list[str]]:
    """The picture codec and the image encoder for a window of `frames` frames, in float16: as JSON and as lines."""
    logs = {
        "picture codec, decode": decoding(frames, width, height),
        "picture codec, encode one frame": encoding(width, height),
        "image encoder": image_vectors(frames + 1),
    }
    data: dict[str, Any] = {}
    out = []
    for name, entries in logs.items():
        row = total(entries)
        least = {card: round(1e3 * floor(entries, rates)[0], 1) for card, rates in CARDS.items()}
        data[name] = {
            "launches": row.launches,
            "teraflops": round(row.flops / 1e12, 4),
            "gigabytes": round(row.moved / 1e9, 3),
            "predicted_least_ms": least,
        }
        out.append(f"{name:<38} {row.calls:>5} {row.launches:>8} {row.flops / 1e12:>8.2f} {row.moved / 1e9:>8.2f}")
    return data, out
