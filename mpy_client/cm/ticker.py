# Adds a function to those that the client calls about once a second.
# Boards: those with console.py; cm_start.py uses it for the trial of a new client.
# Cost: 118 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import console, state


def add(call):
    state.calls.append(call)
    console.idle()
