"""The verbs of a fleet and of boards, written once; ``Fleet`` and ``AsyncFleet`` wrap them.

Each verb is a coroutine that awaits nothing but ``Once``. ``blocking`` drives it in the
calling thread; ``in_loop`` drives it as part of an asyncio program.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from cloudmanager.results.results import Results

from . import cells
from .cells import Cell
from .exchange import Exchange
from .future import Future
from .input_values import prelude
from .jobs import INTERRUPT_GRACE_SECONDS, JobGroup
from .samples import Sample, Samples

P = ParamSpec("P")
T = TypeVar("T")

TICK_SECONDS: Final = 0.12  # seconds between two pictures of what lasts

prepare_cached = functools.lru_cache(maxsize=64)(
    cells.prepare_cell
)  # the same cell is often run again


class HasExchange(Protocol):
    """Who has a conversation with the server."""

    def exchange(self) -> Exchange:
        """Return it."""


class HasTarget(HasExchange, Protocol):
    """Who has chosen boards, too."""

    target: str


class FleetVerbs:
    """What a fleet can be asked."""

    async def request(self: HasExchange, verb: str, /, **body: Any) -> Any:
        """Ask the server for one of its verbs (docs/protocol.md) and return the reply.

        Raises:
            CloudmanagerError: no server, or it refused.
        """
        return await self.exchange().request(verb, body)

    async def boards(self: HasExchange, target: str | None = None) -> list[dict[str, Any]]:
        """Return what the server knows of each board, sorted by name.

        Raises:
            TargetError, NoSuchBoard: ``target`` means no boards.
        """
        return list(await self.exchange().request("boards", {"target": target}))

    async def status(self: HasExchange) -> dict[str, Any]:
        """Return how the server is: version, address, uptime (seconds), boards, online, busy."""
        return dict(await self.exchange().request("status", {}))

    async def enrol(
        self: HasExchange, names: Sequence[str], *, plain: bool = False
    ) -> list[dict[str, Any]]:
        """Give each name an identity; for admins.

        Args:
            names: of new boards, or of boards that get another key.
            plain: whether they cannot verify a certificate (ESP8266): each of their messages
                carries a MAC instead; it is authentic, and not secret.

        Returns:
            For each ``name``, ``id``, ``key`` (hex), and ``ca`` (base64) or ``mac``: all but the
            name belong into the board's ``/cm.json``.
        """
        body = {"names": list(names), "plain": plain}
        return list(await self.exchange().request("enrol", body))

    async def enrol_token(
        self: HasExchange, target: str, *, uses: int = 1, expires: float | None = None
    ) -> dict[str, Any]:
        """Make a token that boards enrol themselves with; for admins.

        Args:
            target: the names that they may get: a name, a range, a pattern.
            uses: how many boards.
            expires: seconds until it opens nothing any more; an hour, unless told.
        """
        body = {"target": target, "uses": uses, "expires": expires}
        return dict(await self.exchange().request("enrol-token", body))

    async def revoke(self: HasExchange, target: str) -> list[str]:
        """Take boards out of the fleet; return their names; for admins.

        Their keys open nothing from now on, their links are closed, and what waits for them ends.
        """
        return list(await self.exchange().request("revoke", {"target": target}))

    async def rename(self: HasExchange, board: str, name: str) -> str:
        """Give a board another name and return it; for admins."""
        return str(await self.exchange().request("rename", {"target": board, "name": name}))

    async def rotate(self: HasExchange, target: str) -> dict[str, str]:
        """Give boards new keys; for admins.

        Returns:
            For each board, ``asked``, or ``waits`` where it is busy or not there. The old key
            opens until the new one was used.
        """
        return dict(await self.exchange().request("rotate", {"target": target}))

    async def jobs(self: HasExchange, target: str | None = None) -> list[dict[str, Any]]:
        """Return the jobs that run or wait, anybody's, then those that ended lately."""
        return list(await self.exchange().request("jobs", {"target": target}))

    async def job(self: HasExchange, number: int) -> dict[str, Any]:
        """Return a job: its line, its outcome, and the last 64 KiB of its output.

        Raises:
            ServerError: there is no such job.
        """
        return dict(await self.exchange().request("job", {"job": number}))

    async def samples(self: HasExchange, target: str = "all", count: int | None = None) -> Samples:
        """Return what boards emitted lately (``cm.emit`` there), the newest last.

        Args:
            target: whose; boards that are not there count, too.
            count: how many at most, of all together; None: all that the server keeps.

        Raises:
            TargetError, NoSuchBoard: ``target`` means no boards.
        """
        body = {"target": target, "count": count}
        return Samples(Sample(*row) for row in await self.exchange().request("samples", body))

    async def interrupt(self: HasExchange, numbers: Sequence[int]) -> int:
        """Interrupt jobs, anybody's; return how many of them had not ended."""
        return int(await self.exchange().request("interrupt", {"jobs": list(numbers)}))


class BoardsVerbs:
    """What the boards of a target can be asked; the server chooses them anew at each call."""

    async def run(
        self: HasTarget,
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
        group = submit_group(
            self, JobGroup(make_cell(code, inputs)), submit_options(timeout, fresh, wait)
        )
        return await wait_results(group)

    async def reset(self: HasTarget) -> Results:
        """Have each board make a soft reset, and wait until it is back.

        It dials anew; ``app.py`` is left out this once, as before a cell that is ``fresh``.
        """
        return await wait_results(
            submit_group(
                self, JobGroup(prepare_cached("")), submit_options(None, fresh=True, wait=0)
            )
        )

    async def info(self: HasTarget) -> list[dict[str, Any]]:
        """Return what the server knows of each of the boards."""
        return list(await self.exchange().request("boards", {"target": self.target}))

    async def stop(self: HasTarget) -> list[str]:
        """End the boards' own programs (``app.py``); return the names of those that are there."""
        return list(await self.exchange().request("stop", {"target": self.target}))

    async def label(self: HasTarget, labels: Mapping[str, str]) -> list[str]:
        """Set labels on the boards; an empty value takes one away. Return the boards' names."""
        body = {"target": self.target, "labels": dict(labels)}
        return list(await self.exchange().request("label", body))


class _Jobs(Protocol):
    """What can list jobs, at once."""

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs that run or wait, then those that ended lately."""


def still_open(
    fleet: _Jobs, numbers: Sequence[int], seconds: float = INTERRUPT_GRACE_SECONDS
) -> list[int]:
    """Return those of these jobs, which were interrupted, that do not end within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        left = {job["job"] for job in fleet.jobs() if job["status"] is None} & set(numbers)
        if not left or time.monotonic() > deadline:
            return sorted(left)
        time.sleep(TICK_SECONDS)


def make_cell(code: str, inputs: Mapping[str, Any] | None) -> Cell:
    """Prepare a cell, with what is assigned before it."""
    return cells.prepare_cell(code, prelude(inputs)) if inputs else prepare_cached(code)


def submit_group(boards: HasTarget, group: JobGroup, options: dict[str, Any]) -> JobGroup:
    """Send the group's cell to the boards; returns before the server has seen it."""
    group.fresh = bool(options.get("fresh"))
    boards.exchange().submit(group, boards.target, options)
    return group


async def wait_results(group: JobGroup) -> Results:
    """Wait for a group; who stops waiting interrupts it."""
    try:  # and not ``interrupting``, which takes 1 us
        return await group.finished
    except BaseException as error:
        _give_up(group, error)
        raise


def _give_up(group: JobGroup, error: BaseException) -> None:
    """Interrupt a group that nobody waits for any more."""
    if not group.finished.done:
        group.interrupt()
    if isinstance(error, KeyboardInterrupt):
        group.wait(INTERRUPT_GRACE_SECONDS)


@contextlib.contextmanager
def interrupting(group: JobGroup) -> Iterator[None]:
    """Interrupt a group if the waiting in here is interrupted or cancelled."""
    try:
        yield
    except BaseException as error:
        _give_up(group, error)
        raise


def submit_options(timeout: float | None, fresh: bool, wait: float) -> dict[str, Any]:
    """Return the options of a SUBMIT; what is the default is left out."""
    given: dict[str, Any] = {"timeout": timeout, "fresh": fresh or None, "wait": wait or None}
    return {name: value for name, value in given.items() if value is not None}


def blocking(
    verb: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the verb as a plain method that waits in the calling thread."""

    @functools.wraps(verb)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_blocking(verb(self, *args, **kwargs))

    return call


def run_blocking(
    coroutine: Coroutine[Any, Any, T], on_tick: Callable[[], object] | None = None
) -> T:
    """Run a verb to its end; an interrupt is raised inside of it.

    Args:
        coroutine: the verb.
        on_tick: called in this thread every ``TICK`` seconds meanwhile.
    """
    try:
        awaited: Future[Any] = coroutine.send(None)
        while True:
            try:
                while not awaited.wait(TICK_SECONDS if on_tick else None):
                    if on_tick:
                        on_tick()
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
