"""Runs standin_boot.py; the timer and the interrupt that the unix port lacks are threads here.

What C does between two bytecodes, it does while the board waits for its answer in a read.
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
from typing import Any

import micropython_run

_TIMER, _PERIOD, _CALLBACK = 0, 2, 8


def board(told: dict[str, Any]) -> int:
    """Be a board until it ends; return its exit code."""
    library = ctypes.CDLL(micropython_run.__file__)
    library.mp_sched_schedule.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    box = (ctypes.c_uint8 * 32)()
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)  # ends a sleep, not a read of an answer
    main = threading.main_thread().ident or 0

    def tick() -> None:
        while True:
            time.sleep((box[_PERIOD] or 50) / 1000)
            if box[_TIMER]:
                library.mp_sched_schedule(struct.unpack_from("<q", box, _CALLBACK)[0], 1)
                signal.pthread_kill(main, signal.SIGUSR1)

    asked, told["ask"] = os.pipe()
    told["answer"], answer = os.pipe()

    def interrupt() -> None:
        while os.read(asked, 1):
            library.mp_sched_keyboard_interrupt()
            os.write(answer, b"!")

    threading.Thread(target=tick, daemon=True).start()
    threading.Thread(target=interrupt, daemon=True).start()
    threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
    told["box"] = ctypes.addressof(box)
    text = json.dumps(told).encode()
    kept = ctypes.create_string_buffer(text)
    boot = str(Path(__file__).parent / "standin_boot.py")
    code = f"exec(open({boot!r}).read())\nfrom cm import console as port, link\nlink.start(port)"
    words = ["micropython", "-X", "heapsize=256k", "-c", code]
    words += [str(ctypes.addressof(kept)), str(len(text))]
    argv = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words))
    return int(library.micropython_unix_main(len(words), argv))


def main() -> int:
    """Start the board, and anew after each of its soft resets."""
    told = json.loads(sys.stdin.readline())
    code = 77
    while code == 77:
        pid = os.fork()
        if not pid:
            os._exit(board(told))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code


if __name__ == "__main__":
    sys.exit(main())
