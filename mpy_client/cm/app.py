# The user's program, app.py: runs beside cells if it has `async def main()`, else instead of them.
# Boards: all; loaded if there is an app.py, and kept while it is needed.
# Cost: 1,799 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# /cm.boot holds the number of bad starts in a row, of which version of app.py, the last traceback.
import io
import os
import sys
from time import ticks_diff, ticks_ms

from cm import link, run, state

# Numbers: written by `python -m tests.board.client_numbers`.
_OUT = const(16)
_RESET = const(0x14)
_PROGRAM = const(0x27)
_STATUS_RUNNING = const(4)

_MAX_BAD = const(3)  # bad starts in a row until app.py is no longer started
_GOOD_MS = const(60000)  # ms: a program that has run for so long has started well
_STATE_CHARS = const(120)  # characters of the state that is reported

version = ""  # size and time of app.py
bad = 0
trace = ""
started = 0
limit = 60000  # ms that it may keep the board busy without a link
_MAX_LIMIT = const(3600000)
_FINE = ("SystemExit", "CancelledError")


def _save():
    with open("/cm.boot", "w") as file:
        file.write("%d %s\n%s" % (bad, version, trace))


# Reports the state of the program, as job 0. flags=1: it keeps the board busy.
def report(flags=0):
    state.program = None
    job = bytes(link.job)
    link.job[:] = b"\0\0\0\0"
    data = state.app_state.encode()
    link.mv[_OUT : _OUT + len(data)] = data
    link.send(_PROGRAM, flags, _OUT, _OUT + len(data))
    if not flags:
        link.job[:] = job


def start():
    global bad, version, trace
    stat = os.stat("/app.py")
    version = "%d.%d" % (stat[6], stat[8])
    try:
        with open("/cm.boot") as file:
            old, at = file.readline().split()
            if at == version:
                bad = int(old)
                trace = file.read(2000)
    except (OSError, ValueError):
        pass
    try:
        os.remove("/cm.skip")
        state.app_state = "app.py was left out this once"
        return
    except OSError:
        pass
    if bad >= _MAX_BAD:
        why = _last("safe mode, without app.py: ")
        state.app_state = why or "safe mode: app.py reset the board"
        return
    state.program = launch


# Counts this start as good: the program has run for a minute, or ended without an error.
def _good():
    global bad
    if bad:
        bad = 0
        _save()


# Called by ticker.py until it returns True: after a minute a running program counts as good.
def _check():
    if ticks_diff(ticks_ms(), started) < _GOOD_MS:
        return False
    if state.app_state == "app.py":
        _good()
    return True


# Returns the last line of its traceback after `lead`; "" if there is none.
def _last(lead):
    line = trace.rstrip().split("\n")[-1]
    return line and (lead + line)[:_STATE_CHARS]


# Handles the end of the program. The state is reported as soon as no cell runs.
def _finish(error):
    global trace
    state.app_state = "app.py ended"
    state.task = None
    if error is None or type(error).__name__ in ("SystemExit", "CancelledError"):
        _good()
    else:
        buf = io.StringIO()
        sys.print_exception(error, buf)
        trace = buf.getvalue()[-2000:]
        if ticks_diff(ticks_ms(), started) >= _GOOD_MS:
            _good()
        _save()
        state.app_state = _last("app.py ended: ")
    if run.status == _STATUS_RUNNING:  # its output is in the buffer
        state.program = report
    else:
        report()


async def _main(coro):
    try:
        await coro
        _finish(None)
    except BaseException as e:
        _finish(e)


# Starts the program when there is a link, or none for a while. A program that keeps the board busy
# is stopped if the link is lost for long, so that the board can reconnect; after each time it may
# run longer.
def launch():
    global bad, limit, started
    if run.left:  # a cell is being received and runs first, in the order that the server knows
        link.wait(10)
        return
    if not started:
        bad += 1
        _save()
    started = state.lost = ticks_ms()
    state.stop = state.deadline = 0
    run.clear()
    state.limit = limit
    state.app_state = "app.py"
    last = bytes(link.job)
    report(1)
    console = state.console
    try:
        from cm import ticker

        ticker.add(_check)
    except ImportError:  # a virtual board has no machine.Timer
        console.add(_check)
    main = error = None
    sys.modules.pop("app", None)
    console.attach()
    try:
        console.set_user_code(True)
        import app

        main = getattr(app, "main", None)
        main = main and main()
        console.set_user_code(False)
    except BaseException as e:
        console.set_user_code(False)
        error = e
    console.detach()
    link.job[:] = last  # for the check for cells that are sent twice
    if state.stop == _RESET:
        run.restart(False)
    run.clear()
    state.limit = 60000
    if hasattr(main, "send") and not error:
        from cm import loop

        state.task = loop.core.create_task(_main(main))
        loop.wait(None, 0)  # a task that has never run would not be cancelled properly
        report()
    elif isinstance(error, KeyboardInterrupt):
        if not state.stop:
            raise error  # Ctrl-C on the serial port: to the REPL
        if not state.socket:
            limit = min(2 * limit, _MAX_LIMIT)
            state.program = launch
        else:
            _finish(None)
    else:
        _finish(error)
