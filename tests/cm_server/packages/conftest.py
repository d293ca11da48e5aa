"""Fixtures: a server of packages on loopback, and a planner that uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cm_server.limits import Limits
from cm_server.packages.planner import PackagePlanner

from .package_server import PackageServer


@pytest.fixture
async def package_server() -> AsyncIterator[PackageServer]:
    async with PackageServer().serving() as package_server:
        yield package_server


@pytest.fixture
def planner(package_server: PackageServer, tmp_path: Path, limits: Limits) -> PackagePlanner:
    return package_server.planner(tmp_path / "packages", limits)
