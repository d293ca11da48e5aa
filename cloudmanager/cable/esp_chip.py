"""An Espressif chip on a serial port: detect, erase, write, verify, start.

A wrapper of esptool 5's public Python API: it raises CableError with a hint, reports progress
through a callback and prints nothing. Import it in a function: esptool is optional.
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

ATTEMPTS = 4  # resets until a chip must answer; each takes one second
FAST_BAUD = 460_800  # works with cheap USB-to-serial adapters
FractionCallback = Callable[[float], None]

_logger_lock = threading.Lock()
_thread_local = threading.local()  # holds the progress callback of each board's thread


class EspChip:
    """A chip that runs its bootloader.

    Attributes:
        name: esptool's name of the chip, such as "ESP8266" or "ESP32-S3".
        uses_stub: whether esptool's stub runs on the chip; it verifies what it has written.
    """

    def __init__(self, port: str, loader: ESPLoader, has_control_lines: bool) -> None:
        self._port, self._loader, self._has_control_lines = port, loader, has_control_lines
        self.name = str(loader.CHIP_NAME)
        self.uses_stub = False

    def write_image(self, image: bytes, on_progress: FractionCallback) -> None:
        """Erase the whole flash, write the image and verify it.

        Args:
            image: the firmware.
            on_progress: is called with the written fraction, from 0 to 1.

        Raises:
            CableError: writing failed. The bootloader still runs, or runs again after a reset.
        """
        from esptool.cmds import attach_flash, write_flash

        _thread_local.progress = on_progress
        with chip_errors(self._port, "The flash was not written completely", _RETRY_HINT):
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
        """Load esptool's stub into RAM; if that fails, use the slower loader in ROM."""
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
        """Start the firmware; return whether that was possible without pressing RESET."""
        from esptool.cmds import reset_chip
        from esptool.util import FatalError

        with chip_errors(self._port, "The chip was not restarted", "Press its RESET."):
            if self._has_control_lines:
                reset_chip(self._loader, "hard-reset")
                return True
            try:
                reset_chip(self._loader, "soft-reset")
            except FatalError:  # some chips' stubs do not support it
                return False
        return True

    def close(self) -> None:
        """Close the port."""
        with contextlib.suppress(OSError):
            self._loader._port.close()


@contextlib.contextmanager
def open_chip(port: str) -> Iterator[EspChip]:
    """Reset a chip into its bootloader and detect it.

    Raises:
        CableError: the port cannot be used, or no bootloader answers.
    """
    lines = serial_ports.check_port(port)
    _require_esptool()
    with _logger_lock:
        _silence_esptool()
    with chip_errors(port, "No chip's bootloader answers", _BOOT_MODE_HINT):
        loader = _detect_chip(port, lines)
    chip = EspChip(port, loader, lines)
    try:
        yield chip
    finally:
        chip.close()


def _detect_chip(port: str, has_control_lines: bool) -> ESPLoader:
    """Connect to the chip; without the lines RTS and DTR the user must reset it."""
    from esptool.cmds import detect_chip

    mode = "default-reset" if has_control_lines else "no-reset"
    return detect_chip(port, connect_mode=mode, connect_attempts=ATTEMPTS)


_BOOT_MODE_HINT = (
    "Hold BOOT (FLASH, or GPIO0 to ground), press RESET, release BOOT, and run this again. "
    "Only ESP8266 and ESP32 have this bootloader."
)
_RETRY_HINT = (
    "The chip has no working firmware now; run this again: its bootloader is in ROM. If it fails "
    "at the same place, try another cable or USB port."
)


@contextlib.contextmanager
def chip_errors(port: str, problem: str, hint: str) -> Iterator[None]:
    """Convert errors of esptool and of the serial driver into CableError."""
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
        error = CableError("", "Flashing needs esptool, which is GPL and not installed with this")
        error.hint = "Install it: `pip install 'cloudmanager[flash]'`."
        raise error from None


@functools.cache
def _silence_esptool() -> None:
    """Give esptool a logger that prints nothing and forwards progress (its documented way).

    Called once: esptool's logger can be replaced only once.
    """
    from esptool.logger import TemplateLogger, log

    class Quiet(TemplateLogger):  # type: ignore[misc]  # esptool has no types
        """A logger that prints nothing and forwards progress to the thread's own callback."""

        def print(self, *_: Any, **__: Any) -> None:
            """Print nothing."""

        def note(self, message: str) -> None:
            """Print nothing."""

        def warning(self, message: str) -> None:
            """Print nothing: failures are raised."""

        def error(self, message: str) -> None:
            """Print nothing: the error is raised, too."""

        def stage(self, finish: bool = False) -> None:
            """Ignore stages."""

        def progress_bar(self, cur_iter: int, total_iters: int, *_: Any, **__: Any) -> None:
            """Forward the progress to the thread's callback."""
            progress = getattr(_thread_local, "progress", None)
            if progress is not None and total_iters:
                progress(cur_iter / total_iters)

        def set_verbosity(self, verbosity: str) -> None:
            """Ignore the verbosity."""

    log.set_logger(Quiet())
