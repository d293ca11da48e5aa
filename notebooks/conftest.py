"""Run the tutorials with their own server and CM_HOME, by hooks: nbval items take no fixtures."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from nbval.plugin import IPyNbFile

HERE = Path(__file__).parent
_running = contextlib.ExitStack()
_homes: list[str] = []


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Run one tutorial again, in a new kernel: it leaves a program on its boards."""
    option = parent.config.option
    if file_path.name != "07_a_greenhouse.ipynb" or not (option.nbval or option.nbval_lax):
        return None
    collector: pytest.Collector = IPyNbFile.from_parent(parent, path=file_path)
    return collector


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the server before the first notebook; kernels inherit its CM_HOME."""
    if not _homes:
        _homes.append(_running.enter_context(_server()))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the server after the last cell of the last notebook."""
    if nextitem is None or HERE not in nextitem.path.parents:
        _running.close()
        _homes.clear()


@contextlib.contextmanager
def _server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, CM_HOME=home):
        for name in ("CM_URL", "CM_TOKEN"):
            os.environ.pop(name, None)
        command = [sys.executable, "-m", "cm_server", "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            with process.stdout:
                process.stdout.readline()  # the server prints one line when it listens
            yield home
        finally:
            process.terminate()
            process.wait(10)
