# Arms the watchdog, which resets a board whose interpreter hangs; the client's timer feeds it.
# Boards: all but virtual ones, unless /cm.json has "watchdog": 0; dropped afterwards.
# Cost: 663 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import console, link, state
from cm.firmware import machine, sys

_DEFAULT = const(60)  # seconds; DNS may block for long, and is not interrupted by timers
_RP2_MS = const(8388)  # the longest that RP2's WDT can wait


# Returns what is armed, in words. `seconds` is the setting, None by default.
def _arm(seconds):
    if seconds == 0:
        return "off, by its settings"
    wait = seconds or _DEFAULT
    if sys.platform == "esp8266":
        return "the firmware's own"
    if sys.platform == "rp2" and not (seconds and wait * 1000 <= _RP2_MS):
        # Two periods without food: it resets half its time to its whole time after the last.
        timer = machine.Timer(-1)
        try:
            timer.init(period=wait * 500, callback=console.check_fed, hard=True)
        except TypeError:
            return "none: its MicroPython is older than 1.26"
        console.dogs.append(timer)
        return "timer, %d s" % wait
    from cm import dog

    try:
        dog.start(wait * 1000)
    except (AttributeError, ValueError):
        link.drop("dog")
        return "none: this board has none for %d s" % wait
    console.dogs.append(dog)
    return "hardware, %d s" % wait


# Called once on each chip, with its settings.
def start(config):
    if sys.platform == "rp2":
        import cm.threads  # noqa: F401
    state.watchdog = _arm(config.get("watchdog"))
    console.idle()
