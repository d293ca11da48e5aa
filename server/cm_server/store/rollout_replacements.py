"""Bring a board that replaces another one to what rollouts have brought that one to. SQL."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError

from .rollout_rows import (
    ACTIVE_STATES,
    OPEN_STATES,
    ROLLOUT_COLUMNS,
    GenerationRow,
    NewRollout,
    RolloutBoardRow,
    RolloutPlace,
    RolloutRow,
    RolloutRows,
)
from .tables import generations, rollout_boards, rollouts

_OWN_GROUPS: Final = "@"  # the first character of groups that change network settings
_FINAL: Final = ("proven", "failed", "missed")  # states of boards whose part has ended


class BoardReplacement(NamedTuple):
    """A board that is to become what another one was.

    Attributes:
        old: the id of the board that is replaced.
        old_name: its name, which the other one gets.
        new: the id of the board that replaces it.
        new_name: its name until then.
        caller: the name of the token that asks.
        token: the hash of that token.
        refusal: why the new board can get no generation; "" if it can.
    """

    old: str
    old_name: str
    new: str
    new_name: str
    caller: str
    token: str
    refusal: str = ""


class ReplacedInRollout(NamedTuple):
    """How a board that replaces another one gets to its generation.

    Attributes:
        group: the group of the old board; "" if no rollout has proven a generation on it.
        rollout: the number of the rollout that brings the new board there; None: none does.
        note: why none does; "" if there is nothing to say.
    """

    group: str = ""
    rollout: int | None = None
    note: str = ""


class RolloutReplacements:
    """Puts boards into the rollouts of those that they replace.

    Methods belong to a transaction of the calling code, which commits it.

    Args:
        connection: the store's connection.
        rollout_rows: the store's rollouts.
    """

    def __init__(self, connection: sa.Connection, rollout_rows: RolloutRows) -> None:
        self._connection = connection
        self._rollout_rows = rollout_rows

    def replace_board(self, request: BoardReplacement, place: RolloutPlace) -> ReplacedInRollout:
        """Let a board take the place of another one in rollouts, and get what that one had.

        In a rollout that has not ended, it gets the other one's wave. If there is none, it gets the
        generation that a rollout has proven on the other one last, as a rollout of its own.

        Raises:
            ServerError: a rollout is just switching the new board.
        """
        found = ReplacedInRollout()
        for row in self._open_rollouts(request.old, request.new):
            waves = self._waves_of(row.number)
            new_wave, new_state = waves.get(request.new, (0, "missed"))
            if new_state in ACTIVE_STATES:
                raise ServerError(
                    f"{request.new_name} is being switched by rollout {row.number} of {row.group}; "
                    "wait until that has ended, or abort it"
                )
            if request.old in waves:
                self._put_board(row, request, waves[request.old][0])
                if not row.group.startswith(_OWN_GROUPS):
                    found = ReplacedInRollout(row.group, row.number, request.refusal)
            elif new_state not in _FINAL:
                why = f"it has replaced {request.old_name}"
                self._replace_row(row, request.new, new_wave, ("missed", why))
        return found if found.rollout is not None else self._repeat_for(request, place)

    def _open_rollouts(self, *boards: str) -> list[RolloutRow]:
        """Return the rollouts that have not ended and have one of these boards."""
        has_board = sa.exists().where(
            rollout_boards.c.rollout == rollouts.c.number, rollout_boards.c.board.in_(boards)
        )
        query = sa.select(*ROLLOUT_COLUMNS).where(rollouts.c.state.in_(OPEN_STATES), has_board)
        rows = self._connection.execute(query.order_by(rollouts.c.number)).all()
        return [RolloutRow(*row) for row in rows]

    def _waves_of(self, number: int) -> dict[str, tuple[int, str]]:
        """Return the wave and the state of each board of a rollout."""
        columns = (rollout_boards.c.board, rollout_boards.c.wave, rollout_boards.c.state)
        query = sa.select(*columns).where(rollout_boards.c.rollout == number)
        return {row[0]: (row[1], row[2]) for row in self._connection.execute(query).all()}

    def _put_board(self, row: RolloutRow, request: BoardReplacement, wave: int) -> None:
        """Put the new board into a rollout that has not ended; the old one leaves it."""
        state = ("missed", request.refusal) if request.refusal else ("waiting", "")
        self._connection.execute(
            sa.delete(rollout_boards).where(
                rollout_boards.c.rollout == row.number, rollout_boards.c.board == request.old
            )
        )
        self._replace_row(row, request.new, wave, state)
        boards = [request.new if each == request.old else each for each in row.plan["boards"]]
        if request.new not in boards:
            boards.append(request.new)
        plan = {**row.plan, "boards": list(dict.fromkeys(boards))}
        change = sa.update(rollouts).where(rollouts.c.number == row.number)
        self._connection.execute(change.values(plan=plan))

    def _replace_row(self, row: RolloutRow, board: str, wave: int, state: tuple[str, str]) -> None:
        """Write the row of a board; the server that carries the rollout out reads it again."""
        key = (rollout_boards.c.rollout == row.number, rollout_boards.c.board == board)
        self._connection.execute(sa.delete(rollout_boards).where(*key))
        values = RolloutBoardRow(row.number, board, wave, state[0], time.time(), state[1])
        self._connection.execute(sa.insert(rollout_boards), [values._asdict()])
        change = sa.update(rollouts).where(rollouts.c.number == row.number)
        self._connection.execute(change.values(epoch=rollouts.c.epoch + 1))

    def _repeat_for(self, request: BoardReplacement, place: RolloutPlace) -> ReplacedInRollout:
        """Bring the new board to the generation that was proven on the old one last."""
        joined = sa.select(*ROLLOUT_COLUMNS).join_from(
            rollouts, rollout_boards, rollout_boards.c.rollout == rollouts.c.number
        )
        proven = joined.where(
            rollout_boards.c.board == request.old,
            rollout_boards.c.state == "proven",
            ~rollouts.c.group.startswith(_OWN_GROUPS),
        )
        proven = proven.order_by(rollouts.c.number.desc()).limit(1)
        row = self._connection.execute(proven).first()
        if row is None:
            return ReplacedInRollout()
        wanted = RolloutRow(*row)
        group = wanted.group
        if request.refusal:
            return ReplacedInRollout(group, None, request.refusal)
        newest = sa.select(*ROLLOUT_COLUMNS).where(rollouts.c.group == group)
        newest = newest.order_by(rollouts.c.number.desc()).limit(1)
        latest = RolloutRow(*self._connection.execute(newest).one())
        if latest.state in OPEN_STATES:
            if latest.generation != wanted.generation:
                note = f"{group} is being rolled out; apply its file again when that has ended"
                return ReplacedInRollout(group, None, note)
            self._put_board(latest, request, 0)
            return ReplacedInRollout(group, latest.number)
        columns = [generations.c[name] for name in GenerationRow._fields]
        query = sa.select(*columns).where(generations.c.sha256 == wanted.generation)
        made = self._connection.execute(query).first()
        if made is None:
            note = f"the generation of {group} is not kept any more; apply its file again"
            return ReplacedInRollout(group, None, note)
        plan = {
            **latest.plan,
            "caller": request.caller,
            "waves": ["100%"],
            "boards": [request.new],
            "position": [0, time.time(), None],
            "window": None,  # somebody is there, and has just exchanged the board
        }
        previous = latest.previous if latest.previous != wanted.generation else None
        boards = {request.new: 0}
        new = NewRollout(group, GenerationRow(*made), previous, request.token, plan, boards, {})
        return ReplacedInRollout(group, self._rollout_rows.add(new, *place))
