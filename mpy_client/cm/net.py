# The network: Wi-Fi, the first of its list that lets the board in, or a cable; then the clock.
# Boards: those with `network`; imported to dial where cm.json names a network, then dropped.
# Cost: 599 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
import network
from time import localtime, sleep_ms

_STEP = const(100)  # ms between two looks
_STEPS = const(150)  # looks at one network: 15 s
_YEAR = const(2024)  # a clock that says less was never set


# Waits for a connection; gives why there is none.
def _wait(nic):
    for _ in range(_STEPS):
        if nic.isconnected():
            return None
        status = nic.status()
        for name, why in (
            ("STAT_WRONG_PASSWORD", "wrong password"),
            ("STAT_NO_AP_FOUND", "not found"),
        ):
            if status == getattr(network, name, None):
                return why
        sleep_ms(_STEP)
    return "no answer"


def _set_clock():
    if localtime()[0] < _YEAR:
        try:
            import ntptime

            ntptime.settime()
        except Exception:  # no way out of this network: certificates here need no clock
            pass


def up(config):
    lan = config.get("lan")
    nic = network.LAN(**lan) if lan else network.WLAN(network.STA_IF)
    nic.active(True)
    if nic.isconnected():
        return
    for name, password in [("", "")] if lan else config["wifi"]:
        if not lan:
            nic.connect(name, password)
        why = _wait(nic)
        if not why:
            _set_clock()
            return
        print("LAN" if lan else "Wi-Fi " + name + ":", why)
        if not lan:
            nic.disconnect()
    raise OSError  # dial.py has nothing to add
