# cm.emit(temp=21.5): one small message with the board's clock; what comes too fast is dropped.
# Boards: all; loaded at the first emit, in a cell, in a task between cells or in a program.
# Cost: 534 bytes of .mpy, 640 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).
from json import dumps

from cm import link, run

_EMIT = const(0x26)
_RUNNING = const(4)  # as in run.py
_END = const(888)
_HEAD = const(22)  # bytes before the JSON: a frame's head, a message's, the ticks
_SIZE = const(512)  # bytes of JSON
_EACH = const(20)  # ms: 50 in a second
_MOST = const(1000)  # ms that add up in a pause: 50 at once

due = lost = 0  # when the next would be on time; how many did not leave since one did


# Says whether it left. What is no number counts as None.
def emit(**values):
    global due, lost
    for name in values:
        v = values[name]
        if not isinstance(v, (int, float, str, bool)):
            raise TypeError(name)
        if isinstance(v, float) and v - v:
            values[name] = None
    data = dumps(values).encode()
    n = len(data)
    if n > _SIZE:
        raise ValueError
    now = run.ticks_ms()
    gap = run.ticks_diff(now, due)
    lost += 1
    if 0 <= gap < _EACH:
        return False
    due = now + _EACH - (gap if 0 < gap < _MOST else _MOST)
    own = run.port.own if run.status == _RUNNING and not run.rest else bool  # a task's is none
    own(True)
    try:
        if own:  # an interrupt that is pending is raised at any jump: before anything is half done
            pass
        run.flush()
        at = run.end + _HEAD
        if at + n <= _END:
            link.mv[at : at + n] = data
            run.pack_into(">Q", run.buf, at - 8, now)
            run.tell(_EMIT, min(lost - 1, 255), at - 8, at + n)
            if link.socket:
                lost = 0
    finally:
        fire = own(False)
    if fire:
        raise KeyboardInterrupt
    return not lost
