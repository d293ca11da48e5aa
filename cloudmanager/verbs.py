"""The verbs of a fleet and of boards, written once; ``Fleet`` and ``AsyncFleet`` wrap them.

Each verb is a coroutine that awaits nothing but ``Once``. ``blocking`` drives it in the
calling thread; ``in_loop`` drives it as part of an asyncio program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from . import cells
from .cells import Cell
from .exchange import Exchange
from .inputs import prelude
from .jobs import STOP_SECONDS, JobGroup
from .once import Once
from .results import Results

P = ParamSpec("P")
T = TypeVar("T")

prepare = functools.lru_cache(maxsize=64)(cells.prepare)  # the same cell is often run again


class Connected(Protocol):
    """Who has a conversation with the server."""

    def exchange(self) -> Exchange:
        """Return it."""


class Targeted(Connected, Protocol):
    """Who has chosen boards, too."""

    target: str


class FleetVerbs:
    """What a fleet can be asked."""

    async def request(self: Connected, verb: str, /, **body: Any) -> Any:
        """Ask the server for one of its verbs (docs/protocol.md) and return the reply.

        Raises:
            CloudmanagerError: no server, or it refused.
        """
        return await self.exchange().request(verb, body)

    async def boards(self: Connected, target: str | None = None) -> list[dict[str, Any]]:
        """Return what the server knows of each board, sorted by name.

        Raises:
            TargetError, NoSuchBoard: ``target`` means no boards.
        """
        return list(await self.exchange().request("boards", {"target": target}))

    async def status(self: Connected) -> dict[str, Any]:
        """Return how the server is: version, address, uptime (seconds), boards, online, busy."""
        return dict(await self.exchange().request("status", {}))

    async def enrol(self: Connected, names: Sequence[str]) -> list[dict[str, str]]:
        """Give each name an identity: ``name``, ``id`` and ``key`` (hex); for admins."""
        return list(await self.exchange().request("enrol", {"names": list(names)}))

    async def forget(self: Connected, target: str) -> list[str]:
        """Unenrol boards that are not connected; return their names; for admins."""
        return list(await self.exchange().request("forget", {"target": target}))

    async def jobs(self: Connected, target: str | None = None) -> list[dict[str, Any]]:
        """Return the jobs that run or wait, anybody's, then those that ended lately."""
        return list(await self.exchange().request("jobs", {"target": target}))

    async def job(self: Connected, number: int) -> dict[str, Any]:
        """Return a job: its line, its outcome, and the last 64 KiB of its output.

        Raises:
            ServerError: there is no such job.
        """
        return dict(await self.exchange().request("job", {"job": number}))

    async def interrupt(self: Connected, numbers: Sequence[int]) -> int:
        """Interrupt jobs, anybody's; return how many of them had not ended."""
        return int(await self.exchange().request("interrupt", {"jobs": list(numbers)}))


class BoardsVerbs:
    """What the boards of a target can be asked; the server chooses them anew at each call."""

    async def run(
        self: Targeted,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        fresh: bool = False,
        wait: float = 0,
    ) -> Results:
        """Run a cell on all of the boards at once and wait for the results.

        A board's failure is in its Result and is not raised. Whoever stops waiting (Ctrl-C,
        a cancelled task) interrupts the boards, too.

        Args:
            code: Python; a trailing expression is the value. It may ``await``.
            inputs: name -> value, assigned on the boards before the cell: Python's literals,
                and what has a ``tolist()``.
            timeout: seconds that it may run, from the write to the board; None: for ever.
            fresh: whether each board makes a soft reset first.
            wait: seconds that absent boards have to dial in.

        Raises:
            CellSyntaxError: it is not Python; nothing was sent.
            TypeError, ValueError: a value of ``inputs`` cannot travel; nothing was sent.
            TargetError, NoSuchBoard: the target means no boards; nothing ran.
            ServerUnreachable: no server.
        """
        group = send(self, JobGroup(cell_of(code, inputs)), options(timeout, fresh, wait))
        try:
            return await group.finished
        except KeyboardInterrupt:
            group.interrupt()
            group.wait(STOP_SECONDS)
            raise
        except BaseException:
            if not group.finished.done:
                group.interrupt()
            raise

    async def info(self: Targeted) -> list[dict[str, Any]]:
        """Return what the server knows of each of the boards."""
        return list(await self.exchange().request("boards", {"target": self.target}))

    async def stop(self: Targeted) -> list[str]:
        """End the boards' own programs (``app.py``); return the names of those that are there."""
        return list(await self.exchange().request("stop", {"target": self.target}))

    async def label(self: Targeted, labels: Mapping[str, str]) -> list[str]:
        """Set labels on the boards; an empty value takes one away. Return the boards' names."""
        body = {"target": self.target, "labels": dict(labels)}
        return list(await self.exchange().request("label", body))


def cell_of(code: str, inputs: Mapping[str, Any] | None) -> Cell:
    """Prepare a cell, with what is assigned before it."""
    return cells.prepare(code, prelude(inputs)) if inputs else prepare(code)


def send(boards: Targeted, group: JobGroup, options: dict[str, Any]) -> JobGroup:
    """Send the group's cell to the boards; returns before the server has seen it."""
    group.fresh = bool(options.get("fresh"))
    boards.exchange().submit(group, boards.target, options)
    return group


def options(timeout: float | None, fresh: bool, wait: float) -> dict[str, Any]:
    """Return the options of a SUBMIT; what is the default is left out."""
    given: dict[str, Any] = {"timeout": timeout, "fresh": fresh or None, "wait": wait or None}
    return {name: value for name, value in given.items() if value is not None}


def blocking(
    verb: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the verb as a plain method that waits in the calling thread."""

    @functools.wraps(verb)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return drive(verb(self, *args, **kwargs))

    return call


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a verb to its end; an interrupt is raised inside of it."""
    try:
        awaited: Once[Any] = coroutine.send(None)
        while True:
            try:
                awaited.wait()
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
