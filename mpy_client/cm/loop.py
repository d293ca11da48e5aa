# Cells with `await`, and the tasks that they leave running, on MicroPython's one asyncio loop.
# Boards: those that have asyncio; loaded when a cell or the user's program imports it.
# Cost: 704 bytes of .mpy, no heap before asyncio (mpy-cross 1.29, 32-bit, 2026-11-29).
from asyncio import core, wait_for_ms

done = True
mains = []  # tasks in asyncio.run, also those that an interrupt left there
_run = core.run_until_complete


def _run_main(task=None):
    mains.append(task)
    result = _run(task)
    mains.pop()
    return result


core.run_until_complete = _run_main


# Cancels, after an interrupt, what a cell without `await` ran by asyncio.run: it must not continue
# between cells. If that cell was the first with asyncio (`first`), all tasks are its own.
def stop(first):
    core.cur_task = None  # otherwise asyncio assumes that it is still running
    if first:
        core.new_event_loop()
    while mains:
        task = mains.pop()
        if task:
            task.cancel()


# The body of a cell's task. It sets `done` when it has ended, which only it can know.
def _cell(coro):
    global done
    done = False
    try:
        yield from coro
    finally:
        done = True


# Runs the coroutine of a cell; an interrupt cancels its task and no other.
def run(coro):
    core.cur_task = None
    task = core.create_task(_cell(coro))
    try:
        _run(task)
    except BaseException as e:
        core.cur_task = None
        if not done:
            task.cancel()
            try:
                _run(task)
            except BaseException:
                core.cur_task = None
        raise e


def _readable(sock):
    yield core._io_queue.queue_read(sock)


def _sleep(ms):
    yield from core.sleep_ms(ms)


def busy():
    return core._task_queue.peek() or core._io_queue.map


# Runs tasks until the link is readable (returns True) or for some ms.
def wait(sock, ms):
    core.cur_task = None
    try:
        if sock:
            _run(core.create_task(wait_for_ms(_readable(sock), ms)))
            return True
        _run(core.create_task(_sleep(ms)))
    except (core.TimeoutError, SystemExit):
        pass
    return False
