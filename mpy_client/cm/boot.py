# What a board does once, at its start: finishes an install, arms the watchdog, readies the program.
# Boards: all but virtual ones, which have virtual_boot.py; dropped when it is done.
# Cost: 407 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
import json
import os

from cm import console, link


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
            # It resets a board whose interpreter stands still: a timer feeds it, so a loop in
            # Python is no reason. It cannot be stopped any more: the REPL has it fed, too.
            from machine import WDT

            from cm import ticker

            console.leave = WDT(timeout=seconds * 1000).feed
            ticker.add(console.leave)
    except Exception:  # without settings it cannot dial, but says so
        pass
    if "app.py" in os.listdir("/"):
        try:
            from cm import app

            app.begin()
        except Exception:
            pass
    return console
