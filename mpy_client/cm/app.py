# The user's program, app.py: beside cells where it has `async def main()`, else in their place.
# Boards: all; imported where there is an app.py, and kept while it is needed.
# Cost: 2,140 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-29).
#
# /cm.boot holds how many starts in a row ended badly, of which app.py, and the last traceback.
import io
import os
import sys
from time import ticks_add, ticks_diff, ticks_ms

from cm import link, run

_tick = run.tick

_OUT = const(16)  # as in run.py
_PROGRAM = const(0x27)
_RESET = const(0x14)
_RUNNING = const(4)
_BAD = const(3)  # bad starts in a row until it is left out
_GOOD = const(60000)  # ms: who ran so long has started well
_SHORT = const(120)  # characters that the fleet is told

stamp = ""  # which app.py
count = 0
text = ""
since = 0
patience = 60000  # ms that it may keep the board busy without a link
_LONGEST = const(3600000)
_GRACE = const(2000)  # ms in which the program may end by itself, where a reset is wanted
resets = 0  # when that is over; 0: no reset is wanted
_FINE = ("SystemExit", "CancelledError")


def _keep():
    with open("/cm.boot", "w") as file:
        file.write("%d %s\n%s" % (count, stamp, text))


# Tells the fleet, as of job 0; with flags 1 the program keeps the board busy.
def say(flags=0):
    link.program = None
    job = bytes(link.job)
    link.job[:] = b"\0\0\0\0"
    data = link.told.encode()
    link.mv[_OUT : _OUT + len(data)] = data
    link.tell(_PROGRAM, flags, _OUT, _OUT + len(data))
    if not flags:
        link.job[:] = job


def begin():
    global count, stamp, text
    stat = os.stat("/app.py")
    stamp = "%d.%d" % (stat[6], stat[8])
    try:
        with open("/cm.boot") as file:
            old, at = file.readline().split()
            if at == stamp:
                count = int(old)
                text = file.read(2000)
    except (OSError, ValueError):
        pass
    try:
        os.remove("/cm.skip")
        link.told = "app.py was left out this once"
        return
    except OSError:
        pass
    if count >= _BAD:
        link.told = _last("safe mode, without app.py: ") or "safe mode: app.py reset the board"
        return
    link.program = go


# It has run for a minute, or ended well.
def _well():
    global count
    if count:
        count = 0
        _keep()


# Called by ticker.py until it says True: a program that still runs then has started well.
def _minute():
    if ticks_diff(ticks_ms(), since) < _GOOD:
        return False
    if link.told == "app.py":
        _well()
    return True


# The last line of its traceback, if there is one.
def _last(lead):
    line = text.rstrip().split("\n")[-1]
    return line and (lead + line)[:_SHORT]


# Looks after the link in the place of run.tick, while the program keeps the board busy: what its
# interrupt does not end, because it catches it, ends by a hard reset.
def tick(at):
    stop = _tick(at)
    if resets and ticks_diff(ticks_ms(), resets) >= 0:
        restart(True)
    return stop


# In the place of link.recv meanwhile: a reset ends the program.
def hear(at):
    global resets
    n = link.recv(at)
    if n and link.buf[at] == _RESET:
        run.stop = _RESET
        resets = run.deadline = ticks_add(ticks_ms(), _GRACE) | 1  # a deadline wakes the console
    return n


# Starts the interpreter anew, without the program this once.
def restart(hard):
    try:
        open("/cm.skip", "w").close()
    except Exception:  # no room
        pass
    try:
        link.frame(0x88, 8, 8)  # a close without a code
    except Exception:
        pass
    if not hard:
        link.close()
        run.port.reset()
    elif hasattr(run.port, "hard_reset"):  # virtual boards
        run.port.hard_reset()
    else:
        import machine

        machine.reset()


# The fleet hears of it as soon as no cell runs.
def _ended(error):
    global text
    link.told = "app.py ended"
    link.task = None
    if error is None or type(error).__name__ in ("SystemExit", "CancelledError"):
        _well()
    else:
        buf = io.StringIO()
        sys.print_exception(error, buf)
        text = buf.getvalue()[-2000:]
        if ticks_diff(ticks_ms(), since) >= _GOOD:
            _well()
        _keep()
        link.told = _last("app.py ended: ")
    if run.status == _RUNNING:  # its output is where the message would be
        link.program = say
    else:
        say()


async def _main(coro):
    try:
        await coro
        _ended(None)
    except BaseException as e:
        _ended(e)


# Starts it, when there is a link or none for a while. A program that keeps the board busy is
# stopped when the link is gone for long, so that the board can dial; each time it may run longer.
def go():
    global count, patience, since
    if run.rest:  # a cell is on its way: first that, so that the server knows what was begun
        link.wait(10)
        return
    if not since:
        count += 1
        _keep()
    since = link.lost = ticks_ms()
    run.stop = run.deadline = 0
    run.mark = run.end = _OUT
    run.limit = patience
    link.told = "app.py"
    last = bytes(link.job)
    say(1)
    port = run.port
    try:
        from cm import ticker

        ticker.add(_minute)
    except ImportError:  # a virtual board has no machine.Timer
        port.add(_minute)
    main = error = None
    sys.modules.pop("app", None)
    port.begin()
    run.tick = tick
    run.recv = hear
    try:
        port.user(True)
        import app

        main = getattr(app, "main", None)
        main = main and main()
        port.user(False)
    except BaseException as e:
        port.user(False)
        error = e
    port.end()
    run.tick = _tick
    run.recv = link.recv
    link.job[:] = last  # it never runs again, whatever is sent twice
    if resets:
        restart(False)
    run.mark = run.end = _OUT
    run.limit = 60000
    if hasattr(main, "send") and not error:
        from cm import loop

        link.task = loop.core.create_task(_main(main))
        loop.rest(None, 0)  # a task that never ran would not notice that it is cancelled
        say()
    elif isinstance(error, KeyboardInterrupt):
        if not run.stop:
            raise error  # Ctrl-C on the cable: to the REPL
        if not link.socket:
            patience = min(2 * patience, _LONGEST)
            link.program = go
        else:
            _ended(None)
    else:
        _ended(error)
