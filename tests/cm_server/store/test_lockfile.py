"""The lock of a server's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.store.lockfile import hold_lock


def test_folder_is_locked_by_one_server(tmp_path: Path):
    with (
        hold_lock(tmp_path),
        pytest.raises(ServerError, match="runs in .* already"),
        hold_lock(tmp_path),
    ):
        pass
    with hold_lock(tmp_path):
        pass


def test_lock_ends_with_its_process(tmp_path: Path):
    child = os.fork()
    if not child:
        with hold_lock(tmp_path):
            os._exit(0)
    os.waitpid(child, 0)
    with hold_lock(tmp_path):
        pass
