"""ipyparallel: the same line on 20 engines, as `%%px` does it.

The engines are CPython, not MicroPython: the comparison is about sending a cell to many targets and
returning its output. A call ends when the last engine's result and output have arrived.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.timing import time_calls

ENGINES = 20
_TIMEOUT_SECONDS = 120  # seconds for 20 engines to start on two cores


def measure(n: int = 30) -> list[float]:
    """Return the seconds per engine of `n` calls on all 20 engines, after a warm-up."""
    with running_engines() as once:
        return [seconds / ENGINES for seconds in time_calls(once, n, warm_up=5)]


@contextlib.contextmanager
def running_engines() -> Iterator[Callable[[], object]]:
    """Yield the call to time: `print(1)` on 20 engines."""
    with (
        tempfile.TemporaryDirectory() as home,
        _environment("IPYTHONDIR", home),
        _running_client() as client,
    ):
        view = client[:]

        def once() -> None:
            result = view.execute("print(1)", silent=False, block=False)
            result.get(_TIMEOUT_SECONDS)
            result.wait_for_output(_TIMEOUT_SECONDS)

        yield once


@contextlib.contextmanager
def _running_client() -> Iterator[Any]:
    """Yield a cluster's client; at the end kill each remaining process of it by its pid."""
    import ipyparallel

    me = psutil.Process()
    before = set(me.children(recursive=True))
    began: set[psutil.Process] = set()
    try:
        with ipyparallel.Cluster(n=ENGINES, log_level=logging.ERROR) as client:
            try:
                client.wait_for_engines(ENGINES, timeout=_TIMEOUT_SECONDS, interactive=False)
                yield client
            finally:
                began = set(me.children(recursive=True)) - before
    finally:
        for process in began:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(began, timeout=5)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
