"""``Fleet``: the verbs that people type, blocking."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from cloudmanager import config

from . import verbs
from .exchange import Exchange
from .file_verbs import FileVerbs
from .jobs import Event, JobGroup
from .link import ServerLink
from .package_verbs import PackageVerbs
from .verbs import BoardsVerbs, FleetVerbs, blocking
from .watch import Watch


class Fleet:
    """All boards of one server.

    ``fleet["esp-[1-3]"]`` chooses boards; nothing is sent until one of their verbs is
    called. May be used from any thread, by several at once.

    Args:
        url: the server, such as ``http://127.0.0.1:18266``; found when not given.
        token: what authenticates the caller; CM_TOKEN by default, else the local token file.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._link: ServerLink | None = None
        self._connect_lock = threading.Lock()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, target: str) -> Boards:
        return Boards(self, target)

    def __repr__(self) -> str:
        """Say which server, never the token."""
        return f"Fleet({self.address.url!r})"

    @property
    def address(self) -> config.ServerAddress:
        """Where the server is looked for now."""
        return config.find_server(self._url, self._token)

    def close(self) -> None:
        """Hang up. What runs goes on on the boards."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def exchange(self) -> Exchange:
        """Return the conversation with the server; dial where there is none, or it broke.

        Raises:
            ServerUnreachable, NotAllowed, VersionMismatch: there is no link.
        """
        with self._connect_lock:
            if self._link is None or self._link.closed:
                self._link = ServerLink(self.address)
            return self._link.exchange

    def watch(self, target: str = "all", *, samples: bool = True) -> Watch:
        """Follow boards: iterate over what happens to them, and ``close()`` it.

        It outlives the server's restarts, and says so (``Update.lost``). Nothing is sent until
        the first update is waited for.

        Args:
            target: the boards, there or not; chosen anew at each change.
            samples: whether what they emit is wanted, too.
        """
        return Watch(self.exchange, target, samples=samples)

    request = blocking(FleetVerbs.request)
    boards = blocking(FleetVerbs.boards)
    status = blocking(FleetVerbs.status)
    enrol = blocking(FleetVerbs.enrol)
    enrol_token = blocking(FleetVerbs.enrol_token)
    revoke = blocking(FleetVerbs.revoke)
    rename = blocking(FleetVerbs.rename)
    rotate = blocking(FleetVerbs.rotate)
    jobs = blocking(FleetVerbs.jobs)
    job = blocking(FleetVerbs.job)
    interrupt = blocking(FleetVerbs.interrupt)
    samples = blocking(FleetVerbs.samples)


class Boards:
    """The boards of a target, chosen anew by the server at each call."""

    def __init__(self, fleet: Fleet, target: str) -> None:
        self._fleet = fleet
        self.target = target
        self.exchange = fleet.exchange

    def __repr__(self) -> str:
        return f"Boards({self.target!r})"

    def submit(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        fresh: bool = False,
        wait: float = 0,
        listen: bool = False,
        on_event: Callable[[Event | None], None] | None = None,
        answers: bool = False,
    ) -> JobGroup:
        """Run a cell on all of the boards at once; return without waiting for them to end.

        Args:
            code: Python; a trailing expression is the value. It may ``await``.
            inputs: name -> value, assigned on the boards before the cell: Python's literals,
                and what has a ``tolist()``.
            timeout: seconds that it may run, from the write to the board; None: for ever.
            fresh: whether each board makes a soft reset first.
            wait: seconds that absent boards have to dial in.
            listen: whether ``events()`` of what is returned will be read.
            on_event: called with each event instead, and with None after the last; in the
                link's thread, so it must return at once.
            answers: whether the reader of the events answers ``input()``.

        Raises:
            CellSyntaxError: it is not Python; nothing was sent.
            TypeError, ValueError: a value of ``inputs`` cannot travel; nothing was sent.
            TargetError, NoSuchBoard: the target means no boards; nothing ran.
            ServerUnreachable: no server.
        """
        group = JobGroup(verbs.make_cell(code, inputs), listen=listen, on_event=on_event)
        verbs.submit_group(
            self, group, {**verbs.submit_options(timeout, fresh, wait), "answers": answers}
        )
        self._wait_until_accepted(group)
        return group

    @staticmethod
    def _wait_until_accepted(group: JobGroup) -> None:
        """Wait for the server; if the wait is interrupted, interrupt the cell too."""
        with verbs.interrupting(group):
            group.accepted.result()

    run = blocking(BoardsVerbs.run)
    reset = blocking(BoardsVerbs.reset)
    info = blocking(BoardsVerbs.info)
    label = blocking(BoardsVerbs.label)
    put = blocking(FileVerbs.put)
    get = blocking(FileVerbs.get)
    read = blocking(FileVerbs.read)
    sync = blocking(FileVerbs.sync)
    ls = blocking(FileVerbs.ls)
    stat = blocking(FileVerbs.stat)
    df = blocking(FileVerbs.df)
    mkdir = blocking(FileVerbs.mkdir)
    rmdir = blocking(FileVerbs.rmdir)
    rm = blocking(FileVerbs.rm)
    mv = blocking(FileVerbs.mv)
    stop = blocking(BoardsVerbs.stop)
    install = blocking(PackageVerbs.install)
    uninstall = blocking(PackageVerbs.uninstall)
    packages = blocking(PackageVerbs.packages)
    upgrade = blocking(PackageVerbs.upgrade)
