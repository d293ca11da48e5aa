"""Checks of a board that has the client and joins the fleet over Wi-Fi."""

from __future__ import annotations

import os
import threading
import time

from cloudmanager.cable import reconfigure
from cloudmanager.cable.board_settings import find_dial_address
from cloudmanager.cable.flash import FlashOptions, flash_and_join

from .bench import NAME, RETURN_SECONDS, Bench, milliseconds
from .checks import Checks

START = Checks()
CHECKS = Checks()
GOOD_SECONDS = 60  # after which a program that runs counts as well started
WATCHDOG_SECONDS = 60
MAX_LOG_MS = 0.15  # that the log adds to a printed line

#: Programs that hold the board; each must be ended by `mbm board TARGET reset`.
_STUBBORN_PROGRAM = b"""
while True:
    try:
        while True:
            pass
    except:
        pass
"""
_NEVER_YIELDS_PROGRAM = b"""
async def main():
    while True:
        pass
"""
_GOOD_PROGRAM = b"""
import asyncio
count = 0
async def main():
    global count
    while True:
        count += 1
        await asyncio.sleep_ms(100)
"""
#: Measures microseconds a line: without a stream on dupterm, with one that does nothing, into the
#: log. Few lines at a time: the client attaches its stream again every 50 ms, and the log's buffer
#: has 1 KB.
_PRINT_PROGRAM = b"""
import io, os, time
class Idle(io.IOBase):
    def write(self, b):
        return len(b)
    def readinto(self, b):
        return None
def measure(stream):
    times = []
    for _ in range(9):
        time.sleep_ms(250)
        if stream is not ours:
            os.dupterm(stream)
        since = time.ticks_us()
        for n in range(20):
            print('line', n, 'of a program')
        times.append(time.ticks_diff(time.ticks_us(), since) // 20)
        os.dupterm(ours)
    return sorted(times)[4]
ours = os.dupterm(None)
os.dupterm(ours)
figures = [measure(stream) for stream in (None, Idle(), ours)]
"""
_IRQS_OFF_CODE = "import machine\nmachine.disable_irq()\nwhile True: pass"
_NATIVE_CODE = "sum(range(1 << 29))"  # minutes, on a chip
_LEAVE_FREE_CODE = """
import gc
keep = None
gc.collect()
try:
    while gc.mem_free() > leave:
        keep = (bytearray(1000), keep)
except MemoryError:  # what is free is in small pieces
    pass
gc.mem_free()
"""


def no_reset(bench: Bench) -> str | None:
    """Return what is missing if the board's power cannot be cut."""
    return None if bench.options.reset else "no RESET command"


@START.add("mbm flash --no-flash: client, enrolment, Wi-Fi, first cell")
def flash(bench: Bench) -> str:
    assert bench.options.wifi
    address = find_dial_address(bench.fleet, bench.options.server)
    server = address.host, address.tcp_port
    options = FlashOptions(server, flash=False, names=[NAME], wifi=[bench.options.wifi])
    since = time.monotonic()
    (outcome,) = flash_and_join([bench.options.port], options, bench.fleet, lambda *_: None)
    assert not outcome.error, outcome.error
    return f"{time.monotonic() - since:.0f} s"


@START.add("heap: free while idle, resident part of the client")
def heap(bench: Bench) -> str:
    bench.value("1")
    bench.value("import gc\ngc.collect()")
    time.sleep(3)  # an idle board reports its heap after a second
    free = _number(bench.fact("heap"))
    block = bench.fact("block") or "?"
    resident = bench.bare_heap - free
    return f"{free / 1000:.1f} KB free, {resident / 1000:.1f} KB resident, block of {block} bytes"


@CHECKS.add("input() between board and caller")
def asks(bench: Bench) -> str:
    group = bench.board.submit("print(input('name? '))", answers=True, listen=True)
    for event in group.events():
        if event.kind == "input":
            group.answer(event.job, "pico")
    (result,) = group.results().values()
    assert result.stdout.endswith("pico\n"), repr(result.stdout)
    return ""


@CHECKS.add("link lost and back: the server restarts")
def link_back(bench: Bench) -> str:
    bench.value("kept = 1")
    before = bench.connected_since()
    with bench.stopped_server():
        time.sleep(1)
    seconds = bench.await_link(before)
    assert bench.value("kept") == 1, "the board has restarted"
    return f"{seconds:.1f} s"


@CHECKS.add("a heap with 12 KB left, and the link breaks")
def link_back_without_heap(bench: Bench) -> str:
    left = bench.value(f"leave = 12000{_LEAVE_FREE_CODE}")
    before = bench.connected_since()
    with bench.stopped_server():
        time.sleep(1)
    seconds = bench.await_link(before)
    kept = bench.run("keep is None").text
    return f"{left} bytes left, back in {seconds:.1f} s, " + (
        "the board kept its names" if kept == "False" else "the board restarted"
    )


@CHECKS.add("--fresh")
def fresh(bench: Bench) -> str:
    bench.value("kept = 1")
    since = time.monotonic()
    result = bench.board.run("'kept' in globals()", fresh=True, timeout=60)[NAME]
    assert result.value is False, result.text
    return f"{time.monotonic() - since:.1f} s"


@CHECKS.add("reset by the fleet")
def reset(bench: Bench) -> str:
    before = bench.connected_since()
    since = time.monotonic()
    bench.board.reset().raise_for_error()
    bench.await_link(before)
    return f"{time.monotonic() - since:.1f} s"


@CHECKS.add("machine.reset() in a cell")
def hard_reset(bench: Bench) -> str:
    before = bench.connected_since()
    bench.board.submit("import machine\nmachine.reset()")
    return f"{bench.await_link(before):.1f} s"


@CHECKS.add("sys.exit(), SystemExit, KeyboardInterrupt raised in a cell")
def exits(bench: Bench) -> str:
    before = bench.connected_since()
    for code in ("import sys\nsys.exit()", "raise SystemExit(3)", "raise KeyboardInterrupt"):
        result = bench.run(code)
        assert result.status in ("error", "interrupted", "ok"), f"{code!r}: {result.status}"
    assert bench.connected_since() == before, "the link was lost"
    return ""


@CHECKS.add("a cell leaves the heap locked, gc off, sys.path empty")
def bad_manners(bench: Bench) -> str:
    bench.run("import micropython\nmicropython.heap_lock()")
    bench.run("import gc\ngc.disable()")
    bench.run("import sys\nsys.path.clear()\nsys.modules.clear()")
    assert bench.value("import gc\ngc.isenabled()") is True, "gc is still off"
    return ""


@CHECKS.add("a bare `except:` in a loop, with --timeout 1")
def bare_except(bench: Bench) -> str:
    before = bench.connected_since()
    since = time.monotonic()
    code = "while True:\n  try:\n    while True: pass\n  except: pass"
    result = bench.board.run(code, timeout=1)[NAME]
    assert result.status in ("timeout", "lost"), result.status
    bench.await_cell()
    restarted = bench.connected_since() != before
    how = "the board restarted" if restarted else "it was interrupted"
    return f"{result.status}; {how}, {time.monotonic() - since:.1f} s"


@CHECKS.add("a printed line, by the board's own clock")
def printed_line(bench: Bench) -> str:
    start_program(bench, _PRINT_PROGRAM)
    figures = bench.value("import app\napp.figures", timeout=60)
    assert isinstance(figures, list)
    bare, idle, logged = (microseconds / 1000 for microseconds in figures)
    figure = f"{bare:.2f} ms, with an idle stream {idle:.2f} ms, into the log {logged:.2f} ms"
    assert logged - idle <= MAX_LOG_MS, figure
    return figure


@CHECKS.add("app.py: `async def main()` beside cells")
def program(bench: Bench) -> str:
    start_program(bench, _GOOD_PROGRAM)
    deadline = time.monotonic() + 10
    while not bench.value("import app\napp.count > 2"):
        assert time.monotonic() < deadline, "it does not run"
        time.sleep(0.2)
    times = [bench.run("1").elapsed for _ in range(20)]
    return f"cells beside it: {milliseconds(times)}"


@CHECKS.add("app.py has run for a minute: counts as well started")
def program_is_good(bench: Bench) -> str:
    code = "import sys\nsys.modules['cm.app'].bad"
    ticks, bad = "import time, gc\ngc.collect()\ntime.ticks_ms()", None
    end = _number(bench.value(ticks)) + (GOOD_SECONDS + 10) * 1000  # by the board's own clock
    while _number(bench.value(ticks)) < end:
        bad = bench.value(code)
        if bad == 0:
            return ""
        time.sleep(2)
    raise AssertionError(f"bad starts are still counted: {bad!r}")


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


@CHECKS.add("app.py that catches every interrupt: reset by the fleet")
def stubborn_program(bench: Bench) -> str:
    return _reset_program(bench, _STUBBORN_PROGRAM)


@CHECKS.add("app.py: `async def main()` that never yields: reset by the fleet")
def program_never_yields(bench: Bench) -> str:
    return _reset_program(bench, _NEVER_YIELDS_PROGRAM)


def _reset_program(bench: Bench, text: bytes) -> str:
    start_program(bench, text)
    time.sleep(2)
    before = bench.connected_since()
    since = time.monotonic()
    bench.board.reset()  # it may say that it takes long
    bench.await_link(before)
    bench.board.rm(":/app.py").raise_for_error()
    return f"{time.monotonic() - since:.1f} s"


def start_program(bench: Bench, text: bytes) -> None:
    """Write app.py, and restart the board so that it runs.

    A cell that the board has received before it starts the program runs first: one that imports
    app.py would run it in place of the client.
    """
    bench.board.put(text, ":/app.py").raise_for_error()
    before = bench.connected_since()
    bench.board.submit("import machine\nmachine.reset()")
    bench.await_link(before)
    deadline = time.monotonic() + RETURN_SECONDS
    while not str(bench.board.info()[0]["program"] or "").startswith("app.py"):
        assert time.monotonic() < deadline, "the program was not started"
        time.sleep(0.05)


@CHECKS.add("power cut in an upload, which is then resumed", no_reset)
def power_cut(bench: Bench) -> str:
    data = os.urandom(96 * 1024)
    cut = threading.Timer(1.0, bench.press_reset)
    cut.start()
    first = bench.board.put(data, ":/hw_data")[NAME]
    cut.join()
    bench.await_cell()
    again = bench.board.put(data, ":/hw_data")[NAME]
    assert again.ok, again.status
    assert bench.board.read(":/hw_data")[NAME].value == data, "the file differs"
    bench.board.rm(":/hw_data").raise_for_error()
    return f"first {first.status}, then complete"


@CHECKS.add("RESET, until it is back", no_reset)
def reset_button(bench: Bench) -> str:
    before = bench.connected_since()
    bench.press_reset()
    return f"{bench.await_link(before):.1f} s"


@CHECKS.add("client upgrade over the network")
def upgrade(bench: Bench) -> str:
    since = time.monotonic()
    bench.board.upgrade_client().raise_for_error()
    return f"{time.monotonic() - since:.0f} s"


@CHECKS.add("watchdog: a loop with interrupts off, or a native one where it is a timer")
def watchdog(bench: Bench) -> str:
    before = bench.connected_since()
    reconfigure.configure_by_link(bench.board, {"watchdog": WATCHDOG_SECONDS})
    bench.await_link(before)
    armed = str(bench.fact("watchdog") or "")
    bench.await_cell()
    assert armed, "the board does not say whether its watchdog is armed"
    if not armed.startswith(("hardware", "timer")):
        return f"not tried: {armed}"
    before = bench.connected_since()
    is_hardware = armed.startswith("hardware")
    bench.board.submit(_IRQS_OFF_CODE if is_hardware else _NATIVE_CODE)
    seconds = bench.await_link(before, RETURN_SECONDS + WATCHDOG_SECONDS)
    return f"{armed}; back in {seconds:.0f} s"


@CHECKS.add("Ctrl-C on the cable leaves for the REPL; a soft reset starts the client")
def cable(bench: Bench) -> str:
    before = bench.connected_since()
    with bench.repl() as repl:
        assert repl.run("print(6 * 7)").strip() == "42"
        repl.leave_raw_repl()
        repl.transport.serial.write(b"\x04")
        time.sleep(0.5)
    return f"back in {bench.await_link(before):.1f} s"
