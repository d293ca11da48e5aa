# The board's log: what is printed outside of cells. It is kept here while there is no link.
# Boards: all; loaded with the first program, task beside cells, or message of the client.
# Cost: 1,291 bytes of .mpy, 2,528 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.firmware import sys, ticks_diff, ticks_ms

# Numbers: written by `python -m tests.board.client_numbers`.
_OUT_END = const(880)
_LOG = const(0x29)

_KEPT = const(1024)  # bytes that are kept; of more, the oldest are lost
_HEAD_BYTES = const(20)  # before the text: frame header, message header, number of lost bytes
_FLUSH_MS = const(200)  # ms until what is printed is sent
_WAIT_MS = const(1000)  # ms until what a callback prints is sent

text = None  # a bytearray: what was printed and is not sent yet
lost = 0  # bytes that were lost before it
sent = 0  # ticks when something was last sent
sending = False
stream = None  # console.py's stream, while it extends `text` by itself
# Returns whether the user's code that runs is not that of a cell, so that its output is the log's.
beside = None
take_output = None  # unix.py sets it


# What `beside` is while tasks run between cells, or the user's program.
def always():
    return True


# Makes an empty text that has the memory for what is kept.
def clear():
    global text
    text = bytearray(_KEPT)
    text[:] = b""
    if stream:
        stream.write = text.extend


# Called before a program or tasks run, all of whose output is the log's. A print() has several
# pieces, for each of which Stream.write takes 0.35 ms on RP2, a method of bytearray 0.01 ms: so
# that extends the text, until call() sends it. Threads of RP2 must not do so at the same time.
def begin():
    global beside, stream
    beside = always
    modules = sys.modules
    if not take_output and modules.get("_thread") is modules.get("cm.threads"):
        stream = state.console.stream
        stream.write = text.extend
        if call not in state.calls:
            state.calls.append(call)


# Called afterwards, and when a thread of RP2 starts; `before` is what `beside` will be.
def end(before):
    global beside, stream
    beside = before
    if stream:
        del stream.write
        stream = None
        if state.console.removed:
            text.extend(b"\r\n[output was lost]\r\n")
        if not state.socket:
            trim()


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


# Adds b to the text; `may_send` says whether a long text may be sent.
def write(b, may_send):
    global lost
    try:
        text.extend(b)
    except Exception:  # no memory
        lost += len(b)
    if len(text) > _KEPT:
        if may_send:
            send()
        trim()


# Discards the oldest bytes of a long text, unless it is being sent.
def trim():
    global lost
    n = len(text) - _KEPT
    if n > 0 and not sending:
        lost += n
        text[:n] = b""


# Sends what was printed. Called before the client waits; returns for how many ms it may: callbacks
# of timers may print meanwhile. Virtual boards have none.
def flush(ms):
    if take_output:
        take_output()
    else:
        ms = min(ms, _WAIT_MS)
    if text:
        send()
    return ms


# Sends the text, behind the output and the text of the job. A callback may print meanwhile.
def send():
    global lost, sending, sent
    sent = ticks_ms()
    if sending:
        return
    sending = True
    i = 0
    try:
        while i < len(text) and state.socket and not state.ahead:
            run.flush()
            at = run.end + _HEAD_BYTES
            k = min(len(text) - i, _OUT_END - at)
            if k <= 0:
                break
            gone = lost
            link.pack_into(">I", link.buf, at - 4, gone)
            link.mv[at : at + k] = memoryview(text)[i : i + k]
            i += k
            lost -= gone
            link.send(_LOG, 0, at - 4, at + k)
            if not state.socket:
                lost += gone + k
    finally:
        text[:i] = b""
        sending = False
    if i > _KEPT and not text:  # its memory has grown
        try:
            clear()
        except MemoryError:
            pass


# Called by link.run_calls() until all is sent: while user code runs, unless it is in client code,
# which may be sending something.
def call():
    console = state.console
    if text and console.in_user and not console.busy:
        console.set_guard(True)
        if len(text) > _KEPT or ticks_diff(ticks_ms(), sent) >= _FLUSH_MS:
            send()
            trim()
        console.set_guard(False)
    return not (text or stream)


clear()
if "cm.loop" in sys.modules:
    beside = sys.modules["cm.loop"].is_beside
state.log = sys.modules["cm.log"]
