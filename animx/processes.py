"""Which process this is when several run the same command (`torchrun`).  Reads the environment, nothing else."""

from __future__ import annotations

import os


def rank_of_environment() -> tuple[int, int]:
    """(rank, size) as torchrun announces them; (0, 1) without it.  Reads no torch."""
    try:
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, size) if size > 1 else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return rank_of_environment()[0] == 0
