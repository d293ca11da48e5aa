"""Checks of a board without a network, which the bridge connects to the fleet."""

from __future__ import annotations

import time

from .bench import NAME, Bench
from .checks import Checks

START = Checks()
CHECKS = Checks()


@START.add("mbm bridge: enrolment, first cell")
def bridge(bench: Bench) -> str:
    since = time.monotonic()
    bench.start_bridge()
    assert bench.value("6 * 7") == 42
    return f"{time.monotonic() - since:.1f} s"


@CHECKS.add("output with byte 4; text with `KeyboardInterrupt`")
def protocol_bytes(bench: Bench) -> str:
    result = bench.run("print('a\\x04b')\nprint('more')\n'v\\x04w'")
    assert (result.stdout, result.value) == ("a\x04b\nmore\n", "v\x04w"), repr(result.stdout)
    result = bench.run("raise ValueError('no KeyboardInterrupt')")
    assert result.status == "error", result.status
    assert "no KeyboardInterrupt" in result.traceback, result.traceback
    return ""


@CHECKS.add("a cell replaces print and other builtins")
def wrapped_builtins(bench: Bench) -> str:
    bench.run("import builtins\nkept = builtins.print\nbuiltins.print = lambda *a, **k: kept('!')")
    assert bench.value("[1, 'two']") == [1, "two"], "the value is what the cell's print wrote"
    bench.run("builtins.print = kept")
    return ""


@CHECKS.add("sys.exit() in a cell: the board has restarted, and says so")
def system_exit(bench: Bench) -> str:
    bench.value("kept = 1")
    result = bench.run("import sys\nsys.exit()")
    bench.await_cell()
    names = bench.run("kept")
    assert bench.value("6 * 7") == 42
    if names.status == "ok":
        return f"{result.status}; the names were kept"
    assert result.status in ("error", "lost"), (
        f"the names are gone, and the cell is {result.status}"
    )
    return f"{result.status}; the board restarted"


@CHECKS.add("machine.soft_reset() and machine.reset() in a cell")
def resets(bench: Bench) -> str:
    seconds = []
    for name in ("soft_reset", "reset"):
        since = time.monotonic()
        result = bench.run(f"import machine\nmachine.{name}()")
        assert result.status in ("error", "lost"), f"{name}: {result.status}"
        bench.await_cell()
        seconds.append(f"{time.monotonic() - since:.1f} s")
    return ", ".join(seconds)


@CHECKS.add("reset by the fleet")
def reset(bench: Bench) -> str:
    before = bench.connected_since()
    bench.value("kept = 1")
    since = time.monotonic()
    bench.board.reset().raise_for_error()
    bench.await_link(before)
    assert bench.run("kept").status == "error", "the names were kept"
    return f"{time.monotonic() - since:.1f} s"


@CHECKS.add("--fresh")
def fresh(bench: Bench) -> str:
    bench.value("kept = 1")
    since = time.monotonic()
    result = bench.board.run("'kept' in globals()", fresh=True, timeout=60)[NAME]
    assert result.value is False, result.text
    return f"{time.monotonic() - since:.1f} s"
