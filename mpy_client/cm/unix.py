# The console of the unix port: hooks in print and sys, a mailbox shared with interrupt_thread.py.
# Boards: virtual ones; this port has no os.dupterm.
# Cost: 1,609 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import run, state
from cm.firmware import builtins, io, struct, sys, time
from cm.link import run_calls

print = builtins.print
pack_into = struct.pack_into
ticks_diff = time.ticks_diff
ticks_ms = time.ticks_ms

# The mailbox's bytes are described in cloudmanager/virtual/interrupt_thread.py.
# Numbers: written by `python -m tests.board.client_numbers`.
_OUT = const(16)
_USER_CODE_RUNS = const(0)
_CELL_RUNS = const(1)
_INTERRUPT_STATE = const(2)
_INTERRUPTING = const(3)
_OUTPUT_PENDING = const(4)
_CALLBACK_SCHEDULED = const(5)
_ASLEEP = const(6)
_CALL_AGAIN = const(7)
_DEADLINE = const(16)
_LINK_FD = const(24)
_RESTART = const(77)

_FLUSH_MS = const(20)  # ms until output is sent

mailbox = None  # set by virtual_boot.py, with the pipe
pipe = None
flash = None


# Marks the start of client code, where a pending interrupt is raised before anything is half done;
# or its end, where it returns whether the caller must raise an interrupt: a cell that prints in a
# loop is nearly always in client code.
def set_guard(on):
    if on:
        mailbox[_USER_CODE_RUNS] = 0
        try:
            while mailbox[_INTERRUPTING]:
                pass
        except KeyboardInterrupt:
            mailbox[_USER_CODE_RUNS] = 1
            raise
    else:
        return end_guard(True)


def end_guard(may_raise):
    if mailbox[_CALL_AGAIN]:
        poll()
    if not state.socket:
        pack_into("<i", mailbox, _LINK_FD, -1)
    mailbox[_OUTPUT_PENDING] = run.mark > _OUT or state.ahead > 0
    interrupt = may_raise and mailbox[_INTERRUPT_STATE] == 1
    if interrupt:
        mailbox[_INTERRUPT_STATE] = 3
    mailbox[_USER_CODE_RUNS] = 1
    return interrupt


# Serves the link, as soon as no client code is interrupted halfway.
def poll():
    mailbox[_CALL_AGAIN] = 0
    run_calls()
    if run.check() and not mailbox[_INTERRUPT_STATE]:
        mailbox[_INTERRUPT_STATE] = 1
    pack_into("<q", mailbox, _DEADLINE, state.deadline)


# Called by MicroPython's scheduler on the main thread, between two steps of user code. No jump may
# follow end_guard(): an interrupt that is raised in here is lost.
def callback(_):
    if not mailbox[_USER_CODE_RUNS]:
        mailbox[_CALL_AGAIN] = 1
        mailbox[_CALLBACK_SCHEDULED] = 0
        return
    try:
        set_guard(True)
    except KeyboardInterrupt:
        mailbox[_USER_CODE_RUNS] = 0
        mailbox[_INTERRUPT_STATE] = 0  # poll sets it again
    poll()
    mailbox[_CALLBACK_SCHEDULED] = 0
    end_guard(False)


# The stream that a cell prints to.
class OutStream(io.IOBase):
    def write(self, b):
        if state.tasks or not mailbox[_USER_CODE_RUNS]:
            return sys.stdout.write(b)
        if isinstance(b, str):
            b = b.encode()
        try:
            mailbox[_USER_CODE_RUNS] = 0
            while mailbox[_INTERRUPTING]:  # a pending interrupt is raised here
                pass
            run.append(b, True)
            if b and b[-1] == 10 and ticks_diff(ticks_ms(), run.sent) >= _FLUSH_MS:
                run.flush()
            elif mailbox[_ASLEEP]:
                pipe.write(b"w")
        finally:
            interrupt = end_guard(True)
        if interrupt:
            raise KeyboardInterrupt
        return len(b)

    def flush(self):  # output is sent without it
        pass


out = OutStream()
OutStream.buffer = out


# What `import sys` returns in cells, since this port's stdout cannot be replaced: its streams write
# to the link, everything else is that of the real module.
class UserSys:
    stdout = stderr = out

    def __getattr__(self, name):
        return getattr(sys, name)

    def __setattr__(self, name, value):
        setattr(sys, name, value)

    def __dir__(self):
        return dir(sys)

    def print_exception(self, error, file=out):
        sys.print_exception(error, file)


user_sys = UserSys()


def print_hook(*args, **kw):
    if kw:
        kw["file"] = kw.get("file") or out
        print(*args, **kw)
    else:
        print(*args, file=out)


# Marks the start or the end of input().
def set_input(on):
    if on:
        if not mailbox[_USER_CODE_RUNS]:
            raise EOFError
        set_guard(True)
    else:
        if state.stop:
            mailbox[_INTERRUPT_STATE] = 3
        end_guard(False)


# Called when the client starts.
def start():
    pass


# Returns whether an exception is Ctrl-C on the cable: a virtual board has none.
def is_cable(_):
    return False


# Called before user code runs.
def attach():
    builtins.print = print_hook
    sys.modules["sys"] = user_sys
    mailbox[_INTERRUPT_STATE] = mailbox[_OUTPUT_PENDING] = mailbox[_CALL_AGAIN] = 0
    pack_into("<q", mailbox, _DEADLINE, state.deadline)
    pack_into("<i", mailbox, _LINK_FD, state.socket.fileno() if state.socket else -1)
    mailbox[_CELL_RUNS] = 1
    if mailbox[_ASLEEP]:
        pipe.write(b"w")


# Marks the start or the end of user code; at the end it catches late interrupts.
def set_user_code(on):
    if on:
        mailbox[_USER_CODE_RUNS] = 1
        return
    while True:
        try:
            mailbox[_USER_CODE_RUNS] = 0
            while mailbox[_INTERRUPTING]:
                pass
            return
        except KeyboardInterrupt:
            pass


# Called after user code.
def detach():
    mailbox[_CELL_RUNS] = 0


# Called when the client ends.
def close():
    pass


# Restarts the interpreter: the supervisor forks a board again that ends with this status.
def reset():
    state.leaving = True
    raise SystemExit(_RESTART)


# Like machine.reset() on a chip: the interrupt thread ends the process, even if user code runs.
def hard_reset():
    mailbox[_INTERRUPT_STATE] = 4
    mailbox[_CELL_RUNS] = 1
    pipe.write(b"w")
    while True:
        time.sleep_ms(10)
