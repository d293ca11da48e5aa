"""Checks of cells, on a board with the client and on one behind the bridge."""

from __future__ import annotations

import os
import time

from .bench import NAME, Bench, interrupt_cell, milliseconds, some_delay
from .checks import Checks

CHECKS = Checks()
DEEPEST = 45  # levels of recursion; RP2040 has room for about 25
TEXT_CHARS = 20_000
MAX_VALUE_SECONDS = 0.6  # for so much text, of which RP2040 needs 0.3 s for its repr
MAX_CLOCK_RATIO = 1.2  # seconds here for one of the board's: more is an emulator

#: Cells that do not end, each busy in another part of the interpreter.
ENDLESS = (
    "while True: pass",
    "while True: print('again')",
    "import time\nwhile True: time.sleep_ms(3)",
    "while True: bytearray(500)",
)
_BUSY_CODE = """
from time import ticks_ms, ticks_diff
since = ticks_ms()
while ticks_diff(ticks_ms(), since) < 2000:
    pass
"""
_FULL_HEAP_CODE = """
from time import ticks_ms, ticks_diff
def fill(ms):
    since, chain, size = ticks_ms(), None, 4096
    while ticks_diff(ticks_ms(), since) < ms:
        try:
            chain = (bytearray(size), chain)
        except MemoryError:
            size = max(size // 2, 1)
fill(400)
"filled"
"""


@CHECKS.add("clock: 2 s by the board's own, for a busy board")
def clock(bench: Bench) -> str:
    seconds = bench.run(_BUSY_CODE).elapsed
    figure = f"{seconds:.1f} s by this machine's"
    if seconds > 2 * MAX_CLOCK_RATIO:
        figure += ": an emulator that is slower than its chip. Times are by this machine's clock"
    return figure


@CHECKS.add("cell: print(1), round trip")
def latency(bench: Bench) -> str:
    times = []
    for _ in range(bench.options.repeats // 2):
        result = bench.run("print(1)")
        assert result.stdout == "1\n", repr(result.stdout)
        times.append(result.elapsed)
    return milliseconds(times)


@CHECKS.add("names persist; an error has its traceback")
def names(bench: Bench) -> str:
    bench.value("kept = 41")
    assert bench.value("kept + 1") == 42
    result = bench.run("1\n1 / 0")
    assert result.status == "error", result.status
    assert "line 2" in result.traceback, result.traceback
    assert "ZeroDivisionError" in result.traceback, result.traceback
    return ""


@CHECKS.add("output: 30,000 bytes of print")
def output(bench: Bench) -> str:
    result = bench.run("for n in range(1000): print('%05d %s' % (n, 'x' * 23))")
    lines = result.stdout.splitlines()
    assert len(lines) == 1000, f"{len(lines)} of 1000 lines arrived"
    assert lines[-1].startswith("00999"), lines[-1]
    return f"{result.elapsed * 1000:.0f} ms"


@CHECKS.add("value: 20 KB of text, of bytes, by the board's own clock")
def long_values(bench: Bench) -> str:
    times = []
    for code, expected in (
        (f"'ab' * {TEXT_CHARS // 2}", "ab" * (TEXT_CHARS // 2)),
        (f"b'ab' * {TEXT_CHARS // 2}", b"ab" * (TEXT_CHARS // 2)),
    ):
        result, seconds = bench.time_cell(code)
        assert result.value == expected, "the value differs"
        times.append(seconds)
    figure = ", ".join(f"{seconds:.2f} s" for seconds in times)
    assert max(times) < MAX_VALUE_SECONDS, figure
    return figure


@CHECKS.add("interrupts")
def interrupts(bench: Bench) -> str:
    times = []
    for n in range(bench.options.repeats):
        times.append(interrupt_cell(bench, ENDLESS[n % len(ENDLESS)], some_delay()))
    return f"{len(times)} of {len(times)}, {milliseconds(times)}"


@CHECKS.add("--timeout 1")
def timeouts(bench: Bench) -> str:
    times = []
    for code in ENDLESS:
        result = bench.run(code, timeout=1)
        assert result.status == "timeout", f"{result.status}: {code!r}"
        times.append(result.elapsed)
    assert max(times) < 2, milliseconds(times)
    return milliseconds(times)


@CHECKS.add("deep recursion: prints at each depth")
def recursion(bench: Bench) -> str:
    deepest, noted, lost = 0, 0, []
    bench.value("def down(n):\n    if n:\n        return down(n - 1)\n    print('deep')")
    for depth in range(1, DEEPEST + 1):
        result = bench.run(f"down({depth})")
        if result.status == "ok" and "deep\n" in result.stdout:
            deepest = depth
        elif "[output was lost" in result.stdout:
            noted += 1
        elif result.status != "error" or "RuntimeError" not in result.traceback:
            lost.append(f"{depth} ({result.status}, {result.stdout!r})")
        again = bench.run("print('next')\n6 * 7")
        assert (again.text, again.stdout) == ("42", "next\n"), (
            f"after depth {depth}: {again.stdout}"
        )
        stopped = bench.run("while True: pass", timeout=0.2)
        assert stopped.status == "timeout", f"after depth {depth}: {stopped.status}"
    assert not lost, f"output lost at {', '.join(lost)}"
    return f"{deepest} levels, {noted} where the board says that output was lost"


@CHECKS.add("a full heap for 0.4 s")
def full_heap(bench: Bench) -> str:
    before = bench.connected_since()
    result = bench.run(_FULL_HEAP_CODE)
    assert result.value == "filled", result.status
    assert bench.connected_since() == before, "the link was lost"
    return f"{result.elapsed:.2f} s"


@CHECKS.add("files: 32 KB there and back")
def files(bench: Bench) -> str:
    data = os.urandom(32 * 1024)
    since = time.monotonic()
    bench.board.put(data, ":/hw_data").raise_for_error()
    there = time.monotonic() - since
    since = time.monotonic()
    assert bench.board.read(":/hw_data")[NAME].value == data, "the file differs"
    seconds = time.monotonic() - since
    bench.board.rm(":/hw_data").raise_for_error()
    return f"{32 / there:.0f} KB/s there, {32 / seconds:.0f} KB/s back"
