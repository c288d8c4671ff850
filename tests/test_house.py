"""The house keeps its rules: floors, no circles, no torch in the dry wing, package lists that match the tree."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from animx.pose.sequence import PoseSequence

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"animx": ROOT / "animx", "animx_kernels": ROOT / "kernels" / "animx_kernels",
           "animx_trainer": ROOT / "trainer" / "animx_trainer"}  # fmt: skip

WET = (
    "animx.model",
    "animx.diffusion",
    "animx.counting",
    "animx.measuring",
    "animx.evaluate",
    "animx_kernels",
    "animx_trainer",
)
"""Rooms that may import torch."""

FLOORS: dict[str, int] = {
    "animx_kernels": 1, "animx.errors": 1, "animx.canvas": 1,
    "animx.atomic": 2, "animx.config": 2, "animx.container": 2, "animx.image": 2, "animx.job": 2, "animx.overlap": 2,
    "animx.plugins": 2, "animx.provenance": 2, "animx.times": 2, "animx.video": 2, "animx.weights": 2, "animx.model": 2,
    "animx.resident": 2, "animx.kernel_plugins": 2, "animx.lock": 2,
    "animx.processes": 1,
    "animx.pose": 3,
    "animx.engine": 4, "animx.retarget": 4,
    "animx.puppet": 5, "animx.diffusion": 5, "animx.prepare": 5, "animx.request": 5, "animx.driving": 5,
    "animx.pipeline": 5, "animx.preview": 5, "animx.poses": 5, "animx.drawing": 5,
    "animx.batch": 6, "animx.bench": 6, "animx.doctor": 6, "animx.cli": 6, "animx.evaluate": 6, "animx": 6,
    "animx.counting": 6, "animx.measuring": 6,
    "animx.__main__": 7, "animx_trainer": 7,
}  # fmt: skip
"""Floor of each room (docs/architecture.md); `animx.video_read` belongs to the room `animx.video`."""

UPWARDS = {("animx.retarget", "animx.poses")}
"""The only import of a higher floor, made when a user calls the package: `animx.retarget(poses)`."""


def _files() -> list[tuple[str, Path]]:
    found = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found.append((".".join((package, *parts)), path))
    return found


MODULES = dict(_files())


@cache
def _imports(module: str, *, at_start_only: bool) -> frozenset[str]:
    """Modules that `module` imports; `at_start_only`: those that importing it runs, so none inside functions."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and node.args:
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            source = node.module or ""
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names}
        todo.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def _room(module: str) -> str:
    """The entry of FLOORS that holds the module: the longest one that is a prefix."""
    fitting = [r for r in FLOORS if module == r or (module.startswith((f"{r}.", f"{r}_")) and r not in ("animx",))]
    return max(fitting, key=len) if fitting else module


def _ours(names: frozenset[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in SOURCES}


def test_every_module_has_a_floor() -> None:
    missing = sorted(module for module in MODULES if _room(module) not in FLOORS)
    assert not missing, f"give {missing} a floor here and in docs/architecture.md"


def test_the_table_of_the_architecture_has_these_floors() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown: dict[str, int] = {}
    for floor, rooms in re.findall(r"^\| (\d) \| (.+) \|$", text, re.MULTILINE):
        for name in re.findall(r"`([\w/.]+)`", rooms):
            if name not in ("trainer/", "kernels/", "RenderJob"):
                dotted = name.removesuffix("/__init__.py").removesuffix(".py").strip("/").replace("/", ".")
                shown[dotted if dotted.split(".")[0] in SOURCES else f"animx.{dotted}"] = int(floor)
    built = {_room(module) for module in MODULES}
    assert shown == {room: floor for room, floor in FLOORS.items() if room in built}


def test_rooms_import_only_their_own_or_lower_floors() -> None:
    wrong = []
    for module in MODULES:
        here = _room(module)
        for target in _ours(_imports(module, at_start_only=False)):
            there = _room(target)
            if there == "animx":  # the package itself: `from animx import plugins`, `animx.__version__`
                continue
            if here != there and FLOORS[there] > FLOORS[here] and (module, target) not in UPWARDS:
                wrong.append(f"{module} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})")
    assert not wrong, "\n".join(sorted(wrong))


def test_the_hall_asks_the_plugin_door_for_engines_and_engines_do_not_know_each_other() -> None:
    hall = ("animx.pipeline", "animx.request", "animx.driving", "animx.poses", "animx.drawing")
    for module in MODULES:
        targets = _ours(_imports(module, at_start_only=False))
        if module in hall:
            assert not [t for t in targets if t.startswith(("animx.puppet.engine", "animx.diffusion"))], module
        if module.startswith("animx.puppet"):
            assert not [t for t in targets if t.startswith(("animx.diffusion", *hall))], module
        if module.startswith("animx.diffusion"):
            assert not [t for t in targets if t.startswith(("animx.puppet", *hall))], module
        if module.startswith(("animx.model", "animx_kernels")):
            unknown = ("animx.video", "animx.image", "animx.pose", "animx.config", "animx.retarget", "animx.engine")
            assert not [t for t in targets if t.startswith(unknown)], module


def test_nothing_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for target in sorted(_ours(_imports(module, at_start_only=True))):
            if target in MODULES and target != "animx":
                visit(target, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "triton",
    "safetensors",
    "huggingface_hub",
    "open_clip",
    "ray",
}
LAZY = {"animx.doctor", "animx.weights", "animx.weights_pull", "animx.cli.weights", "animx.batch_ray",
        "animx.kernel_plugins"}  # fmt: skip
"""Dry modules that reach for the heavy libraries inside functions: checkpoints, fetching them, clusters, operators."""


def test_torch_is_imported_in_the_wet_wing_only() -> None:
    for module in MODULES:
        if not module.startswith(WET):
            roots = {name.split(".")[0] for name in _imports(module, at_start_only=module in LAZY)}
            assert not roots & HEAVY, f"{module} imports {roots & HEAVY}"


def test_the_plugin_table_is_the_only_door_into_the_wet_wing() -> None:
    from animx.plugins import BUILT_IN

    behind = ("animx.model", "animx.diffusion")
    doors = {target.partition(":")[0] for group in BUILT_IN.values() for target in group.values()}
    assert any(door.startswith(behind) for door in doors)
    allowed = {"animx.cli.weights": {"animx.diffusion.components"}}  # conversion is this wing's own command
    for module in MODULES:
        if not module.startswith(WET):
            reached = {t for t in _ours(_imports(module, at_start_only=False)) if t.startswith(behind)}
            assert reached <= allowed.get(module, set()), f"{module} imports {reached}"
            assert not {t for t in _ours(_imports(module, at_start_only=True)) if t.startswith(behind)}, module


def test_model_and_diffusion_know_what_their_floors_allow() -> None:
    for module in MODULES:
        targets = _ours(_imports(module, at_start_only=False))
        if module.startswith("animx.model"):
            assert {_room(t) for t in targets} <= {"animx.model", "animx.errors", "animx.canvas", "animx_kernels"}, (
                module
            )
        if module.startswith("animx.diffusion"):
            assert not [t for t in targets if t.startswith(("animx.cli", "animx.batch", "animx_trainer"))], module


DRY_COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "pose info": ["pose", "info", "{poses}"],
    "pose retarget": ["pose", "retarget", "{poses}", "-o", "{out}/short.pose.json", "--preset", "short-legs"],
    "pose draw": ["pose", "draw", "{poses}", "-o", "{out}/drawn.mp4"],
    "render by the puppet": ["render", "{picture}", "{poses}", "-o", "{out}/a.mp4", "--engine", "puppet", "--ref-pose",
                             "fit", "--end", "2f", "--size", "64x96"],
    "render by auto": ["render", "{picture}", "{poses}", "-o", "{out}/b.mp4", "--ref-pose", "fit", "--end", "2f",
                       "--size", "64x96"],
    "batch": ["batch", "{jobs}"],
    "weights list": ["weights", "list"],
    "presets": ["presets", "list"],
}  # fmt: skip


@pytest.mark.parametrize("name", DRY_COMMANDS)
def test_dry_commands_load_no_torch(name: str, tiny_character: Path, tiny_poses: PoseSequence, tmp_path: Path) -> None:
    import json

    from animx.pose.formats import write_poses

    write_poses(tiny_poses, tmp_path / "dance.pose.npz")
    job = {"reference": str(tiny_character), "driving": "dance.pose.npz", "output": "c.mp4", "engine": "puppet",
           "ref_pose": "fit", "end": "2f", "size": "64x96"}  # fmt: skip
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    places = {"poses": tmp_path / "dance.pose.npz", "picture": tiny_character, "out": tmp_path,
              "jobs": tmp_path / "jobs.jsonl"}  # fmt: skip
    arguments = [one.format(**places) for one in DRY_COMMANDS[name]]
    code = (
        "import sys\n"
        "from animx.cli import run\n"
        "code = run(sys.argv[1:])\n"
        f"print(code, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {**_environment(), "ANIMX_WEIGHTS": str(tmp_path / "none"), "ANIMX_PLUGINS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def test_the_dry_wing_and_the_synthetic_characters_load_without_torch() -> None:
    dry = [module for module in MODULES if not module.startswith(WET) and module != "animx.__main__"]
    code = (
        "import importlib, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'diffusers', 'transformers', 'mediapipe', 'rtmlib'):\n"
        "            raise ImportError('refused: ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"[importlib.import_module(name) for name in {[*dry, 'animx_trainer.synthetic', 'animx_kernels']!r}]\n"
        "print(len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=_environment())
    assert done.returncode == 0, done.stderr


def test_importing_animx_and_its_command_line_loads_nothing_heavy() -> None:
    code = "import sys, animx, animx.cli; print(' '.join(sorted(set(m.split('.')[0] for m in sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=_environment())
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "cv2", "av", "scipy", "skimage", "numba", "mediapipe", "matplotlib", "torch"}


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'trainer'}"}


def test_setup_cfg_lists_every_package_and_no_other() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    tree = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    yaml = {path.parent.relative_to(ROOT / "presets").as_posix() for path in (ROOT / "presets").rglob("*.yaml")}
    tree |= {"animx_presets", *(f"animx_presets.{name.replace('/', '.')}" for name in yaml)}
    assert listed == tree
    data = setup["options.package_data"]
    assert {name for name in data if data[name].split() == ["*.yaml"]} == tree - {"animx_presets"} - set(MODULES)
    assert {name for name in data if "py.typed" in data[name]} == set(SOURCES)
    for name, folder in SOURCES.items():
        assert (folder / "py.typed").exists(), name


def test_kernels_and_trainer_are_no_packages_themselves() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "trainer" / "__init__.py").exists()


def test_constraints_satisfy_what_pyproject_asks_for() -> None:
    from packaging.requirements import Requirement

    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {pin.name.lower(): pin for pin in map(Requirement, filter(None, lines))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = ("offline", "pose", "model", "ray", "dev")
    tested = [*project["dependencies"], *(one for group in groups for one in extras[group])]
    for asked in map(Requirement, tested):
        pin = pins.get(asked.name.lower())
        assert pin is not None, f"constraints.txt does not pin {asked.name}"
        (version,) = {spec.version for spec in pin.specifier}
        assert asked.specifier.contains(version), f"{pin} does not satisfy {asked}"
    assert str(pins["torch"].specifier) == "==2.13.0"


@pytest.mark.parametrize("path", sorted(p.name for p in (ROOT / ".ci").iterdir()))
def test_ci_calls_what_everybody_calls(path: str) -> None:
    text = (ROOT / ".ci" / path).read_text()
    assert "make test" in text
    assert (ROOT / ".ci" / path).stat().st_mode & 0o111


def test_torch_is_installed_first_alone_and_as_pinned() -> None:
    lines = [line.strip().lstrip("@") for line in (ROOT / "Makefile").read_text().splitlines()]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    first = lines.index(f"$(PIP) {pins[0]}")
    extras = next(i for i, line in enumerate(lines) if line.startswith("$(PIP) -e") and "model" in line)
    assert first < extras
