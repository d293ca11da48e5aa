"""Boards on a cable as members of the fleet: a link for each, and its raw REPL on the other side.

```
server ══ BoardLink ══ Member ══ raw REPL ══ cable ══ board
            one thread for each board; ports may come and go
```

To callers a bridged board is a board like any other: cells, values, output as it comes, interrupts,
timeouts, files, installs. It differs where a cable has to: ``input()`` raises EOFError, and what
its program does between cells is interrupted, since the REPL is what the bridge needs.
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

from .board_link import BoardLink
from .bridged_boards import Members
from .repl_jobs import Jobs
from .serial_ports import Repl, serial_ports

VERSION: Final = "bridge 0.1"
PROMPT_SECONDS: Final = 10.0  # that a board may take to show its REPL
PORT_SECONDS: Final = 0.5  # between two looks for a port that is gone
_EOT: Final = b"\x04"
_REKEY: Final = struct.Struct(">I")
_ABOUT: Final = """
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
Tell = Callable[[str, str], None]


class Bridge:
    """Serves ports until it is stopped; a context manager.

    Args:
        fleet: whose members the boards become.
        ports: these serial ports; none: all with USB behind them, also those that come later.
        names: what new boards may be called.
        tell: is called with port and what is new, from the boards' threads.
    """

    def __init__(
        self, fleet: Fleet, ports: Sequence[str], names: Sequence[str], tell: Tell
    ) -> None:
        url = config.split(fleet.address.url)
        self._address = (url.hostname or config.DEFAULT_HOST, url.port or config.DEFAULT_TCP_PORT)
        self._members = Members(fleet, names)
        self._ports, self._tell = list(ports), tell
        self._stopped = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Bridge:
        """Start."""
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of all boards; cells that run go on on them, and are lost."""
        self._stopped.set()
        for thread in (self._watcher, *self._threads.values()):
            thread.join()

    def _watch(self) -> None:
        while True:
            for port in self._ports or [port.device for port in serial_ports()]:
                if port not in self._threads:
                    member = Member(port, self._address, self._members, self._tell, self._stopped)
                    self._threads[port] = threading.Thread(target=member.run)
                    self._threads[port].start()
            if self._stopped.wait(PORT_SECONDS):
                return


class Member:
    """One port's board, in a thread of its own."""

    def __init__(
        self,
        port: str,
        address: tuple[str, int],
        members: Members,
        tell: Tell,
        stopped: threading.Event,
    ) -> None:
        self.port, self._address, self._members = port, address, members
        self._tell, self._stopped = tell, stopped
        self._jobs: Jobs | None = None  # of the board that is there
        self._said = ""

    def run(self) -> None:
        """Serve the board whenever it is there."""
        while not self._stopped.is_set():
            try:
                with Repl(self.port) as self._repl:
                    self._serve_board()
            except CloudmanagerError as error:
                self._say(error.told())
            finally:
                if self._jobs is not None:
                    self._jobs.hang_up()
            self._stopped.wait(PORT_SECONDS)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._tell(self.port, what)

    def _serve_board(self) -> None:
        """Serve the board from its start to its next, by one link after the other."""
        self._repl.await_prompt(PROMPT_SECONDS)
        facts = self._repl.facts()
        heap, hardware = self._repl.told(_ABOUT, 2)
        self._hardware = hardware or self.port
        self._identity = self._members.identity(self._hardware, facts["platform"])
        self._facts = {**facts, "client": VERSION, "heap": heap}
        jobs = self._jobs = Jobs(self._repl, heap, self._stopped)
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
                jobs.hang_up()
                self._say(error.told())
            tries += 1
            self._stopped.wait(random.uniform(0, min(2.0, 0.1 * 2**tries)))

    def _dial(self, jobs: Jobs) -> None:
        about = {"boot": jobs.boot, "parts": jobs.parts, "facts": self._facts, "last": jobs.last}
        link = BoardLink(self._address, self._identity, about)
        jobs.begin_link(link)
        self._say(f"{link.name} is in the fleet")

    def _serve_link(self, jobs: Jobs) -> None:
        """Do what the server says, until the link or the cable ends."""
        while (link := jobs.link) is not None and not self._stopped.is_set():
            self._check_cable()
            if time.monotonic() - link.heard > 2.5 * link.beat:
                raise LinkLost("", None, "the server fell silent")
            for message in link.receive(PORT_SECONDS):
                self._handle(jobs, message)
                if link.closed:
                    return

    def _handle(self, jobs: Jobs, message: Message) -> None:
        if message.op == wire.RESET:
            jobs.hang_up()
            self._reset()
        elif message.op == wire.REKEY:
            self._rekey(jobs, message)
        else:
            jobs.take(message)

    def _check_cable(self) -> None:
        """Notice that the board is unplugged."""
        with self._repl.failing("The board is gone"):
            _ = self._repl.transport.serial.in_waiting  # asks the driver

    def _rekey(self, jobs: Jobs, message: Message) -> None:
        """Take another key; it is kept before the server hears of it."""
        (gen,), nonce = _REKEY.unpack_from(message.payload), message.payload[_REKEY.size :]
        if gen == self._identity.more.get("gen", 0) + 1:
            key = proofs.next_key(self._identity.key, gen, nonce)
            self._identity = self._members.rekey(self._hardware, key, gen)
            jobs.send(wire.REKEYED, proofs.rekey_proof(key, gen, nonce))

    def _reset(self) -> None:
        """Restart the interpreter; in the raw REPL no program of the user's is started."""
        with self._repl.failing("The board did not come back from its reset"):
            serial = self._repl.transport.serial
            self._repl.transport.read_until(1, b">", timeout=1)
            serial.write(_EOT)
            self._repl.transport.in_raw_repl = False
        with contextlib.suppress(CableError):
            self._repl.listen(0.2)
        raise CableError(self.port, "The board was reset", "It comes back by itself.")
