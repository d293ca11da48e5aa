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

_TIMER, _STARTED, _PERIOD, _TIMER_2, _CALLBACK, _CALLBACK_2 = 0, 1, 2, 3, 8, 16
RESTART = 77  # exit code of a board that starts anew


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

    def tick_2() -> None:
        while True:
            time.sleep(0.1)
            if box[_TIMER_2]:
                library.mp_sched_schedule(struct.unpack_from("<q", box, _CALLBACK_2)[0], 1)
                signal.pthread_kill(main, signal.SIGUSR1)

    asked, told["ask"] = os.pipe()
    told["answer"], answer = os.pipe()

    def interrupt() -> None:
        while asks := os.read(asked, 1):
            if asks == b"R":
                os._exit(RESTART)
            library.mp_sched_keyboard_interrupt()
            os.write(answer, b"!")

    orders = os.dup(0)

    def obey() -> None:
        while os.read(orders, 1):  # byte 3 came on the cable while a program runs
            if box[_STARTED]:
                library.mp_sched_keyboard_interrupt()
                signal.pthread_kill(main, signal.SIGUSR1)
        os._exit(1)

    for work in (tick, tick_2, interrupt, obey):
        threading.Thread(target=work, daemon=True).start()
    if "tty" in told:
        take_terminal(told["tty"])
    told["box"] = ctypes.addressof(box)
    text = json.dumps(told).encode()
    kept = ctypes.create_string_buffer(text)
    boot = str(Path(__file__).parent / "standin_boot.py")
    code = f"exec(open({boot!r}).read(), {{'__name__': 'standin'}})"
    if "flash" not in told:
        code += "\nfrom cm import console as port, link\nlink.start(port)"
    words = ["micropython", "-X", "heapsize=256k", "-i", "-c", code]
    if "flash" not in told:
        words.remove("-i")
    words += [str(ctypes.addressof(kept)), str(len(text))]
    argv = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words))
    return int(library.micropython_unix_main(len(words), argv))


def take_terminal(path: str) -> None:
    """Have a serial port as terminal."""
    tty = os.open(path, os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(tty, number)


def read_line() -> str:
    """Read the settings and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    return line.decode()


def main() -> int:
    """Start the board, and anew after each of its resets."""
    told = json.loads(read_line())
    code = RESTART
    while code == RESTART or (code == 0 and "flash" in told):  # 0: Ctrl-D at the REPL
        pid = os.fork()
        if not pid:
            os._exit(board(told))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told.pop("cut", None)
    return code


if __name__ == "__main__":
    sys.exit(main())
