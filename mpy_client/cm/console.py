# The console of real boards, by os.dupterm, and the one machine.Timer that the client uses.
# Boards: those with os.dupterm and machine.Timer (ESP8266, ESP32 family, RP2 W).
# Cost: 1,019 bytes of .mpy, 1,344 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).
import io
import os
from machine import Timer
from micropython import kbd_intr
from time import ticks_diff, ticks_ms

from cm import run

_PERIOD = const(50)  # ms between looks at the link while a cell runs
_AGAIN = const(250)  # ms until a cell that swallowed its interrupt gets the next
_TICK = const(20)  # ms: output older than this goes out
_SIDE = const(896)  # as in run.py

users = False  # code of the user's runs: only then byte 3 may go out
mine = False  # our own code runs: nothing may come between
missed = False  # readinto was called while our own code ran
due = False  # an interrupt was caught in here
shot = 0

# All of the client shares one timer. Timer(-1) is a virtual one, except on ESP32: up to MicroPython
# 1.24 it is the highest hardware timer there, from 1.25 to 1.28 a ValueError; then the highest that
# the chip has is used (ports/esp32/machine_timer.c). A hardware timer is one object for all who
# name its number. A global refers to it, since RP2 stops a timer that is collected.
for n in range(4, -1, -1):  # 4 stands for -1; a tuple of the numbers would stay in memory
    try:
        timer = Timer(n if n < 4 else -1)
        break
    except ValueError:
        pass
callback = os.dupterm_notify  # what the timer calls while a cell runs; or ticker.tick
# rest() sets the timer when a cell has ended. leave() is called when the client ends and the REPL
# begins: ESP8266 does not stop its timers at the soft reset that may follow, although it frees
# their memory (ports/esp8266/modmachine.c). ticker.py and boot.py put others in their places.
rest = leave = timer.deinit


def take(b, own):
    if users and not own:
        run.put(b, True)
        if b[-1] == 10 and ticks_diff(ticks_ms(), run.ticks) >= _TICK:
            run.flush()


# The stream that os.dupterm has. extmod/os_dupterm.c drops it at the first exception that leaves
# it, KeyboardInterrupt included, and at a readinto of 0: both are caught and told once more.
class Port(io.IOBase):
    # A pending interrupt comes out at a jump, and the end of a try is one: so none stands before
    # the try, and the returns stand in it. A cell that prints without end is nearly always in here,
    # and an interrupt from the timer always comes out in here: so the last thing that a write does
    # is to let MicroPython read byte 3; after the last piece of a print it comes out in the cell.
    def write(self, b):
        global due, mine, missed
        own = mine
        mine = True
        try:
            take(b, own)
            mine = own
            if missed:
                missed = False
                os.dupterm_notify(None)
                return len(b)
            return len(b)
        except KeyboardInterrupt:
            due = True
            try:
                take(b, own)  # it came before the first byte
            except BaseException:
                pass
            mine = own
            os.dupterm_notify(None)
            return len(b)
        except Exception:  # no memory: this output is lost
            mine = own
            return len(b)

    def readinto(self, b):
        global due, mine, missed, shot
        own = mine
        mine = True
        try:
            n = None
            if own:
                missed = True
            elif users:
                stop = run.tick(_SIDE)
                now = ticks_ms()
                if due or (stop and (not shot or ticks_diff(now, shot) >= _AGAIN)):
                    due = False
                    shot = now
                    b[0] = 3
                    n = 1
            mine = own
            return n
        except KeyboardInterrupt:
            due = True
        except Exception:
            pass
        mine = own
        return None


port = Port()


# Our own code begins or ends, where MicroPython does not drop a stream for an exception.
def own(on):
    global mine
    mine = on


# input() begins or ends.
def ask(on):
    global mine, shot
    if on and (mine or not users):
        raise EOFError
    mine = on
    shot = ticks_ms()


# A cell begins.
def begin():
    global before, due, mine, missed, shot
    kbd_intr(3)  # also if the user's code said otherwise
    mine = due = missed = False
    shot = 0
    before = os.dupterm(port)
    timer.init(period=_PERIOD, callback=callback)


# Code of the user's begins or ends; at its end late interrupts are caught.
def user(on):
    global users
    while True:
        try:
            users = on
            if on:  # an interrupt that is pending is raised at any jump
                pass
            return
        except KeyboardInterrupt:
            if on:
                raise


# A cell has ended.
def end():
    rest()
    os.dupterm(before)


# Restarts the interpreter. Where a user's program starts at boot, it is told here to stay out
# this once.
def reset():
    from machine import soft_reset

    timer.deinit()  # see leave
    soft_reset()
