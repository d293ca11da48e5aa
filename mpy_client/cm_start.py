# Starts the client. A new one (mbm board-upgrade-client) is on trial for one boot, in which the
# fleet must confirm it; otherwise the next boot restores the old one. Upgrades keep this file.
# Boards: all but virtual ones, on littlefs, where renaming a folder is atomic. 1,029 bytes of .mpy.
#
# /lib/cm is the client, /lib/cm.new the next one (complete if it has a file `ok`), /lib/cm.old the
# previous one. Power may fail after any line: the next boot continues from there.
import sys

_path = sys.path[:]
sys.path[:] = ()  # no file can hide what is imported from here on; see cm/firmware.py
import machine
import os
from time import ticks_add, ticks_diff, ticks_ms

sys.path[:] = _path
path = None  # main.py sets it: what sys.path is for the user's code
# main.py sets it: start() returns the client's function, so that this module's memory is freed. A
# main.py of an earlier version, which an upgrade or a power cut leaves beside this file, does not.
returns = False
_CM = const("/lib/cm")
_NEW = const("/lib/cm.new")
_OLD = const("/lib/cm.old")
_BAD = const("/lib/cm.bad")
_TRIAL_MINUTES = const(5)  # minutes for a new client to connect to the fleet


def _has(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False


def remove(folder):
    if _has(folder):
        for name in os.listdir(folder):
            os.remove(folder + "/" + name)
        os.rmdir(folder)


def _roll_back():
    remove(_BAD)
    os.rename(_CM, _BAD)
    os.rename(_OLD, _CM)


def _choose():
    if _has(_NEW + "/ok") and _has(_CM):
        remove(_OLD)
        os.rename(_CM, _OLD)
    if not _has(_CM):
        if _has(_NEW + "/ok"):
            os.rename(_NEW, _CM)
        elif _has(_OLD):
            os.rename(_OLD, _CM)
        else:  # the client is frozen into the firmware
            return False
    if _has(_CM + "/trial"):
        _roll_back()
    if _has(_CM + "/ok"):
        os.rename(_CM + "/ok", _CM + "/trial")
        return True
    return False


# Resets a board whose new client was not confirmed in time; the boot restores the old client.
def _check_trial(_=None):
    if ticks_diff(ticks_ms(), deadline) < 0:
        return False
    if _has(_CM + "/trial"):
        machine.reset()
    return True


# Calls _check_trial when the time is over: first by a timer of this file, held in a global and
# chosen as in console.py, then by the client's. There may be only one timer object for both (on
# ESP32 up to MicroPython 1.28), and the client stops its timer before the interpreter restarts.
def _start_trial():
    global deadline, timer
    deadline = ticks_add(ticks_ms(), _TRIAL_MINUTES * 60000)
    for n in (-1, 3, 2, 1, 0):
        try:
            timer = machine.Timer(n)
            break
        except ValueError:
            pass
    timer.init(mode=machine.Timer.ONE_SHOT, period=_TRIAL_MINUTES * 60000, callback=_check_trial)
    try:
        from cm import ticker
    except ImportError:  # a client of an earlier version
        return
    timer.deinit()
    ticker.add(_check_trial)


def start():
    trial = _choose()
    try:
        if trial:
            _start_trial()
        from cm import link

        if returns and not trial:
            return link.start
        link.start()
    except Exception as e:
        if not trial:
            raise e
        _roll_back()
        machine.reset()
