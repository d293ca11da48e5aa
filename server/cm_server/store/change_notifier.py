"""A store that says what it wrote of boards and tokens: other servers have to read it anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .rows import AuditRow, BoardRow, TokenRow
from .store import Store


class Announcing(Store):
    """A store whose rows other servers keep, too.

    Args:
        where: see ``Store``.

    Attributes:
        on_change: is told the ids of boards, and ``tokens=True`` where tokens changed.
    """

    def __init__(self, where: Any) -> None:
        super().__init__(where)
        self.on_change: Callable[..., None] = lambda *_ids, **_what: None

    def enrol(self, boards: Sequence[BoardRow], note: AuditRow | None = None) -> None:
        """Write the identity of each board."""
        super().enrol(boards, note)
        self.on_change([row.id for row in boards])

    def enrol_by(self, token: TokenRow, board: BoardRow, note: AuditRow) -> None:
        """Write a board that enrolled itself."""
        super().enrol_by(token, board, note)
        self.on_change([board.id], tokens=True)

    def set_board(self, board_id: str, note: AuditRow | None = None, **values: Any) -> None:
        """Change what a board is called, or its keys."""
        super().set_board(board_id, note, **values)
        self.on_change([board_id])

    def open_rotation(self, nonces: Mapping[str, bytes], note: AuditRow) -> None:
        """Note what the next keys of boards are derived with."""
        super().open_rotation(nonces, note)
        self.on_change(list(nonces))

    def forget(self, board_ids: Sequence[str], note: AuditRow | None = None) -> None:
        """Take boards out."""
        super().forget(board_ids, note)
        self.on_change(board_ids)

    def set_labels(
        self, labels: Mapping[str, dict[str, str]], note: AuditRow | None = None
    ) -> None:
        """Replace the labels of boards."""
        super().set_labels(labels, note)
        self.on_change(list(labels))

    def add_token(self, token: TokenRow, note: AuditRow | None = None) -> None:
        """Let the bearer of a token in."""
        super().add_token(token, note)
        self.on_change(tokens=True)

    def revoke_token(self, token_hash: str, at: float, note: AuditRow | None = None) -> None:
        """Shut the bearer of a token out."""
        super().revoke_token(token_hash, at, note)
        self.on_change(tokens=True)
