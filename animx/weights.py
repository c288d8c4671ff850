"""Weights on disk: where they lie, how a released file is read without running anything in it, hashes.

A model folder holds either the three released files (`animate-x_ckpt.pth`, `v2-1_512-ema-pruned.ckpt`,
`open_clip_pytorch_model.bin`) or their conversion (`model_index.json` and safetensors).  `hashes.json` beside them says
what the files should be.  torch is imported inside functions only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from animx.errors import WeightsError, nearest

if TYPE_CHECKING:
    from torch import Tensor

HASHES = "hashes.json"


@dataclass(frozen=True)
class ReleasedFile:
    """One file of a release: what it is for, its name, and where it is published."""

    part: str
    """unet, vae or clip."""
    name: str
    repository: str
    """Model hub repository that holds it."""
    others: tuple[str, ...] = ()
    """Other names the same file goes by."""


_AUTHORS = "Shuaishuai0219/Animate-X"
"""Named in the readme of the released code, which calls the network `animate-x.pth`; its configuration and others who
fetch it say `animate-x_ckpt.pth`.  Never fetched from by us: `weights pull` has only been run against hubs of tests."""

RELEASES: dict[str, tuple[ReleasedFile, ...]] = {
    "animate-x": (
        ReleasedFile("unet", "animate-x_ckpt.pth", _AUTHORS, ("animate-x.pth",)),
        ReleasedFile("vae", "v2-1_512-ema-pruned.ckpt", _AUTHORS),
        ReleasedFile("clip", "open_clip_pytorch_model.bin", _AUTHORS),
    ),
}


def weights_folder() -> Path:
    """Where models are kept: $ANIMX_WEIGHTS, else ~/.cache/animx/weights."""
    given = os.environ.get("ANIMX_WEIGHTS")
    return Path(given) if given else Path.home() / ".cache" / "animx" / "weights"


def find_model(name: str) -> Path:
    """The folder of a model: a path, or a name under the weights folder.  Missing or unusable: `WeightsError`."""
    kept = weights_folder() / name
    for path in (Path(name), kept):
        try:
            if path.is_dir():
                if _holds_model(path):
                    return path
                if path != kept and os.sep not in name and kept.is_dir():
                    continue  # a folder of that name happens to lie here
                raise WeightsError(f"{path}: no model in this folder (no model_index.json, no animate-x_ckpt.pth)")
            if path.exists():
                raise WeightsError(f"{path}: is a file; give the folder that holds the model")
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    hint = f" Run: animx weights pull {name}" if name in RELEASES else nearest(name, RELEASES)
    hint = hint or " Give the folder that holds the model, or see: animx weights list"
    raise WeightsError(f"no weights for '{name}' in {weights_folder()}.{hint}")


def _holds_model(folder: Path) -> bool:
    network = RELEASES["animate-x"][0]
    return is_converted(folder) or any((folder / name).exists() for name in (network.name, *network.others))


def missing_files(folder: Path, release: str = "animate-x") -> list[str]:
    """Names of the released files that a folder lacks, under any of their names; none for a converted model."""
    if is_converted(folder):
        return []
    return [
        file.name
        for file in RELEASES[release]
        if not any((folder / name).is_file() for name in (file.name, *file.others))
    ]


def is_converted(folder: Path) -> bool:
    """Whether the folder holds a converted model (safetensors) rather than released files."""
    return (folder / "model_index.json").exists()


def released_file(folder: Path, part: str, release: str = "animate-x") -> Path:
    """The path of one part of a release in `folder`; missing: `WeightsError` that says how to get it."""
    file = next(f for f in RELEASES[release] if f.part == part)
    for name in (file.name, *file.others):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder / file.name}: missing. Run: animx weights pull {release}")


class _Inert:
    """Stands in for anything in a pickle that is not a tensor: it is made, given state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setitem__(self, *_: Any) -> None: ...

    def append(self, _: Any) -> None:
        """Swallow what a pickle appends."""

    def extend(self, _: Any) -> None:
        """Swallow what a pickle extends with."""


def _tensor_pickle() -> ModuleType:
    """A pickle module whose unpickler knows tensors and plain containers; every other name becomes `_Inert`.

    Older training checkpoints carry callbacks and loop objects beside the weights, which torch's own safe loader
    refuses; here they are skipped instead of imported, so nothing in the file can run.
    """
    from collections import OrderedDict

    import torch

    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }
    known = {key: value for key, value in known.items() if value is not None}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in known:
                return known[module, name]
            if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
                return getattr(torch, name)
            return _Inert

    made = ModuleType("animx_tensor_pickle")
    made.Unpickler = Unpickler  # type: ignore[attr-defined]
    made.load = lambda file, **_: Unpickler(file).load()  # type: ignore[attr-defined]
    made.loads = lambda data, **_: Unpickler(io.BytesIO(data)).load()  # type: ignore[attr-defined]
    return made


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: `.safetensors`, `.pth`, `.ckpt`, `.bin`; an outer `state_dict` is unwrapped.

    Memory-mapped where the format allows.  Nothing in the file is executed.  Errors: `WeightsError`.
    """
    import torch

    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, expected a weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        mapped = zipfile.is_zipfile(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            content = torch.load(
                path, map_location="cpu", pickle_module=_tensor_pickle(), weights_only=False, mmap=mapped
            )
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: missing") from error
    except PermissionError as error:
        raise WeightsError(f"{path}: no permission to read") from error
    except Exception as error:  # torch raises many kinds on a damaged file; each means the same to a user
        raise WeightsError(f"{path}: not a readable weights file, or cut short ({type(error).__name__})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds no table of tensors")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    return tensors


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal.  Unreadable: `WeightsError`."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what it computes (weights, sizes, settings), sorted by name."""
    wanted = {".safetensors", ".pth", ".ckpt", ".bin", ".json"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in wanted
        and path != folder / HASHES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def write_hashes(folder: Path, known: Mapping[str, str] | None = None) -> Path:
    """Write `hashes.json` for the files of a model folder as they are now; `known` hashes are not computed again."""
    from animx.atomic import writing

    known = known or {}
    names = {str(path.relative_to(folder)): path for path in model_files(folder)}
    hashes = {name: known.get(name) or file_hash(path) for name, path in names.items()}
    if not any(path.suffix != ".json" for path in names.values()):
        raise WeightsError(f"{folder}: no weight files")
    target = folder / HASHES
    with writing(target, overwrite=True) as temporary:
        Path(temporary).write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n")
    return target


def _listed(folder: Path) -> dict[str, str]:
    """`hashes.json` of a folder; empty where there is none."""
    path = folder / HASHES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON. Delete it, or run: animx weights check --write") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise WeightsError(f"{path}: not a table of hashes. Delete it, or run: animx weights check --write")
    return content


def check_hashes(folder: Path, only: Sequence[Path] | None = None) -> dict[str, str]:
    """Compare the files of a folder with `hashes.json`: file -> `ok`, `changed`, `missing` or `unlisted`.

    `only`: look at these files of it alone.  Without `hashes.json`: `WeightsError` with the mend.
    """
    if not (folder / HASHES).exists():
        raise WeightsError(f"{folder / HASHES}: missing. Run: animx weights check {folder} --write")
    expected = _listed(folder)
    found = {str(p.relative_to(folder)): p for p in (model_files(folder) if only is None else only)}
    result = {name: "missing" for name in expected if name not in found and only is None}
    for name, file in found.items():
        result[name] = "unlisted" if name not in expected else "ok" if file_hash(file) == expected[name] else "changed"
    return dict(sorted(result.items()))


def model_hash(folder: Path) -> str:
    """One sha256 for the whole model: over names and hashes of its files.

    A hash in `hashes.json` is taken for a file that has not been touched since; the others are computed.
    """
    listed = _listed(folder)
    recorded = (folder / HASHES).stat().st_mtime_ns if listed else 0
    digest = hashlib.sha256()
    for file in model_files(folder):
        name = str(file.relative_to(folder))
        current = listed.get(name) if file.stat().st_mtime_ns <= recorded else None
        digest.update(f"{name}:{current or file_hash(file)}\n".encode())
    return digest.hexdigest()
