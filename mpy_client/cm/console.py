# The console of real boards (os.dupterm), and the only machine.Timer that the client uses.
# Boards: those with os.dupterm and machine.Timer (ESP8266, ESP32 family, RP2 W).
# Cost: 1,327 bytes of .mpy, 1,680 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
import io
import os
from machine import Timer
from micropython import kbd_intr, stack_use
from time import ticks_diff, ticks_ms

from cm import run, state

# Numbers: written by `python -m tests.board.client_numbers`.
_BUSY_IN = const(896)

_PERIOD_MS = const(50)  # ms between polls of the link while a cell runs
_REPEAT_MS = const(250)  # ms until a cell that caught its interrupt gets the next
_FLUSH_MS = const(20)  # ms until output is sent
_SEND_BYTES = const(2560)  # of C stack that sending and receiving need, with TLS
_CALL_BYTES = const(1024)  # of it that a call of readinto needs

in_user = False  # user code runs: only then an interrupt may be raised
busy = False  # client code runs: it must not be interrupted
missed = False  # readinto was called while client code ran
due = False  # an interrupt was raised in client code and must be repeated
last = 0

# The client shares one timer. Timer(-1) is a virtual one, except on ESP32: up to MicroPython 1.24
# it is the highest hardware timer there, from 1.25 to 1.28 a ValueError; then the highest timer of
# the chip is used (ports/esp32/machine_timer.c). All Timer(n) of a hardware timer are one object. A
# global refers to it, since RP2 stops a timer that is collected.
for n in range(4, -1, -1):  # 4 stands for -1; a tuple of the numbers would stay in memory
    try:
        timer = Timer(n if n < 4 else -1)
        break
    except ValueError:
        pass


# Returns the bytes of C stack in use where MicroPython refuses another call.
def _stack_limit():
    try:
        return _stack_limit()  # noqa: F821 - removed below
    except RuntimeError:
        return stack_use()


state.deepest = _stack_limit() - _SEND_BYTES
del _stack_limit


# Lets MicroPython read the stream, unless the stack is too full even for that: if readinto cannot
# be called, extmod/os_dupterm.c removes the stream, and may leave the scheduler locked. An
# interrupt that this causes is raised at the next jump, which must be in the cell.
def notify(_):
    if stack_use() > state.deepest + (_SEND_BYTES - _CALL_BYTES):
        return None
    return os.dupterm_notify(None)


callback = notify  # called by the timer while a cell runs; ticker.py replaces it
# idle() sets the timer when a cell has ended. close() is called when the client ends and the REPL
# begins: ESP8266 does not stop its timers at the soft reset that may follow, although it frees
# their memory (ports/esp8266/modmachine.c). ticker.py and boot.py replace them.
idle = close = timer.deinit


def append(b, nested):
    if in_user and not nested:
        run.append(b, True)
        if b[-1] == 10 and ticks_diff(ticks_ms(), run.sent) >= _FLUSH_MS:
            run.flush()


# The stream for os.dupterm. extmod/os_dupterm.c removes it at the first exception that it raises,
# KeyboardInterrupt included, and if readinto returns 0: so exceptions are caught here, and
# interrupts repeated.
class Stream(io.IOBase):
    # MicroPython raises a pending interrupt at a jump, and the end of a try block is one: so no
    # jump precedes the try, and the returns are in it. A cell that prints in a loop spends nearly
    # all its time in here, and an interrupt from the timer is always raised in here: so the last
    # step of a write is to let MicroPython read byte 3; after the last piece of a print the
    # interrupt is raised in the cell.
    def write(self, b):
        global due, busy, missed
        nested = busy
        busy = True
        try:
            if stack_use() > state.deepest:
                if in_user and not nested:
                    run.keep_output(b)
                busy = nested
                return len(b)
            append(b, nested)
            busy = nested
            if missed:
                missed = False
                os.dupterm_notify(None)
                return len(b)
            return len(b)
        except KeyboardInterrupt:
            due = True
            try:
                append(b, nested)  # the interrupt preceded the first byte
            except BaseException:
                pass
            busy = nested
            os.dupterm_notify(None)
            return len(b)
        except Exception:  # no memory or no stack
            state.output_lost = True
            busy = nested
            return len(b)

    def readinto(self, b):
        global due, busy, missed, last
        nested = busy
        busy = True
        try:
            n = None
            if nested:
                missed = True
            elif in_user:
                deep = stack_use() > state.deepest
                reason = run.check_deadline() if deep else run.poll(_BUSY_IN)
                now = ticks_ms()
                if due or (reason and (not last or ticks_diff(now, last) >= _REPEAT_MS)):
                    due = False
                    last = now
                    b[0] = 3
                    n = 1
            busy = nested
            return n
        except KeyboardInterrupt:
            due = True
        except Exception:
            pass
        busy = nested
        return None


stream = Stream()


# Marks the start or the end of client code, which must not be interrupted.
def set_guard(on):
    global busy
    busy = on


# Marks the start or the end of input().
def set_input(on):
    global busy, last
    if on and (busy or not in_user):
        raise EOFError
    busy = on
    last = ticks_ms()


# Called before a cell runs.
def attach():
    global saved, due, busy, missed, last
    kbd_intr(3)  # in case the user's code changed it
    busy = due = missed = False
    last = 0
    saved = os.dupterm(stream)
    timer.init(period=_PERIOD_MS, callback=callback)


# Marks the start or the end of user code; at the end it catches late interrupts.
def set_user_code(on):
    global in_user
    while True:
        try:
            in_user = on
            if on:  # a pending interrupt is raised at any jump
                pass
            return
        except KeyboardInterrupt:
            if on:
                raise


# Called after a cell. Returns whether MicroPython has removed the stream, so that output was lost.
def detach():
    idle()
    return os.dupterm(saved) is not stream


# Restarts the interpreter.
def reset():
    from machine import soft_reset

    timer.deinit()  # see close
    soft_reset()


# Resets the chip.
def hard_reset():
    from machine import reset

    reset()
