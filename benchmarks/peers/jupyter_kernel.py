"""A cell in any Jupyter kernel, from the request until the kernel is idle again."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.mpremote_exec import running_repl

_TIMEOUT_SECONDS = 60.0  # seconds; a kernel starts in one


@contextlib.contextmanager
def running_kernel(
    module: str, *first_cells: str, cell: str = "print(1)"
) -> Iterator[Callable[[], object]]:
    """Yield the call to time: one cell that prints 1.

    Args:
        module: the kernel's module, for `python -m`.
        first_cells: cells that run once before.
        cell: the cell to time.

    Raises:
        RuntimeError: a cell failed.
    """
    with _kernel_manager(module) as manager:
        manager.start_kernel()
        try:
            client = manager.client()
            client.start_channels()
            client.wait_for_ready(_TIMEOUT_SECONDS)
            for each in first_cells:
                _run_cell(client, each)
            if "1" not in _run_cell(client, cell):
                raise RuntimeError(f"{module} did not print 1")
            yield lambda: _run_cell(client, cell)
            client.stop_channels()
        finally:
            manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def running_kernel_over_pty() -> Iterator[Callable[[], object]]:
    """Yield a cell in jupyter_micropython_kernel, on the same MicroPython over a pty."""
    with (
        running_repl() as device,
        running_kernel("jupyter_micropython_kernel", f"%serialconnect --port {device}") as call,
    ):
        yield call


def time_start(module: str) -> float:
    """Return the seconds from a kernel's start until it answers."""
    with _kernel_manager(module) as manager:
        begun = time.perf_counter()
        manager.start_kernel()
        try:
            client = manager.client()
            client.start_channels()
            client.wait_for_ready(_TIMEOUT_SECONDS)
            took = time.perf_counter() - begun
            client.stop_channels()
            return took
        finally:
            manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def _kernel_manager(module: str) -> Iterator[Any]:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    argv = [sys.executable, "-m", module, "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": module, "language": "", "interrupt_mode": "message"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "timed"
        place.mkdir()
        (place / "kernel.json").write_text(json.dumps(spec))
        specs = KernelSpecManager(kernel_dirs=[folder])
        yield KernelManager(kernel_name="timed", kernel_spec_manager=specs)


def _run_cell(client: Any, code: str) -> str:
    """Run a cell to its end; return its output."""
    output: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            output.append(message["content"]["text"])

    reply = client.execute_interactive(
        code, allow_stdin=False, output_hook=hook, timeout=_TIMEOUT_SECONDS
    )["content"]
    if reply["status"] != "ok":
        raise RuntimeError(f"{code!r}: {reply['status']} {reply.get('evalue', '')}")
    return "".join(output)
