"""The operators of another commit, asked by `animx.measuring.base` over a pipe; run as a module, never imported.

`animx_kernels` is that commit's here, all else today's.  One request a line, one answer a line, both JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from animx.measuring.subjects import SHAPES, Subject, digest, makers, poisoned, several
from animx.measuring.timing import seconds_of


class Worker:
    """Holds one operator at one shape at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        from animx_kernels.dispatch import load_ops

        self.device, self.dtype, self.ops = device, dtype, load_ops()
        self.subject: Subject | None = None

    def hello(self) -> dict[str, Any]:
        """Which operators there are, and whose."""
        import animx_kernels

        return {"ops": list(self.ops), "file": animx_kernels.__file__}

    def take(self, operator: str, shape: str) -> dict[str, Any]:
        """Draw the inputs of a shape."""
        self.subject = None
        known = makers(self.ops[operator], SHAPES, self.device, self.dtype)
        if shape not in known:
            return {"none": "this shape is not measured there"}
        self.subject = known[shape]()
        return {"digest": digest(self.subject.inputs)}

    def run(self, file: str) -> dict[str, Any]:
        """Write the results, as they are compared, into a file."""
        one = self._one()
        compared: Callable[[Any], Any] = getattr(one.op, "compared", lambda found: found)
        with poisoned():
            found = compared(several(self._call()))
        torch.save([x.detach().cpu().contiguous() for x in found], file)
        return {}

    def time(self) -> dict[str, Any]:
        """Seconds of a call, after one that is not measured."""
        self._call()
        return {"seconds": seconds_of(self._call, self.device)}

    def _one(self) -> Subject:
        assert self.subject is not None
        return self.subject

    def _call(self) -> Any:
        one = self._one()
        return one.op.function(*one.inputs.args, **one.inputs.kwargs)


def main() -> None:
    """Answer until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whoever prints does not disturb the answers
    device, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    worker: Worker | None = None
    with torch.no_grad():
        for line in sys.stdin:
            request = json.loads(line)
            try:
                worker = worker or Worker(torch.device(device), getattr(torch, dtype))
                answer = getattr(worker, request.pop("do"))(**request)
            except Exception as problem:  # an older commit may fail in any way: it is told, and the measuring goes on
                said = str(problem).strip().splitlines()
                answer = {"error": f"{type(problem).__name__}: {said[0][:200] if said else ''}"}
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
