# Functions that are called about once a second: by the console's timer, and by a client that waits.
# Boards: all; loaded for a watchdog, the user's program, a client on trial.
# Cost: 254 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import state
from cm.firmware import sys

calls = []  # until they return something true


def add(call):
    calls.append(call)
    state.calls = sys.modules["cm.calls"]
    if hasattr(state.console, "timer"):  # virtual boards have none
        from cm import ticker

        ticker.start()


# An exception, such as for a full flash, must not end a cell.
def run():
    for call in calls:
        try:
            if call():
                calls.remove(call)
                return  # the one after it is called the next time
        except Exception:
            pass
