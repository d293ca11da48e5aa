# Tasks that cells or the user's program left on the asyncio loop run while the client waits.
# Boards: those that have asyncio; loaded when there are tasks.
# Cost: 1,283 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from asyncio import core, wait_for_ms

from cm import link, loop, state
from cm.firmware import sys, time

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)

_PROGRAM_MS = const(500)  # ms until the client sees that the user's program has ended
_UNREAD_MS = const(300)  # ms that a task leaves a message unread until it is read for it

me = sys.modules["cm.tasks"]
own = None  # the task of wait(); cm.sleep cancels it
run_loop = loop.run_loop
# Ticks: since a message is unread, of the last that was read, when tasks must let the client run.
unread = seen = back_at = 0


def _readable(sock):
    yield core._io_queue.queue_read(sock)


def _sleep(ms):
    yield from core.sleep_ms(ms)


def busy():
    return core._task_queue.peek() or core._io_queue.map


# Runs tasks until the link is readable (returns True) or for some ms. What a task raises, of any
# class, ends that task alone; only Ctrl-C on the cable ends the client.
def wait(ms):
    global back_at, own
    console = state.console
    if state.task:
        ms = min(ms, _PROGRAM_MS)
    own = error = None
    ready = False
    core.cur_task = None
    log = None
    try:
        from cm import log
    except Exception:  # no memory for it
        pass
    if log:
        log.begin()
    back_at = time.ticks_add(time.ticks_ms(), ms)
    state.tasks = me
    console.attach()
    try:
        console.set_user_code(True)
        sock = state.socket
        own = core.create_task(wait_for_ms(_readable(sock), ms) if sock else _sleep(ms))
        run_loop(own)
        ready = True
    except (core.TimeoutError, core.CancelledError):
        own = None
    except BaseException as e:
        error = e
    console.set_user_code(False)
    console.detach()
    state.tasks = None
    if log:
        log.end(loop.is_beside)
    link.restore()
    core.cur_task = None
    if error:
        if own:
            _remove(own)
        if console.is_cable(error):
            raise error
        sys.print_exception(error)
    return ready or state.ahead


# Interrupts the user's program.
def cancel_program():
    wait(0)  # a task that has never run would not be cancelled properly
    core.cur_task = None  # otherwise asyncio may assume that the task cancels itself
    if state.task:
        state.task.cancel()


# Ends a task of this module that waits beside others, after one of those has raised.
def _remove(task):
    task.cancel()
    try:
        run_loop(task)
    except BaseException:
        core.cur_task = None


# Serves the link while a task runs that does not let the client run: reads one message ahead, so
# that pings are answered. Returns the reason to interrupt the task, or 0: a message has waited, or
# the board has to reconnect, for long.
def poll():
    global unread, seen
    now = time.ticks_ms()
    try:
        if not state.socket:
            waits = time.ticks_diff(now, back_at) - state.link_timeout
        elif state.ahead:
            waits = time.ticks_diff(now, unread) - state.task_timeout
        else:
            if seen != link.heard or not link.wait(0):
                seen = link.heard
                unread = now
            elif time.ticks_diff(now, unread) >= _UNREAD_MS:
                state.ahead = link.recv(_IN)
                seen = link.heard
                unread = now
            return 0
        if waits > state.stop_timeout:
            state.console.hard_reset()
        return 1 if waits > 0 else 0
    except BaseException:
        link.close()
        return 0
