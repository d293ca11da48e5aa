"""The bridge: boards on serial ports become members of the fleet, through their raw REPL.

```
server ══ BridgedBoardLink ══ BridgedBoard ══ raw REPL ══ serial port ══ board
              one thread for each board; ports may appear and disappear
```

To callers a bridged board is a board like any other: cells, values, live output, interrupts,
timeouts, files, installs. There are two differences: ``input()`` raises EOFError, and the board's
own program is interrupted, since the bridge needs the REPL.
"""

from __future__ import annotations

import contextlib
import random
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol import proofs, wire
from cloudmanager.protocol.errors import CableError, CloudmanagerError, LinkLost, NotAllowed
from cloudmanager.protocol.wire import Message

from .board_link import BridgedBoardLink
from .bridged_boards import BridgedIdentities
from .raw_repl import discard_output
from .repl_jobs import ReplJobs
from .serial_ports import BoardRepl, find_serial_ports

VERSION: Final = "bridge 0.1"
PROMPT_SECONDS: Final = 10.0  # until a board must show its REPL
PORT_POLL_SECONDS: Final = 0.5  # between two searches for ports
_EOT: Final = b"\x04"
_REKEY: Final = struct.Struct(">I")
_BOARD_INFO_CODE: Final = """
try:
 import gc
 gc.collect()
 h=gc.mem_free()
except (ImportError,AttributeError):
 h=0
try:
 from machine import unique_id
 u=''.join(['%02x'%b for b in unique_id()])
except ImportError:
 u=''
print((h,u))
"""
OnBridgeEvent = Callable[[str, str], None]


class Bridge:
    """Connects the boards on serial ports to a fleet; a context manager.

    Args:
        fleet: the fleet that the boards join.
        ports: serial ports; empty: all USB serial ports, including those that appear later.
        names: names for new boards; empty: by platform.
        on_event: is called with a port and a message, from the boards' threads.
    """

    def __init__(
        self, fleet: Fleet, ports: Sequence[str], names: Sequence[str], on_event: OnBridgeEvent
    ) -> None:
        url = config.split_url(fleet.address.url)
        self._address = (url.hostname or config.DEFAULT_HOST, url.port or config.DEFAULT_TCP_PORT)
        self._identities = BridgedIdentities(fleet, names)
        self._ports, self._on_event = list(ports), on_event
        self._stopped = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._port_watcher = threading.Thread(target=self._watch_ports)

    def __enter__(self) -> Bridge:
        """Start the threads."""
        self._port_watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect all boards; cells that are running continue, and their results are lost."""
        self._stopped.set()
        for thread in (self._port_watcher, *self._threads.values()):
            thread.join()

    def _watch_ports(self) -> None:
        while True:
            for port in self._ports or [port.device for port in find_serial_ports()]:
                if port not in self._threads:
                    member = BridgedBoard(
                        port, self._address, self._identities, self._on_event, self._stopped
                    )
                    self._threads[port] = threading.Thread(target=member.run)
                    self._threads[port].start()
            if self._stopped.wait(PORT_POLL_SECONDS):
                return


class BridgedBoard:
    """The board on one port; ``run`` is called in a thread of its own."""

    def __init__(
        self,
        port: str,
        address: tuple[str, int],
        identities: BridgedIdentities,
        on_event: OnBridgeEvent,
        stopped: threading.Event,
    ) -> None:
        self.port, self._address, self._identities = port, address, identities
        self._on_event, self._stopped = on_event, stopped
        self._jobs: ReplJobs | None = None  # of the board that is connected
        self._last_message = ""

    def run(self) -> None:
        """Serve the board whenever it is plugged in, until the bridge stops."""
        while not self._stopped.is_set():
            try:
                with BoardRepl(self.port) as self._repl:
                    self._serve_board()
            except CloudmanagerError as error:
                self._report(error.message_without_subject())
            finally:
                if self._jobs is not None:
                    self._jobs.close_link()
            self._stopped.wait(PORT_POLL_SECONDS)

    def _report(self, message: str) -> None:
        if message != self._last_message:
            self._last_message = message
            self._on_event(self.port, message)

    def _serve_board(self) -> None:
        """Serve the board until it restarts or is unplugged; reconnect when its link is lost."""
        self._repl.await_prompt(PROMPT_SECONDS)
        facts = self._repl.facts()
        heap, hardware = self._repl.run_tuple(_BOARD_INFO_CODE, 2)
        self._hardware = hardware or self.port
        self._identity = self._identities.get_identity(self._hardware, facts["platform"])
        self._facts = {**facts, "client": VERSION, "heap": heap}
        previous = self._jobs
        jobs = self._jobs = ReplJobs(self._repl, heap, self._stopped)
        jobs.last_job = previous.last_job if previous else None
        jobs.finish_install()
        tries = 0
        while not self._stopped.is_set():
            try:
                self._dial(jobs)
                tries = 0
                self._serve_link(jobs)
            except (NotAllowed, CableError):
                raise
            except CloudmanagerError as error:
                jobs.close_link()
                self._report(error.message_without_subject())
            tries += 1
            self._stopped.wait(random.uniform(0, min(2.0, 0.1 * 2**tries)))

    def _dial(self, jobs: ReplJobs) -> None:
        proof_fields = {
            "boot": jobs.boot_id,
            "parts": jobs.client_parts,
            "facts": self._facts,
            "last": jobs.last_job,
        }
        link = BridgedBoardLink(self._address, self._identity, proof_fields)
        jobs.set_link(link)
        self._report(f"{link.name} is in the fleet")

    def _serve_link(self, jobs: ReplJobs) -> None:
        """Handle the server's messages until the link or the serial port fails."""
        while (link := jobs.link) is not None and not self._stopped.is_set():
            discard_output(self._repl)  # raises if the board was unplugged or restarted
            if time.monotonic() - link.last_heard > 2.5 * link.heartbeat_seconds:
                raise LinkLost("", None, "the server sent nothing for too long")
            for message in link.receive(PORT_POLL_SECONDS):
                self._handle_message(jobs, message)
                if link.closed:
                    return

    def _handle_message(self, jobs: ReplJobs, message: Message) -> None:
        if message.op == wire.RESET:
            jobs.close_link()
            self._reset_board()
        elif message.op == wire.REKEY:
            self._rekey(jobs, message)
        else:
            jobs.handle_message(message)

    def _rekey(self, jobs: ReplJobs, message: Message) -> None:
        """Change the board's key; it is saved before it is confirmed to the server."""
        (gen,), nonce = _REKEY.unpack_from(message.payload), message.payload[_REKEY.size :]
        if gen == self._identity.extra.get("gen", 0) + 1:
            key = proofs.next_key(self._identity.key, gen, nonce)
            self._identity = self._identities.change_key(self._hardware, key, gen)
            jobs.send(wire.REKEYED, proofs.rekey_proof(key, gen, nonce))

    def _reset_board(self) -> None:
        """Restart the interpreter; from the raw REPL the user's program is not started."""
        with self._repl.cable_errors("The board did not come back from its reset"):
            serial = self._repl.transport.serial
            self._repl.transport.read_until(1, b">", timeout=1)
            serial.write(_EOT)
            self._repl.transport.in_raw_repl = False
        with contextlib.suppress(CableError):
            self._repl.read_output(0.2)
        raise CableError(self.port, "The board was reset", "It reconnects by itself.")
