"""`animx weights`: list, pull, check and convert models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from animx.cli import Group
from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import MissingExtraError, UsageError, WeightsError

PARTS = ("unet", "vae", "image_encoder")
"""The folders of a converted model, which `convert -y` may replace."""


@click.group("weights", cls=Group, context_settings=o.CONTEXT)
def weights() -> None:
    """List, fetch, check and convert the weights of the full model.

    Models live in ~/.cache/animx/weights, or in $ANIMX_WEIGHTS, a folder each.
    """


@o.command("list", examples=("animx weights list", "animx weights list --json"))
def list_all(out: Output) -> None:
    """List known and present models, their files and whether they are complete."""
    from animx.weights import HASHES, RELEASES, is_converted, missing_files, model_files, weights_folder

    top = weights_folder()
    present = sorted(path.name for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*RELEASES, *present]):
        folder = top / name
        files = model_files(folder) if folder.is_dir() else []
        lacking = missing_files(folder)
        form = "converted" if is_converted(folder) else "released" if files and not lacking else "incomplete"
        rows.append(
            {
                "name": name,
                "folder": str(folder),
                "form": form if files else "absent",
                "missing": lacking,
                "size_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
                "hashed": (folder / HASHES).exists(),
                "repositories": sorted({file.repository for file in RELEASES.get(name, ())}),
            }
        )
    lines = [
        f"{row['name']:<16}{row['form']:<12}{row['size_mb']:>9.1f} MB  {row['folder']}"
        + (f"  missing: {', '.join(row['missing'])}" if row["form"] == "incomplete" else "")
        + (f"  published as {', '.join(row['repositories'])}" if row["form"] == "absent" else "")
        for row in rows
    ]
    out.result({"folder": str(top), "models": rows}, lines)


@o.command("pull", examples=("animx weights pull animate-x", "animx weights pull --mirror https://hub.example.org"))
@click.argument("name", metavar="MODEL", default="animate-x")
@click.option("--to", "folder", metavar="FOLDER", help="Where to put the files.  [the weights folder]")
@click.option("--revision", metavar="REV", help="Revision of the repository.  [its newest]")
@click.option("--mirror", metavar="URL", help="Hub to fetch from.  [$HF_ENDPOINT, else the public one]")
@click.option("--repo", metavar="OWNER/NAME", help="Repository that holds the files.  [the authors', see weights list]")
def pull(
    out: Output, name: str, folder: str | None, revision: str | None, mirror: str | None, repo: str | None
) -> None:
    """Fetch a released model and check it; run it again to resume.

    $HF_TOKEN is the access token, where the hub wants one. Nobody vouches for the files of another repository: only
    that they arrived as the hub lists them, and that nothing in them is executed.
    """
    from animx import weights as w
    from animx.weights_pull import pull as fetch

    target = fetch(
        name,
        Path(folder) if folder else None,
        revision=revision,
        mirror=mirror,
        repository=repo,
        on_progress=out.progress(),
    )
    out.wrote({"folder": str(target), "hash": w.model_hash(target)}, [target])


@o.command("check", examples=("animx weights check animate-x", "animx weights check folder --write"))
@click.argument("name", metavar="MODEL|FOLDER")
@click.option("--write", is_flag=True, help="Record the files as they are now in hashes.json.")
@click.option("--load", is_flag=True, help="Also load the model strictly: names, shapes, types.")
def check(out: Output, name: str, write: bool, load: bool) -> None:
    """Compare a model's files with its hashes; exit 6 when one differs."""
    from animx import weights as w

    folder = w.find_model(name)
    if write:
        w.write_hashes(folder)
    states = w.check_hashes(folder)
    bad = [file for file, state in states.items() if state in ("changed", "missing")]
    if bad:
        raise WeightsError(f"{folder / bad[0]}: {states[bad[0]]} since its hash was recorded. Run: animx weights pull")
    if load:
        _needs("torch")
        from animx.diffusion.components import load_components

        load_components(folder)
    lines = [f"{file}: {state}" for file, state in states.items()] + (["loads: yes"] if load else [])
    out.result({"folder": str(folder), "files": states, "loads": load or None, "hash": w.model_hash(folder)}, lines)


@o.command("convert", writes=True, examples=("animx weights convert downloads -o animate-x-safetensors",))
@click.argument("name", metavar="MODEL|FOLDER")
@click.option("-o", "--output", metavar="FOLDER", required=True, help="New folder for the converted model.")
@click.option("--dtype", type=o.Choice(("float32", "float16", "bfloat16")), default="float32", metavar="TYPE",
              help="Precision to store: float32, float16 or bfloat16.  [float32]")  # fmt: skip
def convert(out: Output, name: str, output: str, overwrite: bool, dtype: str) -> None:
    """Convert released files (.pth, .ckpt, .bin) to safetensors, strictly and without running anything in them."""
    _needs("torch")
    import torch

    import animx
    from animx import weights as w
    from animx.atomic import check_folder_target, writing_folder
    from animx.diffusion.components import load_components, save_components

    source = w.find_model(name)
    if Path(output).resolve() == source.resolve():
        raise UsageError(f"-o {output}: is the source. Name another folder")
    check_folder_target(output, overwrite, own_folders=PARTS)
    components = load_components(source, stored=True)
    with writing_folder(output, overwrite, own_folders=PARTS) as temporary:
        save_components(components, Path(temporary), animx.__version__, getattr(torch, dtype))
        w.write_hashes(Path(temporary))
    out.wrote({"folder": output, "hash": w.model_hash(Path(output))}, [output])


def _needs(module: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise MissingExtraError("the full model", "model")


for one in (list_all, pull, check, convert):
    weights.add_command(one)
