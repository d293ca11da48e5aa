"""The board under test, and the server and fleet that belong to it alone."""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudmanager import local_server
from cloudmanager.cable.bridge import Bridge
from cloudmanager.cable.serial_ports import BoardRepl
from cloudmanager.client.fleet import Boards, Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.results.results import Result
from cloudmanager.server_options import ServerOptions

NAME = "hardware-1"
RETURN_SECONDS = 120.0  # within which a board must be back by itself
CELL_SECONDS = 20.0
PROMPT_SECONDS = 10.0
PORT_SECONDS = 10.0  # until the port of a board with native USB exists again
_PROBE_SECONDS = 15.0  # for the cell that shows that the board is in the fleet

_TICKS_CODE = "import time\ntime.ticks_ms()"
_TICKS_PERIOD = 1 << 30  # ms after which MicroPython's ticks begin again
_EMPTY_CELLS = 3  # of which the fastest counts

_BARE_HEAP_CODE = "import gc\ngc.collect()\nprint((gc.mem_free(),))"


@dataclass(frozen=True)
class Options:
    """What is tested, and how much of it.

    Attributes:
        port: the serial port of the board.
        wifi: the network with its password; None: the board is tested through the bridge.
        server: the address that the board connects to, if it is not this machine's own.
        link: "tls", or "mac" for a link as an ESP8266 has it, without TLS.
        tcp_port: of the server; 0: any.
        reset: a command that presses the board's RESET, or cuts its power; empty: there is none.
        repeats: how often a check repeats what it measures.
    """

    port: str
    wifi: tuple[str, str] | None = field(default=None, repr=False)
    server: str | None = None
    link: str = "tls"
    tcp_port: int = 0
    reset: str = ""
    repeats: int = 100


class PlainFleet(Fleet):
    """A fleet whose new boards connect without TLS, with a MAC on each message."""

    def enrol(self, names: Sequence[str], *, plain: bool = True) -> list[dict[str, Any]]:
        """Enrol boards that cannot use TLS."""
        return super().enrol(names, plain=True)


class Bench:
    """The board under test; a context manager that starts and stops its server.

    ``CM_HOME`` must be a folder of its own: the server's state and the board's key are in it.

    Attributes:
        options: what is tested.
        facts: what the board is: platform, version, machine.
        bare_heap: bytes of heap that are free without our client.
        fleet: the fleet of the board.
        is_lost: whether the board did not come back.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.facts: dict[str, object] = {}
        self.bare_heap = 0
        self.is_lost = False
        self._server_port = options.tcp_port
        self._bridge: Bridge | None = None
        self.bridge_events: list[str] = []

    def __enter__(self) -> Bench:
        self.start_server()
        self.fleet = PlainFleet() if self.options.link == "mac" else Fleet()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_bridge()
        self.fleet.close()
        local_server.stop()

    # The server

    def start_server(self) -> None:
        """Start the server; from the second time on, on the same TCP port."""
        listen = "0.0.0.0" if self.options.wifi else "127.0.0.1"
        options = ServerOptions(listen=listen, port=self._server_port)
        started = local_server.start(options)
        self._server_port = int(started.url.rpartition(":")[2])

    @contextlib.contextmanager
    def stopped_server(self) -> Iterator[None]:
        """Stop the server for a while."""
        local_server.stop()
        try:
            yield
        finally:
            self.start_server()

    # The board

    @contextlib.contextmanager
    def repl(self) -> Iterator[BoardRepl]:
        """Open the board's REPL, which stops what runs on it."""
        deadline = time.monotonic() + PORT_SECONDS
        while True:
            try:
                repl = BoardRepl(self.options.port)
                break
            except CloudmanagerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        with repl:
            repl.await_prompt(PROMPT_SECONDS)
            yield repl

    def look_at_board(self) -> None:
        """Remove the client and programs of earlier runs, and learn what the board is.

        Raises:
            CableError: no MicroPython answers on the port.
        """
        with self.repl() as repl:
            repl.run(_REMOVE_CODE)
            repl.restart()
        time.sleep(0.5)  # a port of native USB disappears
        with self.repl() as repl:
            self.facts = repl.facts()
            (self.bare_heap,) = repl.run_tuple(_BARE_HEAP_CODE, 1)

    @property
    def board(self) -> Boards:
        """The board as a target of the fleet."""
        return self.fleet[NAME]

    def run(self, code: str, timeout: float = CELL_SECONDS) -> Result:
        """Run a cell; return how it ended."""
        return self.board.run(code, timeout=timeout)[NAME]

    def value(self, code: str, timeout: float = CELL_SECONDS) -> object:
        """Run a cell and return its value; raise what the cell raised."""
        return self.run(code, timeout).value

    def time_cell(self, code: str) -> tuple[Result, float]:
        """Run a cell; return how it ended, and the seconds that it took by the board's own clock.

        That is from its arrival to that of the next cell, less the time of an empty cell. In an
        emulator that is slower than its chip, this clock is as slow.
        """
        empty = min(self._between_ticks("None")[1] for _ in range(_EMPTY_CELLS))
        result, seconds = self._between_ticks(code)
        return result, seconds - empty

    def time_action(self, action: Callable[[], object]) -> float:
        """Call a function that has the board work; return the seconds by the board's own clock."""
        empty = min(self._ticks_around(lambda: None) for _ in range(_EMPTY_CELLS))
        return self._ticks_around(action) - empty

    def _ticks_around(self, action: Callable[[], object]) -> float:
        first = int(str(self.value(_TICKS_CODE)))
        action()
        return (int(str(self.value(_TICKS_CODE))) - first) % _TICKS_PERIOD / 1000

    def _between_ticks(self, code: str) -> tuple[Result, float]:
        cells = (_TICKS_CODE, code, _TICKS_CODE)  # the second and third wait at the server
        groups = [self.board.submit(each, timeout=CELL_SECONDS) for each in cells]
        assert all(group.wait(3 * CELL_SECONDS) for group in groups), "a cell did not end"
        first, result, last = (group.results()[NAME] for group in groups)
        return result, (int(str(last.value)) - int(str(first.value))) % _TICKS_PERIOD / 1000

    def fact(self, name: str) -> object:
        """Return a fact that the board reported."""
        (row,) = self.fleet.boards(NAME)
        return row.get(name, row.get("facts", {}).get(name))

    def connected_since(self) -> float | None:
        """Return when the board's link began; None if there is no link."""
        rows = [row for row in self.fleet.boards() if row["name"] == NAME]
        return rows[0]["connected_since"] if rows else None

    def await_link(self, before: float | None, seconds: float = RETURN_SECONDS) -> float:
        """Wait for a link that is not the one of ``before``; return the seconds that it took."""
        since = time.monotonic()
        while self.connected_since() in (None, before):
            assert time.monotonic() - since < seconds, f"it was not back within {seconds:g} s"
            time.sleep(0.05)
        return time.monotonic() - since

    def press_reset(self) -> None:
        """Run the command that presses RESET or cuts the power."""
        subprocess.run(self.options.reset, shell=True, check=True, timeout=30)

    def recover(self) -> str:
        """Wait until the board runs a cell; return "", or what was needed for that.

        A board that does not come back by itself is reset, if there is a command for that.
        """
        if self.connected_since() is None and not self._ever_joined():
            return ""
        deadline = time.monotonic() + RETURN_SECONDS
        while time.monotonic() < deadline:
            if self._runs_a_cell():
                return ""
            time.sleep(0.2)
        if self.options.reset:
            self.press_reset()
            self._remove_program()
            if self._runs_a_cell(60):
                return f"the board was lost: it came back by RESET, not within {RETURN_SECONDS:g} s"
        self.is_lost = True
        return f"the board was lost: it did not come back within {RETURN_SECONDS:g} s"

    def _remove_program(self) -> None:
        """Remove app.py over the cable: it may be what took the board out of the fleet."""
        if self.options.wifi:
            with contextlib.suppress(CloudmanagerError), self.repl() as repl:
                repl.run("import os\nif 'app.py' in os.listdir('/'): os.remove('/app.py')")
                repl.restart()

    def await_cell(self) -> None:
        """Wait until the board runs a cell again, by itself."""
        lost = self.recover()
        assert not lost, lost

    def _ever_joined(self) -> bool:
        return any(row["name"] == NAME and row.get("version") for row in self.fleet.boards())

    def _runs_a_cell(self, seconds: float = _PROBE_SECONDS) -> bool:
        with contextlib.suppress(CloudmanagerError):
            group = self.board.submit("6 * 7", timeout=seconds, wait=seconds)
            if group.wait(seconds):
                return group.results()[NAME].text == "42"
            group.interrupt()
        return False

    # The bridge

    def start_bridge(self) -> None:
        """Connect the board through the bridge."""
        ports, names = [self.options.port], [NAME]
        self._bridge = Bridge(
            self.fleet, ports, names, lambda port, text: self.bridge_events.append(text)
        )
        self._bridge.__enter__()
        self.await_link(None, 30)

    def stop_bridge(self) -> None:
        """Stop the bridge, if it runs."""
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            bridge.__exit__()


def interrupt_cell(bench: Bench, code: str, after: float) -> float:
    """Start a cell that does not end, interrupt it; return the seconds until it had ended.

    Args:
        bench: the board.
        code: the cell.
        after: seconds until it is interrupted.
    """
    group = bench.board.submit(code)
    time.sleep(after)
    since = time.monotonic()
    group.interrupt()
    assert group.wait(RETURN_SECONDS), f"it was not interrupted: {code!r}"
    seconds = time.monotonic() - since
    result = group.results()[NAME]
    assert result.status == "interrupted", f"{result.status} instead of interrupted: {code!r}"
    return seconds


def some_delay() -> float:
    """Return a random delay, so that interrupts come at all places of a loop."""
    return random.uniform(0.05, 0.15)


def milliseconds(seconds: Sequence[float]) -> str:
    """Return the median and the maximum."""
    median = statistics.median(seconds) * 1000
    return f"median {median:.0f} ms, at most {max(seconds) * 1000:.0f} ms"


_REMOVE_CODE = """
import os
def remove(path):
    try:
        os.remove(path)
    except OSError:
        try:
            for name in os.listdir(path):
                remove(path + "/" + name)
            os.rmdir(path)
        except OSError:
            pass
for name in os.listdir("/"):
    if name in ("app.py", "main.py", "boot.py") or name[:2] == "cm" or name[:3] == "hw_":
        remove("/" + name)
for name in ("cm", "cm.new", "cm.old", "cm.bad", "cm_start.mpy"):
    remove("/lib/" + name)
"""
