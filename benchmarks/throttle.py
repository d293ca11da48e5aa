"""A slow link on loopback: a proxy with a rate, a delay and a small queue, both ways alike."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Iterator

_PACKET_BYTES = 1000  # bytes that travel at once: a packet
_MAX_OVERSLEEP_SECONDS = (
    0.02  # seconds that a sleep of ours may last too long: the line was not idle then
)
_QUEUE_PACKETS = 32  # packets in a router's memory; then the sender has to wait


@contextlib.contextmanager
def throttled_port(tcp_port: int, *, rate: float, delay: float) -> Iterator[int]:
    """Gives a TCP port that leads to `tcp_port`.

    Args:
        tcp_port: where the connections go, on loopback.
        rate: bytes a second, each way.
        delay: seconds that each byte is on its way, besides.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncio.Server:
        meet = functools.partial(_proxy_connection, tcp_port=tcp_port, rate=rate, delay=delay)
        return await asyncio.start_server(meet, "127.0.0.1", 0, limit=2 * _PACKET_BYTES)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_close_server(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _close_server(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _proxy_connection(
    client_reader: asyncio.StreamReader,
    client_writer: asyncio.StreamWriter,
    *,
    tcp_port: int,
    rate: float,
    delay: float,
) -> None:
    far, forth = await asyncio.open_connection("127.0.0.1", tcp_port, limit=2 * _PACKET_BYTES)
    for writer in (client_writer, forth):
        writer.transport.set_write_buffer_limits(high=0)
    try:
        await asyncio.gather(
            _forward_bytes(client_reader, forth, rate, delay),
            _forward_bytes(far, client_writer, rate, delay),
        )
    except (OSError, asyncio.CancelledError):  # an end hung up, or the bench is over
        pass
    finally:
        client_writer.transport.abort()
        forth.transport.abort()


async def _forward_bytes(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float, delay: float
) -> None:
    """Carry bytes one way: each packet takes its time on the line, then the delay."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_PACKETS)
    sending = asyncio.ensure_future(_send_when_due(queue, writer))
    free = time.monotonic()  # when the line has room for the next packet
    try:
        while data := await reader.read(_PACKET_BYTES):
            free = max(free, time.monotonic() - _MAX_OVERSLEEP_SECONDS) + len(data) / rate
            await queue.put((free + delay, data))
            if (ahead := free - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
    finally:
        sending.cancel()


async def _send_when_due(
    queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
) -> None:
    while True:
        due, data = await queue.get()
        if (ahead := due - time.monotonic()) > 0:
            await asyncio.sleep(ahead)
        writer.write(data)
        await writer.drain()
