# The user's program, app.py: runs beside cells if it has `async def main()`, else instead of them.
# Boards: all; loaded if there is an app.py, and kept while it is needed.
# Cost: 2,165 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# /cm.boot holds the number of bad starts in a row, of which version of app.py, the last traceback.
from cm import firmware, link, log, run, state
from cm.firmware import io, os, sys, time

ticks_ms = time.ticks_ms
ticks_diff = time.ticks_diff

# Numbers: written by `python -m tests.board.client_numbers`.
_OUT = const(16)
_RESET = const(0x14)
_PROGRAM = const(0x27)

_MAX_BAD = const(3)  # bad starts in a row until app.py is no longer started
_GOOD_MS = const(60000)  # ms: a program that has run for so long has started well
_AT_ONCE = const(5)  # attempts to connect, after which link.idle() starts it
_STATE_CHARS = const(120)  # characters of the state that is reported

version = ""  # size and time of app.py
bad = 0
trace = ""
started = 0
beside = last = None  # of the log and of the link, while the program keeps the board busy
slept = 0  # wake.slept: a start after deep sleep does not count


def _save():
    with open("/cm.boot", "w") as file:
        file.write("%d %s\n%s" % (bad, version, trace))


# Keeps the number of bad starts in a row: RP2 in a register, the others in flash.
def _count(n):
    global bad
    from cm import wake

    bad = n
    if wake.count(version, n) is None:
        _save()
    if slept <= 0:
        link.drop("wake")


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


def start(_):
    global bad, slept, version, trace
    from cm import wake

    wake.load()
    slept = wake.slept
    if slept > 0:
        state.tries = _AT_ONCE
    else:
        link.drop("wake")
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
    n = wake.count(version)
    if n is not None:
        bad = n
    if slept and bad:  # the sleep was a good end
        _count(0)
    try:
        os.remove("/cm.skip")
        state.app_state = "app.py left out until a hard reset"
        return
    except OSError:
        pass
    if bad >= _MAX_BAD:
        why = _last("safe mode, without app.py: ")
        state.app_state = why or "safe mode: app.py reset the board"
        return
    state.program = launch


# Counts this start as good: the program has run for a minute, or ended without an error.
def good():
    if bad:
        _count(0)


# Called by link.run_calls() until it returns True: after a minute a running program counts as good.
def _check():
    if ticks_diff(ticks_ms(), started) < _GOOD_MS:
        return False
    if state.app_state == "app.py":
        good()
    return True


# Returns the last line of its traceback after `lead`; "" if there is none.
def _last(lead):
    line = trace.rstrip().split("\n")[-1]
    return line and (lead + line)[:_STATE_CHARS]


# Handles the end of the program. A board that woke from cm.sleep sleeps again.
def _finish(error):
    global trace
    state.app_state = "app.py ended"
    state.task = None
    if error is None or type(error).__name__ in ("SystemExit", "CancelledError"):
        good()
    else:
        buf = io.StringIO()
        sys.print_exception(error, buf)
        before = trace
        trace = buf.getvalue()[-2000:]
        print(trace)
        if ticks_diff(ticks_ms(), started) >= _GOOD_MS:
            good()
        if trace != before:
            _save()
        state.app_state = _last("app.py ended: ")
    report()
    if slept > 0:
        link.find("sleep")
        sys.modules["cm.sleep"].again()


# The body of the program's task. The client handles its end when no user code runs.
async def _main(coro):
    error = None
    try:
        await coro
    except BaseException as e:
        error = e
    state.program = lambda: _finish(error)


# Gives the board back to the client: the program has ended, or calls cm.sleep.
def leave():
    link.restore()
    state.console.detach()
    log.end(beside)
    link.job[:] = last  # for the check for cells that are sent twice


# Starts the program when there is a link, or none for a while. A program that keeps the board busy
# is stopped if the link is lost for long, so that the board can reconnect, and started again.
def launch():
    global beside, last, started
    if run.left:  # a cell is being received and runs first, in the order that the server knows
        link.wait(10)
        return
    console = state.console
    first = not started
    started = link.lost = ticks_ms()
    if first and not slept:
        _count(bad + 1)
        state.calls.append(_check)
    state.stop = state.deadline = 0
    run.clear()
    state.app_state = "app.py"
    last = bytes(link.job)
    report(1)
    main = error = None
    sys.modules.pop("app", None)
    sys.path[:] = firmware.path
    beside = log.beside
    log.begin()
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
    leave()
    stop = state.stop
    state.stop = 0
    if stop == _RESET:
        run.restart(False, _RESET)
    run.clear()
    if hasattr(main, "send") and not error:
        from cm import loop

        state.task = loop.core.create_task(_main(main))
        report()
        if slept > 0:
            from cm import wake

            wake.hold()
    elif isinstance(error, KeyboardInterrupt) and stop:
        if state.socket:
            _finish(None)
        else:  # it was stopped so that the board can reconnect
            state.program = launch
    elif error is not None and console.is_cable(error):
        raise error
    else:
        _finish(error)
