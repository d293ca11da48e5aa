# Functions that the console's timer calls, about once a second: the client has no other timer.
# Boards: those with console.py; loaded for a watchdog, the user's program, a client on trial.
# Cost: 333 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
from cm import console

_SLOW = const(1000)  # ms between two ticks while no cell runs

calls = []  # those to call, without arguments, until they return something true


# The timer's callback. It comes late, or not at all, while native code runs. An interrupt that
# dupterm_notify causes is raised at the next jump, which must be one of the cell's: none follows.
# An interrupt that was pending before is raised in here, and kept for the next tick.
def tick(_):
    try:
        for call in calls:
            if call():
                calls.remove(call)  # the one behind it is called at the next tick
                if not console.users:
                    rest()
        return console.os.dupterm_notify(None)
    except KeyboardInterrupt:
        console.due = True
    except Exception:  # such as a full flash: nothing of it concerns the cell
        pass


# Sets the timer for the time between cells. Those may follow one another faster than it ticks, so
# this counts as a tick.
def rest():
    tick(None)
    if calls:
        console.timer.init(period=_SLOW, callback=tick)
    else:
        console.timer.deinit()


# Has a function called from now on; not while a cell runs.
def add(call):
    calls.append(call)
    console.callback = tick
    console.rest = rest
    rest()
