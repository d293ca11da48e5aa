"""A slow link on loopback: a proxy with a rate, a delay and a short queue in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Iterator

_PACKET_BYTES = 1000
_MAX_OVERSLEEP_SECONDS = 0.02  # by which asyncio.sleep may be late; the line is not idle then
_QUEUE_PACKETS = 32  # packets in a router's memory; then the sender must wait


@contextlib.contextmanager
def throttled_port(tcp_port: int, *, rate: float, delay: float) -> Iterator[int]:
    """Run a proxy during a `with` block; yield its TCP port.

    Args:
        tcp_port: the port on loopback that it connects to.
        rate: bytes per second in each direction.
        delay: additional seconds of each byte.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncio.Server:
        proxy = functools.partial(_proxy_connection, tcp_port=tcp_port, rate=rate, delay=delay)
        return await asyncio.start_server(proxy, "127.0.0.1", 0, limit=2 * _PACKET_BYTES)

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
    server_reader, server_writer = await asyncio.open_connection(
        "127.0.0.1", tcp_port, limit=2 * _PACKET_BYTES
    )
    for writer in (client_writer, server_writer):
        writer.transport.set_write_buffer_limits(high=0)
    try:
        await asyncio.gather(
            _forward_bytes(client_reader, server_writer, rate, delay),
            _forward_bytes(server_reader, client_writer, rate, delay),
        )
    except (OSError, asyncio.CancelledError):  # one end closed, or the benchmark ended
        pass
    finally:
        client_writer.transport.abort()
        server_writer.transport.abort()


async def _forward_bytes(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float, delay: float
) -> None:
    """Forward bytes in one direction: each packet occupies the line for a time, then is delayed."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_PACKETS)
    sending = asyncio.ensure_future(_send_when_due(queue, writer))
    free = time.monotonic()  # when the line is free for the next packet
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
