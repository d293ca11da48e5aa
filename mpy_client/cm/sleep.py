# cm.sleep(seconds): sends what is unsent, does what waits for the board, sleeps.
# Boards: all; loaded at the first use.
# Cost: 2,042 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state, wake
from cm.firmware import binascii, get_ident, struct, sys, time

ticks_diff = time.ticks_diff
ticks_ms = time.ticks_ms

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_WELCOME = const(0x04)
_EXEC = const(0x10)
_MORE = const(0x11)
_RESET = const(0x14)
_FILE = const(0x16)
_SLEEP = const(0x2B)
_SLEEP_REPLY = const(0x19)
_STAY_AWAKE = const(0x01)
_STATUS_RUNNING = const(4)

_MAX_S = const(30 * 86400)
_MAX_EVERY = const(1000)
_ANSWER_MS = const(2000)  # ms that the server has for its answer
_AWAKE_MAX_S = const(15)  # from the start until it sleeps without a server; /cm.json may differ
_RETRY_MS = const(200)  # ms between two attempts to connect
_SPACE_MS = const(20)  # ms between two samples: the server accepts 50 in a second
_FEW = const(40)  # samples that may follow one another without it

interval = 0  # ms of the sleep that begins
expect = None  # dial.py's function
asked = False  # whether SLEEP was sent before WELCOME


# Sleeps for a number of seconds, after the client has sent what it has, and done what waits for the
# board; then the board starts again. In a cell it ends the cell first. In a task it returns what
# `await` waits for.
def sleep(seconds, connect_every=1):
    global interval
    if get_ident() != state.console.main:
        raise RuntimeError("in a thread")
    for value in (seconds, connect_every):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError("cm.sleep takes numbers")
    every = connect_every
    if not (0 < seconds <= seconds * every <= _MAX_S and every <= _MAX_EVERY and every % 1 == 0):
        raise ValueError("cm.sleep: more than 0 s, and at most 30 days until it connects")
    interval = max(int(seconds * 1000), 1)
    wake.every = 1 if wake.rp2 else int(every)  # RP2 could not keep its samples
    log = state.log
    beside = log and log.beside
    is_cell = run.status == _STATUS_RUNNING and not run.left
    if beside is not None and beside is log.always and not state.tasks:  # a busy app.py
        from cm import app

        state.console.set_user_code(False)
        app.leave()
        go()
    state.program = go
    if is_cell and not (beside and beside()):
        raise SystemExit
    if state.tasks:
        state.tasks.own.cancel()
    return _never()


def _never():
    from asyncio import sleep

    while True:
        yield from sleep(3600)


# Sleeps as long as the last time, after a program that has ended without cm.sleep.
def again():
    global interval
    interval = wake.slept
    go()


# Called when no user code runs; it never returns.
def go():
    state.program = None
    app = sys.modules.get("cm.app")
    try:
        if state.stop == _RESET:  # it came while the program was busy
            run.restart(False, _RESET)
        state.stop = state.deadline = 0
        run.clear()
        if app:
            app.good()
        _serve()
    except BaseException as e:
        if state.console.is_cable(e):
            raise
        if state.leaving:  # the exception might end in the program
            state.console.hard_reset()
    link.close()
    wake.sleep(interval)


# Returns whether there is a link; connects if this wake is one at which the board connects.
def _connect():
    global asked, expect
    if not state.socket and wake.slept > 0 and wake.skipped + 1 < wake.every:
        wake.skipped += 1
        return False
    wake.skipped = 0
    limit = wake.setting("awake_max", _AWAKE_MAX_S) * 1000
    brief = wake.slept > 0  # until the server has refused that: it needs the facts
    while not state.socket and wake.awake() < limit:
        try:
            import cm.dial as dial  # not the function of that name, as link.find() returns

            if brief:
                dial.about = _about
                expect = dial._expect
                dial._expect = _expect
            dial.connect()
        except Exception:
            brief = brief and not asked
            link.close()
            asked = False
            time.sleep_ms(_RETRY_MS)
        finally:
            for part in ("dial", "about", "facts"):
                link.drop(part)
    return state.socket


# What a board that woke says in place of about.py: nothing that the server knows. A server that has
# lost it closes the link.
def _about(_, size):
    return {
        "boot": binascii.hexlify(run.boot).decode(),
        "buf": size,
        "wake": state.app_state,
        "last": None,
    }


# Sends everything right behind PROOF, without waiting for WELCOME: a wake with nothing to do needs
# one round trip less. If the server does not accept the board, samples are sent again.
def _expect(op):
    global asked
    if op == _WELCOME:
        _say()
        asked = True
    return expect(op)


# Asks the server, and does what it sends, until nothing waits.
def _serve():
    while _connect():
        try:
            if not _ask():
                return
        except (EOFError, OSError):  # the link is lost
            link.close()


# Returns whether to ask again: the server had something to do.
def _ask():
    global asked
    state.program = None  # a cell may have called cm.sleep, too
    if not asked:
        _say()
    asked = False
    kept = sys.modules.get("cm.kept")
    if state.socket and kept:
        kept.forget(len(kept.items))
    since = ticks_ms()
    wait = _ANSWER_MS
    answered = False
    while state.socket:
        left = wait - ticks_diff(ticks_ms(), since)
        if left <= 0:
            return answered
        n = state.ahead or link.recv(_IN)
        state.ahead = 0
        op = link.buf[_IN]
        if not n:
            link.idle(left)
        elif op != _SLEEP_REPLY:
            state.ahead = n
            run.serve(True)
            if op in (_EXEC, _FILE, _MORE) and run.status != _STATUS_RUNNING:
                return True
        elif not link.buf[_IN + 1] & _STAY_AWAKE:
            return False
        else:
            answered = True
            wait = struct.unpack_from(">I", link.buf, _IN + _HEADER)[0]
            since = ticks_ms()
    return True


# Sends samples, what was printed, and SLEEP.
def _say():
    kept = sys.modules.get("cm.kept")  # loaded if there are samples
    n = kept and kept.send(_FEW)
    while n and kept.send(1, n):
        n += 1
        time.sleep_ms(_SPACE_MS)
    if state.log:
        state.log.flush(0)
    struct.pack_into(">II", link.buf, _OUT, interval * wake.every, wake.awake())
    link.send(_SLEEP, 0, _OUT, _OUT + 8)
