"""What is shipped is whole: wheel and sdist hold every module and preset, and the wheel works anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from animx.pose.sequence import PoseSequence

pytestmark = pytest.mark.slow

CONTENT = ("animx", "presets", "kernels", "trainer")
FILES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE")


def _expected(root: Path) -> dict[str, str]:
    """Path in the wheel -> path in the checkout, for all code and data."""
    homes = {"animx": "animx", "kernels/animx_kernels": "animx_kernels", "trainer/animx_trainer": "animx_trainer",
             "presets": "animx_presets"}  # fmt: skip
    found = {}
    for source, home in homes.items():
        for path in (root / source).rglob("*"):
            if path.suffix in (".py", ".yaml") or path.name in ("py.typed", "tuning.json"):
                found[f"{home}/{path.relative_to(root / source).as_posix()}"] = path.relative_to(root).as_posix()
    return found


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's sources alone, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("source") / "animx"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in CONTENT:
        shutil.copytree(root / name, folder / name, ignore=ignore)
    for name in FILES:
        shutil.copy(root / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    pytest.importorskip("build", reason="needs the 'dev' extra")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "-o", str(out), str(copy)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed and nothing else."""
    target = tmp_path_factory.mktemp("site")
    _pip("--no-deps", "--no-index", "--target", str(target), str(built[0]))
    return target


def _pip(*arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile"]
    subprocess.run([*pip, *arguments], check=True, capture_output=True)


def _run(site: Path, where: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`animx` from `site`, run in `where` with `site` before everything else."""
    env = {**os.environ, "PYTHONPATH": str(site), **environment}
    return subprocess.run(
        [sys.executable, "-P", "-m", "animx", *arguments], cwd=where, env=env, capture_output=True, text=True
    )


def test_the_wheel_holds_every_module_and_every_preset(root: Path, built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == set(_expected(root))
        info = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(wheel.read(info).decode())
        assert metadata["License-Expression"] == "Apache-2.0"
        assert "offline" in (metadata.get_all("Provides-Extra") or [])
        points = wheel.read(info.replace("METADATA", "entry_points.txt")).decode()
        assert "animx = animx.__main__:main" in points
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_sdist_holds_what_the_wheel_is_built_from(root: Path, built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(_expected(root).values()) | set(FILES) <= names


def test_the_wheel_works_away_from_the_checkout(installed: Path, tmp_path: Path, root: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import animx; print(animx.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(installed))
    listed = _run(installed, tmp_path, "presets", "list")
    assert listed.returncode == 0, listed.stderr
    for preset in (root / "presets" / "rescale").glob("*.yaml"):
        assert preset.stem in listed.stdout
    drawn = _run(installed, tmp_path, "presets", "show", "short-legs")
    assert drawn.returncode == 0, drawn.stderr
    assert "legs" in drawn.stdout


@pytest.fixture(scope="module")
def with_plugin(root: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with the example plugin installed beside animx."""
    source = tmp_path_factory.mktemp("plugin") / "plugin"
    shutil.copytree(root / "examples" / "plugin", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    _pip("--no-deps", "--no-index", "--no-build-isolation", "--target", str(installed), str(source))
    return installed


def test_the_example_plugin_is_short_and_complete(root: Path) -> None:
    files = [path for path in (root / "examples" / "plugin").iterdir() if path.is_file()]
    assert {path.name for path in files} == {"pyproject.toml", "animx_bounce.py"}
    assert sum(len(path.read_text().splitlines()) for path in files) < 80


def test_the_example_plugin_is_found_and_its_engine_renders(
    with_plugin: Path, root: Path, tmp_path: Path, tiny_poses: PoseSequence, tiny_character: Path
) -> None:
    listed = _run(with_plugin, tmp_path, "plugins")
    assert listed.returncode == 0, listed.stderr
    assert "bounce" in listed.stdout
    assert "animx-bounce 1.0" in listed.stdout
    from animx.pose.formats import write_poses

    poses = tmp_path / "dance.pose.json"
    write_poses(tiny_poses, poses)
    more = _run(
        with_plugin, tmp_path, "pose", "retarget", str(poses), "--op", "exaggerate:amount=2", "-o", "more.pose.json"
    )
    assert more.returncode == 0, more.stderr
    assert "exaggerate" in (tmp_path / "more.pose.json").read_text()
    done = _run(
        with_plugin, tmp_path, "render", str(tiny_character), "more.pose.json", "-o", "out.mp4",
        "--engine", "bounce", "--ref-pose", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 500
    off = _run(with_plugin, tmp_path, "plugins", ANIMX_PLUGINS="off")
    assert "bounce" not in off.stdout
