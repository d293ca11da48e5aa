"""An Espressif chip on a cable, as its ROM loader shows it: detect, erase, write, verify, start.

esptool 5's public Python API does the work; this turns its ways into ours: errors that say what
to do, progress by a call, nothing on standard output. Import it in a function: esptool is optional.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import CableError

from . import serial_ports

if TYPE_CHECKING:
    from esptool.loader import ESPLoader

ATTEMPTS = 4  # resets that are tried until a chip answers: one second each
FAST_BAUD = 460_800  # what cheap USB bridges manage
FractionCallback = Callable[[float], None]

_logger_lock = threading.Lock()
_thread_local = threading.local()  # of each board's thread: where its progress goes


class EspChip:
    """A chip whose loader listens.

    Attributes:
        name: as esptool calls it: "ESP8266", "ESP32-S3".
        uses_stub: whether esptool's helper runs on it, which verifies what it wrote.
    """

    def __init__(self, port: str, loader: ESPLoader, has_control_lines: bool) -> None:
        self._port, self._loader, self._has_control_lines = port, loader, has_control_lines
        self.name = str(loader.CHIP_NAME)
        self.uses_stub = False

    def write_image(self, image: bytes, on_progress: FractionCallback) -> None:
        """Erase the whole flash, write the image and verify it.

        Args:
            image: what the chip boots from.
            on_progress: is told the part that is written, from 0 to 1.

        Raises:
            CableError: what failed. The loader still listens, or comes back after a reset.
        """
        from esptool.cmds import attach_flash, write_flash

        _thread_local.progress = on_progress
        with chip_errors(self._port, "The flash was not written whole", _RETRY_HINT):
            self._start_stub()
            attach_flash(self._loader)
            write_flash(
                self._loader,
                [(self._loader.BOOTLOADER_FLASH_OFFSET, image)],
                # An ESP8266 reads its flash's size from the image's header (MicroPython's docs).
                flash_size="detect" if self.name == "ESP8266" else "keep",
                erase_all=self.uses_stub,
            )

    def _start_stub(self) -> None:
        """Load esptool's helper into RAM; where that fails, the ROM alone is slower and enough."""
        from esptool.cmds import run_stub
        from esptool.util import FatalError

        try:
            self._loader = run_stub(self._loader)
            self.uses_stub = True
            self._loader.change_baud(FAST_BAUD)
        except FatalError:
            self.uses_stub = False
            self._loader._port.close()
            self._loader = _detect_chip(self._port, self._has_control_lines)

    def start_firmware(self) -> bool:
        """Start what was written; return whether the chip could be told to."""
        from esptool.cmds import reset_chip
        from esptool.util import FatalError

        with chip_errors(self._port, "The chip was not restarted", "Press its RESET."):
            if self._has_control_lines:
                reset_chip(self._loader, "hard-reset")
                return True
            try:
                reset_chip(self._loader, "soft-reset")
            except FatalError:  # not every chip's stub can
                return False
        return True

    def close(self) -> None:
        """Let go of the port."""
        with contextlib.suppress(OSError):
            self._loader._port.close()


@contextlib.contextmanager
def open_chip(port: str) -> Iterator[EspChip]:
    """Reset a chip into its loader and detect it.

    Raises:
        CableError: the port cannot be used, or no loader answers.
    """
    lines = serial_ports.check_port(port)
    _require_esptool()
    with _logger_lock:
        _silence_esptool()
    with chip_errors(port, "No chip's loader answers", _BOOT_MODE_HINT):
        loader = _detect_chip(port, lines)
    chip = EspChip(port, loader, lines)
    try:
        yield chip
    finally:
        chip.close()


def _detect_chip(port: str, has_control_lines: bool) -> ESPLoader:
    """Find out which chip it is; without RTS and DTR a person has to reset it."""
    from esptool.cmds import detect_chip

    mode = "default-reset" if has_control_lines else "no-reset"
    return detect_chip(port, connect_mode=mode, connect_attempts=ATTEMPTS)


_BOOT_MODE_HINT = (
    "Hold BOOT (FLASH, or GPIO0 to ground), press RESET, let BOOT go, and run this again. "
    "A board that is no ESP8266 or ESP32 has no such loader."
)
_RETRY_HINT = (
    "The chip has no working firmware now; run this again: its loader stays. If it fails at the "
    "same place, try another cable or USB port."
)


@contextlib.contextmanager
def chip_errors(port: str, problem: str, hint: str) -> Iterator[None]:
    """Raise what esptool or the driver raise as a sentence of ours."""
    import serial
    from esptool.util import FatalError

    try:
        yield
    except (FatalError, serial.SerialException, OSError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise CableError(port, f"{problem}: {why}", hint) from error


def _require_esptool() -> None:
    try:
        import esptool  # noqa: F401
    except ImportError:
        error = CableError("", "Flashing needs esptool, which is GPL and not part of this")
        error.hint = "Install it: `pip install 'cloudmanager[flash]'`."
        raise error from None


@functools.cache
def _silence_esptool() -> None:
    """Give esptool a logger that says nothing and passes progress on (its documented way).

    It takes one once: what comes back from ``set_logger`` takes no other.
    """
    from esptool.logger import TemplateLogger, log

    class Quiet(TemplateLogger):  # type: ignore[misc]  # esptool has no types
        """Nothing is printed; each thread hears of its own board."""

        def print(self, *_: Any, **__: Any) -> None:
            """Say nothing."""

        def note(self, message: str) -> None:
            """Say nothing."""

        def warning(self, message: str) -> None:
            """Say nothing: what matters comes as an error."""

        def error(self, message: str) -> None:
            """Say nothing: it is raised, too."""

        def stage(self, finish: bool = False) -> None:
            """Have no stages."""

        def progress_bar(self, cur_iter: int, total_iters: int, *_: Any, **__: Any) -> None:
            """Pass it on."""
            progress = getattr(_thread_local, "progress", None)
            if progress is not None and total_iters:
                progress(cur_iter / total_iters)

        def set_verbosity(self, verbosity: str) -> None:
            """Stay quiet."""

    log.set_logger(Quiet())
