"""A render request: its options, the engine it gets and the presets it names; refused before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from animx import plugins, provenance
from animx.canvas import Fit
from animx.engine import Engine
from animx.errors import InputError, UsageError, nearest
from animx.times import Time, parse_fps, parse_size, parse_time, time_range

if TYPE_CHECKING:
    from animx.retarget.preset import Preset

Align = Literal["robust", "released", "none"]

Stage = Callable[[str, int, int], None]
"""`on_progress(stage, done, total)`; stages are `pose` and `render`, total 0 = unknown."""


def no_stages(stage: str, done: int, total: int) -> None:
    """The progress callback that reports nothing."""


_FILES = ("mask", "driving_video", "ref_pose", "background")
"""Options that are, or may be, the path of a file."""


@dataclass(frozen=True)
class RenderOptions:
    """How to render.  Each field is the command-line option of the same name."""

    engine: str = "auto"
    presets: tuple[str | Path | Preset, ...] = ()
    rescale: Mapping[str, float] = field(default_factory=dict)
    """Factor by bone group (`--set legs=0.5`)."""
    drop: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    align: Align = "robust"
    ref_pose: str = "auto"
    """auto, fit, none, or the path of a pose file or joints YAML."""
    mask: Path | None = None
    person: str = "largest"
    backend: str | None = None
    smooth: bool = True
    hands: bool | None = None
    """Extract hands and face; None = when the engine uses them."""
    driving_video: Path | None = None
    start: Time | None = None
    end: Time | None = None
    duration: Time | None = None
    fps: Fraction | None = None
    size: tuple[int | None, int | None] | None = None
    fit: Fit = "cover"
    background: str = "keep"
    """keep, blur, transparent, #rrggbb or the path of a picture."""
    audio: bool = True
    seed: int = 0
    side_by_side: bool = False
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("presets", "drop", "add"):
            value = getattr(self, name)
            is_one = isinstance(value, (str, Path)) or not isinstance(value, Sequence)
            put(name, (value,) if is_one else tuple(value))
        for name in ("start", "end", "duration"):
            if getattr(self, name) is not None:
                put(name, parse_time(getattr(self, name), f"--{name}"))
        for name in _FILES:
            if getattr(self, name) is not None and not str(getattr(self, name)):
                raise UsageError(f"--{name.replace('_', '-')} '': names nothing. Name a file, or leave it out")
        for name in ("mask", "driving_video"):
            if getattr(self, name) is not None:
                put(name, Path(getattr(self, name)))
        if self.fps is not None:
            put("fps", parse_fps(self.fps))
        if isinstance(self.size, str):
            put("size", parse_size(self.size))
        for option, value, known in (
            ("--align", self.align, ("robust", "released", "none")),
            ("--fit", self.fit, ("cover", "contain", "stretch")),
        ):
            if value not in known:
                raise UsageError(f"{option} '{value}': use {', '.join(known)}.{nearest(str(value), known)}")
        times = [one for one in (self.start, self.end, self.duration) if one is not None]
        if len({one.frames is None for one in times}) < 2:  # seconds and frames together need the clip's rate
            time_range(self.start, self.end, self.duration, Fraction(1))
        put("ref_pose", str(self.ref_pose))
        put("background", str(self.background))
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: use a whole number from 0 to 2^63 - 1")

    def resolved(self) -> dict[str, Any]:
        """The options for the recipe: plain values, files by name alone."""
        shown: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("engine", "presets", "seed", "engine_options"):
                continue
            if isinstance(value, Path) or (one.name in _FILES and value in self.files().values()):
                value = Path(value).name
            elif isinstance(value, (Time, Fraction)):
                value = str(value)
            shown[one.name] = dict(value) if isinstance(value, Mapping) else value
        return shown

    def files(self) -> dict[str, Any]:
        """The files that options name, by option (`ref_pose`)."""
        found = {name: getattr(self, name) for name in _FILES}
        words = ("auto", "fit", "none", "keep", "blur", "transparent")
        return {
            name: value
            for name, value in found.items()
            if value is not None and value not in words and not str(value).startswith("#")
        }

    def check_files(self) -> None:
        """Refuse files that do not exist before any work is done (`InputError`)."""
        for name, value in self.files().items():
            if str(value) == "-" and name == "ref_pose":
                continue
            if str(value) == "-":
                raise UsageError(f"--{name.replace('_', '-')} -: it does not come from stdin. Name a file")
            if name != "background" and not Path(value).exists():
                raise InputError(f"--{name.replace('_', '-')} {value}: no such file")

    def file_records(self) -> list[dict[str, str]]:
        """The files that options name, by option, name and hash; what comes through stdin is no file."""
        from animx.image import file_sha256

        named = {name: str(path) for name, path in self.files().items() if str(path) != "-"}
        return [provenance.input_record(name, path, file_sha256(path)) for name, path in named.items()]

    @classmethod
    def of(cls, **values: Any) -> RenderOptions:
        """Options by name; an unknown name is a `UsageError` with the nearest known one."""
        known = [one.name for one in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"render: unknown option '{name}'.{nearest(name, known)}")
        return cls(**values)


def choose_engine(name: str = "auto") -> tuple[Engine, str]:
    """The engine called `name` and why.  `auto` takes the best built-in one that runs here; only `auto` chooses."""
    if name != "auto":
        engine = cast(Engine, plugins.load("engines", name)())
        if hasattr(engine, "require"):  # says itself, with its own exit code, what it lacks for the options given
            return engine, "as asked with --engine"
        missing = engine.available()
        if missing is not None:
            raise UsageError(f"engine '{name}' cannot run here: {missing}")
        return engine, "as asked with --engine"
    refused: list[str] = []
    built_in = [plugin for plugin in plugins.find("engines").values() if plugin.origin == "animx"]
    for plugin in sorted(built_in, key=lambda plugin: plugin.name == "puppet"):  # the puppet runs anywhere: last
        engine = cast(Engine, plugin.load()())
        missing = engine.available()
        if missing is None:
            own = getattr(engine, "reason", "the only built-in engine; runs on any CPU, needs no weights")
            return engine, f"auto: {'; '.join(refused) or own}"
        refused.append(f"{plugin.name} cannot run here: {missing}")
    raise UsageError(f"no engine can run here. {'; '.join(refused)}")


def engine_options(engine: Engine, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options `given` for the engine, by name (`steps`) or with its own (`puppet.cell`).

    One that belongs to another engine, or that it does not list, is a `UsageError` naming both.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        owner, dot, name = key.partition(".")
        shown = f"--set {key}" if dot else f"--{key.replace('_', '-')}"
        name = name if dot else key
        if dot and owner != engine.name:
            raise UsageError(f"{shown} is no option of engine '{engine.name}', which is the one used here")
        if name not in engine.options:
            known = ", ".join(sorted(engine.options)) or "none"
            raise UsageError(
                f"{shown} cannot be used with engine '{engine.name}'.{nearest(name, engine.options)} "
                f"Leave it out, or choose another --engine. Options of its own: {known}"
            )
        found[name] = value
    return found


def load_presets(presets: Sequence[str | Path | Preset]) -> list[Preset]:
    """Presets by name or file, in order; ready ones pass."""
    from animx.retarget.preset import load_preset

    return [load_preset(one) if isinstance(one, (str, Path)) else one for one in presets]


def preset_record(preset: Preset) -> dict[str, str]:
    """A preset by name and content hash, for the recipe."""
    content = {one.name: getattr(preset, one.name) for one in fields(preset)}
    rescale = {key: content["rescale"][key] for key in content["rescale"]}
    return {"name": preset.name, "sha256": provenance.content_hash({**content, "rescale": rescale})}


def check_retargeting(options: RenderOptions) -> None:
    """Refuse unknown bone groups and bad factors before any work is done (`UsageError`)."""
    from animx.retarget.preset import parse_preset

    fixed = {"rescale": dict(options.rescale), "drop": list(options.drop), "add": list(options.add)}
    given = {key: value for key, value in fixed.items() if value}
    if given:
        parse_preset(given, "--set, --drop, --add", error=UsageError)
