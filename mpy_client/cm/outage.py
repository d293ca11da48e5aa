# Helps a board that cannot connect: old settings return, the network restarts, the board restarts.
# Boards: all; loaded after a failed attempt to connect, dropped when it is connected.
# Cost: 887 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# New settings (mbm board-config) are in /cm.new. It is renamed to /cm.new.trial for one start of
# the board, and a minute of it; dial.py renames it to /cm.json. What resets the board before, such
# as a watchdog or a program, ends the trial.
# /cm.away holds how often the board was reset in this outage: each time it waits twice as long.
from cm import link, state
from cm.firmware import json, os, time

_NETWORK_S = const(600)  # without a link until the interface is restarted; /cm.json may differ
_RESET_AFTER = const(6)  # such times until the board is reset: an hour
_TRIAL_MS = const(60000)
_MAX_DOUBLINGS = const(4)  # of that: at most 16 hours

looks = 0  # times without a link after which the interface was looked at


# Called by link.run_calls(), whatever user code does meanwhile, until the new settings have worked.
def _check_trial():
    if state.trial and time.ticks_diff(time.ticks_ms(), state.trial) >= 0:
        state.console.hard_reset()
    return not state.trial


# Called at a start that finds new settings, or such as have failed. Returns the file to use.
def start():
    try:
        os.rename("/cm.new", "/cm.new.trial")
    except OSError:
        try:
            os.remove("/cm.new.trial")
            print("The new settings do not work: the old ones are back.")
        except OSError:  # there are none
            pass
        return "/cm.json"
    state.trial = time.ticks_add(link.heard, _TRIAL_MS) | 1
    state.calls.append(_check_trial)
    return "/cm.new.trial"


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


def check():
    global looks
    n = time.ticks_diff(time.ticks_ms(), link.heard) // int(_setting() * 1000)
    if n > looks:
        resets = _resets()
        if n >= _RESET_AFTER << min(resets, _MAX_DOUBLINGS):
            with open("/cm.away", "w") as file:
                file.write(str(resets + 1))
            print("No link for long: the board restarts.")
            state.console.hard_reset()
        if state.nic.isconnected():
            print("No link for long: the network restarts.")
            state.nic.active(False)
    looks = n
