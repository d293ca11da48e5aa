# Helps a board that cannot connect: old settings return, the network restarts, the board restarts.
# Boards: all; loaded after a failed attempt to connect, dropped when it is connected.
# Cost: 788 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# /cm.away holds how often the board was reset in this outage: each time it waits twice as long.
from cm import link, state
from cm.firmware import json, os, time

_NETWORK_S = const(600)  # without a link until the interface is restarted; /cm.json may differ
_RESET_AFTER = const(6)  # such times until the board is reset: an hour
_MAX_DOUBLINGS = const(4)  # of that: at most 16 hours

looks = 0  # times without a link after which the interface was looked at


def _setting():
    try:
        with open("/cm.json") as file:
            return json.load(file)["network_timeout"]
    except Exception:
        return _NETWORK_S


def _resets():
    try:
        with open("/cm.away") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


# Discards new settings (mbm board-config) that have not worked. The reset removes what they have
# changed in the network interface, such as a static address.
def _discard_settings():
    try:
        os.remove("/cm.new")
    except OSError:
        pass
    print("The new settings do not work: the old ones are back.")
    state.console.hard_reset()


def check():
    global looks
    now = time.ticks_ms()
    if state.trial and time.ticks_diff(now, state.trial) >= 0:
        _discard_settings()
    nic = state.nic
    if not nic:
        return
    n = time.ticks_diff(now, link.heard) // int(_setting() * 1000)
    if n > looks:
        resets = _resets()
        if n >= _RESET_AFTER << min(resets, _MAX_DOUBLINGS):
            with open("/cm.away", "w") as file:
                file.write(str(resets + 1))
            print("No link for long: the board restarts.")
            state.console.hard_reset()
        if nic.isconnected():
            print("No link for long: the network restarts.")
            nic.active(False)
    looks = n
