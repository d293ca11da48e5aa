# Facts that change while a board is connected; it reports them when it has become idle.
# Boards: all; loaded for that, then dropped.
# Cost: 478 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import state
from cm.firmware import gc, network, struct, sys

# Numbers: written by `python -m tests.board.client_numbers`.
_OUT = const(16)
_FACTS = const(0x28)

_ERROR = const(3)  # of state.clock, see now_ms.py
_DRIFT = const(4)
_OFFSET = const(5)
_KEPT_AT_ONCE = const(40)  # samples; the server accepts 50 in a second


# Returns the signal strength of Wi-Fi in dBm; 0 without Wi-Fi.
def rssi():
    try:
        return network.WLAN(0).status("rssi")
    except Exception:
        return 0


# Sends them, after the clock was measured, if that is due.
def report(link):
    link.drop("facts")
    link.drop("files")
    clock = state.clock
    if clock:
        link.find("clock").measure()
    if state.ahead:  # a message has come meanwhile, which is in the buffer
        return
    if "cm.kept" in sys.modules:
        kept = link.find("kept")
        kept.forget(kept.send(_KEPT_AT_ONCE))
    gc.collect()
    struct.pack_into(">Ib", link.buf, _OUT, gc.mem_free(), rssi())
    end = _OUT + 5
    if clock and clock[_DRIFT] is not None:
        struct.pack_into(">iIi", link.buf, end, clock[_OFFSET], clock[_ERROR], clock[_DRIFT])
        end += 12
    link.send(_FACTS, 0, _OUT, end)
