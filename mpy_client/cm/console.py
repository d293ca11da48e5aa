# The port layer of real boards: the console (os.dupterm), the client's one timer, resets, sleep.
# Boards: those with os.dupterm and machine.Timer (ESP8266, ESP32 family, RP2 W).
# Cost: 2,049 bytes of .mpy, 2,464 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.firmware import get_ident, io, machine, micropython, os, ticks_diff, ticks_ms

stack_use = micropython.stack_use

# Numbers: written by `python -m tests.board.client_numbers`.

_PERIOD_MS = const(50)  # ms between polls of the link while user code runs
_IDLE_MS = const(1000)  # ms between two ticks while none runs
_REPEAT_MS = const(200)  # ms, at least, until code that caught its interrupt gets the next
_FLUSH_MS = const(20)  # ms until output is sent
_SEND_BYTES = const(2560)  # of C stack that sending and receiving need, with TLS
_CALL_BYTES = const(1024)  # of it that a call of readinto needs

in_user = False  # user code runs: only then an interrupt may be raised
busy = False  # client code runs: it must not be interrupted
missed = False  # readinto was called while client code ran
due = False  # an interrupt was raised in client code and must be repeated
other = False  # another thread changes the buffer: the client waits until it is False
removed = False  # the stream was removed while user code ran
asked = False  # MicroPython has called readinto since the last tick
ours = False  # byte 3 came from here
next_at = 0  # ticks of the next interrupt; 0: at once
keyboard = None  # the KeyboardInterrupt that byte 3 raises: one object for all of them
fed = True  # the client has run since the watchdog looked
main = get_ident()  # the thread of the client, and of cells
dogs = []  # the watchdog, if watchdog.py has armed one: a hard timer, or the part dog.py

# The client shares one timer. Timer(-1) is a virtual one, except on ESP32: up to MicroPython 1.24
# it is the highest hardware timer there, from 1.25 to 1.28 a ValueError; then the highest timer of
# the chip is used (ports/esp32/machine_timer.c). All Timer(n) of a hardware timer are one object. A
# global refers to it, since RP2 stops a timer that is collected.
for n in range(4, -1, -1):  # 4 stands for -1; a tuple of the numbers would stay in memory
    try:
        timer = machine.Timer(n if n < 4 else -1)
        break
    except ValueError:
        pass
del n


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
# interrupt that this causes is raised at the next jump, which must be in the user's code.
def notify(_):
    if stack_use() > state.deepest + (_SEND_BYTES - _CALL_BYTES):
        return None
    return os.dupterm_notify(None)


# Sets an option of the link's socket: lwIP's callback for each received message.
def set_options(sock):
    try:
        sock.setsockopt(1, 20, notify)
    except (OSError, ValueError, TypeError):
        pass


# The timer's callback. It attaches the stream again if MicroPython or the user's code has removed
# it. It is late, or skipped, while native code runs. An interrupt that was pending before is raised
# in here, and kept for the next tick.
def tick(_):
    global asked, due, fed, removed
    fed = True
    try:
        link.run_calls()
        if not (in_user or dogs or state.calls):
            timer.deinit()
        if not asked and os.dupterm(stream) is not stream:
            removed = True
        asked = False
        return notify(None)
    except KeyboardInterrupt:
        due = True
    except Exception:
        pass


# The callback of a watchdog that is a hard timer. It runs in interrupt context, where nothing may
# be allocated.
def check_fed(_):
    global fed
    if not fed:
        machine.reset()
    fed = False


# Sets the timer for the time between cells. Cells may follow one another faster than it ticks, so
# this call counts as a tick.
def idle():
    tick(None)  # it stops the timer if nothing needs it
    if dogs or state.calls:
        timer.init(period=_IDLE_MS, callback=tick)


def append(b, nested):
    log = state.log
    if not (log and log.take(b, nested)) and in_user and not nested and not state.tasks:
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
        global due, busy, missed, other
        nested = busy
        try:
            # Another thread, on RP2 at the same time, on a stack of 4 KB: the client sends for it.
            # `other` and `busy` keep both from changing the buffer at once.
            if get_ident() != main:
                other = True
                if in_user and not busy:
                    run.keep_output(b)
                else:
                    state.output_lost = True
                other = False
                return len(b)
            busy = True
            while other:
                pass
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
            other = False
            return len(b)

    def readinto(self, b):
        global ours, asked, due, busy, missed, next_at
        asked = True
        nested = busy
        busy = True
        try:
            while other:
                pass
            n = None
            if nested or get_ident() != main:
                missed = True
            elif in_user:
                deep = stack_use() > state.deepest
                reason = run.check_deadline() if deep else run.check()
                now = ticks_ms()
                if due or (reason and (not next_at or ticks_diff(now, next_at) >= 0)):
                    due = False
                    next_at = (now + _REPEAT_MS + (now & 127)) | 1  # irregular: no loop is in step
                    micropython.kbd_intr(3)  # in case the user's code changed it
                    ours = True
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
    global busy, next_at
    if on and (busy or not in_user or get_ident() != main):
        raise EOFError
    busy = on
    next_at = ticks_ms() + _REPEAT_MS | 1


# Attaches the console, for as long as the client runs, and learns which object byte 3 raises.
def start():
    global keyboard, saved, in_user, due, ours
    saved = os.dupterm(stream)
    micropython.kbd_intr(3)
    try:
        due = in_user = True
        os.dupterm_notify(None)
        for _ in range(99):
            pass
    except KeyboardInterrupt as e:
        keyboard = e
    in_user = ours = False


# Returns whether an exception is Ctrl-C on the cable.
def is_cable(error):
    return error is keyboard and not ours and not state.stop


# Called before user code runs.
def attach():
    global ours, due, busy, missed, next_at, removed
    micropython.kbd_intr(3)
    busy = due = missed = removed = ours = False
    next_at = 0
    os.dupterm(stream)
    timer.init(period=_PERIOD_MS, callback=tick)


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


# Called after user code. Returns whether the stream was removed, so that output was lost.
def detach():
    idle()
    return removed or os.dupterm(stream) is not stream


# Called when the client ends and the REPL begins. ESP8266 does not stop its timers at the soft
# reset that may follow, although it frees their memory (ports/esp8266/modmachine.c).
def close():
    timer.deinit()
    os.dupterm(saved)
    while dogs:  # in the REPL nobody feeds it
        dogs.pop().deinit()


# Restarts the interpreter.
def reset():
    state.leaving = True
    close()
    machine.soft_reset()


hard_reset = machine.reset
