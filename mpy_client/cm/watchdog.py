# The watchdog: resets a board whose interpreter hangs; the client's timer feeds it.
# Boards: all but virtual ones, unless /cm.json has "watchdog": 0; it stays in memory.
# Cost: 952 bytes of .mpy, 0 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
import __main__

from cm.firmware import machine, sys

_DEFAULT = const(60)  # seconds; DNS may block for long, and is not interrupted by timers
_RP2_MS = const(8388)  # the longest that RP2's WDT can wait
_OFF_MS = const(0x7FFFFFF)  # for ESP32, whose WDT cannot be stopped, but set again
_CLEAR_ENABLE = const(0x3000)  # from a watchdog's base to CTRL with atomic clear (RP2040, 2.1.2)

fed = True
timer = dog = None
armed = ""  # what is armed, as the fleet shows it


# Runs in interrupt context (RP2's hard timers), where nothing may be allocated.
def _check(_):
    global fed
    if not fed:
        machine.reset()
    fed = False


# A watchdog of the user's program is the same hardware on ESP32: it is not fed for them.
def _is_users():
    for names in (__main__.__dict__, getattr(sys.modules.get("app"), "__dict__", ())):
        for name in names:
            if type(names[name]) is type(dog):
                return True
    return False


def feed():
    global fed
    fed = True
    if dog and not _is_users():
        dog.feed()


# Arms what the port has. `seconds` is the setting, None by default.
def start(seconds):
    global armed, dog, timer
    if seconds == 0:
        armed = "off, by its settings"
        return
    wait = seconds or _DEFAULT
    if sys.platform == "rp2" and not (seconds and wait * 1000 <= _RP2_MS):
        # Two periods without food: it resets half its time to its whole time after the last.
        try:
            timer = machine.Timer(-1)
            timer.init(period=wait * 500, callback=_check, hard=True)
            armed = "timer, %d s" % wait
        except TypeError:
            timer = None
            armed = "none: its MicroPython is older than 1.26"
    elif sys.platform == "esp8266":
        armed = "the firmware's own"
    else:
        try:
            dog = machine.WDT(timeout=wait * 1000)
            armed = "hardware, %d s" % wait
        except (AttributeError, ValueError):
            armed = "none: this board has none for %d s" % wait
    if timer or dog:
        from cm import calls

        calls.add(feed)


# Takes the watchdog back: in the REPL, and while the board sleeps, nobody feeds it.
def stop():
    global dog, timer
    if timer:
        timer.deinit()
    if dog and sys.platform == "rp2":
        rp2350 = "RP2350" in sys.implementation._machine
        machine.mem32[(0x400D8000 if rp2350 else 0x40058000) + _CLEAR_ENABLE] = 1 << 30
    elif dog:
        machine.WDT(timeout=_OFF_MS)
    timer = dog = None
