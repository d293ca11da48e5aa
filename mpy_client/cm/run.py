# Cells: runs what the server sends, ends it when asked to, remembers how the last one ended.
# Boards: all that link.py runs on; loop.py (await) is optional, console.py or unix.py captures.
# Cost: 2,654 bytes of .mpy, 3,632 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-23).
import __main__
import builtins
import gc
import os
import sys
from micropython import const
from struct import pack_into, unpack_from
from time import sleep_ms, ticks_add, ticks_diff, ticks_ms

import cm
from cm.link import Link

_print = print  # as it was before a hook

_IN = const(8)  # as in link.py
_OUT = const(16)
_SIDE = const(1408)

_TICK = const(20)  # ms: output older than this goes out
_TAIL = const(256)  # bytes of an error that are remembered
_RESERVE = 4096 if sys.maxsize >> 32 else 1024  # bytes: enough to compile a short cell
_MOST = const(1 << 20)  # bytes of a value's repr

_EXEC = const(0x10)
_MORE = const(0x11)
_INTERRUPT = const(0x12)
_ANSWER = const(0x13)
_RESULT = const(0x22)

_OK = const(0)
_ERROR = const(1)
_INTERRUPTED = const(2)
_TIMEOUT = const(3)
_RUNNING = const(4)


class Board(Link):
    def __init__(self, config):
        Link.__init__(self, config)
        if hasattr(os, "dupterm"):
            from cm.console import Port
        else:
            from cm.unix import Port
        self.parts = ["run"]
        self.room = 1528  # the longest message that an idle board can take
        self.boot = os.urandom(8)
        self.code = self.rest_of = None  # a cell on its way, and where its next bytes go
        self.patience = 60000  # ms that a cell may run without a link
        self.reserve = None  # let go when memory is full, so that the next cell can make room
        self.stop = _OK  # why the cell shall end
        self.asking = self.dirty = False
        self.deadline = self.value = self.answer = None
        self.port = Port(self)
        self.collect()

    # What a busy board owes its link, done between two steps of the cell; gives the reason to
    # end it, or 0.
    def tick(self, at=_SIDE):
        now = ticks_ms()
        try:
            if self.sock:
                if self.mark > _OUT and ticks_diff(now, self.flushed) >= _TICK:
                    self.flush()
                while self.sock:
                    n = self.recv(at)
                    if not n:
                        break
                    if self.mv[at + 2 : at + 6] == self.job:
                        op = self.buf[at]
                        if op == _INTERRUPT:
                            self.stop = _INTERRUPTED
                        elif op == _ANSWER and self.asking:
                            self.answer = bytes(self.mv[at : at + n])
            elif ticks_diff(now, self.lost) > self.patience:
                self.stop = _INTERRUPTED
                self.last[2] = b"KeyboardInterrupt: link lost"
        except BaseException:
            self.drop()
        if self.deadline is not None and not self.stop and ticks_diff(now, self.deadline) >= 0:
            self.stop = _TIMEOUT
        return self.stop

    # Takes the value of a cell's last line, as __cm__.
    def keep(self, value):
        self.value = value

    # A cell, or the beginning of a long one: all its memory is taken now.
    def begin(self, n):
        ms, size = unpack_from(">II", self.buf, _IN + 6)
        self.awaits = self.buf[_IN + 1] & 1
        self.ms = ms
        self.job[:] = self.mv[_IN + 2 : _IN + 6]
        self.last = [bytes(self.job), _RUNNING, b"", 0]
        self.stop = _OK
        self.code = self.rest_of = None
        try:
            if n - 14 < size:
                from uctypes import addressof, bytearray_at  # compile takes no bytearray

                self.code = bytes(size)
                self.rest_of = memoryview(bytearray_at(addressof(self.code), size))
            else:
                self.code = bytes(self.mv[_IN + 14 : _IN + 14 + size])
        except (MemoryError, OverflowError):
            self.code = None
        if self.rest_of:
            self.more(14, n)
        else:
            self.run()

    # The code goes on; the last piece starts it.
    def more(self, a, n):
        n = min(n - a, len(self.rest_of))
        self.rest_of[:n] = self.mv[_IN + a : _IN + a + n]
        self.rest_of = self.rest_of[n:]
        if not self.rest_of:
            self.run()

    def run(self):
        port = self.port
        names = __main__.__dict__
        code = self.code
        self.code = self.rest_of = self.value = error = None
        self.mark = self.pos = _OUT
        self.failed = False
        self.sent = cut = 0
        self.flushed = ticks_ms()
        self.deadline = ticks_add(self.flushed, self.ms) if self.ms else None
        first = "asyncio" not in sys.modules
        names.pop("__cm__", None)
        builtins.__cm__ = self.keep
        port.begin()
        try:
            if self.stop:
                raise KeyboardInterrupt
            if code is None:
                raise MemoryError
            if hasattr(builtins, "compile"):
                code = compile(code, "<cell>", "exec")
            port.user(True)
            exec(code, names)
            if self.awaits:
                from cm.loop import run

                run(names.pop("__cm_cell__")())
            if self.value is not None:
                self.sent = -1
                _print((self.value,), file=self, end="")
                self.pos -= 2
            port.user(False)
            status = _OK
        except BaseException as e:
            port.user(False)
            status = _ERROR
            error = e
        code = self.value = None
        if self.sent >= _MOST:
            self.pos = self.mark
            status = _OK
            cut = 16
        elif error:
            if isinstance(error, KeyboardInterrupt):
                status = self.stop or _INTERRUPTED
                try:
                    if "asyncio" in sys.modules:
                        from cm.loop import stop

                        stop(first and not self.awaits)
                except Exception:  # as in rest()
                    pass
            elif isinstance(error, MemoryError):
                self.reserve = None
                gc.collect()
            self.pos = self.mark
            self.failed = True
            self.sent = 0
            try:  # it may call methods of the user's
                port.user(True)
                sys.print_exception(error, self)
                port.user(False)
            except BaseException:
                port.user(False)
                self.put(type(error).__name__.encode(), False)
        port.end()
        last = self.last
        last[1] = status
        if error and not last[2]:
            last[2] = bytes(self.mv[max(self.mark, self.pos - _TAIL) : self.pos])
        pack_into(">H", self.buf, _OUT - 2, self.mark - _OUT)
        self.tell(_RESULT, _OUT - 2, self.pos, status | cut)
        error = None
        self.dirty = True
        if not self.reserve:
            self.collect()

    # Waits for the link, or for a time; tasks go on meanwhile.
    def rest(self, ms):
        if "asyncio" in sys.modules:
            try:
                from cm import loop

                if loop.busy():
                    return loop.rest(self.sock, ms)
            except Exception:  # no loop.mpy, or the user's code took asyncio apart
                pass
        if self.sock:
            return self.wait(ms)
        sleep_ms(ms)
        return False

    # Cleans up; takes the reserve back when there is plenty.
    def collect(self):
        gc.collect()
        if not self.reserve and gc.mem_free() > 4 * _RESERVE:
            self.reserve = bytearray(_RESERVE)

    # Does what the server says, until the link ends.
    def serve(self):
        while self.sock:
            n = self.recv()
            if not n:
                left = self.silence - ticks_diff(ticks_ms(), self.heard)
                if left <= 0:
                    raise OSError(1006)
                if not self.rest(min(left, 1000) if self.dirty else left) and self.dirty:
                    self.dirty = False
                    self.collect()
                continue
            op = self.buf[_IN]
            if op == _EXEC:
                self.begin(n)
            elif self.rest_of and self.mv[_IN + 2 : _IN + 6] == self.job:
                if op == _MORE:
                    self.more(6, n)
                elif op == _INTERRUPT:
                    self.stop = _INTERRUPTED
                    self.run()

    # Dials and serves for ever. What dials is needed seldom and big: it goes when it is done.
    def live(self):
        path = list(sys.path)
        while True:
            theirs = sys.path[:]
            sys.path[:] = path  # whatever the user's code did to it
            try:
                from cm.dial import dial
            except Exception:
                self.reserve = None
                sleep_ms(1000)
                continue
            finally:
                sys.path[:] = theirs
                sys.modules.pop("cm.dial", None)
                cm.__dict__.pop("dial", None)
            dial(self)
            dial = None
            self.collect()
            try:
                self.serve()
            except Exception:  # nothing may end the client; the server sees it dial again
                pass
            self.drop()
