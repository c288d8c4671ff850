"""What is installed here, what is missing, and the exact line that gets it: the facts behind `animx doctor`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import animx
from animx.provenance import version_of

APT = "apt install libgl1 libglib2.0-0"

BASE = MappingProxyType(
    {
        "av": "av",
        "click": "click",
        "numba": "numba",
        "numpy": "numpy",
        "opencv-contrib-python": "cv2",
        "pillow": "PIL",
        "pyyaml": "yaml",
        "rich": "rich",
        "scikit-image": "skimage",
        "scipy": "scipy",
    }
)
"""Distributions of the base install and the module each brings."""

EXTRAS = MappingProxyType(
    {
        "offline": ("mediapipe",),
        "pose": ("rtmlib", "onnxruntime"),
        "model": ("torch", "diffusers", "transformers", "accelerate", "safetensors", "einops", "huggingface_hub"),
        "openclip": ("open_clip_torch",),
        "mamba": ("mamba-ssm",),
        "kernels": ("triton",),
        "train": ("tensorboard", "webdataset"),
        "eval": ("torchmetrics",),
        "ray": ("ray",),
    }
)
"""Distributions that each extra brings."""

PURPOSE = MappingProxyType(
    {
        "offline": "pose without downloads (mediapipe)",
        "pose": "pose with DWPose and RTMW (rtmlib)",
        "model": "the full model",
        "openclip": "another image encoder for the full model",
        "mamba": "selective scan on CUDA",
        "kernels": "fused kernels of the full model (comes with a CUDA torch)",
        "train": "training",
        "eval": "metrics",
        "ray": "batches on a Ray cluster",
    }
)

ENCODERS = MappingProxyType(
    {
        "libx264": ".mp4",
        "prores_ks": ".mov",
        "libvpx-vp9": ".webm",
        "gif": ".gif",
        "aac": "sound in .mp4 and .mov",
        "libopus": "sound in .webm",
    }
)
"""Encoders that outputs need and what for."""

_PIXELS = MappingProxyType({"prores_ks": "yuva444p10le", "libvpx-vp9": "yuva420p", "gif": "rgb8"})


@dataclass(frozen=True)
class Finding:
    """One fact: what was looked at, how it stands, and what to do."""

    area: str
    name: str
    state: str
    """`ok`, `missing` (something optional), or `broken` (it will fail when it is needed)."""
    detail: str = ""
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything; imports what it reports on, so it takes some seconds.  Never raises."""
    findings: list[Finding] = []
    for area, look in _AREAS.items():
        try:
            findings.extend(look(area))
        except Exception as error:  # the doctor must not fall ill
            findings.append(Finding(area, area, "broken", f"{type(error).__name__}: {error}"))
    return findings


def pip_line(extra: str) -> str:
    """The line that installs an extra."""
    return f"pip install -c constraints.txt 'animx[{extra}]'"


def _python(area: str) -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding(area, "python", "ok" if good else "broken", f"{version} on {platform.platform()}",
                  "" if good else "animx needs Python 3.11 or newer")  # fmt: skip
    yield Finding(area, "animx", "ok", f"{animx.__version__} from {Path(animx.__file__).parent}")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(area, "cpu", "ok", f"{cpus} cores usable, {platform.machine()}")


def _base(area: str) -> Iterator[Finding]:
    for name, module in BASE.items():
        try:
            loaded = importlib.import_module(module)
        except Exception as error:
            if module == "cv2" and version_of(name) is not None:
                yield Finding(area, name, "broken", f"installed, but `import cv2` fails: {error}", APT)
            else:
                yield Finding(
                    area, name, "broken", f"cannot be imported: {error}", f"pip install -c constraints.txt {name}"
                )
            continue
        yield Finding(area, name, "ok", version_of(name) or str(getattr(loaded, "__version__", "found")))
    wheels = {name: found for name in ("opencv-python", "opencv-contrib-python", "opencv-python-headless",
                                       "opencv-contrib-python-headless") if (found := version_of(name))}  # fmt: skip
    if len(set(wheels.values())) > 1 or (any("headless" in name for name in wheels) and len(wheels) > 1):
        listed = ", ".join(f"{name} {found}" for name, found in wheels.items())
        mend = "pip install -c constraints.txt --force-reinstall opencv-contrib-python"
        yield Finding(area, "opencv", "broken", f"several wheels share one folder: {listed}", mend)


def _extras(area: str) -> Iterator[Finding]:
    for extra, names in EXTRAS.items():
        missing = [name for name in names if version_of(name) is None]
        found = ", ".join(f"{name} {version_of(name)}" for name in names if name not in missing)
        if missing:
            detail = f"{PURPOSE[extra]}; missing: {', '.join(missing)}"
            yield Finding(area, extra, "missing", detail, pip_line(extra))
        else:
            yield Finding(area, extra, "ok", found)


def _backends(area: str) -> Iterator[Finding]:
    from animx.pose.backend import available_backends

    found = available_backends()
    for name, missing in found.items():
        yield Finding(area, name, "ok" if missing is None else "missing", "" if missing is None else missing)
    if all(missing is not None for missing in found.values()):
        extra = "offline" if sys.version_info < (3, 13) else "pose"
        yield Finding(area, "any", "missing", "no pose backend is usable: videos cannot drive", pip_line(extra))


def _onnx(area: str) -> Iterator[Finding]:
    if importlib.util.find_spec("onnxruntime") is None:
        yield Finding(area, "onnxruntime", "missing", "not installed", pip_line("pose"))
        return
    runtime: Any = importlib.import_module("onnxruntime")
    yield Finding(area, "providers", "ok", ", ".join(runtime.get_available_providers()))


def _device(area: str) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding(area, "torch", "missing", "the puppet needs none; the full model does", pip_line("model"))
        return
    torch: Any = importlib.import_module("torch")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device, CPU only"
    yield Finding(area, "torch", "ok", f"{torch.__version__}: {device}")


def _video(area: str) -> Iterator[Finding]:
    import av

    versions = ", ".join(f"{name} {'.'.join(map(str, found))}" for name, found in sorted(av.library_versions.items()))
    yield Finding(area, "ffmpeg", "ok", versions)
    for name, purpose in ENCODERS.items():
        why = _cannot_open(name)
        mend = "" if why is None else "pip install -c constraints.txt --force-reinstall av"
        yield Finding(
            area, name, "ok" if why is None else "broken", purpose if why is None else f"{purpose}: {why}", mend
        )
    from PIL import features

    good = bool(features.check("webp"))
    mend = "" if good else "pip install -c constraints.txt --force-reinstall pillow"
    yield Finding(area, "webp", "ok" if good else "broken", ".webp", mend)


def _cannot_open(name: str) -> str | None:
    import av

    try:
        context: Any = av.CodecContext.create(name, "w")
        if context.type == "video":
            context.width = context.height = 64
            context.pix_fmt = _PIXELS.get(name, "yuv420p")
        else:
            context.sample_rate, context.layout = 48000, "stereo"
            context.format = "fltp" if name == "aac" else "flt"
        from fractions import Fraction

        context.time_base = Fraction(1, 25 if context.type == "video" else 48000)
        context.open()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _cache(area: str) -> Iterator[Finding]:
    """numba keeps compiled code beside the source, in its cache folder, or nowhere: then each start compiles (2 s)."""
    wanted = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(wanted)] if wanted else [Path(animx.__file__).parent / "puppet" / "__pycache__", _user_cache()]
    for place in places:
        if _is_writable(place):
            yield Finding(area, "numba", "ok", f"writable: {place}")
            return
    yield Finding(area, "numba", "broken", f"not writable: {', '.join(map(str, places))}; each start compiles anew",
                  "export NUMBA_CACHE_DIR=$HOME/.cache/animx-numba")  # fmt: skip


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


def _is_writable(place: Path) -> bool:
    folder = next((one for one in (place, *place.parents) if one.exists()), place)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _presets(area: str) -> Iterator[Finding]:
    from animx.retarget.preset import list_presets

    found = list_presets()
    origins = sorted({one.origin for one in found})
    usable = sum(one.preset is not None for one in found)
    yield Finding(area, "presets", "ok" if usable else "broken", f"{usable} usable, from {', '.join(origins)}")
    for one in found:
        if one.preset is None:
            yield Finding(area, one.name, "broken", one.problem)


def _plugins(area: str) -> Iterator[Finding]:
    from animx import plugins

    count = 0
    for group in plugins.GROUPS:
        for one in [*plugins.find(group).values(), *plugins.shadowed(group)]:
            if one.origin == "animx":
                continue
            count += 1
            problem = one.problem()
            if problem is not None:
                yield Finding(area, one.name, "broken", f"{one.origin}: {problem}")
    off = os.environ.get("ANIMX_PLUGINS", "").lower() == "off"
    yield Finding(area, "third-party", "ok", "off (ANIMX_PLUGINS=off)" if off else f"{count} found")


_AREAS: MappingProxyType[str, Callable[[str], Iterator[Finding]]] = MappingProxyType(
    {
        "python": _python,
        "dependencies": _base,
        "extras": _extras,
        "pose backends": _backends,
        "onnx": _onnx,
        "device": _device,
        "video": _video,
        "compile cache": _cache,
        "presets": _presets,
        "plugins": _plugins,
    }
)


def is_usable(findings: list[Finding]) -> bool:
    """Whether the main job works here: Python, the base install and mp4."""
    needed = {"python", "dependencies"}
    return not any(one.state == "broken" and (one.area in needed or one.name == "libx264") for one in findings)


__all__ = ["APT", "BASE", "EXTRAS", "Finding", "examine", "is_usable", "pip_line"]
