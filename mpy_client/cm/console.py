# The console of real boards: os.dupterm brings output and byte 3, a soft timer keeps it awake.
# Boards: those with os.dupterm and machine.Timer (ESP8266, ESP32 family, RP2 W).
# Cost: 1,191 bytes of .mpy, 3,280 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-23).
import builtins
import io
import os
from machine import Timer
from micropython import const, kbd_intr
from time import ticks_diff, ticks_ms

_PERIOD = const(50)  # ms between looks at the link while a cell runs
_AGAIN = const(250)  # ms until a cell that swallowed its interrupt gets the next
_TICK = const(20)  # ms: output older than this goes out


# The stream that os.dupterm has. extmod/os_dupterm.c drops it at the first exception that leaves
# it, KeyboardInterrupt included, and at a readinto of 0: both are caught and told once more.
class Port(io.IOBase):
    def __init__(self, board):
        self.board = board
        self.user_runs = False  # code of the user's runs: only then byte 3 may go out
        self.mine = False  # our own code runs: nothing may come between
        self.missed = False  # readinto was called while our own code ran
        self.due = False  # an interrupt was caught in here
        self.shot = 0
        self.timer = Timer(-1)

    def tune(self, sock):
        sock.setsockopt(6, 1, 1)  # TCP_NODELAY
        try:
            sock.setsockopt(1, 20, os.dupterm_notify)  # a message wakes a board that sleeps
        except (OSError, ValueError, TypeError):
            pass

    def _take(self, b, own):
        if self.user_runs and not own:
            board = self.board
            board.put(b, True)
            if b[-1] == 10 and ticks_diff(ticks_ms(), board.flushed) >= _TICK:
                board.flush()

    # A pending interrupt comes out at a jump, and the end of a try is one: so none stands before
    # the try, and the returns stand in it. A cell that prints without end is nearly always in here,
    # and an interrupt from the timer always comes out in here: so the last thing that a write does
    # is to let MicroPython read byte 3; after the last piece of a print it comes out in the cell.
    def write(self, b):
        own = self.mine
        self.mine = True
        try:
            self._take(b, own)
            self.mine = own
            if self.missed:
                self.missed = False
                os.dupterm_notify(None)
                return len(b)
            return len(b)
        except KeyboardInterrupt:
            self.due = True
            try:
                self._take(b, own)  # it came before the first byte
            except BaseException:
                pass
            self.mine = own
            os.dupterm_notify(None)
            return len(b)
        except Exception:  # no memory: this output is lost
            self.mine = own
            return len(b)

    def readinto(self, b):
        own = self.mine
        self.mine = True
        try:
            n = None
            if own:
                self.missed = True
            elif self.user_runs:
                stop = self.board.tick()
                now = ticks_ms()
                if self.due or (stop and (not self.shot or ticks_diff(now, self.shot) >= _AGAIN)):
                    self.due = False
                    self.shot = now
                    b[0] = 3
                    n = 1
            self.mine = own
            return n
        except KeyboardInterrupt:
            self.due = True
        except Exception:
            pass
        self.mine = own
        return None

    # Our own code begins and ends, where MicroPython does not drop a stream for an exception.
    def own(self):
        self.mine = True

    def back(self):
        self.mine = False

    def ioctl(self, op, arg):
        return 0

    def input(self, prompt=""):
        if not self.user_runs or self.mine:
            raise EOFError
        from cm.ask import ask

        prompt = str(prompt)
        self.mine = True
        try:
            return ask(self.board, prompt)
        finally:
            self.shot = ticks_ms()
            self.mine = False

    # A cell begins.
    def begin(self):
        kbd_intr(3)  # also if the user's code said otherwise
        builtins.input = self.input
        self.mine = self.due = self.missed = False
        self.shot = 0
        self.before = os.dupterm(self)
        self.timer.init(period=_PERIOD, mode=Timer.PERIODIC, callback=os.dupterm_notify)

    # Code of the user's begins or ends; at its end late interrupts are caught.
    def user(self, on):
        while True:
            try:
                self.user_runs = on
                for _ in range(2):  # what is pending comes out at a jump
                    pass
                return
            except KeyboardInterrupt:
                if on:
                    raise

    # A cell has ended.
    def end(self):
        self.timer.deinit()
        os.dupterm(self.before)
