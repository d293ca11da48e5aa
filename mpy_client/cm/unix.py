# The console of the unix port: a pipe with what is printed, a mailbox of interrupt_thread.py.
# Boards: virtual ones; this port has no os.dupterm.
# Cost: 2,694 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# File descriptors 1 and 2 are a pipe (cloudmanager/virtual/supervisor.py), so that the output of C
# code and of threads is complete, printing is no work of the client, and threads never touch the
# link. The client reads the pipe while user code runs, and when it waits for the server; the log,
# what is printed outside of cells, is also written to the file board.log.
from _thread import get_ident

from cm import firmware, link, log, run, state
from cm.firmware import builtins, io, struct, sys, time
from cm.link import run_calls

print = builtins.print
pack_into = struct.pack_into
ticks_diff = time.ticks_diff
ticks_ms = time.ticks_ms

# The mailbox's bytes are described in cloudmanager/virtual/interrupt_thread.py.
# Numbers: written by `python -m tests.board.client_numbers`.
_OUT = const(16)
_OUT_END = const(880)
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
_CAPTURES = const(28)
_COPYING = const(29)
_OUTPUT_FULL = const(30)
_OUTPUT_CLOSED = const(31)
_THREADS = const(32)
_LOG_ONLY = const(33)
_LOG_PENDING = const(34)
_RESTART = const(77)

_FLUSH_MS = const(20)  # ms until output is sent
_LOG_MS = const(150)  # ms until the log is sent: shorter than the interrupt thread waits for it
_MAX_BYTES = const(100000)  # of output in a row: the 64 KB of the pipe, and more

# virtual_boot.py sets these.
mailbox = None
pipe = None  # wakes the interrupt thread
output = None  # the pipe's end from which output is read, without blocking
log_file = None  # board.log
stdout_fd = stderr_fd = None  # memory: the file descriptors in these streams; -1 in a closed one
threads = None  # the module that user code imports as _thread
flash = None
rtc = None  # what the board keeps over deep sleep: 4 bytes of ms to sleep, 2 of length, the rest
started = 0  # ticks of the start of the process

firmware.get_ident = get_ident
main = get_ident()  # the thread of the client, and of cells
room = link.mv[_OUT:_OUT_END]
piece = bytearray(128)
print_now = print  # what user code gets as print()
started = 0  # when the client started, in ticks_ms()
watched = None  # asyncio.core, once watch_tasks() has changed it


# Starts client code; a pending interrupt is raised before anything is half done.
def start_guard():
    mailbox[_USER_CODE_RUNS] = 0
    try:
        while mailbox[_INTERRUPTING]:
            pass
    except KeyboardInterrupt:
        mailbox[_USER_CODE_RUNS] = 1
        raise


def end_guard(may_raise):
    if mailbox[_CALL_AGAIN]:
        poll()
    if not state.socket:
        pack_into("<i", mailbox, _LINK_FD, -1)
    mailbox[_OUTPUT_PENDING] = run.mark > _OUT or state.ahead > 0
    mailbox[_LOG_PENDING] = len(log.text) > 0 and state.socket is not None
    interrupt = may_raise and mailbox[_INTERRUPT_STATE] == 1
    if interrupt:
        mailbox[_INTERRUPT_STATE] = 3
    mailbox[_USER_CODE_RUNS] = 1
    return interrupt


# Marks the start of client code, which sends something that output precedes; or its end, where it
# returns whether the caller must raise an interrupt.
def set_guard(on):
    if on:
        start_guard()
        if run.end == run.mark:
            take_output()
        return False
    return end_guard(True)


# Serves the link, as soon as no client code is interrupted halfway.
def poll():
    mailbox[_CALL_AGAIN] = 0
    run_calls()
    if mailbox[_OUTPUT_FULL] or ticks_diff(ticks_ms(), run.sent) >= _FLUSH_MS:
        take_output()
    if log.text and ticks_diff(ticks_ms(), log.sent) >= _LOG_MS:
        log.send()
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
        start_guard()
    except KeyboardInterrupt:
        mailbox[_USER_CODE_RUNS] = 0
        mailbox[_INTERRUPT_STATE] = 0  # poll sets it again
    poll()
    mailbox[_CALLBACK_SCHEDULED] = 0
    end_guard(False)


# Moves output from the pipe to the buffer of the job, and sends full buffers; or to the log. It
# ends even if a thread prints endlessly. An empty buffer is filled without allocating: the heap may
# be full.
def take_output():
    if not mailbox[_CELL_RUNS] or (log.beside and log.beside()):
        take_log()
        return
    left = _MAX_BYTES
    try:
        while left > 0:
            view = piece if run.end > _OUT else room
            n = output.readinto(view)
            if not n:
                return
            if run.end > _OUT:
                run.append(memoryview(view)[:n], True)
            else:
                run.mark = run.end = _OUT + n
            if run.end == run.mark and (n == len(view) or not state.socket):
                run.flush()
            if n < len(view):
                return
            left -= n
    except Exception:
        state.output_lost = True


# Moves output from the pipe to the log.
def take_log():
    n = 0
    try:
        for _ in range(_MAX_BYTES // len(piece)):
            n = output.readinto(piece)
            if not n:
                return
            view = memoryview(piece)[:n]
            log.write(view, True)
            log_file.write(view)
            if n < len(piece):
                return
    except Exception:  # no memory, or no room on the host's disk
        log.lost += n


# Takes the output of a task after each of its steps, since each may belong to another cell or to
# the log: asyncio calls this function between two steps (extmod/asyncio/core.py).
def watch_tasks(core):
    global watched
    watched = core
    wait = core.IOQueue.wait_io_event

    def wait_io_event(queue, ms):
        if mailbox[_USER_CODE_RUNS] and not state.tasks:
            set_guard(True)
            if set_guard(False):
                raise KeyboardInterrupt
        return wait(queue, ms)

    core.IOQueue.wait_io_event = wait_io_event


# Opens stdout and stderr again: user code may close them, which has no effect on a chip.
def repair_output():
    if stdout_fd[0] != 1 or stderr_fd[0] != 2:
        stdout_fd[:] = b"\1\0\0\0"
        stderr_fd[:] = b"\2\0\0\0"
        mailbox[_OUTPUT_CLOSED] = 1
        pipe.write(b"w")
        while mailbox[_OUTPUT_CLOSED]:
            time.sleep_ms(1)


# Replaces print() once a thread has been started. MicroPython prints a line in several pieces;
# between two of them another thread may print. In one piece, up to 4 KB stay together.
def print_whole(*args, **kw):
    file = kw.get("file", sys.stdout)
    if file is sys.stdout or file is sys.stderr:
        try:
            kw["file"] = io.StringIO()
            print(*args, **kw)
            file.write(kw["file"].getvalue())
            # MicroPython's lock is not fair: a thread that only prints would keep it, and the
            # client could not read the pipe.
            if mailbox[_OUTPUT_FULL] and get_ident() != main:
                time.sleep_ms(1)
            return
        except MemoryError:
            kw["file"] = file
    print(*args, **kw)


# Called by virtual_thread.py when user code starts a thread.
def prepare_threads():
    global print_now
    print_now = builtins.print = print_whole
    if not mailbox[_THREADS]:
        mailbox[_THREADS] = 1
        state.calls.append(bool)  # for ever: an idle client reads the pipe each second


# Lets the kernel look whether the peer is still there, so that a busy board notices a lost link.
# The numbers are Linux's: SO_KEEPALIVE; TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT.
def set_options(sock):
    for level, option, value in ((1, 9, 1), (6, 4, 20), (6, 5, 10), (6, 6, 3)):
        sock.setsockopt(level, option, value)


# Marks the start or the end of input().
def set_input(on):
    if on:
        if not mailbox[_USER_CODE_RUNS] or get_ident() != main:
            raise EOFError
        set_guard(True)
    else:
        if state.stop:
            mailbox[_INTERRUPT_STATE] = 3
        end_guard(False)


# Called when the client starts: from now on it reads the pipe, and the interrupt thread does not.
def start():
    global started
    started = ticks_ms()
    log.take_output = take_output
    mailbox[_CAPTURES] = 1
    while mailbox[_COPYING]:
        pass


# Returns whether an exception is Ctrl-C on the cable: a virtual board has none.
def is_cable(_):
    return False


# Called before user code runs. What was printed before belongs to the log.
def attach():
    builtins.print = print_now
    sys.modules["_thread"] = threads
    mailbox[_INTERRUPT_STATE] = mailbox[_OUTPUT_PENDING] = mailbox[_CALL_AGAIN] = 0
    pack_into("<q", mailbox, _DEADLINE, state.deadline)
    pack_into("<i", mailbox, _LINK_FD, state.socket.fileno() if state.socket else -1)
    take_log()
    mailbox[_LOG_ONLY] = log.beside is log.always
    core = sys.modules.get("asyncio.core")
    if core and core is not watched:
        watch_tasks(core)
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
    take_output()
    repair_output()
    mailbox[_CELL_RUNS] = 0


# Called when the client ends.
def close():
    pass


# Restarts the interpreter: the supervisor forks a board again that ends with this status.
def reset():
    state.leaving = True
    raise SystemExit(_RESTART)


# Like machine.RTC().memory() on a chip.
def memory(data=None):
    if data is not None:
        pack_into("<H", rtc, 4, len(data))
        rtc[6 : 6 + len(data)] = data
    return bytes(rtc[6 : 6 + struct.unpack_from("<H", rtc, 4)[0]])


# Ends the process; the supervisor starts the board again after this time.
def deepsleep(ms):
    pack_into("<I", rtc, 0, ms)
    _end_process(5)


# Like machine.reset() on a chip.
def hard_reset():
    _end_process(4)


# Lets the interrupt thread end the process, even if user code runs.
def _end_process(how):
    mailbox[_INTERRUPT_STATE] = how
    mailbox[_CELL_RUNS] = 1
    pipe.write(b"w")
    while True:
        time.sleep_ms(10)
