"""All enrolled boards. No sockets, no SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cloudmanager.protocol import frames
from cm_server.store.rows import BoardRow

from .model import Board


class Registry:
    """All enrolled boards, by name and by id.

    Attributes:
        subscriptions_listener: called with a board after each change, for subscriptions.
        directory_listener: the same, for the board directory of several servers.
        on_access_changed: called after a name or labels changed: which tokens may access which
            boards may have changed.
        names_version: how often a board, a name or labels have been added, changed or removed.
    """

    def __init__(self, rows: Iterable[BoardRow] = ()) -> None:
        self.subscriptions_listener: Callable[[Board], None] | None = None
        self.directory_listener: Callable[[Board], None] | None = None
        self.alarm_listener: Callable[[Board], None] | None = None
        self.on_access_changed: Callable[[], None] = lambda: None
        self.names_version = 0
        # Each board has them: the same two objects instead of two for each.
        self._listeners = self._on_board_changed, self._on_name_changed
        self.by_name: dict[str, Board] = {}
        self.by_id: dict[str, Board] = {}
        for row in rows:
            self.add(row)

    def add(self, row: BoardRow) -> Board:
        """Add an enrolled board."""
        board = self.by_name[row.name] = self.by_id[row.id] = Board(row, *self._listeners)
        self.names_version += 1
        board.notify_changed()
        return board

    def remove(self, board: Board) -> None:
        """Remove a board that is no longer enrolled."""
        del self.by_id[board.id]
        self._release_name(board)
        self.names_version += 1
        board.notify_changed()

    def _release_name(self, board: Board) -> None:
        if (
            self.by_name.get(board.name) is board
        ):  # else another server gave the name to another board
            del self.by_name[board.name]

    def _on_board_changed(self, board: Board) -> None:
        if self.subscriptions_listener is not None:
            self.subscriptions_listener(board)
        if self.directory_listener is not None:
            self.directory_listener(board)
        if self.alarm_listener is not None:
            self.alarm_listener(board)

    def _on_name_changed(self) -> None:
        self.names_version += 1
        self.on_access_changed()

    def rename(self, board: Board, name: str) -> None:
        """Rename a board; no other board may have the new name."""
        self._release_name(board)
        board.name = name
        self.by_name[name] = board
        board.notify_changed()
        self._on_name_changed()

    def close_links(self, why: str) -> None:
        """Close the links of all boards: the server stops, or starts again."""
        for board in self.by_id.values():
            if board.link is not None:
                board.link.close(frames.CLOSE_GOING_AWAY, why)

    def online(self) -> list[Board]:
        """Return the boards that have a link to this server."""
        return [board for board in self.by_name.values() if board.link is not None]
