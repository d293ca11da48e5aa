# The board's log: what is printed outside of cells. A ring keeps it while there is no link.
# Boards: all; loaded with the first program, task beside cells, or message of the client.
# Cost: 1,037 bytes of .mpy, 2,272 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.firmware import sys, time

ticks_diff = time.ticks_diff
ticks_ms = time.ticks_ms

# Numbers: written by `python -m tests.board.client_numbers`.
_OUT_END = const(880)
_LOG = const(0x29)

_RING = const(1024)  # bytes that are kept; of more, the oldest are lost
_HEAD_BYTES = const(20)  # before the text: frame header, message header, number of lost bytes
_FLUSH_MS = const(200)  # ms until what is printed is sent
_WAIT_MS = const(1000)  # ms until what a callback prints is sent

ring = bytearray(_RING)
view = memoryview(ring)
start = size = 0  # of what is in the ring
lost = 0  # bytes that were lost before it
sent = 0  # ticks when something was last sent
writing = False
# Returns whether the user's code that runs is not that of a cell, so that its output is the log's.
beside = None
take_output = None  # unix.py sets it


# What `beside` is while tasks run between cells, or the user's program.
def always():
    return True


# Called by console.py when something is printed. Returns whether it belongs to the log.
def take(b, nested):
    may_send = state.console.in_user and not nested
    if may_send and not (beside and beside()):
        return False
    write(b, may_send)
    if may_send:
        if b[-1] == 10 and ticks_diff(ticks_ms(), sent) >= _FLUSH_MS:
            send()
        elif call not in state.calls:
            state.calls.append(call)
    return True


# Puts b into the ring; `may_send` says whether a full ring may be sent. What a callback prints
# while this function runs is lost.
def write(b, may_send):
    global lost, size, start, writing
    n = len(b)
    if writing:
        lost += n
        return
    writing = True
    i = 0
    try:
        while i < n:
            at = (start + size) % _RING
            k = min(n - i, _RING - at)
            if may_send and k > _RING - size:
                send()
            over = k - (_RING - size)
            if over > 0:
                start = (start + over) % _RING
                size -= over
                lost += over
            view[at : at + k] = memoryview(b)[i : i + k]
            size += k
            i += k
    except Exception:  # no memory
        lost += n - i
    finally:
        writing = False


# Sends what was printed. Called before the client waits; returns for how many ms it may: callbacks
# of timers may print meanwhile. Virtual boards have none.
def flush(ms):
    if take_output:
        take_output()
    else:
        ms = min(ms, _WAIT_MS)
    send()
    return ms


# Sends what is in the ring, behind the output and the text of the job.
def send():
    global lost, sent, size, start
    sent = ticks_ms()
    while size and state.socket and not state.ahead:
        run.flush()
        at = run.end + _HEAD_BYTES
        k = min(size, _RING - start, _OUT_END - at)
        if k <= 0:
            return
        gone = lost
        link.pack_into(">I", link.buf, at - 4, gone)
        link.mv[at : at + k] = view[start : start + k]
        start = (start + k) % _RING
        size -= k
        lost -= gone
        link.send(_LOG, 0, at - 4, at + k)
        if not state.socket:
            lost += gone + k


# Called by link.run_calls() until all is sent: while user code runs, unless it is in client code,
# which may be sending something.
def call():
    console = state.console
    if size and console.in_user and not console.busy:
        console.set_guard(True)
        send()
        console.set_guard(False)
    return not size


if "cm.loop" in sys.modules:
    beside = sys.modules["cm.loop"].is_beside
state.log = sys.modules["cm.log"]
