"""The verbs of a fleet and of boards as coroutines; ``Fleet`` and ``AsyncFleet`` wrap them.

Each verb awaits only ``Future``. ``blocking`` runs it in the calling thread; ``asynchronous`` runs
it in an asyncio program.
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

TICK_SECONDS: Final = 0.12  # between two updates of a progress display

#: Cached, because the same cell is often run again.
prepare_cached = functools.lru_cache(maxsize=64)(cells.prepare_cell)


class HasExchange(Protocol):
    """An object with a connection to the server."""

    def exchange(self) -> Exchange:
        """Return the exchange with the server."""


class HasTarget(HasExchange, Protocol):
    """An object that also has a target."""

    target: str


class FleetVerbs:
    """Verbs that concern the whole fleet."""

    async def request(self: HasExchange, verb: str, /, **body: Any) -> Any:
        """Call a verb of the server (docs/protocol.md) and return the reply.

        Raises:
            CloudmanagerError: the server cannot be reached, or refused the request.
        """
        return await self.exchange().request(verb, body)

    async def boards(self: HasExchange, target: str | None = None) -> list[dict[str, Any]]:
        """Return the server's information about each board, sorted by name.

        Raises:
            TargetError, NoSuchBoard: ``target`` selects no boards.
        """
        return list(await self.exchange().request("boards", {"target": target}))

    async def status(self: HasExchange) -> dict[str, Any]:
        """Return the server's state: version, address, uptime (seconds), boards, online, busy."""
        return dict(await self.exchange().request("status", {}))

    async def enrol(
        self: HasExchange, names: Sequence[str], *, plain: bool = False
    ) -> list[dict[str, Any]]:
        """Enrol boards; requires the role admin.

        Args:
            names: of new boards, or of boards that get another key.
            plain: whether they cannot verify a certificate (ESP8266): each of their messages has
                a MAC instead, so it is authenticated but not encrypted.

        Returns:
            For each board: ``name``, ``id``, ``key`` (hex), and ``ca`` (base64) or ``mac``. All
            but the name must be written to the board's ``/cm.json``.
        """
        body = {"names": list(names), "plain": plain}
        return list(await self.exchange().request("enrol", body))

    async def enrol_token(
        self: HasExchange, target: str, *, uses: int = 1, expires: float | None = None
    ) -> dict[str, Any]:
        """Make a token with which boards enrol themselves; requires the role admin.

        Args:
            target: the names that they may get: a name, a range, a pattern.
            uses: for how many boards.
            expires: seconds until the token is no longer valid; by default an hour.
        """
        body = {"target": target, "uses": uses, "expires": expires}
        return dict(await self.exchange().request("enrol-token", body))

    async def revoke(self: HasExchange, target: str) -> list[str]:
        """Remove boards from the fleet; return their names; requires the role admin.

        Their keys are no longer valid, their links are closed, and their queued jobs end.
        """
        return list(await self.exchange().request("revoke", {"target": target}))

    async def rename(self: HasExchange, board: str, name: str) -> str:
        """Rename a board and return its new name; requires the role admin."""
        return str(await self.exchange().request("rename", {"target": board, "name": name}))

    async def rotate(self: HasExchange, target: str) -> dict[str, str]:
        """Give boards new keys; requires the role admin.

        Returns:
            For each board, ``asked``, or ``waits`` if it is busy or not connected. The old key is
            valid until the board has used the new one.
        """
        return dict(await self.exchange().request("rotate", {"target": target}))

    async def jobs(self: HasExchange, target: str | None = None) -> list[dict[str, Any]]:
        """Return running and queued jobs of all users, then jobs that ended recently."""
        return list(await self.exchange().request("jobs", {"target": target}))

    async def job(self: HasExchange, number: int) -> dict[str, Any]:
        """Return a job: its record, its outcome, and the last 64 KiB of its output.

        Raises:
            ServerError: the job does not exist.
        """
        return dict(await self.exchange().request("job", {"job": number}))

    async def samples(self: HasExchange, target: str = "all", count: int | None = None) -> Samples:
        """Return the recent samples of boards (emitted with ``cm.emit``), the newest last.

        Args:
            target: the boards, connected or not.
            count: the greatest number of samples in total; None for all that the server keeps.

        Raises:
            TargetError, NoSuchBoard: ``target`` selects no boards.
        """
        body = {"target": target, "count": count}
        return Samples(Sample(*row) for row in await self.exchange().request("samples", body))

    async def interrupt(self: HasExchange, numbers: Sequence[int]) -> int:
        """Interrupt jobs of any user; return how many of them had not ended."""
        return int(await self.exchange().request("interrupt", {"jobs": list(numbers)}))


class BoardsVerbs:
    """Verbs that concern the boards of a target; the server resolves it at each call."""

    async def run(
        self: HasTarget,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        fresh: bool = False,
        wait: float = 0,
    ) -> Results:
        """Run a cell on all of the boards in parallel and wait for the results.

        A board's failure is in its Result and is not raised. If the wait is interrupted (Ctrl-C,
        a cancelled task), the cell is interrupted on the boards, too.

        Args:
            code: Python; the value of a trailing expression is returned. It may ``await``.
            inputs: name -> value, assigned on the boards before the cell: Python literals, and
                objects with a ``tolist()``.
            timeout: seconds that it may run, after it was sent to the board; None for no limit.
            fresh: whether each board makes a soft reset first.
            wait: seconds to wait for boards that are not connected.

        Raises:
            CellSyntaxError: it is not valid Python; nothing was sent.
            TypeError, ValueError: a value of ``inputs`` cannot be sent; nothing was sent.
            TargetError, NoSuchBoard: the target selects no boards; nothing ran.
            ServerUnreachable: no server answers.
        """
        group = submit_group(
            self, JobGroup(make_cell(code, inputs)), submit_options(timeout, fresh, wait)
        )
        return await wait_results(group)

    async def reset(self: HasTarget) -> Results:
        """Make a soft reset of each board, and wait until it has reconnected.

        The board does not start ``app.py`` this time, as for a cell with ``fresh``.
        """
        return await wait_results(
            submit_group(
                self, JobGroup(prepare_cached("")), submit_options(None, fresh=True, wait=0)
            )
        )

    async def info(self: HasTarget) -> list[dict[str, Any]]:
        """Return the server's information about each of the boards."""
        return list(await self.exchange().request("boards", {"target": self.target}))

    async def stop(self: HasTarget) -> list[str]:
        """Stop the boards' own programs (``app.py``); return the names of the connected boards."""
        return list(await self.exchange().request("stop", {"target": self.target}))

    async def label(self: HasTarget, labels: Mapping[str, str]) -> list[str]:
        """Set labels on the boards; an empty value removes one. Return the boards' names."""
        body = {"target": self.target, "labels": dict(labels)}
        return list(await self.exchange().request("label", body))


class _Jobs(Protocol):
    """An object that lists jobs, blocking, such as ``Fleet``."""

    def jobs(self) -> list[dict[str, Any]]:
        """Return running and queued jobs, then jobs that ended recently."""


def still_open(
    fleet: _Jobs, numbers: Sequence[int], seconds: float = INTERRUPT_GRACE_SECONDS
) -> list[int]:
    """Wait until interrupted jobs have ended; return those that have not after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        unfinished = {job["job"] for job in fleet.jobs() if job["status"] is None} & set(numbers)
        if not unfinished or time.monotonic() > deadline:
            return sorted(unfinished)
        time.sleep(TICK_SECONDS)


def make_cell(code: str, inputs: Mapping[str, Any] | None) -> Cell:
    """Prepare a cell with its inputs."""
    return cells.prepare_cell(code, prelude(inputs)) if inputs else prepare_cached(code)


def submit_group(boards: HasTarget, group: JobGroup, options: dict[str, Any]) -> JobGroup:
    """Send the group's cell to the server; do not wait until it is accepted."""
    group.fresh = bool(options.get("fresh"))
    boards.exchange().submit(group, boards.target, options)
    return group


async def wait_results(group: JobGroup) -> Results:
    """Wait for the results of a group; interrupt it if the wait is interrupted."""
    try:  # not ``with interrupting``, which takes 1 us longer
        return await group.finished
    except BaseException as error:
        _give_up(group, error)
        raise


def _give_up(group: JobGroup, error: BaseException) -> None:
    """Interrupt a group because the wait for it was interrupted; after Ctrl-C, wait a moment."""
    if not group.finished.done:
        group.interrupt()
    if isinstance(error, KeyboardInterrupt):
        group.wait(INTERRUPT_GRACE_SECONDS)


@contextlib.contextmanager
def interrupting(group: JobGroup) -> Iterator[None]:
    """Interrupt a group if the block is interrupted or cancelled."""
    try:
        yield
    except BaseException as error:
        _give_up(group, error)
        raise


def submit_options(timeout: float | None, fresh: bool, wait: float) -> dict[str, Any]:
    """Return the options of a SUBMIT, without those that have the default value."""
    given: dict[str, Any] = {"timeout": timeout, "fresh": fresh or None, "wait": wait or None}
    return {name: value for name, value in given.items() if value is not None}


def blocking(
    verb: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the verb as a method that blocks until it has ended."""

    @functools.wraps(verb)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_blocking(verb(self, *args, **kwargs))

    return call


def run_blocking(
    coroutine: Coroutine[Any, Any, T], on_tick: Callable[[], object] | None = None
) -> T:
    """Run a verb in this thread and return its result; an interrupt is raised inside of it.

    Args:
        coroutine: the verb.
        on_tick: called in this thread every ``TICK_SECONDS`` while it waits.
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
