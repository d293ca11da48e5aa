# Restarts a board whose scheduler is locked for good: no timer could interrupt a cell.
# Boards: those with console.py; loaded after MicroPython has removed the console's stream.
# Cost: 273 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# extmod/os_dupterm.c, mp_os_dupterm_rx_chr: it locks the scheduler while it reads the stream. If
# reading fails, it removes the stream and prints the exception; if that fails as well, on a stack
# that is nearly full, it does not unlock it.
from cm import link, state
from cm.firmware import micropython


def restart_if_locked():
    link.drop("scheduler")
    if is_locked():
        link.close()
        state.console.reset()


def is_locked():
    ran = []
    try:
        micropython.schedule(ran.append, 1)
        for _ in range(3):  # it runs at a jump
            pass
    except MemoryError:
        return False
    except RuntimeError:  # the queue is full
        pass
    return not ran
