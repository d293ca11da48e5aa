# Await: a cell that awaits, and the tasks it left behind, on MicroPython's one asyncio loop.
# Boards: those that have asyncio; loaded when a cell or the user's program imports it.
# Cost: 0 bytes of .mpy, 0 bytes of heap (mpy-cross 1.29 -O3 xtensawin; 32-bit MicroPython 1.27).
from asyncio import core, wait_for_ms

over = True


# The body of a cell's task: says whether it came to its end, which only it can know.
def _cell(coro):
    global over
    over = False
    try:
        yield from coro
    finally:
        over = True


# Runs the coroutine of a cell to its end; an interrupt cancels its task and no other.
def run(coro):
    core.cur_task = None
    task = core.create_task(_cell(coro))
    try:
        core.run_until_complete(task)
    except BaseException as e:
        core.cur_task = None  # else asyncio believes that it still runs
        if not over:
            task.cancel()
            try:
                core.run_until_complete(task)
            except BaseException:
                core.cur_task = None
        raise e


def _readable(sock):
    yield core._io_queue.queue_read(sock)


def _sleep(ms):
    yield from core.sleep_ms(ms)


def busy():
    return core._task_queue.peek() or core._io_queue.map


# Drives what tasks there are until the link has something, or for a time.
def rest(sock, ms):
    core.cur_task = None
    try:
        if sock:
            core.run_until_complete(core.create_task(wait_for_ms(_readable(sock), ms)))
            return True
        core.run_until_complete(core.create_task(_sleep(ms)))
    except (core.TimeoutError, SystemExit):
        pass
    return False
