# What a board reports when it connects: facts, parts, and how its last job ended.
# Boards: all; loaded to connect, then dropped.
# Cost: 955 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.facts import rssi
from cm.firmware import binascii, gc, os, sys

VERSION = "0.1"
# Names in one string: MicroPython keeps those of variables and keys in memory for ever.
_FACT_NAMES = const("platform version mpy machine client heap rssi program watchdog")
_ALL_PARTS = const("run files ask loop boot look emit log mount trial clock now_ms")


# Returns the names of the installed parts: a part is installed if its file exists. A frozen client
# has no folder to list, and all parts.
def _parts(link):
    try:
        return [name.split(".")[0] for name in os.listdir(link.cm.__path__)]
    except OSError:
        return _ALL_PARTS.split()


# Returns the fields of PROOF. The end of the error becomes plain ASCII: it must fit in a frame,
# whatever characters it contains.
def about(job, size):
    gc.collect()
    implementation = sys.implementation
    last = None
    if run.status is not None:
        last = {
            "job": binascii.hexlify(job).decode(),
            "status": run.status,
            "error": "".join([chr(c) if 31 < c < 127 or c == 10 else "?" for c in run.trace]),
            "dropped": run.dropped,
        }
    values = (
        sys.platform,
        ".".join([str(v) for v in implementation.version[:3]]),
        getattr(implementation, "_mpy", 0) & 0xFFFF,
        getattr(implementation, "_machine", ""),
        VERSION,
        gc.mem_free(),
        rssi() or None,
        state.app_state,
        state.watchdog,
    )
    facts = dict(zip(_FACT_NAMES.split(), values))  # noqa: B905 - strict is unknown here
    from cm import hardware

    link.drop("hardware")
    hardware.add_facts(facts)
    return {
        "boot": binascii.hexlify(run.boot).decode(),
        "buf": size,
        "parts": _parts(link),
        "facts": facts,
        "last": last,
    }
