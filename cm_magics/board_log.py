"""The live log on a board's page in the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.log_lines import LogFollower
from cloudmanager.display.log_view import log_rows
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import sanitize_text

from .live_widget import run_in_thread


class BoardLog:
    """Sends the page what one board prints outside of cells, first what the server has stored.

    Args:
        fleet: of the board.
        send: sends a message to the page; may be called from any thread.
    """

    def __init__(self, fleet: Fleet, send: Callable[[dict[str, Any]], None]) -> None:
        self._fleet = fleet
        self._send = send
        self._board: str | None = None
        self._follower: LogFollower | None = None

    def show(self, board: str | None) -> None:
        """Follow this board's log and no other; None: none. Call with the widget's lock held."""
        if board == self._board:
            return
        if self._follower is not None:
            self._follower.close()
        self._board, self._follower = board, None
        if board is not None:
            self._follower = LogFollower(self._fleet.exchange, board, 0.0)
            run_in_thread(self._follow, board, self._follower)

    def _follow(self, board: str, follower: LogFollower) -> None:
        try:
            for lines in follower.batches():
                if follower is not self._follower:
                    return
                self._send(
                    {"kind": "log", "board": board, "lines": log_rows(lines, with_boards=False)}
                )
        except CloudmanagerError as error:  # such as a token that may not read logs
            self._send({"kind": "log", "board": board, "lines": [sanitize_text(str(error))]})
