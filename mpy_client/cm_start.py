# Starts the client. A new one (mbm board-upgrade-client) is on trial for one boot, in which the
# fleet has to confirm it: else the old one is back at the next. This file is never replaced so.
# Boards: all but virtual ones, on littlefs, whose rename of a folder is atomic. 976 bytes of .mpy.
#
# /lib/cm is the client, /lib/cm.new the next one (whole where it has a file `ok`), /lib/cm.old the
# last. Each line may be the last before the power goes: the next boot goes on from there.
import os
from time import ticks_add, ticks_diff, ticks_ms

_CM = "/lib/cm"
_NEW = "/lib/cm.new"
_OLD = "/lib/cm.old"
_BAD = "/lib/cm.bad"
_MINUTES = const(5)  # that a new client has to find the fleet


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


def _back():
    remove(_BAD)
    os.rename(_CM, _BAD)
    os.rename(_OLD, _CM)


def _settle():
    if _has(_NEW + "/ok") and _has(_CM):
        remove(_OLD)
        os.rename(_CM, _OLD)
    if not _has(_CM):
        os.rename(_NEW if _has(_NEW + "/ok") else _OLD, _CM)
    if _has(_CM + "/trial"):
        _back()
    if _has(_CM + "/ok"):
        os.rename(_CM + "/ok", _CM + "/trial")
        return True
    return False


# A client on trial that the fleet has not confirmed in time is taken back by the reset.
def _check(_=None):
    if ticks_diff(ticks_ms(), due) < 0:
        return False
    if _has(_CM + "/trial"):
        _reset()
    return True


def _reset():
    from machine import reset

    reset()


# Has _check called when the time is over: first by a timer of this file, held in a global and
# chosen as in console.py, then by the client's. There may be only one timer object for both (on
# ESP32 up to MicroPython 1.28); and the client stops its timer before the interpreter restarts.
def _limit():
    global due, timer
    from machine import Timer

    due = ticks_add(ticks_ms(), _MINUTES * 60000)
    for n in (-1, 3, 2, 1, 0):
        try:
            timer = Timer(n)
            break
        except ValueError:
            pass
    timer.init(mode=Timer.ONE_SHOT, period=_MINUTES * 60000, callback=_check)
    try:
        from cm import ticker
    except ImportError:  # a client of an earlier version
        return
    timer.deinit()
    ticker.add(_check)


def start():
    trial = _settle()
    try:
        if trial:
            _limit()
        from cm import link

        link.start()
    except Exception as e:
        if not trial:
            raise e
        _back()
        _reset()
