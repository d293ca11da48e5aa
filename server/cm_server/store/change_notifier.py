"""A store that reports its changes of boards and tokens, so that other servers reload them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .board_store import ReplacedWith
from .rollout_replacements import BoardReplacement
from .rollout_rows import RolloutPlace
from .rows import AuditRow, BoardRow, TokenRow
from .store import Store


class NotifyingStore(Store):
    """A store that calls a function after each change of boards or tokens.

    Args:
        location: see ``Store``.

    Attributes:
        on_change: called with the ids of changed boards, and ``tokens=True`` if tokens changed.
    """

    def __init__(self, location: Any) -> None:
        super().__init__(location)
        self.on_change: Callable[..., None] = lambda *_board_ids, **_tables: None

    def enrol_boards(self, boards: Sequence[BoardRow], audit_row: AuditRow | None = None) -> None:
        """Insert or replace the identity of each board."""
        super().enrol_boards(boards, audit_row)
        self.on_change([row.id for row in boards])

    def enrol_with_token(self, token: TokenRow, board: BoardRow, audit_row: AuditRow) -> None:
        """Insert a board that enrolled itself, and count one use of its token."""
        super().enrol_with_token(token, board, audit_row)
        self.on_change([board.id], tokens=True)

    def update_board(self, board_id: str, audit_row: AuditRow | None = None, **values: Any) -> None:
        """Change a board's name or key."""
        super().update_board(board_id, audit_row, **values)
        self.on_change([board_id])

    def start_key_rotation(self, nonces: Mapping[str, bytes], audit_row: AuditRow) -> None:
        """Store the nonces from which the boards' next keys are derived."""
        super().start_key_rotation(nonces, audit_row)
        self.on_change(list(nonces))

    def delete_boards(
        self, board_ids: Sequence[str], audit_row: AuditRow | None = None
    ) -> list[str]:
        """Delete boards."""
        erased = super().delete_boards(board_ids, audit_row)
        self.on_change(board_ids)
        return erased

    def replace_board(
        self, request: BoardReplacement, place: RolloutPlace, audit_row: AuditRow | None = None
    ) -> ReplacedWith:
        """Let a board become what another one was."""
        replaced = super().replace_board(request, place, audit_row)
        self.on_change([request.new, request.old])
        return replaced

    def set_labels(
        self,
        board_ids: Sequence[str],
        changes: Mapping[str, str],
        audit_row: AuditRow | None = None,
    ) -> dict[str, dict[str, str]]:
        """Change labels of boards."""
        labels = super().set_labels(board_ids, changes, audit_row)
        self.on_change(list(labels))
        return labels

    def update_boards(
        self, changes: Mapping[str, Mapping[str, Any]], audit_row: AuditRow | None = None
    ) -> dict[str, dict[str, str]]:
        """Change values of many boards."""
        labels = super().update_boards(changes, audit_row)
        self.on_change(list(changes))
        return labels

    def reserve_boards(
        self,
        board_ids: Sequence[str],
        caller: str,
        until: float,
        audit_row: AuditRow | None = None,
    ) -> None:
        """Reserve boards for a caller."""
        super().reserve_boards(board_ids, caller, until, audit_row)
        self.on_change(board_ids)

    def release_boards_of(
        self, board_ids: Sequence[str], caller: str | None, audit_row: AuditRow | None = None
    ) -> None:
        """End the reservations of boards."""
        super().release_boards_of(board_ids, caller, audit_row)
        self.on_change(board_ids)

    def add_token(
        self, token: TokenRow, audit_row: AuditRow | None = None, replaced: str = ""
    ) -> None:
        """Insert a token."""
        super().add_token(token, audit_row, replaced)
        self.on_change(tokens=True)

    def revoke_token(self, token_hash: str, at: float, audit_row: AuditRow | None = None) -> None:
        """Mark a token as revoked."""
        super().revoke_token(token_hash, at, audit_row)
        self.on_change(tokens=True)
