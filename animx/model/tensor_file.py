"""Safetensors files written one tensor at a time, so that converting a model needs no second copy of it in memory.

The format: 8 bytes of header length, a JSON table of types, shapes and offsets, then the tensors' bytes.
The library's own `save_file` turns every tensor into bytes before it writes the first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

TYPES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Name of each type in the format."""
ALIGNMENT = 64
"""Where tensors should begin in a file that is mapped into memory [bytes]."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write `tensors` in the order of their names; floating ones as `dtype` (None: as they are).

    Holds one converted tensor at a time.  The same tensors give the same bytes.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stored = {name: _stored(tensors[name], dtype) for name in sorted(tensors)}
    length = {name: tensors[name].numel() * stored[name].itemsize for name in stored}
    # The format allows no gaps.  Those that fill whole blocks come first, so that all but small ones are aligned; then
    # wide types first, so that each starts at a multiple of its own size.
    names = sorted(stored, key=lambda name: (length[name] % ALIGNMENT > 0, -stored[name].itemsize, name))
    end = 0
    for name in names:
        begin, end = end, end + length[name]
        table[name] = {"dtype": TYPES[stored[name]], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            value = tensors[name].detach().to(device="cpu", dtype=stored[name]).contiguous()
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def _stored(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and value.is_floating_point() else value.dtype
