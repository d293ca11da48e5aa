# Start-up of a board: reads settings, finishes installs, arms the watchdog, prepares the program.
# Boards: all; dropped afterwards.
# Cost: 872 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import firmware, link, run, state
from cm.firmware import json, os, sys, time


# Returns sys.path for the user's code, which main.py has kept in cm_start. Only a new client on
# trial still needs what is in cm_start, which takes 1.2 KB of heap.
def _user_path():
    start = sys.modules.get("cm_start")
    path = getattr(start, "path", None)
    try:
        os.stat("/lib/cm/trial")
    except OSError:
        if start:
            del sys.modules["cm_start"]
            start.__dict__.clear()
    return path


# Nothing here may keep the board from connecting: then it can be repaired. An exception of a part
# means that there is nothing to do; without valid settings, dial.py prints the reason. A part is
# loaded only if there is the file that it is for: that takes 10 ms on RP2, at each wake.
def start(console):
    parts = [("restart", "/cm.last"), ("switch", "/.cm"), ("app", "/app.py")]
    if not console:
        from cm import console

        parts.append(("watchdog", "/"))  # virtual boards have their interrupt thread for it
    state.console = console
    console.start()
    del console.start  # it is not needed again
    firmware.path = firmware.path or _user_path() or ["", ".frozen", "/lib"]
    # RP2's firmware leaves this module, which is written in Python, in memory: 1.4 KB.
    for names in (sys.modules, run.__main__.__dict__):
        names.pop("rp2", None)
    link.heard = time.ticks_ms()
    config = {}
    path = "/cm.json"
    try:
        if "m.new" in str(os.listdir("/")):  # cm.new, cm.new.trial
            from cm import outage

            path = outage.start()
        with open(path) as file:
            config = json.load(file)
        for name in ("link_timeout", "stop_timeout", "task_timeout"):
            if name in config:
                setattr(state, name, int(config[name] * 1000))
    except Exception:
        pass
    link.cm.healthy = bool  # a program may call it although there is no trial
    for part, path in parts:
        try:
            os.stat(path)
            link.find(part).start(config)
        except Exception:
            pass
    link.drop("switch")
    link.drop("watchdog")
    sys.path[:] = firmware.path
