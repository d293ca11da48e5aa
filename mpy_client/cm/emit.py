# cm.emit(temp=21.5): sends one small message with the board's clock, limited to 50 a second.
# Boards: all; loaded at the first emit, in a cell, in a task between cells or in a program.
# Cost: 873 bytes of .mpy, 1,200 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.firmware import get_ident, json, micropython, sys

# Numbers: written by `python -m tests.board.client_numbers`.
_BUSY_IN = const(896)
_EMIT = const(0x26)
_STATUS_RUNNING = const(4)

_HEAD_BYTES = const(22)  # bytes before the JSON: frame header, message header, ticks
_MAX_BYTES = const(512)  # bytes of JSON
_INTERVAL_MS = const(20)  # ms: 50 in a second
_BURST_MS = const(1000)  # ms of unused intervals that accumulate: bursts of 50

now_ms = link.find("now_ms")
due = -_BURST_MS  # ticks when the next may be sent; a board that woke may send many at once
dropped = 0  # samples since the last that was sent


# Returns whether the sample was sent. Other threads than that of cells are refused: a thread would
# write to the link while the client does. NaN and infinity become None.
def emit(**values):
    global due, dropped
    if get_ident() != state.console.main:
        raise RuntimeError("in a thread")
    if micropython.stack_use() > state.deepest:
        return False
    for name in values:
        v = values[name]
        if not isinstance(v, (int, float, str, bool)):
            raise TypeError(name)
        if isinstance(v, float) and v - v:
            values[name] = None
    data = json.dumps(values).encode()
    n = len(data)
    if n > _MAX_BYTES:
        raise ValueError
    now = run.ticks_ms()
    gap = run.ticks_diff(now, due)
    dropped += 1
    if 0 <= gap < _INTERVAL_MS or state.ahead:
        return False
    if not 0 < gap < _BURST_MS:
        gap = _BURST_MS
    due = now + _INTERVAL_MS - gap
    # A timer's callback between cells needs no guard; bool() does nothing.
    log = state.log
    runs = run.status == _STATUS_RUNNING and not run.left or log and log.beside is log.always
    guard = state.console.set_guard if runs else bool
    guard(True)
    try:
        if guard:  # a pending interrupt is raised at this jump, before anything is half done
            pass
        run.flush()
        at = run.end + _HEAD_BYTES
        if not state.socket or "cm.kept" in sys.modules:  # it is sent after those that were kept
            kept = link.find("kept")
            kept.lost += dropped - 1
            dropped = 0
            kept.keep(data)
            due += _INTERVAL_MS * (kept.forget(kept.send(gap // _INTERVAL_MS)) - 1)
        elif at + n <= _BUSY_IN - 8:
            link.mv[at : at + n] = data
            time_ms = now_ms() if state.clock else now
            run.pack_into(">Q", run.buf, at - 8, time_ms)
            run.send(_EMIT, min(dropped - 1, 255), at - 8, at + n)
            if state.socket:
                dropped = 0
    finally:
        interrupt = guard(False)
    if interrupt:
        raise KeyboardInterrupt
    return not dropped
