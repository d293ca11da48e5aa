"""A TCP proxy that does harm: one fault, at one place of what passes. Real sockets, on loopback.

    with Loop() as loop:
        proxy = loop.proxy(server.tcp_port)
        proxy.strike(Strike("cut before", "EXEC"))   # peers dial proxy.tcp_port

Nothing is left to chance: where a fault strikes is said by name, which bit it flips by place.
It runs in a thread of its own, so that tests are plain functions which block.
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

SECONDS: Final = 10.0  # that a call into the proxy's thread may take
DELAY: Final = 0.3  # seconds
TRICKLE: Final = 0.001  # seconds between two pieces
PIECE: Final = 4  # bytes
TRICKLE_BYTES: Final = 2048  # of one direction; then it flows again
READ_BYTES: Final = 64 * 1024


class Strike(NamedTuple):
    """One fault, and where it strikes.

    Attributes:
        fault: a name in ``FAULTS``.
        at: the unit that it strikes (units.py), such as "EXEC"; "" for the next of any name; of
            TLS, "handshake", else a record of data.
        nth: which of that name, from 1.
        up: whether it strikes what goes to the server; only for units that have no name.
        bit: which bit "flip" turns over, from the beginning of the unit's body.
    """

    fault: str
    at: str = ""
    nth: int = 1
    up: bool = True
    bit: int = 0


class Loop:
    """The thread in which proxies run; ``with`` ends them all."""

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
        """Run a coroutine there and return what it gives."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SECONDS)

    def proxy(self, tcp_port: int, *, tls: bool = False) -> Proxy:
        """Return a proxy before a server of this machine."""
        return self.adopt(Proxy(self, tcp_port, tls=tls))

    def adopt(self, proxy: P) -> P:
        """End this proxy, too."""
        self._proxies.append(proxy)
        return proxy


class Proxy:
    """Stands before a server, on a port of its own.

    Args:
        loop: the thread that it runs in.
        server_port: where the server listens.
        tls: whether what passes is TLS, of which only records are seen.

    Attributes:
        tcp_port: where it listens.
        struck: set once the fault has struck.
        go: what a unit that is held waits for.
        shut: whether it hangs up on whoever dials.
        links: how many there have been.
    """

    def __init__(self, loop: Loop, server_port: int, *, tls: bool = False) -> None:
        self.server_port = server_port
        self.tls = tls
        self.struck = threading.Event()
        self.go = threading.Event()
        self.shut = False
        self.links = 0
        self.now: Strike | None = None
        self.left = 0  # units until it strikes
        self._loop = loop
        self._live: set[asyncio.Task[None]] = set()
        self._server = loop.call(asyncio.start_server(self._meet, "127.0.0.1", 0))
        self.tcp_port: int = self._server.sockets[0].getsockname()[1]

    def strike(self, strike: Strike) -> None:
        """Let a fault strike, once, at the next unit that it means."""
        self.struck.clear()
        self.go.clear()
        self.left, self.now = strike.nth, strike

    def hang_up(self) -> None:
        """End all links, without a word."""
        self._loop.call(self._hang_up())

    def close(self) -> None:
        """End all links and listen no more."""
        self.go.set()
        self._loop.call(self._close())

    async def _close(self) -> None:
        self._server.close()
        await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = list(self._live)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._live.add(task)
        try:
            if not self.shut:
                self.links += 1
                await self._talk(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # nobody there; or hang_up: this is the whole task
        finally:
            self._live.discard(task)
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_connection("127.0.0.1", self.server_port)
        try:
            await Conversation(self, (reader, writer), theirs).run()
        finally:
            theirs[1].transport.abort()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Conversation:
    """One peer's link through the proxy; ``deaf``: everything is swallowed from now on."""

    def __init__(self, proxy: Proxy, peer: Ends, server: Ends) -> None:
        self.proxy = proxy
        self.deaf = False
        self.up = Pipe(self, peer[0], server[1], up=True)
        self.down = Pipe(self, server[0], peer[1], up=False)

    async def run(self) -> None:
        """Pass everything on until both ends have hung up."""
        await asyncio.gather(self.up.run(), self.down.run())

    def end(self) -> None:
        """Let both ends see the end of the stream: what was sent before arrives."""
        self.deaf = True
        for pipe in (self.up, self.down):
            with contextlib.suppress(OSError, RuntimeError):
                pipe.writer.write_eof()


class Pipe:
    """One direction of a conversation."""

    def __init__(
        self,
        talk: Conversation,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        self.talk = talk
        self.writer = writer
        self._reader = reader
        self._up = up
        self._units = Records() if talk.proxy.tls else Frames("request" if up else "answer")
        self.late = b""  # what "reorder" holds back until something has passed it
        self.slow = 0  # bytes that are still to trickle

    async def run(self) -> None:
        """Pass on what comes, until it ends."""
        with contextlib.suppress(OSError, RuntimeError):  # the other pipe may have ended it
            while data := await self._reader.read(READ_BYTES):
                for unit in self._units.feed(data):
                    await self._pass(unit)
            if not self.talk.deaf:
                self.writer.write(self._units.rest())
                self.writer.write_eof()

    async def _pass(self, unit: Unit) -> None:
        strike = self._strike(unit)
        if self.talk.deaf:
            return
        if strike is None:
            await self.send(unit.data)
        else:
            await FAULTS[strike.fault](self, unit, strike)
            self.talk.proxy.struck.set()

    def _strike(self, unit: Unit) -> Strike | None:
        """Return the fault that is to strike this unit, if any."""
        proxy, strike = self.talk.proxy, self.talk.proxy.now
        if strike is None or self.talk.deaf or not self._means(strike, unit):
            return None
        proxy.left -= 1
        if proxy.left:
            return None
        proxy.now = None
        return strike

    def _means(self, strike: Strike, unit: Unit) -> bool:
        if self.talk.proxy.tls:
            name = "handshake" if strike.at == "handshake" else "record"
            return name in unit.names and strike.up is self._up
        return strike.at in unit.names or (not strike.at and strike.up is self._up)

    async def send(self, data: bytes) -> None:
        """Pass bytes on, as fast as this pipe is, and what was held back behind them."""
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
    pipe.talk.end()


async def _cut_within(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    await pipe.send(unit.data[: len(unit.data) // 2])
    pipe.talk.end()


async def _cut_after(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    await pipe.send(unit.data)
    pipe.talk.end()


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
    """Turn over a bit of the first byte: of a frame, one that is reserved."""
    await pipe.send(bytes((unit.data[0] ^ 0x10,)) + unit.data[1:])


async def _half_open(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pipe.talk.deaf = True


async def _trickle(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    pipe.slow = TRICKLE_BYTES
    await pipe.send(unit.data)


async def _hold(pipe: Pipe, unit: Unit, strike: Strike) -> None:
    """Keep it until somebody, who meanwhile does worse, says ``go``."""
    pipe.talk.proxy.struck.set()
    await asyncio.to_thread(pipe.talk.proxy.go.wait, SECONDS)
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
