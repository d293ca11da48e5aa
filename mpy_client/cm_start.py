# Starts the client. A new one (mbm board-upgrade-client) is on trial for one boot, in which the
# fleet has to confirm it: else the old one is back at the next. This file is never replaced so.
# Boards: all but virtual ones, on littlefs, whose rename of a folder is atomic. 715 bytes of .mpy.
#
# /lib/cm is the client, /lib/cm.new the next one (whole where it has a file `ok`), /lib/cm.old the
# last. Each line may be the last before the power goes: the next boot goes on from there.
import os

_CM = "/lib/cm"
_NEW = "/lib/cm.new"
_OLD = "/lib/cm.old"
_BAD = "/lib/cm.bad"
_MINUTES = 5  # that a new client has to find the fleet


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


def start():
    trial = _settle()
    try:
        if trial:
            from machine import Timer, reset

            timer = Timer(-1)
            timer.init(
                mode=Timer.ONE_SHOT,
                period=_MINUTES * 60000,
                callback=lambda _: _has(_CM + "/trial") and reset(),
            )
        from cm import link

        link.start()
    except Exception as e:
        if not trial:
            raise e
        _back()
        reset()
