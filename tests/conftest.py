"""Small inputs made in code, shared by all tests; `shared` reaches the test data beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Test pictures, clips and fixtures beside the checkout; skips where they are absent."""
    path = ROOT.parent / "shared"
    if not (path / "data" / "DATA.md").exists():
        pytest.skip("needs ../shared (test data that is not part of the repository)")
    return path
