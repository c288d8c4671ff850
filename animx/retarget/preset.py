"""Rescale presets: the YAML grammar of `presets/rescale/`, and where presets are found.

One grammar, two users: retargeting takes a preset with fixed numbers (`Preset.fixed`), training draws from its ranges
(`Preset.sample`).  Searched in this order, the first hit wins: a file path, `~/.config/animx/presets`, the folders of
`$ANIMX_PRESETS`, packages with an `animx.presets` entry point, the shipped presets.
"""

from __future__ import annotations

import copy
import importlib.resources
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np

from animx.config import FieldError, Range, build, parse_override, read_yaml
from animx.errors import AnimxError, InputError, UsageError, nearest
from animx.retarget.groups import check_factor, check_group, joints_of

log = logging.getLogger(__name__)

Factor = float | tuple[float, float]
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Preset:
    """What a preset file says.  Immutable; a bad group, factor or range is a `UsageError` that names the nearest."""

    name: str = ""
    """The preset's name; in a file it may be left out and is the file's then."""
    description: str = ""
    """One sentence for `presets list`."""
    rescale: Mapping[str, Factor] = field(default_factory=lambda: MappingProxyType({}))
    """Factor (> 0) per bone group, or a range [low, high]."""
    drop: tuple[str, ...] = ()
    """Groups or joints whose score becomes 0."""
    add: tuple[str, ...] = ()
    """Groups or joints to invent where they are missing."""
    keep: Literal["ground", "root", "none"] = "ground"
    """What stays where it was in each frame: the lowest foot's y, the middle of the hips, or nothing."""
    probability: Annotated[float, Range(0, 1)] = 1.0
    """How often training uses the preset, 0..1; retargeting ignores it."""

    def __post_init__(self) -> None:
        for group, factor in self.rescale.items():
            try:
                _check(group, factor)
            except UsageError as error:
                raise FieldError(f"rescale: {error}", ("rescale", group)) from error
        for key, names in (("drop", self.drop), ("add", self.add)):
            try:
                joints_of(names)
            except UsageError as error:
                raise FieldError(f"{key}: {error}", (key,)) from error

    @property
    def factors(self) -> dict[str, float]:
        """The factors of `fixed()`: a range is its arithmetic mean."""
        return {group: sum(f) / 2 if isinstance(f, tuple) else f for group, f in self.rescale.items()}

    def fixed(self) -> Preset:
        """This preset with every range replaced by its arithmetic mean."""
        return replace(self, rescale=MappingProxyType(self.factors))

    def sample(self, rng: np.random.Generator) -> Preset:
        """This preset with every range replaced by a number drawn uniformly from it.

        Drawn in the alphabetical order of the groups, so the order of the keys in the file does not matter.
        `probability` is not applied here: whoever draws presets for training does.
        """
        drawn: dict[str, Factor] = {}
        for group in sorted(self.rescale):
            factor = self.rescale[group]
            drawn[group] = float(rng.uniform(*factor)) if isinstance(factor, tuple) else factor
        sampled = copy.copy(self)  # a number within a range that was checked needs no second check
        object.__setattr__(sampled, "rescale", MappingProxyType({group: drawn[group] for group in self.rescale}))
        return sampled


def _check(group: str, factor: Factor) -> None:
    check_group(group)
    bounds = factor if isinstance(factor, tuple) else (factor,)
    for bound in bounds:
        check_factor(group, bound)
    if len(bounds) == 2 and bounds[0] > bounds[1]:
        raise UsageError(f"{group}: the range [{bounds[0]:g}, {bounds[1]:g}] runs downwards")


@dataclass(frozen=True)
class Found:
    """One entry of `list_presets`."""

    name: str
    """The name to load it by: its file's."""
    path: str
    origin: str
    """`shipped`, `user`, `ANIMX_PRESETS`, or the distribution that brings it."""
    preset: Preset | None
    problem: str = ""
    """Why it cannot be used, when `preset` is None."""


def parse_preset(mapping: Mapping[str, Any], where: str | Path, *, error: type[AnimxError] = InputError) -> Preset:
    """A preset from a mapping as read from YAML; anything wrong is one line with `where`, raised as `error`.

    Without a `name` it takes the stem of `where`.
    """
    preset = build(Preset, mapping, where, error=error)
    return preset if preset.name else replace(preset, name=Path(where).stem)


def parse_rescale(overrides: Iterable[str]) -> dict[str, float]:
    """Factors from `--set` texts: `legs=0.5`, `rescale.legs=0.5` or `legs=[0.3, 0.6]` (its mean); the last one wins.

    An unknown group or a bad factor is a `UsageError` with the text.
    """
    factors: dict[str, Any] = {}
    for text in overrides:
        path, value = parse_override(text)
        if len(path) == 2 and path[0] == "rescale":
            path = path[1:]
        if len(path) != 1:
            raise UsageError(
                f"--set {text}: unknown key '{'.'.join(path)}'. Here --set takes bone groups, as in legs=0.5"
            )
        check_group(path[0], where=f"--set {text}: ")
        factors |= parse_preset({"rescale": {path[0]: value}}, f"--set {text}", error=UsageError).factors
    return factors


# ---- where presets are ---------------------------------------------------------------------------------------------


def _user_folder() -> Path | None:
    base = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(base) if base else Path.home() / ".config") / "animx" / "presets"
    except RuntimeError:  # no home folder is known
        return None


def _shipped_folder() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "presets" / "rescale").is_dir():
        return checkout / "presets"  # importlib.resources cannot open a namespace package of an editable install
    return _package_folder("animx_presets")


def _package_folder(package: str) -> Path:
    """The folder of a package, namespace packages included; an `InputError` when it has none on disk."""
    try:
        folder = Path(str(importlib.resources.files(package).joinpath("")))
    except NotADirectoryError:  # a namespace package in an editable install
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        folder = Path(next((place for place in places if Path(place).is_dir()), ""))
    if not folder.is_dir():
        raise InputError(f"package {package} has no folder on disk")
    return folder


def _places() -> Iterator[tuple[str, Path]]:
    """(origin, folder) in the order of search; folders that do not exist are left out."""
    user = _user_folder()
    if user is not None and user.is_dir():
        yield "user", user
    for entry in filter(None, os.environ.get("ANIMX_PRESETS", "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if folder.is_dir():
            yield "ANIMX_PRESETS", folder
        else:
            log.warning("ANIMX_PRESETS: %s is not a folder", entry)
    if os.environ.get("ANIMX_PLUGINS", "").lower() != "off":
        for point in sorted(entry_points(group="animx.presets"), key=lambda point: (point.name, point.value)):
            origin = point.dist.name if point.dist is not None else point.name
            try:
                yield origin, _package_folder(point.module)
            except Exception as error:  # a third-party package may fail in any way; it must not stop the tool
                log.warning("presets of %s cannot be found (%s: %s)", origin, type(error).__name__, error)
    yield "shipped", _shipped_folder()


def preset_paths() -> list[Path]:
    """The folders that are searched for presets, first hit first; presets lie in them or in their `rescale/`."""
    return [folder for _, folder in _places()]


def _files(folder: Path) -> list[Path]:
    found = [file for sub in (folder, folder / "rescale") if sub.is_dir() for file in sub.iterdir()]
    return sorted((file for file in found if file.suffix in SUFFIXES and file.is_file()), key=lambda file: file.stem)


def list_presets() -> list[Found]:
    """Every preset that `load_preset` finds by name, by name; a file that cannot be used is listed with its problem."""
    entries: dict[str, Found] = {}
    for origin, folder in _places():
        for file in _files(folder):
            if file.stem in entries:
                continue
            try:
                entries[file.stem] = Found(file.stem, str(file), origin, parse_preset(read_yaml(file), file))
            except AnimxError as error:
                entries[file.stem] = Found(file.stem, str(file), origin, None, str(error))
    return [entries[name] for name in sorted(entries)]


def load_preset(name_or_path: str | Path) -> Preset:
    """A preset by file path (anything with a folder or a .yaml suffix) or by name.

    An unknown name is a `UsageError` with the nearest known one, a bad file an `InputError`.
    """
    text = str(name_or_path)
    if Path(text).suffix in SUFFIXES or Path(text).name != text:
        return parse_preset(read_yaml(text), text)
    known: list[str] = []
    for _, folder in _places():
        for file in _files(folder):
            if file.stem == text:
                return parse_preset(read_yaml(file), file)
            known.append(file.stem)
    raise UsageError(f"unknown preset '{text}'.{nearest(text, known)} Known: {', '.join(sorted(set(known)))}")
