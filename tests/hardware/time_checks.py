"""Checks of what takes long or depends on time, on a board that joins over Wi-Fi.

An upload, an install, the board's clock, and wakes from `cm.sleep`.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from .bench import NAME, RETURN_SECONDS, Bench
from .checks import Checks
from .client_checks import start_program

CHECKS = Checks()
UPLOAD_BYTES = 100 * 1024
MODULES = 20
_MODULE_LINES = 120  # of each module's source: its bytecode is about 2 KB
_FILE_SECONDS = 120.0
_CLOCK_READINGS = 20
_MAX_LOST = 0.01  # of the time, by a chip's clock: more is an emulator that is too slow
_AT_SECONDS = 2.0  # ahead, of a cell at one instant
_AGING = 1 / 64_000  # by which the bound of a clock's error grows, as in mpy_client/cm/clock.py
_MEASURED_SECONDS = 25.0  # since its last measurement, at most, until the drift is known
_SLEEP_SECONDS = 2
_SLEEPER = b"import cm\ncm.sleep(%d)\n" % _SLEEP_SECONDS
_WAKE_SECONDS = 60.0  # for one of them, on an emulator that is slower than its chip
_STAY = "10m"

#: Reads the whole flash that files are in, and returns its digest.
_FLASH_CODE = """
import hashlib
try:
    import rp2
    flash = rp2.Flash()
except ImportError:
    try:
        from esp32 import Partition
        flash = Partition.find(Partition.TYPE_DATA, label="vfs")[0]
    except ImportError:
        from flashbdev import bdev as flash
block = bytearray(flash.ioctl(5, 0))
digest = hashlib.sha256()
for n in range(flash.ioctl(4, 0)):
    flash.readblocks(n, block)
    digest.update(block)
digest.digest()
"""


@CHECKS.add("upload of 100 KB, install of 20 files, by the board's own clock")
def upload_and_install(bench: Bench) -> str:
    data = os.urandom(UPLOAD_BYTES)
    put = bench.time_action(lambda: bench.board.put(data, ":/hw_data").raise_for_error())
    bench.board.rm(":/hw_data").raise_for_error()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "hw_pack")
        source.mkdir()
        for n in range(MODULES):
            (source / f"m{n}.py").write_text(_module_text(n))
        install = bench.time_action(lambda: bench.board.install(str(source)).raise_for_error())
    bench.board.uninstall("hw_pack").raise_for_error()
    return f"{put:.1f} s, {install:.1f} s"


def _module_text(number: int) -> str:
    chance = random.Random(number)
    return "".join(f"V{n} = {chance.randrange(10**9)}\n" for n in range(_MODULE_LINES))


@CHECKS.add("the board's clock; a cell at one instant")
def clock_error(bench: Bench) -> str:
    bench.value("import cm")
    half, error = min(_read_clock(bench) for _ in range(_CLOCK_READINGS))
    begun = time.time()
    result = bench.board.run("1", at=time.time() + _AT_SECONDS, timeout=30)[NAME]
    assert result.ok, result.traceback
    late, bound = result.late, result.clock_error
    assert late is not None
    assert bound is not None
    figure = (
        f"{error * 1000:+.1f} ms ± {half * 1000:.1f}; the cell {late * 1000:.2f} ms late by a "
        f"clock ± {bound * 1000:.1f} ms"
    )
    lost = abs(_read_clock(bench)[1] - error) / (time.time() - begun)
    if lost > _MAX_LOST:
        return f"{figure}. An emulator that is slower than its chip, and so is its clock"
    assert abs(error) <= half + bound + _AGING * _MEASURED_SECONDS, figure
    return figure


def _read_clock(bench: Bench) -> tuple[float, float]:
    """Return by how much the reading may be wrong, and by how much the clock is ahead."""
    before = time.time()
    board = bench.value("cm.now_ms(1)")
    after = time.time()
    assert isinstance(board, int)
    return (after - before) / 2, board / 1e6 - (before + after) / 2


@CHECKS.add("wakes by cm.sleep: awake, nothing written to flash, never in safe mode")
def wakes(bench: Bench) -> str:
    count = bench.options.repeats // 2
    try:
        start_program(bench, _SLEEPER)
        _await_wakes(bench, 2)  # on some ports, the first start writes
        before = _flash_digest(bench)
        _await_wakes(bench, count)
        after = _flash_digest(bench)
        program = bench.fact("program")
    finally:
        bench.board.stay(_STAY)
        code = "import os\nos.remove('/app.py')"
        bench.board.run(code, timeout=_FILE_SECONDS, wait=_WAKE_SECONDS).raise_for_error()
        since = bench.connected_since()
        bench.board.submit("import machine\nmachine.reset()")
        bench.await_link(since)
        bench.board.stay(0)
    assert program == "app.py", program
    assert after == before, "a wake has written to flash"
    median, most = bench.fact("awake_ms"), bench.fact("awake_p90_ms")
    return f"{count} wakes, awake {median} ms (median), {most} ms (90 %)"


def _await_wakes(bench: Bench, count: int) -> None:
    """Wait until the board has fallen asleep so often."""
    seen: set[object] = set()
    deadline = time.monotonic() + RETURN_SECONDS
    while len(seen) < count + 1:  # the first may be of before
        at = bench.fact("wakes_at")
        if at is not None and at not in seen:
            seen.add(at)
            deadline = time.monotonic() + _WAKE_SECONDS
        assert time.monotonic() < deadline, f"it slept {len(seen)} times, not {count + 1}"
        time.sleep(0.1)


def _flash_digest(bench: Bench) -> object:
    """Keep the board awake until the digest of its flash is known; then it sleeps again."""
    bench.board.stay(_STAY)
    result = bench.board.run(_FLASH_CODE, timeout=_FILE_SECONDS, wait=_WAKE_SECONDS)[NAME]
    bench.board.stay(0)  # which ends it
    return result.value
