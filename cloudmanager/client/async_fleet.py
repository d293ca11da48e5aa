"""``AsyncFleet``: the verbs as coroutines, for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from cloudmanager import config
from cloudmanager.protocol.run_options import RunKeywords, RunOptions
from cloudmanager.protocol.spans import time_since
from cloudmanager.results.results import Results

from .cell_verbs import CellVerbs, make_cell
from .exchange import Exchange
from .file_verbs import FileVerbs
from .fleet_verbs import FleetVerbs
from .jobs import Event, Job, JobGroup
from .keywords import run_keywords
from .link import LinkHolder, ServerLink
from .log_lines import LogFollower, LogLine, Logs, Since, join_lines, read_logs
from .mounts import MOUNT_PATH, MountedFolder, mounted_folder
from .package_verbs import PackageVerbs
from .runner import run_in_loop, wait_done
from .sources import PathLike
from .verb import Asynchronous
from .watch import Update, Watch

T = TypeVar("T")


class AsyncFleet(Asynchronous, FleetVerbs):
    """All boards of one server, for asyncio: ``Fleet`` with ``await``.

    Args:
        url: the server, such as ``http://127.0.0.1:18266``; by default CM_URL, else the local
            server.
        token: authenticates the caller; by default CM_TOKEN, else the local user's token.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._holder = LinkHolder(self)
        self._connect_lock = asyncio.Lock()

    async def __aenter__(self) -> AsyncFleet:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __getitem__(self, target: str) -> AsyncBoards:
        return AsyncBoards(self, target)

    def __repr__(self) -> str:
        """Return the server's URL, without the token."""
        return f"AsyncFleet({self.address.url!r})"

    #: Without this, Python would iterate by ``fleet[0]``, ``fleet[1]``, … without end.
    __iter__ = None

    async def __aiter__(self) -> AsyncIterator[AsyncBoards]:
        """Iterate over all boards, connected or not, one at a time."""
        for board in await self.boards():
            yield self[str(board["name"])]

    @property
    def address(self) -> config.ServerAddress:
        """The address of the server that the next connection uses."""
        return config.find_server(self._url, self._token)

    async def connect(self) -> None:
        """Connect to the server, unless connected; every verb does so itself.

        Raises:
            ServerUnreachable, NotAllowed, VersionMismatch: the connection failed.
        """
        async with self._connect_lock:
            if self._holder.usable() is None:
                # The thread itself hands the link over: a cancelled task would lose it.
                await asyncio.to_thread(ServerLink, self.address, self._holder.hold)

    async def close(self) -> None:
        """Disconnect. Running jobs continue on the boards."""
        link = self._holder.release()
        if link is not None:
            await asyncio.to_thread(link.close)

    def exchange(self) -> Exchange:
        """Return the exchange with the server; ``connect`` must have been awaited."""
        assert self._holder.link is not None
        return self._holder.link.exchange

    def queued_jobs(self) -> list[Job]:
        """Return the jobs of this fleet that wait for their board; does not ask the server."""
        link = self._holder.link
        return [] if link is None else link.exchange.queued_jobs()

    def watch(self, target: str = "all", *, samples: bool = True) -> AsyncWatch:
        """Follow boards with ``async for``; see ``Fleet.watch``."""
        return AsyncWatch(Watch(self._connect_from_thread(), target, samples=samples))

    def _connect_from_thread(self) -> Callable[[], Exchange]:
        """Return a function for another thread that connects and returns the exchange."""
        loop = asyncio.get_running_loop()

        def connect() -> Exchange:
            asyncio.run_coroutine_threadsafe(self.connect(), loop).result()
            return self.exchange()

        return connect


class AsyncBoards(Asynchronous, CellVerbs, FileVerbs, PackageVerbs):
    """The boards of a target; the server resolves it again at each call."""

    def __init__(self, fleet: AsyncFleet, target: str) -> None:
        self._fleet = fleet
        self.target = target

    def __repr__(self) -> str:
        return f"AsyncBoards({self.target!r})"

    async def __aiter__(self) -> AsyncIterator[AsyncBoards]:
        """Iterate over these boards, one at a time."""
        for name in await self.names():
            yield self._fleet[name]

    async def connect(self) -> None:
        """Connect to the server, unless connected; see ``AsyncFleet.connect``."""
        await self._fleet.connect()

    @overload
    def logs(
        self, since: Since = None, *, follow: Literal[False] = False
    ) -> Coroutine[Any, Any, Logs]: ...

    @overload
    def logs(self, since: Since = None, *, follow: Literal[True]) -> AsyncLogFollower: ...

    def logs(
        self, since: Since = None, *, follow: bool = False
    ) -> Coroutine[Any, Any, Logs] | AsyncLogFollower:
        """Return what the boards printed outside of cells, or follow it with ``async for``.

        See ``Boards.logs``.
        """
        if follow:
            connect = self._fleet._connect_from_thread()
            return AsyncLogFollower(LogFollower(connect, self.target, since))
        return self._read_logs(since)

    async def _read_logs(self, since: Since) -> Logs:
        await self.connect()
        pieces = read_logs(self.exchange(), self.target, time_since(since))
        return join_lines(await run_in_loop(pieces))

    def mount(
        self,
        folder: PathLike,
        path: str = MOUNT_PATH,
        *,
        on_note: Callable[[str], None] | None = None,
    ) -> AsyncMountedFolder:
        """Mount a local folder on the boards: ``async with boards.mount("src/"):``.

        See ``Boards.mount``.
        """
        connect = self._fleet._connect_from_thread()
        return AsyncMountedFolder(mounted_folder(connect, self.target, folder, path, on_note))

    def exchange(self) -> Exchange:
        """Return the exchange with the server; see ``AsyncFleet.exchange``."""
        return self._fleet.exchange()

    @run_keywords
    async def submit(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
        answers: bool = False,
        **options: Unpack[RunKeywords],
    ) -> AsyncJobGroup:
        """Start a cell on all of the boards; return when the server has accepted it.

        Args:
            code: Python; the value of a trailing expression is returned. It may ``await``.
            inputs: name -> value, assigned on the boards before the cell.
            argv: what ``sys.argv`` contains on the boards.
            answers: whether the reader of the events answers ``input()``.
            options: see ``RunOptions``.

        Raises:
            CloudmanagerError, TypeError, ValueError: as for ``Boards.submit``.
        """
        run_options = RunOptions(answers=answers, **options)
        group = JobGroup(make_cell(code, inputs, argv), run_options, listen=True)
        await self.connect()
        self.exchange().submit(group, self.target)
        with group.interrupted_on_error():
            await wait_done(group.accepted)
        group.accepted.result()
        return AsyncJobGroup(group)


class AsyncJobGroup:
    """One cell on several boards: wait for it, interrupt it, or read its events.

    Attributes:
        jobs: board -> Job.
        left_out: boards that the target matched but that are not connected.
    """

    def __init__(self, group: JobGroup) -> None:
        self._group = group
        self.jobs: dict[str, Job] = group.jobs
        self.left_out = group.left_out
        self.interrupt = group.interrupt
        self.answer = group.answer

    def __repr__(self) -> str:
        """Return numbers, boards and states of the jobs, in one line."""
        return f"<Async{repr(self._group)[1:]}"

    def _repr_html_(self) -> str | None:
        return self._group._repr_html_()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended, at most ``timeout`` seconds; return whether they have."""
        try:
            await asyncio.wait_for(wait_done(self._group.finished), timeout)
        except TimeoutError:
            return False
        return True

    async def results(self, timeout: float | None = None) -> Results:
        """Wait for all jobs to end and return their results.

        Raises:
            TimeoutError: they have not ended within ``timeout`` seconds; they continue.
        """
        await self.wait(timeout)
        return self._group.results(0)

    async def events(self) -> AsyncIterator[Event]:
        """Yield events until all jobs have ended; for one reader."""
        events = self._group.read_events()
        with contextlib.suppress(StopAsyncIteration):
            while (event := await run_in_loop(anext(events))) is not None:
                yield event


class _AsyncIterator(Generic[T]):
    """A blocking iterator for asyncio, with a method ``close`` that ends a wait for an item."""

    def __init__(self, items: Watch | LogFollower) -> None:
        self._items: Any = items
        self.close = items.close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Wait for the next item; cancelling the task closes the iterator."""
        try:
            item: T | None = await asyncio.to_thread(next, self._items, None)
        except BaseException:
            self.close()
            raise
        if item is None:
            raise StopAsyncIteration
        return item


class AsyncMountedFolder:
    """``MountedFolder`` for asyncio: ``async with`` mounts and unmounts it."""

    def __init__(self, mounted: MountedFolder) -> None:
        self._mounted = mounted

    def __repr__(self) -> str:
        return repr(self._mounted)

    @property
    def boards(self) -> list[str]:
        """The names of the boards that have mounted it."""
        return self._mounted.boards

    @property
    def results(self) -> Results:
        """How mounting ended on each board."""
        return self._mounted.results

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._mounted.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Unmount the folder."""
        await asyncio.to_thread(self._mounted.close)


class AsyncWatch(_AsyncIterator[Update]):
    """``Watch`` for asyncio: ``async for``, and ``close``; cancelling the task closes it."""


class AsyncLogFollower(_AsyncIterator[LogLine]):
    """``LogFollower`` for asyncio: ``async for``, and ``close``."""
