"""Runs standin_boot.py; the timers and the interrupt that the unix port lacks are threads here.

What C does between two bytecodes, it does while the board waits for its answer in a read.
"""

import ctypes
import json
import mmap
import os
import select
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import micropython_run

# The mailbox; the same layout is in standin_boot.py and standin_timers.py.
_STARTED, _SKIPPED, _HEAD, _SLOT, _SLOTS = 0, 8, 32, 32, 24
_ARMED, _GENERATION, _PERIOD, _CALLBACK = 0, 1, 4, 8
_ONCE = 2
_DOG, _DOG_END = 16, 24  # a byte that feeding changes; at +4: ms until the reset, or 0
# After the slots: ms of a deep sleep; eight registers of RP2's watchdog; the length of RTC memory,
# and the memory. All of it is kept over each restart but that of power.
_KEPT = _HEAD + _SLOT * _SLOTS
_BOX_BYTES = _KEPT + 4 + 32 + 2 + 2048
_STEP = 0.005  # seconds between two looks at the timers
RESTART, SOFT = 77, 78  # exit codes of a board that restarts; SOFT: only its interpreter
ASLEEP = 80  # of one that sleeps
#: machine.reset_cause() after deep sleep; RP2's is that of its watchdog.
WAKE_CAUSES = {"esp32": 4, "esp8266": 5, "rp2": 3}
STALE = b"\r\nFatal exception (29): a timer fired whose memory was freed\r\n"


def frees_armed_timers(settings: dict[str, Any]) -> bool:
    """Return whether this port frees the memory of armed timers (standin_timers.py)."""
    return str(settings.get("port", "esp8266")).startswith("esp8266")


class Timers:
    """The timers of a board, which fire between two bytecodes of its program.

    Args:
        library: the wheel's shared object.
        box: the mailbox.
        settings: settings; ``port`` decides what becomes of a timer whose object was collected.
    """

    def __init__(self, library: ctypes.CDLL, box: Any, settings: dict[str, Any]) -> None:
        self._library, self._box = library, box
        self._corrupts = frees_armed_timers(settings)
        self._main = threading.main_thread().ident or 0
        self._lives: dict[int, int] = {}  # slot -> the read end of its object's pipe
        self._due: dict[int, tuple[int, float]] = {}  # slot -> generation, ms
        self._fed: tuple[int, float] = 0, 0.0  # the watchdog's byte, and when it changed

    def create(self) -> bytes:
        """Return a slot, and the descriptor that stays open while its object is not collected."""
        slot = next(slot for slot in range(_SLOTS) if slot not in self._lives)
        self._lives[slot], life = os.pipe()
        return bytes([slot, life])

    def work(self) -> None:
        while True:
            time.sleep(_STEP)
            self._look_at_watchdog()
            for slot in list(self._lives):
                self._look(slot)

    def _look_at_watchdog(self) -> None:
        timeout = struct.unpack_from("<I", self._box, _DOG + 4)[0] / 1000
        if self._box[_DOG] != self._fed[0]:
            self._fed = self._box[_DOG], time.monotonic()
        elif timeout and time.monotonic() - self._fed[1] > timeout:
            os._exit(RESTART)

    def _look(self, slot: int) -> None:
        at = _HEAD + _SLOT * slot
        armed, generation = self._box[at + _ARMED], self._box[at + _GENERATION]
        collected = self._collected(slot)
        if collected and not (armed and self._corrupts):
            self._box[at + _ARMED] = 0  # its finaliser
            self._due.pop(slot, None)
            os.close(self._lives.pop(slot))
            return
        if not armed:
            self._due.pop(slot, None)
            return
        now = time.monotonic() * 1000 + struct.unpack_from("<q", self._box, _SKIPPED)[0]
        period = struct.unpack_from("<I", self._box, at + _PERIOD)[0]
        if self._due.get(slot, (-1, 0))[0] != generation:
            self._due[slot] = generation, now + period
        if now < self._due[slot][1]:
            return
        if collected:
            os.write(1, STALE)
            os._exit(RESTART)
        self._due[slot] = generation, now + period
        if armed == _ONCE:
            self._box[at + _ARMED] = 0
        callback, argument = struct.unpack_from("<qq", self._box, at + _CALLBACK)
        self._library.mp_sched_schedule(callback, argument)  # lost if its queue is full
        signal.pthread_kill(self._main, signal.SIGUSR1)

    def _collected(self, slot: int) -> bool:
        poll = select.poll()
        poll.register(self._lives[slot], 0)
        return bool(poll.poll(0))  # POLLHUP: nobody has the other end


def board(settings: dict[str, Any], shared: mmap.mmap) -> int:
    """Run a board in this process until it ends; return its exit status."""
    library = ctypes.CDLL(micropython_run.__file__)
    library.mp_sched_schedule.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    box = (ctypes.c_uint8 * _BOX_BYTES).from_buffer(shared)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)  # ends a sleep, not a read of an answer
    main = threading.main_thread().ident or 0
    timers = Timers(library, box, settings)
    asked, settings["ask"] = os.pipe()
    settings["answer"], answer = os.pipe()

    def interrupt() -> None:
        while asks := os.read(asked, 1):
            if asks in b"RSD":
                os._exit({b"R": RESTART, b"S": SOFT, b"D": ASLEEP}[asks])
            if asks == b"T":
                os.write(answer, timers.create())
                continue
            library.mp_sched_keyboard_interrupt()
            os.write(answer, b"!")

    orders = os.dup(0)

    def obey() -> None:
        while os.read(orders, 1):  # byte 3 came on the cable while a program runs
            if box[_STARTED]:
                library.mp_sched_keyboard_interrupt()
                signal.pthread_kill(main, signal.SIGUSR1)
        os._exit(1)

    for work in (timers.work, interrupt, obey):
        threading.Thread(target=work, daemon=True).start()
    if "tty" in settings:
        take_terminal(settings["tty"])
    settings["box"], settings["box_bytes"] = ctypes.addressof(box), _BOX_BYTES
    text = json.dumps(settings).encode()
    kept = ctypes.create_string_buffer(text)
    boot = str(Path(__file__).parent / "standin_boot.py")
    code = f"exec(open({boot!r}).read(), {{'__name__': 'standin'}})"
    if "flash" not in settings:
        code += "\nfrom cm import console as port, link"
        code += "\ntry:\n link.start(port)\nexcept SystemExit:\n restart(b'S')"
    words = ["micropython", "-X", "heapsize=256k", "-i", "-c", code]
    if "flash" not in settings:
        words.remove("-i")
    words += [str(ctypes.addressof(kept)), str(len(text)), str(Path(__file__).parent)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words))
    return int(library.micropython_unix_main(len(words), argv))


def take_terminal(path: str) -> None:
    """Use a serial port as the terminal."""
    tty = os.open(path, os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(tty, number)


def crash(settings: dict[str, Any]) -> None:
    """Print the message of a chip that has used freed memory."""
    if "tty" in settings:
        with open(settings["tty"], "wb", buffering=0) as tty:
            tty.write(STALE)
    else:
        os.write(1, STALE)


def read_line() -> str:
    """Read the line with the settings, and no byte after it."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    return line.decode()


def sleep(settings: dict[str, Any], shared: mmap.mmap) -> None:
    """Let a board sleep, and note for how many ms; with "sleeps_fast" in its settings, not really.

    Without power, nothing is left of what a program in its memory was.
    """
    (ms,) = struct.unpack_from("<I", shared, _KEPT)
    if "sleeps" in settings:
        with open(settings["sleeps"], "a") as file:
            file.write(f"{ms}\n")
    time.sleep(0.0 if settings.get("sleeps_fast") else ms / 1000)


def main() -> int:
    """Run the board, and restart it after each of its resets."""
    settings = json.loads(read_line())
    shared = mmap.mmap(-1, _BOX_BYTES)
    code = RESTART
    first_cause = settings.get("reset_cause", 1)
    while code in (RESTART, SOFT, ASLEEP) or (
        code == 0 and "flash" in settings
    ):  # 0: Ctrl-D at the REPL
        dog = shared[_DOG:_DOG_END]
        shared[:_KEPT] = bytes(_KEPT)
        chip = str(settings.get("port", "esp8266")).partition("-")[0]
        settings["reset_cause"] = first_cause
        if code == ASLEEP:
            settings["reset_cause"] = WAKE_CAUSES.get(chip[:5] if chip[:5] == "esp32" else chip, 1)
        if code == SOFT and str(settings.get("port", "")).startswith("rp2"):
            shared[_DOG:_DOG_END] = dog  # it survives a soft reset
        settings["soft"] = code == SOFT
        pid = os.fork()
        if not pid:
            os._exit(board(settings, shared))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        settings.pop("cut", None)
        if code == ASLEEP:
            sleep(settings, shared)
        armed = code != ASLEEP and any(shared[_HEAD + _ARMED : _KEPT : _SLOT])
        if code != RESTART and armed and frees_armed_timers(settings):
            crash(settings)
    return code


if __name__ == "__main__":
    sys.exit(main())
