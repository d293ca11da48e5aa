# cm.lightsleep(ms): sleeps lightly, without ticks of the client.
# Boards: all; loaded at the first use.
# Cost: 382 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, state, wake
from cm.firmware import machine, time

_PERIOD_MS = const(50)  # as in console.py, while user code runs


# RP2 wakes at each tick of a timer, and its watchdog goes on: so those of the client are stopped
# meanwhile.
def lightsleep(ms):
    if not hasattr(machine, "lightsleep"):
        time.sleep_ms(ms)
        return
    console = state.console
    dogs = len(console.dogs)
    console.timer.deinit()
    while console.dogs:
        console.dogs.pop().deinit()
    try:
        machine.lightsleep(ms)
    finally:
        if dogs:
            from cm import watchdog

            watchdog.start({"watchdog": wake.setting("watchdog", None)})
            link.drop("watchdog")
        console.timer.init(period=_PERIOD_MS, callback=console.tick)
