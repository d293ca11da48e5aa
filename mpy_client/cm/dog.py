# A hardware watchdog (machine.WDT): feeds it, and takes it back.
# Boards: ESP32 family, and RP2 whose /cm.json has a short "watchdog"; it stays in memory.
# Cost: 484 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
import __main__

from cm import state
from cm.firmware import machine, sys

_OFF_MS = const(0x7FFFFFF)  # for ESP32, whose WDT cannot be stopped, but set again
_CLEAR_ENABLE = const(0x3000)  # from a watchdog's base to CTRL with atomic clear (RP2040, 2.1.2)


# A watchdog of the user's program is the same hardware on ESP32: it is not fed for them.
def _is_users():
    for names in (__main__.__dict__, getattr(sys.modules.get("app"), "__dict__", ())):
        for name in names:
            if type(names[name]) is type(dog):
                return True
    return False


def feed():
    if not _is_users():
        dog.feed()


def start(ms):
    global dog
    dog = machine.WDT(timeout=ms)
    state.calls.append(feed)


# Takes the watchdog back.
def deinit():
    state.calls.remove(feed)
    if sys.platform == "rp2":
        rp2350 = "RP2350" in sys.implementation._machine
        machine.mem32[(0x400D8000 if rp2350 else 0x40058000) + _CLEAR_ENABLE] = 1 << 30
    else:
        machine.WDT(timeout=_OFF_MS)
