# Lets the console's timer call the functions of calls.py: the client has no other timer.
# Boards: those with console.py; loaded for a watchdog, the user's program, a client on trial.
# Cost: 358 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import calls, console

_PERIOD_MS = const(1000)  # ms between two ticks while no user code runs


# The timer's callback. It is late, or skipped, while native code runs. An interrupt that was
# pending before is raised in here, and kept for the next tick; see console.tick.
def tick(_):
    try:
        calls.run()
        if not (console.in_user or calls.calls):
            console.timer.deinit()
        console.reattach()
        return console.notify(None)
    except KeyboardInterrupt:
        console.due = True
    except Exception:
        pass


# Sets the timer for the time between cells. Cells may follow one another faster than it ticks, so
# this call counts as a tick.
def idle():
    tick(None)
    if calls.calls:
        console.timer.init(period=_PERIOD_MS, callback=tick)
    else:
        console.timer.deinit()


def start():
    console.callback = tick
    console.idle = idle
    idle()


# For cm_start.py, before the client starts: its trial of a new client.
def add(call):
    calls.add(call)
    start()
