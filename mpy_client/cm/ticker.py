# Functions that the console's timer calls about once a second: the client has no other timer.
# Boards: those with console.py; loaded for a watchdog, the user's program, a client on trial.
# Cost: 318 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-29).
from cm import console

_PERIOD_MS = const(1000)  # ms between two ticks while no cell runs

calls = []  # called without arguments until they return something true


# The timer's callback. It is late, or skipped, while native code runs. An interrupt that
# dupterm_notify causes is raised at the next jump, which must be in the cell: so no jump follows it
# here. An interrupt that was pending before is raised in here, and kept for the next tick.
def tick(_):
    try:
        for call in calls:
            if call():
                calls.remove(call)  # the one after it is called at the next tick
                if not console.in_user:
                    idle()
        return console.notify(None)
    except KeyboardInterrupt:
        console.due = True
    except Exception:  # such as a full flash: it must not end the cell
        pass


# Sets the timer for the time between cells. Cells may follow one another faster than it ticks, so
# this call counts as a tick.
def idle():
    tick(None)
    if calls:
        console.timer.init(period=_PERIOD_MS, callback=tick)
    else:
        console.timer.deinit()


# Calls a function at each tick from now on. Must not be called while a cell runs.
def add(call):
    calls.append(call)
    console.callback = tick
    console.idle = idle
    idle()
