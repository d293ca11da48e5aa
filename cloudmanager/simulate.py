"""Virtual boards that join a server: enrol, start, wait until they are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from . import config
from .errors import CloudmanagerError
from .fleet import Fleet
from .text import fold
from .virtual import Identity, VirtualBoards

JOIN_SECONDS = 30.0  # for the first board; more boards get more time
JOIN_SECONDS_EACH = 0.3


def names_of(prefix: str, count: int) -> list[str]:
    """Return the names of ``count`` boards: PREFIX-1 and so on."""
    return [f"{prefix}-{number}" for number in range(1, count + 1)]


def simulate(
    fleet: Fleet,
    names: Sequence[str],
    *,
    detach: bool = False,
    **sizes: str,
) -> VirtualBoards:
    """Start virtual boards and return once all of them are connected.

    ``sizes`` are ``heap`` and ``flash``, see ``VirtualBoards``.

    Each is a real MicroPython process with its flash in a file below the user's folder: it
    is found again the next time. It is no sandbox: whoever may run cells on it can act as
    you on this machine.

    Raises:
        ServerError: a board of that name is connected already.
        CloudmanagerError: a board did not join, or MicroPython's unix port is missing.
        ServerUnreachable: no server.
    """
    identities = [
        Identity(found["name"], found["id"], bytes.fromhex(found["key"]))
        for found in fleet.enrol(list(names))
    ]
    url = config.split(fleet.address.url)
    address = (url.hostname or config.DEFAULT_HOST, url.port or config.DEFAULT_TCP_PORT)
    boards = VirtualBoards(identities, address, folder(), detach=detach, **sizes)
    boards.start()
    try:
        _await_boards(fleet, names)
    except BaseException:
        boards.stop()
        raise
    return boards


def folder() -> Path:
    """Return where virtual boards keep their flash."""
    return config.make_home() / "virtual"


def _await_boards(fleet: Fleet, names: Sequence[str]) -> None:
    deadline = time.monotonic() + JOIN_SECONDS + JOIN_SECONDS_EACH * len(names)
    missing = set(names)
    while missing:
        online = {board["name"] for board in fleet.boards() if board["connected_since"]}
        missing -= online
        if missing and time.monotonic() > deadline:
            log = folder() / min(missing) / "board.log"
            error = CloudmanagerError(f"{fold(missing)} did not join the server")
            error.hint = f"The board's own log is {log}."
            raise error
        time.sleep(0.02)
