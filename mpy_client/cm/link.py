# The link to the server: frames messages (RFC 6455), waits for them, redials for ever.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 1,832 bytes of .mpy, 4,336 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).
import gc
import select
import sys
from struct import pack_into
from time import sleep_ms, ticks_ms

import cm

_BUF = const(1024)  # bytes: the one buffer, for what comes and for what goes
_IN = const(8)  # where an idle board reads: room before it for the head of a pong
_OUT = const(16)  # where output starts: room before it for all heads
_TAG = const(16)  # as in mac.py; it is room behind output (run.py), too
_FULL = const(4)  # times in a row that there may be no memory to dial
_STALL = const(5000)  # ms without progress in the middle of a frame: the link is lost

buf = bytearray(_BUF)
mv = memoryview(buf)
job = bytearray(4)  # whose messages these are: the last that began
socket = None  # to poll
io = None  # to read and write: the socket, or TLS over it
mac = None  # on a plain link: mac.py, which seals messages and opens them
poller = select.poll()
wait = poller.poll  # until the socket is ready, or for some ms; gives nothing if it is not
heard = lost = 0  # when: the last word, the end of the last link
timeout = 60000  # ms without a word until an idle board dials again
span = 2000  # ms over which boards dial again; the server names it
tries = 0  # to dial, since the last link
program = task = None  # app.py: what idle() calls once, and its task (app.py of ours)
told = ""  # what the fleet shall know of it
_ALONE = const(4)  # tries to dial until a board's program starts without a link


def close():
    global socket, io, lost, mac
    if socket:
        poller.unregister(socket)
        socket.close()
        socket = io = mac = None
        lost = ticks_ms()


# Reads n bytes to the start of view, all of them.
def fill(view, n):
    while n:
        got = io.readinto(view, n)
        if got:
            n -= got
            view = view[got:]
        elif got == 0 or not wait(_STALL):
            raise EOFError


# Sends buf[start:end] as one frame, without allocating: the head goes before it, with a mask of
# zero. Gives up when nothing moves.
def frame(opcode, start, end):
    n = end - start
    start -= 6
    if n < 126:
        pack_into(">BBI", buf, start, opcode, 0x80 | n, 0)
    else:
        start -= 2
        pack_into(">BBHI", buf, start, opcode, 0xFE, n, 0)
    while start < end:
        n = io.write(buf, start, end - start)
        if n:
            start += n
            continue
        poller.modify(socket, select.POLLOUT)
        n = wait(_STALL)
        poller.modify(socket, select.POLLIN)
        if not n:
            raise EOFError


# Sends buf[start:end] as one message of the job, or does without: a lost link must not disturb a
# cell, and a frame that is half written cannot be taken back.
def tell(opcode, flags, start, end):
    if socket:
        try:
            start -= 6
            pack_into(">BB4s", buf, start, opcode, flags, job)
            if mac:
                kept = mac.seal(mv, start, end)
                frame(0x82, start, end + _TAG)
                mv[end : end + _TAG] = kept
            else:
                frame(0x82, start, end)
        except BaseException:
            close()


# Closes the WebSocket with a code of RFC 6455, 7.4, and leaves.
def refuse(code, at):
    pack_into(">H", buf, at, code)
    frame(0x88, at, at + 2)
    raise EOFError


# Reads one message to buf[at:] and gives its length; 0 when there is none yet.
# A busy board passes over what does not fit behind its output.
def recv(at):
    global heard, tries
    view = mv[at:]
    while True:
        n = io.readinto(view, 2)
        if n is None:
            return 0
        if not n:
            raise EOFError
        if n == 1:
            fill(view[1:], 1)
        heard = ticks_ms()
        opcode = view[0]
        n = view[1]
        if n == 126 and opcode == 0x82:
            fill(view, 2)
            n = view[0] << 8 | view[1]
        elif n > 125:
            refuse(1009 if n == 127 else 1002, at)
        while n > len(view):
            if at == _IN or mac:
                refuse(1009, at)
            fill(view, 1)
            n -= 1
            opcode = 0x8A
        fill(view, n)
        if opcode == 0x82:
            if mac:
                n = mac.check(view, n)
            if n < 6:
                refuse(1002, at)
            return n
        if opcode == 0x89:
            frame(0x8A, at, at + n)
        elif opcode == 0x88:
            tries = 3  # told to go: stay away for up to the whole span
            frame(0x88, at, at + min(n, 2))
            raise EOFError
        elif opcode != 0x8A:
            refuse(1002, at)


# Waits for the link, or for a time; tasks go on meanwhile. The user's program begins here.
def idle(ms):
    if program and (socket or tries > _ALONE):
        return program()
    if "asyncio" in sys.modules:
        try:
            from cm import loop

            if loop.busy():
                return loop.rest(socket, ms)
        except Exception:  # no loop.mpy, or the user's code took asyncio apart
            pass
    return wait(ms) if socket else sleep_ms(ms)


# Forgets a part that is seldom needed.
def drop(part):
    sys.modules.pop("cm." + part, None)
    cm.__dict__.pop(part, None)


# How well the board hears its Wi-Fi, in dBm; 0 without.
def rssi():
    try:
        import network

        return network.WLAN(0).status("rssi")
    except Exception:
        return 0


# What cells have as cm.emit, until its first use brings the real one.
def emit(**values):
    from cm.samples import emit

    cm.emit = emit
    return emit(**values)


cm.emit = emit


# Dials and serves for ever. What dials is needed seldom and big: it goes when it is done. A board
# whose memory is too full for it, and stays so, starts anew: else it would be gone.
def start(port=None):
    from cm import run

    if not port:
        from cm import boot

        port = boot.begin()
        boot = None
        drop("boot")
    run.port = port
    full = 0
    try:
        while True:
            sys.modules["cm"] = cm  # whatever the user's code did to it
            try:
                from cm.dial import dial

                dial(run.link, run)
                full = 0
            except Exception:
                full += 1
                if full == _FULL:
                    port.reset()
                run.spare.clear()
                sleep_ms(1000)
            finally:
                dial = None
                drop("dial")
                drop("about")
                if not mac:
                    drop("mac")
                gc.collect()
            try:
                run.serve()
            except Exception:  # nothing may end the client; the server sees it dial again
                pass
            close()
    finally:  # an interrupt on the cable, or a soft reset
        port.leave()
