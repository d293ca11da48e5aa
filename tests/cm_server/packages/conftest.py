"""A shelf of packages on loopback, and the server's packages that take from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cm_server.packages.planner import PackagePlanner

from .shelf import Shelf


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    async with Shelf().serving() as shelf:
        yield shelf


@pytest.fixture
def packages(shelf: Shelf, tmp_path: Path) -> PackagePlanner:
    return shelf.packages(tmp_path / "packages")
