"""``Fleet``: the verbs that people type, blocking."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from . import cells, config
from .jobs import STOP_SECONDS, JobGroup, Results
from .link import Link

_prepare = functools.lru_cache(maxsize=64)(cells.prepare)  # the same cell is often run again


class Fleet:
    """All boards of one server.

    ``fleet["esp-[1-3]"]`` chooses boards; nothing is sent until one of their verbs is
    called. May be used from any thread, by several at once.

    Args:
        url: the server, such as ``http://127.0.0.1:18266``; found when not given.
        token: what opens it; found when not given (DESIGN: CM_TOKEN, else the local file).
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._link: Link | None = None
        self._dialling = threading.Lock()

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
    def address(self) -> config.Address:
        """Where the server is looked for now."""
        return config.find(self._url, self._token)

    def boards(self, target: str | None = None) -> list[dict[str, Any]]:
        """Return what the server knows of each board, sorted by name.

        Raises:
            TargetError, NoSuchBoard: ``target`` means no boards.
        """
        return list(self.request("boards", target=target))

    def status(self) -> dict[str, Any]:
        """Return how the server is: version, address, uptime (seconds), boards, online, busy."""
        return dict(self.request("status"))

    def enrol(self, names: list[str]) -> list[dict[str, str]]:
        """Give each name an identity: ``name``, ``id`` and ``key`` (hex); for admins."""
        return list(self.request("enrol", names=names))

    def request(self, verb: str, **body: Any) -> Any:
        """Ask the server for one of its verbs and wait for the reply.

        Raises:
            CloudmanagerError: no server, or it refused.
        """
        return self._open().exchange.request(verb, body).get()

    def submit(
        self,
        target: str,
        code: str,
        *,
        timeout: float | None = None,
        listen: bool = False,
        answers: bool = False,
    ) -> JobGroup:
        """Send a cell; return as soon as it is on its way. See ``Boards.submit``."""
        group = JobGroup(_prepare(code), listen=listen)
        options = {"timeout": timeout, "answers": answers}
        self._open().exchange.submit(group, target, options)
        return group

    def close(self) -> None:
        """Hang up. What runs goes on on the boards."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _open(self) -> Link:
        """Return the link; dial where there is none, or where it broke."""
        with self._dialling:
            if self._link is None or self._link.closed:
                self._link = Link(self.address)
            return self._link


class Boards:
    """The boards of a target, chosen anew by the server at each call."""

    def __init__(self, fleet: Fleet, target: str) -> None:
        self._fleet = fleet
        self.target = target

    def __repr__(self) -> str:
        return f"Boards({self.target!r})"

    def submit(
        self,
        code: str,
        *,
        timeout: float | None = None,
        listen: bool = False,
        answers: bool = False,
    ) -> JobGroup:
        """Run a cell on all of the boards at once; return without waiting for them to end.

        Args:
            code: Python; a trailing expression is the value. It may ``await``.
            timeout: seconds that it may run, from the write to the board; None: for ever.
            listen: whether ``events()`` of what is returned will be read.
            answers: whether the reader of the events answers ``input()``.

        Raises:
            CellSyntaxError: it is not Python; nothing was sent.
            TargetError, NoSuchBoard: the target means no boards; nothing ran.
            ServerUnreachable: no server.
        """
        group = self._fleet.submit(
            self.target, code, timeout=timeout, listen=listen, answers=answers
        )
        group.accepted.get()
        return group

    def run(self, code: str, *, timeout: float | None = None) -> Results:
        """Run a cell on all of the boards at once and wait for the results.

        A board's failure is in its Result and is not raised. An interrupt (Ctrl-C) reaches
        the boards, too.

        Raises:
            CellSyntaxError, TargetError, NoSuchBoard, ServerUnreachable: as ``submit``.
            KeyboardInterrupt: the wait was interrupted, and so were the boards.
        """
        group = self._fleet.submit(self.target, code, timeout=timeout)
        with interrupting(group):
            return group.results()

    def info(self) -> list[dict[str, Any]]:
        """Return what the server knows of each of the boards."""
        return self._fleet.boards(self.target)

    def label(self, labels: Mapping[str, str]) -> list[str]:
        """Set labels on the boards; an empty value takes one away. Return the boards' names."""
        return list(self._fleet.request("label", target=self.target, labels=dict(labels)))


@contextlib.contextmanager
def interrupting(group: JobGroup) -> Iterator[None]:
    """While inside, Ctrl-C interrupts the boards, waits shortly for them, then is raised."""
    try:
        yield
    except KeyboardInterrupt:
        group.interrupt()
        group.wait(STOP_SECONDS)
        raise
