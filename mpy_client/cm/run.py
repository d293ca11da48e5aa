# Runs cells and file operations that the server sends, interrupts them, remembers how they ended.
# Boards: all that link.py runs on; loop.py (await) is optional; console.py or unix.py for output.
# Cost: 3,004 bytes of .mpy, 3,600 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-29).
import __main__
import builtins
import gc
import io
import os
import sys
from builtins import print  # before unix.py replaces it
from struct import pack_into, unpack_from
from time import ticks_add, ticks_diff, ticks_ms

from cm import link
from cm.link import buf, close, job, mv, recv, send

_IN = const(8)  # as in link.py
_OUT = const(16)
_OUT_END = const(880)  # where output ends; the bytes after it are for a MAC
_BUSY_IN = const(896)  # where a busy board reads to, after its gathered output

_FLUSH_MS = const(20)  # ms until output is sent
_TRACE_BYTES = const(256)  # bytes that are kept of the end of a long traceback
_MAX_VALUE = const(1 << 20)  # bytes of a value's repr
_SPARE_WORDS = const(384)  # words: compiling a short cell takes 288

_EXEC = const(0x10)
_MORE = const(0x11)
_INTERRUPT = const(0x12)
_ANSWER = const(0x13)
_RESET = const(0x14)
_REKEY = const(0x15)
_AGAIN = const(2)  # flag of EXEC and FILE: it was sent before
_FILE = const(0x16)
_OUTPUT = const(0x20)
_VALUE = const(0x21)
_RESULT = const(0x22)
_FACTS = const(0x28)

_OK = const(0)
_ERROR = const(1)
_INTERRUPTED = const(2)
_TIMEOUT = const(3)
_RUNNING = const(4)

boot = os.urandom(8)
console = None  # the module for the console: console.py or unix.py
limit = 60000  # ms that a cell may run without a link
# Reserved memory, freed when the next cell needs it; without asyncio held only while a cell runs.
spare = []
status = None  # how the last job ended
trace = b""  # the end of its traceback
dropped = 0  # bytes of its output that were lost with a link
stop = 0  # why the cell must end
kind = deadline = 0  # kind: 1 a cell with await, _FILE file operations, else 0
code = left = None  # the code of a cell, and a view of its missing end
value = answer = None
sent = 0  # ticks when output was last sent
count = 0  # bytes of the value so far; -1 before its first; None: the text is an error
# buf[_OUT:mark] is output to be sent, buf[mark:end] the text (value or error) that follows it.
mark = end = _OUT


# Serves the link between two steps of a cell. Returns the reason to end the cell, or 0. For code
# that waits for a message (read to _IN) its length is in `answer`.
def poll(at):
    global answer, stop, trace
    now = ticks_ms()
    try:
        if link.socket:
            if mark > _OUT and ticks_diff(now, sent) >= _FLUSH_MS:
                flush()
            while link.socket:
                n = recv(at)
                if not n:
                    break
                if mv[at + 2 : at + 6] == job:
                    if buf[at] == _INTERRUPT:
                        stop = _INTERRUPTED
                    elif at == _IN:
                        answer = n
                        break
        elif ticks_diff(now, link.lost) > limit:
            stop = _INTERRUPTED
            trace = b"KeyboardInterrupt: link lost"
    except BaseException:
        close()
    if deadline and not stop and ticks_diff(now, deadline) >= 0:
        stop = _TIMEOUT
    return stop


# Appends b to the buffer: output (`out`) before the text, text at the end.
def append(b, out):
    global end, dropped, mark
    n = len(b)
    if out and not link.socket:
        dropped += n
        return
    i = 0
    while i < n:
        if end >= _OUT_END:
            spill()
        k = min(n - i, _OUT_END - end)
        c = b if k == n else memoryview(b)[i : i + k]
        i += k
        if out:
            if mark != end:
                mv[mark + k : end + k] = mv[mark:end]
            mv[mark : mark + k] = c
            mark += k
        else:
            mv[end : end + k] = c
        end += k


# Sends the gathered output; the text moves to its place.
def flush():
    global end, dropped, mark, sent
    sent = ticks_ms()
    n = mark - _OUT
    if n:
        send(_OUTPUT, 0, _OUT, mark)
        if not link.socket:
            dropped += n
        if end > mark:
            mv[_OUT : end - n] = mv[mark:end]
        mark = _OUT
        end -= n


# Makes room in a full buffer. A value is sent in pieces, except for two bytes that may be its end;
# an error loses its middle.
def spill():
    global count, end
    if mark > _OUT:
        flush()
        return
    n = 2
    start = _OUT
    if count is None:
        n = _TRACE_BYTES
        start = _OUT + 505
        mv[_OUT + 500 : start] = b"\n...\n"
    else:
        last = end - 2
        count += last - _OUT
        if count > _MAX_VALUE:
            last -= count - _MAX_VALUE
        send(_VALUE, 0, _OUT, last)
        if count >= _MAX_VALUE:
            raise ValueError
    mv[start : start + n] = mv[end - n : end]
    end = start + n


# The stream that a value and a traceback are printed to. A value is printed in a tuple, whose "("
# is the first piece.
class Text(io.IOBase):
    def write(self, b):
        global count
        console.guard(True)
        try:
            if count == -1:
                count = 0
            else:
                append(b, False)
        finally:
            interrupt = console.guard(False)
        if interrupt:
            raise KeyboardInterrupt
        return len(b)


text = Text()


# Keeps the value of a cell's last line; cells call it as __cm__.
def keep(v):
    global value
    value = v


# The input() of cells.
def input(prompt=""):
    from cm.ask import ask

    return ask(console, prompt)


# Handles messages until the link ends. When there is nothing to do, it reports changed facts.
def serve():
    global left, stop
    left = None
    dirty = False
    while link.socket:
        n = recv(_IN)
        if not n:
            n = link.timeout - ticks_diff(ticks_ms(), link.heard)
            if n <= 0:
                return
            if link.idle(min(n, 1000) if dirty else n):
                dirty = True  # also after a ping of the server
            elif dirty:
                dirty = False
                link.drop("files")
                gc.collect()
                pack_into(">Ib", buf, _OUT, gc.mem_free(), link.rssi())
                send(_FACTS, 0, _OUT, _OUT + 5)
            continue
        dirty = True
        op = buf[_IN]
        if op in (_EXEC, _FILE):
            start(n)
        elif op == _RESET:
            try:
                os.stat("/app.py")
                open("/cm.skip", "w").close()  # app.py is skipped once, even if it is new
            except OSError:
                pass
            link.send_frame(0x88, _IN, _IN)  # a close frame without a code
            close()
            console.reset()
        elif op == _REKEY:
            from cm.identity import rekey

            rekey(link, bytes(mv[_IN + 6 : n + _IN]))
            link.drop("identity")
        elif left and mv[_IN + 2 : _IN + 6] == job:
            if op == _MORE:
                extend(6, n)
            elif op == _INTERRUPT:
                stop = _INTERRUPTED
                run()
        elif op == _INTERRUPT and link.task:
            from cm import loop

            loop.core.cur_task = None  # otherwise asyncio may assume that the task cancels itself
            link.task.cancel()


# Handles EXEC and FILE: a cell, or the first part of a long one, for which all memory is allocated.
def start(n):
    global kind, code, deadline, dropped, left, status, stop, trace
    if mv[_IN + 2 : _IN + 6] == job:  # received before: it must not run twice
        if buf[_IN + 1] & _AGAIN:
            return
        raise EOFError
    deadline, size = unpack_from(">II", buf, _IN + 6)
    kind = _FILE if buf[_IN] == _FILE else buf[_IN + 1] & 1
    job[:] = mv[_IN + 2 : _IN + 6]
    status = _RUNNING
    trace = b""
    stop = dropped = 0
    code = left = None
    try:
        if n - 14 < size:
            from uctypes import addressof, bytearray_at  # compile() accepts no bytearray

            code = bytes(size)
            left = memoryview(bytearray_at(addressof(code), size))
        else:
            code = bytes(mv[_IN + 14 : _IN + 14 + size])
    except (MemoryError, OverflowError):
        code = None
    if left:
        extend(14, n)
    else:
        run()


# Appends to the code; the last piece starts the cell.
def extend(at, n):
    global left
    n = min(n - at, len(left))
    left[:n] = mv[_IN + at : _IN + at + n]
    left = left[n:]
    if not left:
        run()


def run():
    global code, count, deadline, end, mark, left, spare, status, sent, trace, value
    names = __main__.__dict__
    source = code
    code = left = value = error = None
    mark = end = _OUT
    count = truncated = 0
    sent = ticks_ms()
    if deadline:
        deadline = ticks_add(sent, min(deadline, 1 << 28)) | 1
    first = "asyncio" not in sys.modules
    names.pop("__cm__", None)
    builtins.__cm__ = keep
    builtins.input = input
    console.start()
    try:
        if stop:
            raise KeyboardInterrupt
        if source is None:
            raise MemoryError
        if kind == _FILE:
            from cm.files import run_ops

            value = run_ops(source)
        else:
            link.drop("files")
            source = compile(source, "<cell>", "exec")
            try:
                spare = spare or [0] * _SPARE_WORDS
            except MemoryError:
                pass
            console.user(True)
            exec(source, names)
        if kind == 1:
            from cm import loop

            loop.run(names.pop("__cm_cell__")())
        if value is not None:
            count = -1
            print((value,), file=text, end="")
            end -= 2
        console.user(False)
        state = _OK
    except BaseException as e:
        console.user(False)
        state = _ERROR
        error = e
    source = value = None
    if "asyncio" not in sys.modules or isinstance(error, MemoryError):
        spare.clear()  # with asyncio, tasks may still run, so it is kept
    if count >= _MAX_VALUE:
        end = mark
        state = _OK
        truncated = 16
    elif error:
        if isinstance(error, KeyboardInterrupt):
            state = stop or _INTERRUPTED
            try:
                if "asyncio" in sys.modules:
                    from cm import loop

                    loop.stop(first and not kind)
            except Exception:  # as in link.idle
                pass
        end = mark
        count = None
        try:  # it may call the user's methods
            console.user(True)
            sys.print_exception(error, text)
            console.user(False)
        except BaseException:
            console.user(False)
            append(type(error).__name__.encode(), False)
    console.end()
    status = state
    if error and not trace:
        trace = bytes(mv[max(mark, end - _TRACE_BYTES) : end])
    pack_into(">H", buf, _OUT - 2, mark - _OUT)
    send(_RESULT, state | truncated, _OUT - 2, end)
    mark = end = _OUT
