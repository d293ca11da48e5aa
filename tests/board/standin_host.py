"""Runs standin_boot.py: the timer and the interrupt that the unix port lacks, from a thread beside it.

The interrupt comes a moment after byte 3 was read, wherever MicroPython then is: harsher than C.
"""

import ctypes
import json
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path

import micropython_run

_TIMER, _KBD, _PERIOD, _CALLBACK = 0, 1, 2, 8


def main() -> int:
    told = json.loads(sys.stdin.readline())
    library = ctypes.CDLL(micropython_run.__file__)
    library.mp_sched_schedule.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    box = (ctypes.c_uint8 * 32)()
    signal.signal(signal.SIGUSR1, lambda *_: None)
    board = threading.main_thread().ident or 0

    def work() -> None:
        last = time.monotonic()
        while True:
            time.sleep(0.001)
            kick = False
            if box[_KBD]:
                box[_KBD] = 0
                library.mp_sched_keyboard_interrupt()
                kick = True
            if box[_TIMER] and time.monotonic() - last >= box[_PERIOD] / 1000:
                last = time.monotonic()
                kick = True
                library.mp_sched_schedule(struct.unpack_from("<q", box, _CALLBACK)[0], 1)
            if kick:
                signal.pthread_kill(board, signal.SIGUSR1)

    threading.Thread(target=work, daemon=True).start()
    threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
    told["box"] = ctypes.addressof(box)
    text = json.dumps(told).encode()
    kept = ctypes.create_string_buffer(text)
    boot = str(Path(__file__).parent / "standin_boot.py")
    words = ["micropython", "-X", "heapsize=256k", "-i", boot]
    code = f"exec(open({boot!r}).read())\nfrom cm import link\nlink.start()"
    words = ["micropython", "-X", "heapsize=256k", "-c", code]
    words += [str(ctypes.addressof(kept)), str(len(text))]
    argv = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words))
    return int(library.micropython_unix_main(len(words), argv))


if __name__ == "__main__":
    sys.exit(main())
