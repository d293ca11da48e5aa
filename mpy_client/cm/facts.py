# Facts that change while a board is connected; it reports them when it has become idle.
# Boards: all; loaded for that, then dropped.
# Cost: 285 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm.firmware import gc, network, struct

# Numbers: written by `python -m tests.board.client_numbers`.
_OUT = const(16)
_FACTS = const(0x28)


# Returns the signal strength of Wi-Fi in dBm; 0 without Wi-Fi.
def rssi():
    try:
        return network.WLAN(0).status("rssi")
    except Exception:
        return 0


def report(link):
    link.drop("facts")
    link.drop("files")
    gc.collect()
    struct.pack_into(">Ib", link.buf, _OUT, gc.mem_free(), rssi())
    link.send(_FACTS, 0, _OUT, _OUT + 5)
