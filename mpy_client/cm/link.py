# The link to the server: sends and receives messages (RFC 6455) and reconnects for ever.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 2,333 bytes of .mpy, 3,808 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
import cm
from cm import firmware, state
from cm.firmware import gc, micropython, pack_into, select, sys, ticks_ms, time

# Numbers: written by `python -m tests.board.client_numbers`.
_BUF = const(1024)
_IN = const(8)
_BUSY_IN = const(896)
_HEADER = const(6)
_TAG = const(16)
_FRAME_BINARY = const(0x82)
_FRAME_CLOSE = const(0x88)
_FRAME_PING = const(0x89)
_FRAME_PONG = const(0x8A)
_CLOSE_PROTOCOL_ERROR = const(1002)
_CLOSE_TOO_BIG = const(1009)

_MAX_FAILURES = const(4)  # of the client itself, in a row, until the board restarts
_STALL_MS = const(5000)  # ms without progress within a frame until the link counts as lost

buf = bytearray(_BUF)  # the only buffer, for received and sent messages
mv = memoryview(buf)
views = {_IN: mv[_IN:], _BUSY_IN: mv[_BUSY_IN:]}  # where messages are read to
job = bytearray(4)  # the number of the current or last job
poller = select.poll()
wait = poller.poll  # waits until the socket is ready, or for some ms; returns [] if it is not
heard = 0  # ticks of the last received frame
lost = 0  # ticks of the end of the last link
importer = __import__
half = False  # a frame is half received: an exception now makes the rest unreadable
_TRIES_ALONE = const(4)  # attempts to connect until the user's program starts without a link


def close():
    global lost
    socket = state.socket
    if socket:
        state.socket = state.io = state.mac = None
        lost = ticks_ms()
        poller.unregister(socket)
        socket.close()


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
def refuse(code, at, *why):
    pack_into(">H", buf, at, code)
    send_frame(_FRAME_CLOSE, at, at + 2)
    raise EOFError(*why)


# Reads one message to buf[at:] and returns its length, or 0 if none has arrived. A busy board skips
# what does not fit after its output.
def recv(at):
    global half, heard
    half = False
    view = views[at]
    while True:
        n = state.io.readinto(view, 2)
        half = bool(n)
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


# Calls what is called about once a second: by the console's timer, and by a client that waits. An
# exception, such as for a full flash, must not end a cell.
def run_calls():
    for call in state.calls:
        try:
            if call():
                state.calls.remove(call)
                return  # the one after it is called the next time
        except Exception:
            pass


# Waits for the link, or for some ms, while asyncio's tasks run. Starts the user's program.
def idle(ms):
    if state.calls:
        run_calls()
        ms = min(ms, 1000)
    if state.log:
        ms = state.log.flush(ms)
    if state.program and (state.socket or state.tries > _TRIES_ALONE):
        return state.program()
    if "asyncio" in sys.modules:
        try:
            from cm import tasks

            busy = tasks.busy()
        except Exception:  # no tasks.mpy, or the user's code changed asyncio
            busy = False
        if busy:
            return tasks.wait(ms)
    return wait(ms) if state.socket else time.sleep_ms(ms)


# Removes a module that is rarely needed from memory.
def drop(part):
    sys.modules.pop("cm." + part, None)
    cm.__dict__.pop(part, None)


# Called for what the package cm does not have yet: a part, or a function for the user's code, which
# is in a part of its own name.
def find(name):
    try:
        part = __import__("cm." + name, None, None, True)
    except ImportError:
        raise AttributeError(name)
    cm.__dict__[name] = part = getattr(part, name, part)
    return part


cm.__getattr__ = find


def unlock_heap():
    micropython.heap_lock()  # one unlock too many would underflow
    while micropython.heap_unlock():
        pass


# Gives back to the client what user code may have taken from it; first the heap, without
# allocating.
def restore():
    unlock_heap()
    gc.enable()
    sys.modules["cm"] = cm
    sys.modules["cm.firmware"] = firmware
    if ".frozen" not in sys.path:
        sys.path[:] = firmware.path


# Connects. The modules that connect are large and rarely needed, so
# they are dropped afterwards.
def connect():
    try:
        restore()
        if __import__ is not importer:
            firmware.builtins.__import__ = importer
        from cm.restart import repair

        repair(drop)
        repair = None
        from cm.dial import dial

        dial()
    finally:
        dial = None
        for part in ("dial", "about", "facts"):
            drop(part)
        if not state.mac:
            drop("mac")
        gc.collect()


# Serves for ever: no exception of any class ends the client, except a restart of the interpreter
# and Ctrl-C on the cable, after which the REPL begins. A board on which the client itself fails
# several times in a row, such as for lack of memory, is restarted: otherwise it could no longer be
# reached.
def start(console=None):
    from cm import boot, run

    boot.start(console)
    boot = None
    drop("boot")
    failures = 0
    error = None
    try:
        while True:
            try:
                close()
                if failures == _MAX_FAILURES:
                    state.console.hard_reset()
                if failures:
                    from cm.restart import fail

                    fail(error)
                    time.sleep_ms(1000)
                connect()
                run.left = None
                run.serve()
                failures = 0
            except (OSError, EOFError):  # the link is lost
                failures = 0
            except BaseException as e:
                error = e
                if state.leaving or state.console.is_cable(e):
                    break
                failures += 1
        if not state.leaving:
            state.console.close()
        raise error
    finally:
        unlock_heap()  # Ctrl-C may come while it is locked; the REPL needs it
