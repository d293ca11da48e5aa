# The link to the server: sends and receives messages (RFC 6455) and reconnects for ever.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 1,824 bytes of .mpy, 4,336 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-29).
import gc
import select
import sys
from struct import pack_into
from time import sleep_ms, ticks_ms

import cm
from cm import state

# Numbers: written by `python -m tests.board.client_numbers`.
_BUF = const(1024)
_IN = const(8)
_HEADER = const(6)
_TAG = const(16)
_FRAME_BINARY = const(0x82)
_FRAME_CLOSE = const(0x88)
_FRAME_PING = const(0x89)
_FRAME_PONG = const(0x8A)
_CLOSE_PROTOCOL_ERROR = const(1002)
_CLOSE_TOO_BIG = const(1009)

_MAX_FULL = const(4)  # failures in a row for lack of memory until the board restarts
_STALL_MS = const(5000)  # ms without progress within a frame until the link counts as lost

buf = bytearray(_BUF)  # the only buffer, for received and sent messages
mv = memoryview(buf)
job = bytearray(4)  # the number of the current or last job
poller = select.poll()
wait = poller.poll  # waits until the socket is ready, or for some ms; returns [] if it is not
heard = 0  # ticks of the last received frame
_TRIES_ALONE = const(4)  # attempts to connect until the user's program starts without a link


def close():
    if state.socket:
        poller.unregister(state.socket)
        state.socket.close()
        state.socket = state.io = state.mac = None
        state.lost = ticks_ms()


# Reads exactly n bytes to the start of view.
def fill(view, n):
    while n:
        count = state.io.readinto(view, n)
        if count:
            n -= count
            view = view[count:]
        elif count == 0 or not wait(_STALL_MS):
            raise EOFError


# Sends buf[start:end] as one frame, without allocating: the header is written before it, with a
# mask of zero. Raises EOFError if the socket accepts nothing for too long.
def send_frame(opcode, start, end):
    n = end - start
    start -= 6
    if n < 126:
        pack_into(">BBI", buf, start, opcode, 0x80 | n, 0)
    else:
        start -= 2
        pack_into(">BBHI", buf, start, opcode, 0xFE, n, 0)
    while start < end:
        n = state.io.write(buf, start, end - start)
        if n:
            start += n
            continue
        poller.modify(state.socket, select.POLLOUT)
        n = wait(_STALL_MS)
        poller.modify(state.socket, select.POLLIN)
        if not n:
            raise EOFError


# Sends buf[start:end] as one message of the job. If that fails the link is closed, and no exception
# is raised: a lost link must not disturb a cell, and after half a frame nothing else can be sent.
def send(opcode, flags, start, end):
    if state.socket:
        try:
            start -= _HEADER
            pack_into(">BB4s", buf, start, opcode, flags, job)
            if state.mac:
                kept = state.mac.sign(mv, start, end)
                send_frame(_FRAME_BINARY, start, end + _TAG)
                mv[end : end + _TAG] = kept
            else:
                send_frame(_FRAME_BINARY, start, end)
        except BaseException:
            close()


# Sends a close frame with a code of RFC 6455, 7.4, and raises EOFError.
def refuse(code, at):
    pack_into(">H", buf, at, code)
    send_frame(_FRAME_CLOSE, at, at + 2)
    raise EOFError


# Reads one message to buf[at:] and returns its length, or 0 if none has arrived. A busy board skips
# what does not fit after its output.
def recv(at):
    global heard
    view = mv[at:]
    while True:
        n = state.io.readinto(view, 2)
        if n is None:
            return 0
        if not n:
            raise EOFError
        if n == 1:
            fill(view[1:], 1)
        heard = ticks_ms()
        opcode = view[0]
        n = view[1]
        if n == 126 and opcode == _FRAME_BINARY:
            fill(view, 2)
            n = view[0] << 8 | view[1]
        elif n > 125:
            refuse(_CLOSE_TOO_BIG if n == 127 else _CLOSE_PROTOCOL_ERROR, at)
        while n > len(view):
            if at == _IN or state.mac:
                refuse(_CLOSE_TOO_BIG, at)
            fill(view, 1)
            n -= 1
            opcode = _FRAME_PONG
        fill(view, n)
        if opcode == _FRAME_BINARY:
            if state.mac:
                n = state.mac.verify(view, n)
            if n < _HEADER:
                refuse(_CLOSE_PROTOCOL_ERROR, at)
            return n
        if opcode == _FRAME_PING:
            send_frame(_FRAME_PONG, at, at + n)
        elif opcode == _FRAME_CLOSE:
            state.tries = 3  # the server asks to reconnect later: wait for up to the whole spread
            send_frame(_FRAME_CLOSE, at, at + min(n, 2))
            raise EOFError
        elif opcode != _FRAME_PONG:
            refuse(_CLOSE_PROTOCOL_ERROR, at)


# Waits for the link, or for some ms, while asyncio's tasks run. Starts the user's program.
def idle(ms):
    if state.program and (state.socket or state.tries > _TRIES_ALONE):
        return state.program()
    if "asyncio" in sys.modules:
        try:
            from cm import loop

            if loop.busy():
                return loop.wait(state.socket, ms)
        except Exception:  # no loop.mpy, or the user's code changed asyncio
            pass
    return wait(ms) if state.socket else sleep_ms(ms)


# Removes a module that is rarely needed from memory.
def drop(part):
    sys.modules.pop("cm." + part, None)
    cm.__dict__.pop(part, None)


# Returns the signal strength of Wi-Fi in dBm; 0 without Wi-Fi.
def rssi():
    try:
        import network

        return network.WLAN(0).status("rssi")
    except Exception:
        return 0


# The initial cm.emit, which replaces itself by the real one.
def emit(**values):
    from cm.samples import emit

    cm.emit = emit
    return emit(**values)


cm.emit = emit


# Connects and serves for ever. The modules that connect are large and rarely needed, so they are
# dropped afterwards. A board whose memory stays too full to connect is restarted: otherwise it
# could no longer be reached.
def start(console=None):
    from cm import run

    if not console:
        from cm import boot

        console = boot.start()
        boot = None
        drop("boot")
    state.console = console
    full = 0
    try:
        while True:
            sys.modules["cm"] = cm  # the user's code may have replaced it
            try:
                from cm.dial import dial

                dial(run.link, run)
                full = 0
            except Exception:
                full += 1
                if full == _MAX_FULL:
                    console.reset()
                run.spare.clear()
                sleep_ms(1000)
            finally:
                dial = None
                drop("dial")
                drop("about")
                if not state.mac:
                    drop("mac")
                gc.collect()
            try:
                run.serve()
            except Exception:  # nothing may end the client; it reconnects
                pass
            close()
    finally:  # KeyboardInterrupt from the serial port, or a soft reset
        console.close()
