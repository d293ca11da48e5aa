"""A store that says what it wrote of boards and tokens: other servers have to read it anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .rows import AuditRow, BoardRow, TokenRow
from .store import Store


class NotifyingStore(Store):
    """A store whose rows other servers keep, too.

    Args:
        location: see ``Store``.

    Attributes:
        on_change: is told the ids of boards, and ``tokens=True`` where tokens changed.
    """

    def __init__(self, location: Any) -> None:
        super().__init__(location)
        self.on_change: Callable[..., None] = lambda *_ids, **_what: None

    def enrol_boards(self, boards: Sequence[BoardRow], audit_row: AuditRow | None = None) -> None:
        """Write the identity of each board."""
        super().enrol_boards(boards, audit_row)
        self.on_change([row.id for row in boards])

    def enrol_with_token(self, token: TokenRow, board: BoardRow, audit_row: AuditRow) -> None:
        """Write a board that enrolled itself."""
        super().enrol_with_token(token, board, audit_row)
        self.on_change([board.id], tokens=True)

    def update_board(self, board_id: str, audit_row: AuditRow | None = None, **values: Any) -> None:
        """Change what a board is called, or its keys."""
        super().update_board(board_id, audit_row, **values)
        self.on_change([board_id])

    def start_key_rotation(self, nonces: Mapping[str, bytes], audit_row: AuditRow) -> None:
        """Note what the next keys of boards are derived with."""
        super().start_key_rotation(nonces, audit_row)
        self.on_change(list(nonces))

    def delete_boards(self, board_ids: Sequence[str], audit_row: AuditRow | None = None) -> None:
        """Take boards out."""
        super().delete_boards(board_ids, audit_row)
        self.on_change(board_ids)

    def set_labels(
        self, labels: Mapping[str, dict[str, str]], audit_row: AuditRow | None = None
    ) -> None:
        """Replace the labels of boards."""
        super().set_labels(labels, audit_row)
        self.on_change(list(labels))

    def add_token(self, token: TokenRow, audit_row: AuditRow | None = None) -> None:
        """Let the bearer of a token in."""
        super().add_token(token, audit_row)
        self.on_change(tokens=True)

    def revoke_token(self, token_hash: str, at: float, audit_row: AuditRow | None = None) -> None:
        """Shut the bearer of a token out."""
        super().revoke_token(token_hash, at, audit_row)
        self.on_change(tokens=True)
