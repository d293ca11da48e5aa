# Samples that were emitted without a link: they are kept until there is one.
# Boards: all; loaded with the first such sample, by cm.sleep, and at a wake that has samples.
# Cost: 677 bytes of .mpy, 500 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.firmware import struct, time

# Numbers: written by `python -m tests.board.client_numbers`.
_BUSY_IN = const(896)
_EMIT = const(0x26)

_HEAD_BYTES = const(22)  # bytes before the JSON: frame header, message header, time
_ENTRY_BYTES = const(6)  # of an entry in RTC memory, besides its JSON; see wake.py
_ROOM = const(2048)  # bytes

items = []  # each its ms since this start, or before it, and its JSON
lost = 0  # samples for which there was no room


# Returns for how many ms the board has been awake.
def awake():
    return time.ticks_diff(time.ticks_ms(), getattr(state.console, "started", 0))


# Keeps a sample; the oldest one is dropped if there is no room.
def keep(data):
    items.append((awake(), data))
    trim(_ROOM)


def trim(room):
    global lost
    size = sum([_ENTRY_BYTES + len(data) for _, data in items])
    while size > room:
        size -= _ENTRY_BYTES + len(items.pop(0)[1])
        lost += 1


# Sends at most n samples from the one at `start` on, with their age and, if the time is known, the
# time of each. Returns how many.
def send(n, start=0):
    sent = 0
    for at, data in items[start : start + n]:
        age = awake() - at
        age += (age < 0) << 30  # ticks have wrapped
        data = data[:-1] + b',"":%d}' % age
        at = run.end + _HEAD_BYTES
        end = at + len(data)
        if end > _BUSY_IN - 8:
            break
        time_ms = link.find("now_ms")() - age if state.clock else time.ticks_ms()
        struct.pack_into(">Q", link.buf, at - 8, time_ms)
        link.mv[at:end] = data
        link.send(_EMIT, 0 if start or sent else min(lost, 255), at - 8, end)
        if not state.socket:
            break
        sent += 1
    return sent


# Forgets the first n samples, which were sent. Returns n.
def forget(n):
    global lost
    if n:
        items[:n] = []
        lost = 0
    return n
