# The unix port's console: hooks in print and sys, a mailbox shared with interrupt_thread.py.
# Boards: virtual ones; this port has no os.dupterm.
# Cost: 1,554 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-23).
import builtins
import io
import sys
from builtins import print
from struct import pack_into
from time import ticks_diff, ticks_ms

from cm import link, run

# The mailbox, byte by byte; the same table is in cloudmanager/virtual/interrupt_thread.py.
_USER_CODE_RUNS = const(0)  # 1 while code of the user's runs: only then the watcher may shoot
_CELL_RUNS = const(1)  # 1 from a cell's start to its end
_INTERRUPT_STATE = const(2)  # 1 interrupt now, 2 in a while, 3 interrupted, 4 end the process
_INTERRUPTING = const(3)  # the watcher is about to shoot: wait until it has
_OUTPUT_PENDING = const(4)  # output is gathered that nobody will send but the watcher's call
_CALLBACK_SCHEDULED = const(5)  # note is on its way
_ASLEEP = const(6)  # the watcher sleeps: a byte through the pipe wakes it
_AGAIN = const(7)  # note came while our own code ran
_CALLBACK_ADDRESS = const(8)  # 8 bytes: the address of note
_DEADLINE = const(16)  # 8 bytes: ms of the monotonic clock, or 0
_LINK_FD = const(24)  # 4 bytes: the link's socket, or -1
_TICK = const(20)  # ms: output older than this goes out
_OUT = const(16)  # as in run.py
_SIDE = const(896)
_RESTART = const(77)

box = None  # set by virtual_boot.py, with the pipe
pipe = None
calls = []


# Our own code begins: what is pending comes out at the jump, before anything is half done. Or it
# ends: says whether the caller shall raise the interrupt, for code that prints without end is
# seldom met outside of ours.
def own(on):
    if on:
        box[_USER_CODE_RUNS] = 0
        try:
            while box[_INTERRUPTING]:
                pass
        except KeyboardInterrupt:
            box[_USER_CODE_RUNS] = 1
            raise
    else:
        return back(True)


def back(may):
    if box[_AGAIN]:
        look()
    if not link.socket:
        pack_into("<i", box, _LINK_FD, -1)
    box[_OUTPUT_PENDING] = run.mark > _OUT
    fire = may and box[_INTERRUPT_STATE] == 1
    if fire:
        box[_INTERRUPT_STATE] = 3
    box[_USER_CODE_RUNS] = 1
    return fire


# Has a function called until it returns something true: by look(), as often as the busy board has
# a message, and between cells by a task. It takes the place of ticker.py, for the user's program.
def add(call):
    from cm.loop import core

    calls.append(call)
    core.create_task(_calls(core))


async def _calls(core):
    while calls:
        _call()
        await core.sleep_ms(1000)


def _call():
    try:
        for call in calls:
            if call():
                calls.remove(call)
    except Exception:  # as in ticker.py
        pass


# What the link is owed, as soon as nothing of ours is half done.
def look():
    box[_AGAIN] = 0
    _call()
    if run.tick(_SIDE) and not box[_INTERRUPT_STATE]:
        box[_INTERRUPT_STATE] = 1
    pack_into("<q", box, _DEADLINE, run.deadline)


# A scheduled call, on the main thread, between two steps of the user's code. No jump may
# follow back(): an interrupt that comes out in here is lost.
def note(_):
    if not box[_USER_CODE_RUNS]:
        box[_AGAIN] = 1
        box[_CALLBACK_SCHEDULED] = 0
        return
    try:
        own(True)
    except KeyboardInterrupt:
        box[_USER_CODE_RUNS] = 0
        box[_INTERRUPT_STATE] = 0  # look sets it again
    look()
    box[_CALLBACK_SCHEDULED] = 0
    back(False)


# The stream that a cell writes to.
class Out(io.IOBase):
    def write(self, b):
        if not box[_USER_CODE_RUNS]:  # a task between cells
            return sys.stdout.write(b)
        if isinstance(b, str):
            b = b.encode()
        try:
            box[_USER_CODE_RUNS] = 0
            while box[
                _INTERRUPTING
            ]:  # what is pending comes out here, before anything is half done
                pass
            run.put(b, True)
            if b and b[-1] == 10 and ticks_diff(ticks_ms(), run.ticks) >= _TICK:
                run.flush()
            elif box[_ASLEEP]:
                pipe.write(b"w")
        finally:
            fire = back(True)
        if fire:
            raise KeyboardInterrupt
        return len(b)

    def flush(self):  # what is written goes out by itself
        pass


out = Out()
Out.buffer = out


# What `import sys` gives to cells, since this port's stdout cannot be caught: it writes to the
# link; all else is the real one's.
class Sys:
    stdout = stderr = out

    def __getattr__(self, name):
        return getattr(sys, name)

    def __setattr__(self, name, value):
        setattr(sys, name, value)

    def __dir__(self):
        return dir(sys)

    def print_exception(self, error, file=out):
        sys.print_exception(error, file)


theirs = Sys()


def hook(*args, **kw):
    if kw:
        kw["file"] = kw.get("file") or out
        print(*args, **kw)
    else:
        print(*args, file=out)


# input() begins or ends.
def ask(on):
    if on:
        if not box[_USER_CODE_RUNS]:
            raise EOFError
        own(True)
    else:
        if run.stop:
            box[_INTERRUPT_STATE] = 3
        back(False)


# A cell begins.
def begin():
    builtins.print = hook
    sys.modules["sys"] = theirs
    box[_INTERRUPT_STATE] = box[_OUTPUT_PENDING] = box[_AGAIN] = 0
    pack_into("<q", box, _DEADLINE, run.deadline)
    pack_into("<i", box, _LINK_FD, link.socket.fileno() if link.socket else -1)
    box[_CELL_RUNS] = 1
    if box[_ASLEEP]:
        pipe.write(b"w")


# Code of the user's begins or ends; at its end late interrupts are caught.
def user(on):
    if on:
        box[_USER_CODE_RUNS] = 1
        return
    while True:
        try:
            box[_USER_CODE_RUNS] = 0
            while box[_INTERRUPTING]:
                pass
            return
        except KeyboardInterrupt:
            pass


# A cell has ended.
def end():
    box[_CELL_RUNS] = 0


# The client ends.
def leave():
    pass


# Restarts the interpreter: the supervisor forks a board anew when it ends with this status.
def reset():
    raise SystemExit(_RESTART)


# What machine.reset() is to a chip: the watcher ends the process, whatever the user's code does.
def hard_reset():
    box[_INTERRUPT_STATE] = 4
