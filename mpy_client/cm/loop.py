# Cells with `await`, and the tasks that they leave running, on MicroPython's one asyncio loop.
# Boards: those that have asyncio; loaded when a cell or the user's program imports it.
# Cost: 811 bytes of .mpy, no heap before asyncio (mpy-cross 1.29, 32-bit, 2026-11-30).
import __main__
import asyncio
from asyncio import core

from cm import link, state

done = True
own = []  # tasks of the last cell
own_job = bytearray(4)  # its job
max_own = 0  # tasks in the list until those that have ended are removed
create_task = core.create_task
mains = []  # tasks in asyncio.run, also those that an interrupt left there
run_loop = core.run_until_complete


def _run_main(task=None):
    mains.append(task)
    result = run_loop(task)
    mains.pop()
    return result


core.run_until_complete = _run_main


# Returns whether the task that runs was not made by the cell, so that the log has its output.
def is_beside():
    if own_job != link.job:
        own_job[:] = link.job
        own.clear()
    return core.cur_task and core.cur_task not in own


# Replaces asyncio's function. It notes the tasks that a cell makes, and those that they make.
def _create_task(coro):
    global max_own
    task = create_task(coro)
    if not is_beside():
        if len(own) >= max_own:
            own[:] = [each for each in own if not each.done()]
            max_own = 2 * len(own) + 8
        own.append(task)
    return task


for names in (core, asyncio, __main__):  # it may have been imported from asyncio
    for name in dir(names):
        if getattr(names, name) is create_task:
            setattr(names, name, _create_task)
if state.log:
    state.log.beside = is_beside


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
def run_cell(coro):
    core.cur_task = None
    task = core.create_task(_cell(coro))
    try:
        run_loop(task)
    except BaseException as e:
        core.cur_task = None
        if not done:
            task.cancel()
            try:
                run_loop(task)
            except BaseException:
                core.cur_task = None
        raise e
