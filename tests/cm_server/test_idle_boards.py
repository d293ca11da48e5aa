"""What a board costs that is connected and does nothing: a server may have ten thousand."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cloudmanager.protocol.facts import read_facts
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.net.board_socket import BoardConnection
from cm_server.net.fair_queue import FairQueue
from cm_server.net.websocket import WebSocketLink
from cm_server.store.rows import BoardRow

Given = TypeVar("Given")
BOARDS = 200
#: Of Python objects; what OpenSSL and the kernel need comes on top. The numbers only go down.
BOARD_BYTES = 600
FACTS_BYTES = 900
LINK_BYTES = 1100
_REPORTED = {
    "platform": "esp32",
    "version": "1.28.0",
    "mpy": 774,
    "machine": "Generic ESP32 module with ESP32",
    "client": "1a2b3c4d",
    "heap": 123456,
    "rssi": -61,
    "block": 110000,
    "flash": 1500000,
    "watchdog": "60 s",
    "reset": "pwron",
    "uptime": 12,
    "program": "app.py",
    "address": "192.168.1.20",
    "mac": "a4cf12000000",
}
_PARTS = ["about", "ask", "boot", "emit", "files", "link", "log", "mount", "run", "switch"]


def bytes_per_board(prepare: Callable[[], Given], make: Callable[[Given], object]) -> float:
    """Return what the objects need that a function makes, divided by the number of boards.

    Args:
        prepare: makes what is not counted; it is called before each attempt.
        make: makes what is counted, from that.
    """
    sizes = []
    for _ in range(5):
        given = prepare()
        gc.collect()
        tracemalloc.start()
        kept = make(given)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept
        sizes.append(size)
    return min(sizes) / BOARDS


def rows() -> list[BoardRow]:
    return [
        BoardRow(f"id-{number}", f"lab-{number}", bytes(32), {}, {}, 0.0, None)
        for number in range(BOARDS)
    ]


def facts(number: int) -> dict[str, object]:
    """Return facts as a link has them: read from JSON, with texts of their own."""
    found = read_facts(json.loads(json.dumps(_REPORTED)))
    return {**found, "parts": json.loads(json.dumps(_PARTS)), "boot": f"{number:016x}"}


def enrolled_board_bytes() -> float:
    return bytes_per_board(rows, Registry)


def connected_board_bytes() -> float:
    boards: list[Board] = []

    def prepare() -> list[WebSocketLink]:
        boards[:] = Registry(rows()).by_id.values()
        return [WebSocketLink(1, FairQueue(1), Limits(), is_board=True) for _ in boards]

    def connect(links: list[WebSocketLink]) -> list[Board]:
        for number, (board, link) in enumerate(zip(boards, links, strict=True)):
            board.connect(link, facts(number), 1024, [str(part) for part in _PARTS])
        return boards

    size = bytes_per_board(prepare, connect)
    assert boards[3].client_parts == frozenset(_PARTS)
    assert {name: boards[3].reported_facts[name] for name in _REPORTED} == _REPORTED
    assert boards[3].reported_facts["parts"] == _PARTS
    return size


def link_bytes() -> float:
    def connect(given: tuple[Limits, FairQueue]) -> list[BoardConnection]:
        limits, queue = given
        links = [WebSocketLink(1, queue, limits, is_board=True) for _ in range(BOARDS)]
        return [
            BoardConnection(None, link, "127.0.0.1", secure=False)  # type: ignore[arg-type]
            for link in links
        ]

    return bytes_per_board(lambda: (Limits(), FairQueue(1)), connect)


def test_idle_boards_are_small():
    """Measured in a process of its own: in this one, threads of other tests allocate memory."""
    measured = (enrolled_board_bytes, connected_board_bytes, link_bytes)
    code = f"from {__name__} import *\n" + "\n".join(f"print({f.__name__}())" for f in measured)
    command = [sys.executable, "-c", code]
    folder = Path(__file__).parents[2]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    enrolled, connected, link = map(float, ran.stdout.split())
    assert enrolled <= BOARD_BYTES
    assert connected <= FACTS_BYTES
    assert link <= LINK_BYTES
