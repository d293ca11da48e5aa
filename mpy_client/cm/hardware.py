# Facts about the hardware and the network, which a board reports when it connects.
# Boards: all; loaded to connect, then dropped.
# Cost: 903 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import state
from cm.firmware import binascii, io, machine, network, os, sys, time

_SMALLEST_BLOCK = const(1024)
_STATE_CHARS = const(128)  # of the state of its generation (switch.py, trial.py)
_LARGEST_BLOCK = const(131072)  # bytes; what is larger is enough for everything


# Returns why the board started: pwron, hard, wdt, deepsleep or soft. On RP2, wdt is every reset but
# that of power and button; on ESP32, pwron is a brown-out, too, and hard is a crash.
def _reset_cause():
    if "cm.wake" in sys.modules:
        return "deepsleep"
    cause = machine.reset_cause()
    for name in ("PWRON_RESET", "HARD_RESET", "WDT_RESET", "DEEPSLEEP_RESET", "SOFT_RESET"):
        if getattr(machine, name, None) == cause:
            return name[:-6].lower()
    return None


# Returns the size of a block that can be allocated; the largest one has up to a quarter more. TLS
# needs 17 KB in one piece. MicroPython's own figure is only printed (micropython.mem_info). close()
# frees a block at once; otherwise a stale pointer on the stack could keep it from being collected.
def _largest_block():
    n = _SMALLEST_BLOCK
    while n < _LARGEST_BLOCK:
        try:
            io.BytesIO(n + (n >> 2)).close()
        except MemoryError:
            break
        n += n >> 2
    return n


# Adds to `facts` those that this board has.
def add_facts(facts):
    facts["block"] = _largest_block()
    # After a start; the server counts on. On a virtual board, ticks are the computer's.
    facts["uptime"] = (time.ticks_ms() - getattr(state.console, "started", 0)) // 1000
    try:
        stat = os.statvfs("/")
        facts["flash"] = stat[0] * stat[3]
    except (OSError, AttributeError):
        pass
    try:
        with open("/.cm/state") as file:
            facts["/generation"[1:]] = file.read(_STATE_CHARS)  # no name that stays in memory
    except OSError:
        pass
    try:
        if sys.platform == "esp32":
            from cm import ota

            ota.add(facts)
    except Exception:  # without the part or another slot; no fact may keep a board from connecting
        pass
    try:
        facts["reset"] = _reset_cause()
    except AttributeError:
        pass
    try:
        nic = state.nic or network.WLAN(0)
        facts["address"] = nic.ifconfig()[0]
        facts["mac"] = binascii.hexlify(nic.config("mac")).decode()
    except Exception:  # no network, or a driver without one of them
        pass
