# Cells: runs what the server sends, ends it when asked to, remembers how the last one ended.
# Boards: all that link.py runs on; loop.py (await) is optional, console.py or unix.py captures.
# Cost: 3,016 bytes of .mpy, 3,600 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).
import __main__
import builtins
import gc
import io
import os
import sys
from builtins import print  # as it was before a hook
from struct import pack_into, unpack_from
from time import ticks_add, ticks_diff, ticks_ms

from cm import link
from cm.link import buf, close, job, mv, recv, tell

_IN = const(8)  # as in link.py
_OUT = const(16)
_END = const(880)  # where output ends; behind it a tag has room
_SIDE = const(896)  # where a busy board reads, behind the output that it gathers

_TICK = const(20)  # ms: output older than this goes out
_TAIL = const(256)  # bytes of an error that are kept: of its end, when its middle is cut out
_MOST = const(1 << 20)  # bytes of a value's repr
_SPARE = const(384)  # words: 288 are enough to compile a short cell

_EXEC = const(0x10)
_MORE = const(0x11)
_INTERRUPT = const(0x12)
_ANSWER = const(0x13)
_RESET = const(0x14)
_REKEY = const(0x15)
_AGAIN = const(2)  # of EXEC and FILE: it was sent before
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
port = None  # the console: console.py or unix.py
limit = 60000  # ms that a cell may run without a link
spare = []  # memory kept from what the user runs: the next cell, which may free some, needs it.
# A board without asyncio holds it only while a cell runs.
status = None  # how the last job ended
trace = b""  # the end of its error
lost = 0  # bytes of its output that were lost with a link
stop = 0  # why the cell shall end
awaits = deadline = 0  # awaits: 1, or _FILE where it is no cell but acts on files
code = rest = None  # a cell on its way, and where its next bytes go
value = answer = None
ticks = 0  # when output was sent last
count = 0  # bytes of the value that have left; -1 before its first, None: the text is an error
# buf[_OUT:mark] is output that was not sent yet, buf[mark:end] the text (value or error) after it.
mark = end = _OUT


# What a busy board owes its link, done between two steps of the cell; gives the reason to
# end it, or 0. Who waits for a message (at _IN) finds its length in answer.
def tick(at):
    global answer, stop, trace
    now = ticks_ms()
    try:
        if link.socket:
            if mark > _OUT and ticks_diff(now, ticks) >= _TICK:
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


# Gathers b: output goes before the text that is there, text behind it.
def put(b, out):
    global end, lost, mark
    n = len(b)
    if out and not link.socket:
        lost += n
        return
    i = 0
    while i < n:
        if end >= _END:
            full()
        k = min(n - i, _END - end)
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


# Sends the gathered output; text moves to its place.
def flush():
    global end, lost, mark, ticks
    ticks = ticks_ms()
    n = mark - _OUT
    if n:
        tell(_OUTPUT, 0, _OUT, mark)
        if not link.socket:
            lost += n
        if end > mark:
            mv[_OUT : end - n] = mv[mark:end]
        mark = _OUT
        end -= n


# Makes room. A value goes out in pieces, but for the two bytes that may be its end;
# an error loses its middle.
def full():
    global count, end
    if mark > _OUT:
        flush()
        return
    n = 2
    start = _OUT
    if count is None:
        n = _TAIL
        start = _OUT + 505
        mv[_OUT + 500 : start] = b"\n...\n"
    else:
        last = end - 2
        count += last - _OUT
        if count > _MOST:
            last -= count - _MOST
        tell(_VALUE, 0, _OUT, last)
        if count >= _MOST:
            raise ValueError
    mv[start : start + n] = mv[end - n : end]
    end = start + n


# The stream that a value and a traceback are printed to. The first piece of a value is the "("
# of its tuple.
class Text(io.IOBase):
    def write(self, b):
        global count
        port.own(True)
        try:
            if count == -1:
                count = 0
            else:
                put(b, False)
        finally:
            fire = port.own(False)
        if fire:
            raise KeyboardInterrupt
        return len(b)


text = Text()


# Takes the value of a cell's last line, as __cm__.
def keep(v):
    global value
    value = v


# What cells have as input().
def input(prompt=""):
    from cm.ask import ask

    return ask(port, prompt)


# Does what the server says, until the link ends; when there is nothing to do, it tells what has
# changed of its facts.
def serve():
    global rest, stop
    rest = None
    dirty = False
    while link.socket:
        n = recv(_IN)
        if not n:
            n = link.timeout - ticks_diff(ticks_ms(), link.heard)
            if n <= 0:
                return
            if link.idle(min(n, 1000) if dirty else n):
                dirty = True  # if only by the server's beat
            elif dirty:
                dirty = False
                link.drop("files")
                gc.collect()
                pack_into(">Ib", buf, _OUT, gc.mem_free(), link.rssi())
                tell(_FACTS, 0, _OUT, _OUT + 5)
            continue
        dirty = True
        op = buf[_IN]
        if op in (_EXEC, _FILE):
            begin(n)
        elif op == _RESET:
            try:
                os.stat("/app.py")
                open("/cm.skip", "w").close()  # it stays out this once, also where it is new
            except OSError:
                pass
            link.frame(0x88, _IN, _IN)  # a close without a code
            close()
            port.reset()
        elif op == _REKEY:
            from cm.identity import rekey

            rekey(link, bytes(mv[_IN + 6 : n + _IN]))
            link.drop("identity")
        elif rest and mv[_IN + 2 : _IN + 6] == job:
            if op == _MORE:
                more(6, n)
            elif op == _INTERRUPT:
                stop = _INTERRUPTED
                run()
        elif op == _INTERRUPT and link.task:
            from cm import loop

            loop.core.cur_task = None  # else asyncio may believe that it cancels itself
            link.task.cancel()


# A cell, or the beginning of a long one: all its memory is taken now.
def begin(n):
    global awaits, code, deadline, lost, rest, status, stop, trace
    if mv[_IN + 2 : _IN + 6] == job:  # it came before: never twice
        if buf[_IN + 1] & _AGAIN:
            return
        raise EOFError
    deadline, size = unpack_from(">II", buf, _IN + 6)
    awaits = _FILE if buf[_IN] == _FILE else buf[_IN + 1] & 1
    job[:] = mv[_IN + 2 : _IN + 6]
    status = _RUNNING
    trace = b""
    stop = lost = 0
    code = rest = None
    try:
        if n - 14 < size:
            from uctypes import addressof, bytearray_at  # compile takes no bytearray

            code = bytes(size)
            rest = memoryview(bytearray_at(addressof(code), size))
        else:
            code = bytes(mv[_IN + 14 : _IN + 14 + size])
    except (MemoryError, OverflowError):
        code = None
    if rest:
        more(14, n)
    else:
        run()


# The code goes on; the last piece starts it.
def more(at, n):
    global rest
    n = min(n - at, len(rest))
    rest[:n] = mv[_IN + at : _IN + at + n]
    rest = rest[n:]
    if not rest:
        run()


def run():
    global code, count, deadline, end, mark, rest, spare, status, ticks, trace, value
    names = __main__.__dict__
    source = code
    code = rest = value = error = None
    mark = end = _OUT
    count = cut = 0
    ticks = ticks_ms()
    if deadline:
        deadline = ticks_add(ticks, min(deadline, 1 << 28)) | 1
    first = "asyncio" not in sys.modules
    names.pop("__cm__", None)
    builtins.__cm__ = keep
    builtins.input = input
    port.begin()
    try:
        if stop:
            raise KeyboardInterrupt
        if source is None:
            raise MemoryError
        if awaits == _FILE:
            from cm.files import do

            value = do(source)
        else:
            link.drop("files")
            source = compile(source, "<cell>", "exec")
            try:
                spare = spare or [0] * _SPARE
            except MemoryError:
                pass
            port.user(True)
            exec(source, names)
        if awaits == 1:
            from cm import loop

            loop.run(names.pop("__cm_cell__")())
        if value is not None:
            count = -1
            print((value,), file=text, end="")
            end -= 2
        port.user(False)
        state = _OK
    except BaseException as e:
        port.user(False)
        state = _ERROR
        error = e
    source = value = None
    if "asyncio" not in sys.modules or isinstance(error, MemoryError):
        spare.clear()  # else tasks may go on: it stays
    if count >= _MOST:
        end = mark
        state = _OK
        cut = 16
    elif error:
        if isinstance(error, KeyboardInterrupt):
            state = stop or _INTERRUPTED
            try:
                if "asyncio" in sys.modules:
                    from cm import loop

                    loop.stop(first and not awaits)
            except Exception:  # as in idle()
                pass
        end = mark
        count = None
        try:  # it may call methods of the user's
            port.user(True)
            sys.print_exception(error, text)
            port.user(False)
        except BaseException:
            port.user(False)
            put(type(error).__name__.encode(), False)
    port.end()
    status = state
    if error and not trace:
        trace = bytes(mv[max(mark, end - _TAIL) : end])
    pack_into(">H", buf, _OUT - 2, mark - _OUT)
    tell(_RESULT, state | cut, _OUT - 2, end)
    mark = end = _OUT
