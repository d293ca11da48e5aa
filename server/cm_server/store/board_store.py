"""The boards, tokens, secrets and rollouts in the store, with their rows in the audit log. SQL."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError

from . import tables
from .replaced_rows import ReplacedBoard
from .rollout_replacements import BoardReplacement, ReplacedInRollout
from .rollout_rows import (
    NewRollout,
    NextRollout,
    RolloutChange,
    RolloutPlace,
)
from .rows import AuditRow, BoardRow, TokenRow
from .secret_rows import SecretRow, secrets_table
from .store_base import StoreBase

BOARD_COLUMNS = [tables.boards.c[name] for name in BoardRow._fields]

#: Why boards cannot be reserved; a server checks before, so that another one must have been faster.
RESERVED_MEANWHILE = "somebody else has just reserved one of them at another server"

#: Why a board cannot replace another one; a server checks before, as above.
REPLACED_MEANWHILE = "one of the two boards was renamed or removed meanwhile; nothing has changed"
_REMOVED_BOARD = "it was removed from the fleet; it did not run"

#: Condition for using an enrolment token: of several servers, one gets the last use.
_HAS_USES_LEFT = tables.tokens.c.uses > 0


class ReplacedWith(NamedTuple):
    """What a board has that has replaced another one.

    Attributes:
        row: the new board's row.
        waiting: the numbers of the jobs that waited for the old board, and wait for it now.
        rollout: which rollout brings it to the old board's generation.
        old: the identity that is no longer valid.
        forgotten: ids that were replaced so long ago that they are not recognised any more.
    """

    row: BoardRow
    waiting: list[int]
    rollout: ReplacedInRollout
    old: ReplacedBoard
    forgotten: list[str]


class BoardStore(StoreBase):
    """What the store has of boards, and of who may use them."""

    # Boards

    def boards(self) -> list[BoardRow]:
        """Return every enrolled board."""
        self.flush()
        return [BoardRow(*row) for row in self._fetch_rows(sa.select(*BOARD_COLUMNS))]

    def enrol_boards(self, boards: Sequence[BoardRow], audit_row: AuditRow | None = None) -> None:
        """Insert the identity of each board; a known id gets the new key and its generation."""
        with self._durable_transaction(audit_row):
            self._upsert_boards(boards)

    def _upsert_boards(self, boards: Sequence[BoardRow]) -> None:
        statement = self.database.insert(tables.boards)
        updated = ("key", "gen", "nonce", "plain", "token")
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={name: statement.excluded[name] for name in updated}
        )
        self._connection.execute(statement, [row._asdict() for row in boards])

    def enrol_with_token(self, token: TokenRow, board: BoardRow, audit_row: AuditRow) -> None:
        """Insert a board that enrolled itself, and count one use of its token.

        Raises:
            ServerError: another server used the token up meanwhile.
        """
        same_token = tables.tokens.c.hash == token.hash
        statement = sa.update(tables.tokens).where(same_token, _HAS_USES_LEFT)
        statement = statement.values(uses=tables.tokens.c.uses - 1)
        with self._durable_transaction(audit_row):
            self._upsert_boards([board])
            if not self._connection.execute(statement).rowcount:
                self.database.rollback()
                raise ServerError(f"the token {token.name!r} was used already")

    def update_board(self, board_id: str, audit_row: AuditRow | None = None, **values: Any) -> None:
        """Change values of a board: ``name``, ``key``, ``gen``, ``nonce``."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == board_id)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(**values))

    def start_key_rotation(self, nonces: Mapping[str, bytes], audit_row: AuditRow) -> None:
        """Store the nonces, by board id, from which the boards' next keys are derived."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": nonce} for board_id, nonce in nonces.items()]
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(nonce=sa.bindparam("new")), rows)

    def delete_boards(
        self, board_ids: Sequence[str], audit_row: AuditRow | None = None
    ) -> list[str]:
        """Delete boards; the rows of their jobs stay, and their ids are never used again.

        Returns:
            All ids whose samples are to be erased: of the boards, and those that they replaced.
        """
        with self._durable_transaction(audit_row):
            for board_id in board_ids:
                waiting = self.waiting_rows.jobs_of_board(board_id)
                self._end_waiting(waiting, "offline", _REMOVED_BOARD)
                self._delete_board(board_id)
            return [*board_ids, *self.replaced_rows.predecessors(board_ids)]

    def _delete_board(self, board_id: str) -> None:
        self._connection.execute(sa.delete(tables.boards).where(tables.boards.c.id == board_id))
        self.installed_packages.delete_board(board_id)
        self.log_rows.delete_board(board_id)
        self.health_rows.delete_board(board_id)
        self.secret_rows.delete_board(board_id)

    def replace_board(
        self, request: BoardReplacement, place: RolloutPlace, audit_row: AuditRow | None = None
    ) -> ReplacedWith:
        """Let a board become what another one was, and delete that one, in one transaction.

        Args:
            request: which boards.
            place: of the rollout that brings the new board to the old one's generation.
            audit_row: for the audit log.

        Returns:
            What the new board has now.

        Raises:
            ServerError: one of them was changed meanwhile, or the new one is being switched by a
                rollout; nothing has changed.
        """
        with self._durable_transaction(audit_row):
            try:
                return self._replace_board(request, place)
            except ServerError:
                self.database.rollback()
                raise

    def _replace_board(self, request: BoardReplacement, place: RolloutPlace) -> ReplacedWith:
        board = tables.boards.c
        query = sa.select(*BOARD_COLUMNS).where(board.id.in_((request.old, request.new)))
        found = self._connection.execute(query.order_by(board.id).with_for_update()).all()
        rows = {row.id: BoardRow(*row) for row in found}
        names = [rows[each].name for each in (request.old, request.new) if each in rows]
        if names != [request.old_name, request.new_name]:
            raise ServerError(REPLACED_MEANWHILE)
        old = rows[request.old]
        waiting = self.waiting_rows.move(old.id, request.new)
        outcome = self.rollout_replacements.replace_board(request, place)
        self.log_rows.move(old.id, request.new)
        self._delete_board(old.id)
        now = time.time()
        forgotten = self.replaced_rows.add(old, now, request.new)
        replaced = ReplacedBoard(old.id, old.name, old.key, old.gen, old.nonce, now, request.new)
        inherited = ("name", "labels", "reserved_by", "reserved_until")
        values = {name: getattr(old, name) for name in (*inherited, "stay_seconds", "stay_until")}
        if old.note:
            values["note"] = old.note
        update = sa.update(tables.boards).where(board.id == request.new)
        self._connection.execute(update.values(**values))
        new = rows[request.new]._replace(**values)
        return ReplacedWith(new, waiting, outcome, replaced, forgotten)

    def set_labels(
        self,
        board_ids: Sequence[str],
        changes: Mapping[str, str],
        audit_row: AuditRow | None = None,
    ) -> dict[str, dict[str, str]]:
        """Change labels of boards, whatever other servers changed meanwhile.

        Args:
            board_ids: the boards.
            changes: new values of labels; an empty one removes the label.
            audit_row: for the audit log.

        Returns:
            All labels of each board, by its id.
        """
        board = tables.boards.c
        query = sa.select(board.id, board.labels).where(board.id.in_(board_ids)).order_by(board.id)
        statement = sa.update(tables.boards).where(board.id == sa.bindparam("board"))
        statement = statement.values(labels=sa.bindparam("new", type_=sa.JSON))
        with self._durable_transaction(audit_row):
            found = self._connection.execute(query.with_for_update()).all()
            labels = {row.id: _merge_labels(row.labels, changes) for row in found}
            rows = [{"board": board_id, "new": new} for board_id, new in labels.items()]
            if rows:
                self._connection.execute(statement, rows)
        return labels

    def update_boards(
        self, changes: Mapping[str, Mapping[str, Any]], audit_row: AuditRow | None = None
    ) -> dict[str, dict[str, str]]:
        """Change values of many boards: all of them or, if one cannot be written, none.

        Args:
            changes: board id -> new ``name``, ``serial``, ``note``, and ``labels``, of which an
                empty value removes a label; boards may exchange their names.
            audit_row: for the audit log.

        Returns:
            All labels of each board whose labels were changed, by its id.
        """
        board, new_labels = tables.boards.c, {}
        with self._durable_transaction(audit_row):
            for board_id in (each for each, values in changes.items() if "name" in values):
                # No board has such a name; so each name is free when its new board gets it.
                unused = sa.update(tables.boards).where(board.id == board_id)
                self._connection.execute(unused.values(name=f"~{board_id}"))
            for board_id, given in changes.items():
                values = dict(given)
                if "labels" in values:
                    query = sa.select(board.labels).where(board.id == board_id)
                    old = self._connection.execute(query.with_for_update()).scalar() or {}
                    values["labels"] = new_labels[board_id] = _merge_labels(old, values["labels"])
                statement = sa.update(tables.boards).where(board.id == board_id)
                self._connection.execute(statement.values(**values))
        return new_labels

    def reserve_boards(
        self,
        board_ids: Sequence[str],
        caller: str,
        until: float,
        audit_row: AuditRow | None = None,
    ) -> None:
        """Reserve boards for a caller, all of them or none, whatever other servers do meanwhile.

        Args:
            board_ids: the boards.
            caller: the name of the caller's token.
            until: seconds since 1970.
            audit_row: for the audit log.

        Raises:
            ServerError: somebody else has reserved one of them meanwhile, at another server.
        """
        board = tables.boards.c
        is_free = board.reserved_by.is_(None) | (board.reserved_until <= time.time())
        statement = sa.update(tables.boards).where(
            board.id.in_(board_ids), is_free | (board.reserved_by == caller)
        )
        statement = statement.values(reserved_by=caller, reserved_until=until)
        with self._durable_transaction(audit_row):
            if self._connection.execute(statement).rowcount < len(board_ids):
                self.database.rollback()
                raise ServerError(RESERVED_MEANWHILE)

    def release_boards_of(
        self, board_ids: Sequence[str], caller: str | None, audit_row: AuditRow | None = None
    ) -> None:
        """End the reservations of boards.

        Args:
            board_ids: the boards.
            caller: only those of the token with this name; None for anybody's.
            audit_row: for the audit log.
        """
        board = tables.boards.c
        statement = sa.update(tables.boards).where(board.id.in_(board_ids))
        if caller is not None:
            statement = statement.where(board.reserved_by == caller)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(reserved_by=None, reserved_until=None))

    # Secrets

    def set_secret(self, row: SecretRow, audit_row: AuditRow | None = None) -> None:
        """Store a secret; it replaces one of the same name."""
        statement = self.database.insert(secrets_table).values(row._asdict())
        changed = {name: statement.excluded[name] for name in ("value", "target", "changed")}
        with self._durable_transaction(audit_row):
            self._connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_=changed)
            )

    def remove_secret(self, name: str, audit_row: AuditRow | None = None) -> None:
        """Delete a secret, if there is one of this name."""
        with self._durable_transaction(audit_row):
            self._connection.execute(sa.delete(secrets_table).where(secrets_table.c.name == name))

    # Rollouts

    def add_rollouts(
        self, new: Sequence[NewRollout], place: RolloutPlace, audit_row: AuditRow | None = None
    ) -> list[int]:
        """Add rollouts; return their numbers.

        Raises:
            ServerError: there is no room for their files.
        """
        with self._durable_transaction(audit_row):
            try:
                return [self.rollout_rows.add(each, *place) for each in new]
            except ServerError:
                self.database.rollback()
                raise

    def end_rollout(
        self, number: int, epoch: int, values: Mapping[str, Any], next_one: NextRollout | None
    ) -> bool:
        """End a rollout that this server carries out, and begin the one that follows from it.

        Args:
            number: of the rollout.
            epoch: in which this server carries it out.
            values: of its columns.
            next_one: what follows, in the same transaction; None: nothing.

        Returns:
            Whether this server still carried it out.
        """
        with self._durable_transaction():
            if not self.rollout_rows.change(number, epoch, **values):
                return False
            if next_one is not None:
                self.rollout_rows.add(next_one.new, *next_one.place)
        return True

    def add_joined_boards(self, new: NewRollout, place: RolloutPlace, proven: int) -> bool:
        """Begin a rollout for boards that have joined a group, unless the group has changed.

        Args:
            new: the rollout.
            place: where it is carried out and stored.
            proven: the number of the group's newest rollout that is done.

        Returns:
            Whether it begins.
        """
        with self._durable_transaction():
            may_join = self.rollout_rows.may_join(new, proven)
            if may_join:
                self.rollout_rows.add(new, *place)
        return may_join

    def set_rollout_states(
        self,
        numbers: Sequence[int],
        change: RolloutChange,
        audit_row: AuditRow | None = None,
    ) -> list[int]:
        """Change the states of rollouts; return those that were in a state that permits it."""
        with self._durable_transaction(audit_row):
            return [number for number in numbers if self.rollout_rows.set_state(number, change)]

    # Tokens

    def add_token(
        self, token: TokenRow, audit_row: AuditRow | None = None, replaced: str = ""
    ) -> None:
        """Insert a token.

        Args:
            token: its row.
            audit_row: for the audit log.
            replaced: the hash of an expired token of the same name, which is revoked by that.

        Raises:
            ServerError: another valid token has its name, or it cannot be written.
        """
        revoke = sa.update(tables.tokens).where(tables.tokens.c.hash == replaced)
        with self._durable_transaction(audit_row):
            if replaced:
                self._connection.execute(revoke.values(revoked=token.created))
            self._connection.execute(sa.insert(tables.tokens), token._asdict())

    def revoke_token(self, token_hash: str, at: float, audit_row: AuditRow | None = None) -> None:
        """Mark a token as revoked; its row stays."""
        statement = sa.update(tables.tokens).where(tables.tokens.c.hash == token_hash)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(revoked=at))

    def tokens(self) -> list[TokenRow]:
        """Return all tokens, oldest first."""
        query = sa.select(tables.tokens).order_by(tables.tokens.c.created)
        return [TokenRow(*row) for row in self._fetch_rows(query)]


def _merge_labels(labels: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Return changed labels; an empty value removes a label."""
    return {key: value for key, value in {**labels, **changes}.items() if value}
