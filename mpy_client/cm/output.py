# Output: gathers what a cell prints, its value and its traceback, and sends them in pieces.
# Boards: all that link.py runs on.
# Cost: 0 bytes of .mpy, 0 bytes of heap (mpy-cross 1.29 -O3 xtensawin; 32-bit MicroPython 1.27).
from micropython import const
from time import ticks_ms

from cm.link import Link

_OUT = const(16)  # as in link.py
_END = const(1400)  # where output ends: room behind it for what comes meanwhile
_TAIL = const(256)  # bytes of an error's end that are kept when its middle is cut out
_MOST = const(1 << 20)  # bytes of a value's repr

_OUTPUT = const(0x20)
_VALUE = const(0x21)


# buf[_OUT:mark] is output that was not sent yet, buf[mark:pos] the text (value or error) after it.
class Output(Link):
    def __init__(self, config):
        Link.__init__(self, config)
        self.last = None  # how the last job ended: [job, status, error, dropped]
        self.pos = self.mark = _OUT
        self.flushed = 0  # when output was sent last
        self.sent = 0  # bytes of the value that have left; -1 before its first
        self.failed = False  # the text is an error

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

    # Sends buf[a:b], or does without: a lost link must not disturb a cell.
    def tell(self, op, a, b, flags=0):
        if self.sock:
            try:
                self.send(op, a, b, flags)
            except BaseException:  # a frame that is half written cannot be taken back
                self.drop()
        if op == _OUTPUT and not self.sock:
            self.last[3] += b - a

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

    # Text of a value or of an error; the first piece of a value is the "(" of its tuple.
    def text(self, b):
        if self.sent < 0:
            self.sent = 0
        else:
            self.put(b, False)
