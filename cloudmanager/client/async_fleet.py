"""``AsyncFleet``: the verbs as coroutines, for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from cloudmanager import config
from cloudmanager.results.results import Results

from . import verbs
from .exchange import Exchange
from .file_verbs import FileVerbs
from .future import Future
from .jobs import Event, Job, JobGroup
from .link import ServerLink
from .package_verbs import PackageVerbs
from .verbs import BoardsVerbs, FleetVerbs
from .watch import Update, Watch

P = ParamSpec("P")
T = TypeVar("T")


def asynchronous(
    verb: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return the verb as a coroutine method for asyncio."""

    @functools.wraps(verb)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        await self.connect()
        return await _run_in_loop(verb(self, *args, **kwargs))

    return call


async def _run_in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a verb in the running event loop; a cancellation is raised inside of it."""
    try:
        awaited: Future[Any] = coroutine.send(None)
        while True:
            try:
                await wait_done(awaited)
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value


async def wait_done(future: Future[Any]) -> None:
    """Wait until a future is set, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    future.add_done_callback(lambda: call_in_loop(loop, done.set))
    await done.wait()


def call_in_loop(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object
) -> None:
    """Schedule ``callback`` in a loop, from any thread; do nothing if the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)


class AsyncFleet:
    """All boards of one server, for asyncio: ``Fleet`` with ``await``.

    Args:
        url: the server, such as ``http://127.0.0.1:18266``; by default CM_URL, else the local
            server.
        token: authenticates the caller; by default CM_TOKEN, else the local user's token.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._link: ServerLink | None = None
        self._connect_lock = asyncio.Lock()

    async def __aenter__(self) -> AsyncFleet:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __getitem__(self, target: str) -> AsyncBoards:
        return AsyncBoards(self, target)

    async def connect(self) -> None:
        """Connect to the server, unless connected; every verb does so itself.

        Raises:
            ServerUnreachable, NotAllowed, VersionMismatch: the connection failed.
        """
        async with self._connect_lock:
            if self._link is None or self._link.closed:
                address = config.find_server(self._url, self._token)
                self._link = await asyncio.to_thread(ServerLink, address)

    async def close(self) -> None:
        """Disconnect. Running jobs continue on the boards."""
        link, self._link = self._link, None
        if link is not None:
            await asyncio.to_thread(link.close)

    def exchange(self) -> Exchange:
        """Return the exchange with the server; ``connect`` must have been awaited."""
        assert self._link is not None
        return self._link.exchange

    def watch(self, target: str = "all", *, samples: bool = True) -> AsyncWatch:
        """Follow boards with ``async for``; see ``Fleet.watch``."""
        loop = asyncio.get_running_loop()

        def connect() -> Exchange:  # called in the thread that waits for updates
            asyncio.run_coroutine_threadsafe(self.connect(), loop).result()
            return self.exchange()

        return AsyncWatch(Watch(connect, target, samples=samples))

    request = asynchronous(FleetVerbs.request)
    boards = asynchronous(FleetVerbs.boards)
    status = asynchronous(FleetVerbs.status)
    enrol = asynchronous(FleetVerbs.enrol)
    enrol_token = asynchronous(FleetVerbs.enrol_token)
    revoke = asynchronous(FleetVerbs.revoke)
    rename = asynchronous(FleetVerbs.rename)
    rotate = asynchronous(FleetVerbs.rotate)
    jobs = asynchronous(FleetVerbs.jobs)
    job = asynchronous(FleetVerbs.job)
    interrupt = asynchronous(FleetVerbs.interrupt)
    samples = asynchronous(FleetVerbs.samples)


class AsyncBoards:
    """The boards of a target; the server resolves it again at each call."""

    def __init__(self, fleet: AsyncFleet, target: str) -> None:
        self._fleet = fleet
        self.target = target
        self.connect, self.exchange = fleet.connect, fleet.exchange

    def __repr__(self) -> str:
        return f"AsyncBoards({self.target!r})"

    async def submit(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        fresh: bool = False,
        wait: float = 0,
        answers: bool = False,
    ) -> AsyncJobGroup:
        """Start a cell on all of the boards; return when the server has accepted it.

        Arguments and exceptions are those of ``Boards.submit``.
        """
        await self.connect()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_event(event: Event | None) -> None:
            call_in_loop(loop, events.put_nowait, event)

        group = JobGroup(verbs.make_cell(code, inputs), on_event=on_event)
        verbs.submit_group(
            self, group, {**verbs.submit_options(timeout, fresh, wait), "answers": answers}
        )
        with verbs.interrupting(group):
            await wait_done(group.accepted)
        group.accepted.result()
        return AsyncJobGroup(group, events)

    run = asynchronous(BoardsVerbs.run)
    reset = asynchronous(BoardsVerbs.reset)
    info = asynchronous(BoardsVerbs.info)
    label = asynchronous(BoardsVerbs.label)
    put = asynchronous(FileVerbs.put)
    get = asynchronous(FileVerbs.get)
    read = asynchronous(FileVerbs.read)
    sync = asynchronous(FileVerbs.sync)
    ls = asynchronous(FileVerbs.ls)
    stat = asynchronous(FileVerbs.stat)
    df = asynchronous(FileVerbs.df)
    mkdir = asynchronous(FileVerbs.mkdir)
    rmdir = asynchronous(FileVerbs.rmdir)
    rm = asynchronous(FileVerbs.rm)
    mv = asynchronous(FileVerbs.mv)
    stop = asynchronous(BoardsVerbs.stop)
    install = asynchronous(PackageVerbs.install)
    uninstall = asynchronous(PackageVerbs.uninstall)
    packages = asynchronous(PackageVerbs.packages)
    upgrade = asynchronous(PackageVerbs.upgrade)


class AsyncJobGroup:
    """One cell on several boards: wait for it, interrupt it, or read its events.

    Attributes:
        jobs: board -> Job.
        left_out: boards that the target matched but that are not connected.
    """

    def __init__(self, group: JobGroup, events: asyncio.Queue[Event | None]) -> None:
        self._group = group
        self._events = events
        self.jobs: dict[str, Job] = group.jobs
        self.left_out = group.left_out
        self.interrupt = group.interrupt
        self.answer = group.answer

    def __repr__(self) -> str:
        """Return numbers, boards and states of the jobs, in one line."""
        return f"<Async{repr(self._group)[1:]}"

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
        while (event := await self._events.get()) is not None:
            yield event


class AsyncWatch:
    """``Watch`` for asyncio: ``async for``, and ``close``; cancelling the task closes it."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.close = watch.close

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Update:
        """Wait for the next update; see ``Watch``."""
        try:
            update = await asyncio.to_thread(next, self._watch, None)
        except BaseException:
            self.close()
            raise
        if update is None:
            raise StopAsyncIteration
        return update
