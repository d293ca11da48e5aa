# cm.now_ms(): milliseconds since 1970 (UTC) by the server's clock; the board needs no RTC for it.
# Boards: all; loaded at the first use.
# Cost: 308 bytes of .mpy, 300 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# state.clock is what was measured last (clock.py): ticks in ms and in µs at one moment; that moment
# in µs since 1970; by how much that may be wrong (µs); by how much the board's counter is too fast
# (parts in 10**9; None: not known yet); by how much the clock was ahead before (µs).
from cm import state
from cm.firmware import time

_MS = const(0)
_US = const(1)
_AT = const(2)
_DRIFT = const(4)


# `unit`: µs of what is counted; the client needs µs. Ticks wrap, on chips those in µs after 18
# minutes: so those in ms, which wrap after 12 days, say how often.
def now_ms(unit=1000):
    clock = state.clock
    if not clock:
        raise OSError("the time is not known before the first link")
    turn = time.ticks_add(0, -1) + 1
    us = time.ticks_diff(time.ticks_us(), clock[_US])
    ms = time.ticks_diff(time.ticks_ms(), clock[_MS])
    us += (ms * 1000 - us + turn // 2) // turn * turn
    return (clock[_AT] + us - us * (clock[_DRIFT] or 0) // 1000000000) // unit
