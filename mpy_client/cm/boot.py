# Start-up of a board: finishes an install, arms the watchdog, prepares the user's program.
# Boards: all but virtual ones, which have virtual_boot.py; dropped afterwards.
# Cost: 397 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-29).
import json
import os

from cm import console, link


# Returns the module for the console.
def start():
    try:
        from cm import switch

        switch.finish()
    except Exception:  # the board must connect in any case, so that it can be repaired
        pass
    link.drop("switch")
    try:
        with open("/cm.json") as file:
            seconds = json.load(file).get("watchdog")
        if seconds:
            # It resets a board whose interpreter hangs. A timer feeds it, so an endless loop in
            # Python does not trigger it. It cannot be stopped: while the REPL runs it is fed, too.
            from machine import WDT

            from cm import ticker

            console.close = WDT(timeout=seconds * 1000).feed
            ticker.add(console.close)
    except Exception:  # without valid settings dial.py prints the reason
        pass
    if "app.py" in os.listdir("/"):
        try:
            from cm import app

            app.start()
        except Exception:
            pass
    return console
