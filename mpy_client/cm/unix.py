# The unix port's console: a hook in print and input, and a mailbox shared with the host's watcher.
# Boards: virtual ones, on the unix port (no os.dupterm there); cloudmanager/watcher.py watches.
# Cost: 1,272 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-23).
import builtins
import io
import sys
from micropython import const
from struct import pack_into
from time import ticks_diff, ticks_ms

# The mailbox, byte by byte; the same table is in cloudmanager/watcher.py.
_USER = const(0)  # 1 while code of the user's runs: only then the watcher may shoot
_RUN = const(1)  # 1 from a cell's start to its end
_FIRE = const(2)  # the cell shall be interrupted: 1 now, 2 in a while, 3 it was, by ourselves
_SHOT = const(3)  # the watcher is about to shoot: wait until it has
_LATE = const(4)  # output is gathered that nobody will send but the watcher's call
_NOTED = const(5)  # note is on its way
_ASLEEP = const(6)  # the watcher sleeps: a byte through the pipe wakes it
_AGAIN = const(7)  # note came while our own code ran
_NOTE = const(8)  # 8 bytes: the address of note
_DEADLINE = const(16)  # 8 bytes: ms of the monotonic clock, or 0
_FD = const(24)  # 4 bytes: the link's socket, or -1
_TICK = const(20)  # ms: output older than this goes out

_print = print
box = None  # set by virtual_boot.py, with the pipe
pipe = None


class Port(io.IOBase):
    def __init__(self, board):
        self.board = board
        self.note = self.noted  # one bound method for life: the watcher knows its address
        pack_into("<q", box, _NOTE, id(self.note))

    # Keep-alive, so that a busy board learns that its link is gone. (Linux's numbers.)
    def tune(self, sock):
        for level, option, value in ((6, 1, 1), (1, 9, 1), (6, 4, 20), (6, 5, 10), (6, 6, 3)):
            sock.setsockopt(level, option, value)

    # Our own code begins. What is pending comes out at the jump, before anything is half done.
    def own(self):
        box[_USER] = 0
        try:
            while box[_SHOT]:
                pass
        except KeyboardInterrupt:
            box[_USER] = 1
            raise

    # What the link is owed, as soon as nothing of ours is half done.
    def look(self):
        board = self.board
        box[_AGAIN] = 0
        if board.tick() and not box[_FIRE]:
            box[_FIRE] = 1

    # Our own code ends; says whether the caller shall raise the interrupt: code that prints
    # without end is seldom met outside of ours.
    def back(self, may=True):
        board = self.board
        if box[_AGAIN]:
            self.look()
        if not board.sock:
            pack_into("<i", box, _FD, -1)
        box[_LATE] = board.mark > 16
        fire = may and box[_FIRE] == 1
        if fire:
            box[_FIRE] = 3
        box[_USER] = 1
        return fire

    # A scheduled call, on the main thread, between two steps of the user's code. No jump may
    # follow back(): an interrupt that comes out in here is lost.
    def noted(self, _):
        if not box[_USER]:
            box[_AGAIN] = 1
            box[_NOTED] = 0
            return
        try:
            self.own()
        except KeyboardInterrupt:
            box[_USER] = 0
            box[_FIRE] = 0  # look sets it again
        self.look()
        box[_NOTED] = 0
        self.back(False)

    # The stream that print writes to.
    def write(self, b):
        self.own()
        self.board.put(b, True)
        if self.back():
            raise KeyboardInterrupt
        return len(b)

    def print(self, *args, sep=" ", end="\n", file=None):
        if (file is not None and file is not sys.stdout) or not box[_USER]:
            _print(*args, sep=sep, end=end, file=file or sys.stdout)
            return
        _print(*args, sep=sep, end=end, file=self)
        if ticks_diff(ticks_ms(), self.board.flushed) >= _TICK:
            self.own()
            self.board.flush()
            if self.back():
                raise KeyboardInterrupt
        elif box[_ASLEEP]:
            pipe.write(b"w")

    def input(self, prompt=""):
        if not box[_USER]:
            raise EOFError
        from cm.ask import ask

        prompt = str(prompt)
        self.own()
        try:
            return ask(self.board, prompt)
        finally:
            if self.board.stop:
                box[_FIRE] = 3
            self.back(False)

    # A cell begins.
    def begin(self):
        board = self.board
        builtins.print = self.print
        builtins.input = self.input
        box[_FIRE] = box[_LATE] = box[_AGAIN] = 0
        pack_into("<q", box, _DEADLINE, board.deadline or 0)
        pack_into("<i", box, _FD, board.sock.fileno() if board.sock else -1)
        box[_RUN] = 1
        if box[_ASLEEP]:
            pipe.write(b"w")

    # Code of the user's begins or ends; at its end late interrupts are caught.
    def user(self, on):
        if on:
            box[_USER] = 1
            return
        while True:
            try:
                box[_USER] = 0
                while box[_SHOT]:
                    pass
                return
            except KeyboardInterrupt:
                pass

    # A cell has ended.
    def end(self):
        box[_RUN] = 0
