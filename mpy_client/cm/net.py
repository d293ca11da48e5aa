# The network: the first Wi-Fi network of a list that accepts the board, or Ethernet.
# Boards: those with `network`; loaded to connect if cm.json names a network, then dropped.
# Cost: 690 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import state
from cm.firmware import network, time

sleep_ms = time.sleep_ms

_POLL_MS = const(20)  # ms between two polls of the status
_HOST_NAME_CHARS = const(32)  # the longest host name (extmod/modnetwork.h)
_POLLS = const(750)  # polls for each network: 15 s


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


# Applies settings that a network interface needs before it connects. Ports refuse what they lack.
def _configure(nic, config):
    try:
        network.hostname(config["name"][:_HOST_NAME_CHARS])
    except (AttributeError, KeyError):
        pass
    if config.get("country"):
        network.country(config["country"])
    nic.active(True)
    if config.get("ip"):  # address, netmask, gateway, DNS server
        nic.ifconfig(tuple(config["ip"]))


def connect(config):
    lan = config.get("lan")
    nic = state.nic = network.LAN(**lan) if lan else network.WLAN(network.STA_IF)
    if nic.isconnected():
        return
    _configure(nic, config)
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
