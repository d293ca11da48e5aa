# The link to the server: frames messages (RFC 6455), redials for ever.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 0 bytes of .mpy, 0 bytes of heap (mpy-cross 1.29 -O3 xtensawin; 32-bit MicroPython 1.27).
import gc
import json
import os
import select
from micropython import const
from struct import pack_into
from time import ticks_ms

_BUF = const(1536)  # bytes: the one buffer, for what comes and for what goes
_IN = const(8)  # where an idle board reads: room before it for the head of a pong
_OUT = const(16)  # where output starts: room before it for all heads
_SIDE = const(1408)  # where a busy board reads, behind the output that it gathers
_STALL = const(5000)  # ms without progress in the middle of a frame: the link is lost


class Link:
    def __init__(self, config):
        self.buf = bytearray(_BUF)
        self.mv = memoryview(self.buf)
        self.side = self.mv[_SIDE:]
        self.config = config
        self.job = bytearray(4)
        self.sock = None  # the raw socket, to poll
        self.io = None  # the stream to read and write: the socket, or TLS over it
        self.poll = select.poll()
        self.heard = self.lost = 0
        self.silence = 60000  # ms without a word until an idle board dials again
        self.spread = 2000  # ms, the server names it
        self.tries = 0

    # Waits until the raw socket is ready; says whether it is.
    def wait(self, ms, event=select.POLLIN):
        self.poll.modify(self.sock, event)
        for _ in self.poll.ipoll(ms):
            return True
        return False

    def drop(self):
        if self.sock:
            self.poll.unregister(self.sock)
            self.sock.close()
            self.sock = self.io = None
            self.lost = ticks_ms()

    # Reads n bytes to the start of view, all of them. A short read is the exception.
    def fill(self, view, n):
        got = self.io.readinto(view, n) or 0
        while got < n:
            if not self.wait(_STALL):
                raise OSError(1006)
            more = self.io.readinto(view[got:n])
            if more == 0:
                raise OSError(1006)
            got += more or 0

    # Writes buf[a:b] without allocating; gives up when nothing moves.
    def write(self, a, b):
        while a < b:
            n = self.io.write(self.buf, a, b - a)
            if n:
                a += n
            elif not self.wait(_STALL, select.POLLOUT):
                raise OSError(1006)

    # Sends buf[a:b] as one frame: the head goes before it, with a mask of zero.
    def frame(self, op, a, b):
        n = b - a
        if n < 126:
            a -= 6
            pack_into(">BBI", self.buf, a, op, 0x80 | n, 0)
        else:
            a -= 8
            pack_into(">BBHI", self.buf, a, op, 0xFE, n, 0)
        self.write(a, b)

    # Sends buf[a:b] as one message of the current job.
    def send(self, op, a, b, flags=0):
        a -= 6
        pack_into(">BB4s", self.buf, a, op, flags, self.job)
        self.frame(0x82, a, b)

    # Closes the WebSocket with a code of RFC 6455, 7.4, and leaves.
    def refuse(self, code, at):
        pack_into(">H", self.buf, at, code)
        self.frame(0x88, at, at + 2)
        raise OSError(code)

    # Reads one message to buf[at:] and gives its length; 0 when there is none yet.
    # A busy board passes over what does not fit behind its output.
    def recv(self, at=_IN):
        view = self.side if at == _SIDE else self.mv[at:]
        while True:
            n = self.io.readinto(view, 2)
            if n is None:
                return 0
            if n == 0:
                raise OSError(1006)
            if n == 1:
                self.fill(view[1:], 1)
            self.heard = ticks_ms()
            op = view[0]
            n = view[1]
            if n == 126 and op == 0x82:
                self.fill(view, 2)
                n = view[0] << 8 | view[1]
            elif n > 125:
                self.refuse(1009 if n == 127 else 1002, at)
            if n > len(view):
                if at != _SIDE:
                    self.refuse(1009, at)
                while n > 128:
                    self.fill(view, 128)
                    n -= 128
                self.fill(view, n)
                continue
            if n:
                self.fill(view, n)
            if op == 0x82:
                if n < 6:
                    self.refuse(1002, at)
                return n
            if op == 0x89:
                self.frame(0x8A, at, at + n)
            elif op == 0x88:
                self.tries = 2  # told to go: stay away for up to the whole spread
                self.frame(0x88, at, at + min(n, 2))
                raise OSError(1000)
            elif op != 0x8A:
                self.refuse(1002, at)

    # Full jitter: a random part of a span that doubles up to the spread.
    def pause(self):
        span = max(1, self.spread >> max(0, 2 - self.tries))
        self.tries += 1
        return int.from_bytes(os.urandom(4), "big") % span


board = None


# Reads the settings and serves for ever.
def start():
    global board
    from cm.dial import dial
    from cm.run import Board

    with open("/cm.json") as file:
        board = Board(json.load(file))
    ms = full = 0
    while True:
        try:
            board.rest(ms)
            dial(board)
            full = 0
            board.serve()
        except MemoryError:
            full += 1
            if full > 2:
                board.forget()
        except Exception:  # nothing may end the client; the server sees it dial again
            pass
        board.drop()
        gc.collect()
        ms = board.pause()
