# Start-up of a board: reads settings, finishes an install, arms the watchdog, prepares the program.
# Boards: all; dropped afterwards.
# Cost: 746 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import firmware, link, run, state
from cm.firmware import json, os, sys


def _last(_):
    from cm import restart

    restart.read_last(link, run)


def _install(_):
    from cm import switch

    switch.finish()


def _watchdog(config):
    from cm import watchdog

    watchdog.start(config.get("watchdog"))
    state.watchdog = watchdog


def _program(_):
    if "app.py" in os.listdir("/"):
        from cm import app

        app.start()


# Nothing here may keep the board from connecting: then it can be repaired. An exception in a step
# means that there is nothing to do; without valid settings, dial.py prints the reason.
def start(console):
    steps = [_last, _install, _program]
    if not console:
        from cm import console

        steps.append(_watchdog)  # virtual boards have their interrupt thread for it
    state.console = console
    console.start()
    path = getattr(sys.modules.get("cm_start"), "path", None)
    firmware.path = firmware.path or path or ["", ".frozen", "/lib"]
    config = {}
    try:
        with open("/cm.json") as file:
            config = json.load(file)
        for name in ("link_timeout", "stop_timeout", "task_timeout"):
            if name in config:
                setattr(state, name, int(config[name] * 1000))
    except Exception:
        pass
    for step in steps:
        try:
            step(config)
        except Exception:
            pass
    link.drop("switch")
    sys.path[:] = firmware.path
