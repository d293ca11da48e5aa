# What a board tells of itself when it dials: facts, parts, how its last job ended.
# Boards: all; loaded to dial, and dropped.
# Cost: 766 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
import gc
import os
import sys
from binascii import hexlify

VERSION = "0.1"


# Which files of the client are there: a part is there if its file is. Frozen, all of them are.
def _parts(link):
    try:
        return [name.split(".")[0] for name in os.listdir(link.cm.__path__)]
    except OSError:
        return ["run", "files", "ask", "loop"]


# Facts, parts, how the last job ended. The error's end becomes plain ASCII: whatever it holds, it
# must fit in a frame.
def about(link, run, job, room):
    gc.collect()
    us = sys.implementation
    last = None
    if run.status is not None:
        last = {
            "job": hexlify(job).decode(),
            "status": run.status,
            "error": "".join([chr(c) if 31 < c < 127 or c == 10 else "?" for c in run.trace]),
            "dropped": run.lost,
        }
    return {
        "boot": hexlify(run.boot).decode(),
        "buf": room,
        "parts": _parts(link),
        "facts": {
            "platform": sys.platform,
            "version": ".".join([str(v) for v in us.version[:3]]),
            "mpy": getattr(us, "_mpy", 0) & 0xFFFF,
            "machine": getattr(us, "_machine", ""),
            "client": VERSION,
            "heap": gc.mem_free(),
            "rssi": link.rssi() or None,
            "program": link.told,
        },
        "last": last,
    }
