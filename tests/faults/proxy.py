"""A TCP proxy that causes one fault at one place of a stream, with real sockets on loopback.

    with Loop() as loop:
        proxy = loop.proxy(server.tcp_port)
        proxy.strike(Strike("cut before", "EXEC"))   # peers connect to proxy.tcp_port

Faults are deterministic: their place is given by the name of a message, a flipped bit by its
number. The proxy runs in its own thread, so that tests are plain functions that block.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from .units import Frames, Records, Unit

T = TypeVar("T")
P = TypeVar("P", bound="Proxy")

SECONDS: Final = 10.0  # timeout of a call into the proxy's thread
DELAY: Final = 0.3  # seconds
TRICKLE: Final = 0.001  # seconds between two pieces
PIECE: Final = 4  # bytes
TRICKLE_BYTES: Final = 2048  # of one direction; then it is fast again
READ_BYTES: Final = 64 * 1024


class Strike(NamedTuple):
    """One fault, and where it strikes.

    Attributes:
        fault: a name in ``FAULTS``.
        at: the unit that it strikes (units.py), such as "EXEC"; "" for the next unit of any name.
            With TLS, "handshake", else a record of data.
        nth: which unit of that name, from 1.
        up: whether it strikes data to the server; only for units without a name.
        bit: which bit "flip" inverts, from the beginning of the unit's body.
    """

    fault: str
    at: str = ""
    nth: int = 1
    up: bool = True
    bit: int = 0


class Loop:
    """The thread in which proxies run; leaving ``with`` closes all of them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._proxies: list[Proxy] = []

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            proxy.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SECONDS)

    def proxy(self, tcp_port: int, *, tls: bool = False) -> Proxy:
        """Start a proxy for a server of this machine."""
        return self.adopt(Proxy(self, tcp_port, tls=tls))

    def adopt(self, proxy: P) -> P:
        """Close this proxy at the end, too."""
        self._proxies.append(proxy)
        return proxy


class Proxy:
    """Forwards connections to a server, and causes faults.

    Args:
        loop: the thread that it runs in.
        server_port: the server's TCP port.
        tls: whether the streams are TLS, of which only records are visible.

    Attributes:
        tcp_port: the proxy's TCP port.
        struck: set when the fault has happened.
        released: set to forward a held unit.
        refusing: whether it closes new connections immediately.
        unit_seconds: that each unit takes, as on a slow network.
        links: how many were opened.
    """

    def __init__(self, loop: Loop, server_port: int, *, tls: bool = False) -> None:
        self.server_port = server_port
        self.tls = tls
        self.struck = threading.Event()
        self.released = threading.Event()
        self.refusing = False
        self.unit_seconds = 0.0
        self.links = 0
        self.now: Strike | None = None
        self.left = 0  # matching units until the fault happens
        self._loop = loop
        self._live: set[asyncio.Task[None]] = set()
        self._server = loop.call(asyncio.start_server(self._on_connection, "127.0.0.1", 0))
        self.tcp_port: int = self._server.sockets[0].getsockname()[1]

    def strike(self, strike: Strike) -> None:
        """Cause a fault once, at the next matching unit."""
        self.struck.clear()
        self.released.clear()
        self.left, self.now = strike.nth, strike

    def close_links(self) -> None:
        """Abort all links."""
        self._loop.call(self._close_links())

    def close(self) -> None:
        """Abort all links and stop listening."""
        self.released.set()
        self._loop.call(self._close())

    async def _close(self) -> None:
        self._server.close()
        await self._close_links()

    async def _close_links(self) -> None:
        tasks = list(self._live)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._live.add(task)
        try:
            if not self.refusing:
                self.links += 1
                await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the server does not listen, or close_links cancelled this task
        finally:
            self._live.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_connection("127.0.0.1", self.server_port)
        try:
            await ProxiedLink(self, (reader, writer), theirs).run()
        finally:
            theirs[1].transport.abort()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ProxiedLink:
    """One link through the proxy; while ``silent`` is set, all data is dropped."""

    def __init__(self, proxy: Proxy, peer: Ends, server: Ends) -> None:
        self.proxy = proxy
        self.silent = False
        self.up = Pipe(self, peer[0], server[1], up=True)
        self.down = Pipe(self, server[0], peer[1], up=False)

    async def run(self) -> None:
        """Forward data until both ends have closed."""
        await asyncio.gather(self.up.run(), self.down.run())

    def end(self) -> None:
        """Close the streams to both ends after the data that was sent before."""
        self.silent = True
        for pipe in (self.up, self.down):
            with contextlib.suppress(OSError, RuntimeError):
                pipe.writer.write_eof()


class Pipe:
    """One direction of a link."""

    def __init__(
        self,
        link: ProxiedLink,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        self.link = link
        self.writer = writer
        self._reader = reader
        self._up = up
        self._units = Records() if link.proxy.tls else Frames("request" if up else "answer")
        self.late = b""  # data that "reorder" holds back until other data was sent
        self.slow = 0  # bytes that are still sent slowly

    async def run(self) -> None:
        """Forward data until the stream ends."""
        try:
            while data := await self._reader.read(READ_BYTES):
                for unit in self._units.feed(data):
                    await self._pass(unit)
            if not self.link.silent:
                self.writer.write(self._units.rest())
                self.writer.write_eof()
        except (OSError, RuntimeError):  # one end was reset, or the other pipe has closed it
            if not self.link.silent:
                self.writer.transport.abort()

    async def _pass(self, unit: Unit) -> None:
        strike = self._strike(unit)
        if self.link.silent:
            return
        if strike is None:
            await self.send(unit.data)
        else:
            await FAULTS[strike.fault](self, unit, strike)
            self.link.proxy.struck.set()

    def _strike(self, unit: Unit) -> Strike | None:
        """Return the fault that happens at this unit, if any."""
        proxy, strike = self.link.proxy, self.link.proxy.now
        if strike is None or self.link.silent or not self._means(strike, unit):
            return None
        proxy.left -= 1
        if proxy.left:
            return None
        proxy.now = None
        return strike

    def _means(self, strike: Strike, unit: Unit) -> bool:
        if self.link.proxy.tls:
            name = "handshake" if strike.at == "handshake" else "record"
            return name in unit.names and strike.up is self._up
        return strike.at in unit.names or (not strike.at and strike.up is self._up)

    async def send(self, data: bytes) -> None:
        """Send bytes at this pipe's speed, followed by the data that was held back."""
        if self.link.proxy.unit_seconds:
            await asyncio.sleep(self.link.proxy.unit_seconds)
        data, self.late = data + self.late, b""
        slow = min(self.slow, len(data))
        self.slow -= slow
        for at in range(0, slow, PIECE):
            if self.writer.is_closing():
                return
            self.writer.write(data[at : min(at + PIECE, slow)])
            await asyncio.sleep(TRICKLE)
        self.writer.write(data[slow:])
        await self.writer.drain()


async def _cut_before(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pipe.link.end()


async def _cut_within(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    await pipe.send(unit.data[: len(unit.data) // 2])
    pipe.link.end()


async def _cut_after(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    await pipe.send(unit.data)
    pipe.link.end()


async def _delay(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    await asyncio.sleep(DELAY)
    await pipe.send(unit.data)


async def _drop(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pass


async def _duplicate(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    await pipe.send(unit.data + unit.data)


async def _reorder(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pipe.late = unit.data


async def _flip(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    data, bit = bytearray(unit.data), 8 * unit.body + strike.bit
    data[bit // 8] ^= 0x80 >> bit % 8
    await pipe.send(bytes(data))


async def _flip_head(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    """Invert a bit of the first byte: in a frame, a reserved one."""
    await pipe.send(bytes((unit.data[0] ^ 0x10,)) + unit.data[1:])


async def _half_open(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pipe.link.silent = True


async def _trickle(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pipe.slow = TRICKLE_BYTES
    await pipe.send(unit.data)


async def _hold(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    """Hold the unit until the test sets ``released``, after it has killed a process."""
    pipe.link.proxy.struck.set()
    await asyncio.to_thread(pipe.link.proxy.released.wait, SECONDS)
    await pipe.send(unit.data)


FAULTS: Final[dict[str, Callable[[Pipe, Unit, Strike], Awaitable[None]]]] = {
    "cut before": _cut_before,
    "cut within": _cut_within,
    "cut after": _cut_after,
    "delay": _delay,
    "drop": _drop,
    "duplicate": _duplicate,
    "reorder": _reorder,
    "flip": _flip,
    "flip head": _flip_head,
    "half-open": _half_open,
    "trickle": _trickle,
    "hold": _hold,
}
