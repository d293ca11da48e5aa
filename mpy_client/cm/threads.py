# What user code imports as _thread on RP2, whose threads run at the same time on two cores.
# Boards: RP2; loaded when the client starts, and kept.
# Cost: 220 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
import _thread

from cm import state
from cm.firmware import sys


# From the first use of start_new_thread on, output is written by Stream.write: both cores may.
def __getattr__(name):
    if name == "start_new_thread":
        sys.modules.pop("cm.threads", None)
        if state.log:
            state.log.end(state.log.beside)
    return getattr(_thread, name)


# While both names are of this module, or of none, no two threads run at the same time.
sys.modules["_thread"] = sys.modules["cm.threads"]
