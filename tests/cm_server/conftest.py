"""A service in the test's own event loop, for tests with real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .peers import Service, running_service


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A server of the test's own, on a TCP port of its own."""
    async with running_service(tmp_path) as service:
        yield service
