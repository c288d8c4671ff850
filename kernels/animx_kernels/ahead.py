"""Every Triton body compiled for cards that are not there: registers, shared memory and spills of each launch.

`python -m animx_kernels.ahead FILE` writes the table as JSON (docs/benchmarks/kernels-aot.json), in two parts:
`launches`, a few of each operator, which a test compiles again and compares, so that a body that no longer compiles, or
spills, cannot land unnoticed; and `asked`, all that the full model asks for in every type (`asked.py`), each with the
fingerprint of what the compiler was given.  A test compares the fingerprints and compiles nothing; writing compiles
only what has no row yet.  Needs triton, no GPU, and a process in which Triton's interpreter is off.  Nothing here says
how fast a launch is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from animx_kernels import asked
from animx_kernels.dispatch import OPS, Build, load_ops

CARDS = (80, 89, 90)
"""Compute capabilities: A100, RTX 4090, H100 and H200."""

MOST_SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may have."""


class Row(NamedTuple):
    """What one launch takes on one card."""

    op: str
    kernel: str
    build: int
    """Which of the operator's launches (several shapes, several kernels)."""
    card: int
    num_warps: int
    num_stages: int
    registers: int
    """Per thread, at most 255."""
    spilled: int
    """Bytes of stack per thread: registers that did not fit."""
    shared: int
    """Bytes per program."""

    @property
    def key(self) -> str:
        """`op/kernel/build/sm_card`."""
        return f"{self.op}/{self.kernel}/{self.build}/sm_{self.card}"


def rows(cards: tuple[int, ...] = CARDS, ops: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Compile the launches of all operators (or of `ops`) for `cards`."""
    load_ops()
    for name in ops or sorted(OPS):
        for capability in cards:
            for number, build in enumerate(OPS[name].aot(capability)):
                yield _row(name, number, capability, build)


def _row(name: str, number: int, capability: int, build: Build) -> Row:
    compiled = compile_for(build, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        used = subprocess.run([_cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", used.stdout + used.stderr)
    if found is None:
        raise RuntimeError(f"{name}: cuobjdump does not tell the registers: {used.stdout} {used.stderr}")
    warps, stages = build.num_warps, build.num_stages
    registers, spilled = map(int, found.groups())
    kernel = build.kernel.fn.__name__
    return Row(name, kernel, number, capability, warps, stages, registers, spilled, compiled.metadata.shared)


def compile_for(build: Build, capability: int) -> Any:
    """The compiled kernel (`asm['ptx']`, `asm['cubin']`, `metadata.shared`) of a launch for a card."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(build.kernel, triton.runtime.JITFunction):
        raise RuntimeError(f"{build.kernel}: Triton's interpreter is on in this process; nothing can be compiled")
    aligned = {(build.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in build.multiples}
    source = ASTSource(build.kernel, build.signature, build.constexprs, aligned)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _cuobjdump() -> str:
    import triton

    return str(triton.knobs.nvidia.cuobjdump.path)


@cache
def _bodies(file: Path) -> str:
    """Functions and constants of a body's file, and of those it takes bodies from; comments and places left out."""
    told = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_triton"):
            told.append(_bodies(file.with_name(f"{(node.module or '').rpartition('.')[2]}.py")))
        is_body = isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(one) for one in node.decorator_list)
        if is_body or isinstance(node, ast.Assign | ast.AnnAssign):
            told.append(ast.dump(node))
    return "\n".join(told)


def fingerprint(build: Build, capability: int) -> str:
    """Of all that decides what a build compiles to: bodies, types, constants, card, and Triton's version."""
    import triton

    told = (triton.__version__, str(capability), asked.key(build), _bodies(Path(build.kernel.fn.__code__.co_filename)))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def asked_for(cards: tuple[int, ...] = CARDS) -> Iterator[tuple[str, str, int, Build]]:
    """All that the full model asks for: fingerprint, `op/kernel/sm_card`, card, build."""
    for name in sorted(load_ops()):
        for capability in cards:
            for build in asked.builds(name, capability):
                place = f"{name}/{build.kernel.fn.__name__}/sm_{capability}"
                yield fingerprint(build, capability), place, capability, build


KEPT = ("num_warps", "num_stages", "registers", "spilled", "shared")


def launches(cards: tuple[int, ...] = CARDS) -> dict[str, dict[str, int]]:
    """The first part of the table: `op/kernel/build/sm_card` -> what it takes."""
    return {row.key: {name: getattr(row, name) for name in KEPT} for row in rows(cards)}


def table(known: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The JSON document: schema, versions, both parts.  `known`: rows of the second by fingerprint, not made anew."""
    import triton

    found: dict[str, dict[str, Any]] = {}
    for mark, place, capability, build in asked_for():
        row = (known or {}).get(mark)
        if row is None:
            made = _row(place.partition("/")[0], 0, capability, build)
            row = {name: getattr(made, name) for name in KEPT}
        found[mark] = {"launch": place, **row}
    return {
        "schema": 2,
        "about": "Registers per thread, bytes spilled per thread, bytes of shared memory per program; no times.",
        "triton": triton.__version__,
        "launches": launches(),
        "asked": found,
    }


def write(path: Path) -> None:
    """Write the table, one launch a line; what a table that is there already knows is not compiled again."""
    known = json.loads(path.read_text(encoding="utf-8")).get("asked") if path.exists() else None
    document = table(known)
    parts = {}
    for part in ("launches", "asked"):
        parts[part] = ",\n".join(f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in document.pop(part).items())
    head = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    body = "".join(f',\n  "{part}": {{\n{text}\n  }}' for part, text in parts.items())
    path.write_text(f"{{\n{head}{body}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m animx_kernels.ahead FILE.json")
    write(Path(sys.argv[1]))
