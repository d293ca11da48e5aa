"""The store's tables of generations and rollouts. SQL.

A rollout belongs to the server that carries it out, its owner. Each change of it is one UPDATE that
names the owner's epoch: a server that has lost a rollout changes nothing of it any more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError

from .blob_rows import BlobRows
from .tables import generations, rollout_boards, rollouts, shared

OPEN_STATES: Final = ("running", "paused")
#: Of boards that are being switched.
ACTIVE_STATES: Final = ("upgrading", "starting", "switching", "trial", "returning")
_KEPT_SECONDS: Final = 30 * 86400.0  # that a generation is kept that no rollout names
_KEPT_ROLLOUTS: Final = 1000  # that have ended


class GenerationRow(NamedTuple):
    """A generation.

    Attributes:
        sha256: its id.
        manifest: what it contains.
        created: when it was made, in seconds since 1970.
        created_by: the name of the token that made it.
    """

    sha256: str
    manifest: dict[str, Any]
    created: float
    created_by: str


class RolloutRow(NamedTuple):
    """A rollout.

    Attributes:
        number: its number.
        group: the name of its group of boards.
        generation: the id of what it brings boards to.
        previous: the group's generation before; None for its first one.
        state: running, paused, done, failed, aborted or replaced.
        why: the reason of that; "" if it needs none.
        token: the hash of the token that asked for it.
        owner: the server that carries it out; None: none.
        epoch: how often that changed.
        plan: its target, options and position.
        created: when it was made, in seconds since 1970.
        changed: when its state changed.
    """

    number: int
    group: str
    generation: str
    previous: str | None
    state: str
    why: str
    token: str
    owner: str | None
    epoch: int
    plan: dict[str, Any]
    created: float
    changed: float


class RolloutBoardRow(NamedTuple):
    """A board in a rollout; the states are those of ``rollouts.steps``.

    Attributes:
        rollout: the number of the rollout.
        board: the board's id.
        wave: its wave, from 0.
        state: how far it is.
        since: when it got into that state, in seconds since 1970.
        why: the reason.
    """

    rollout: int
    board: str
    wave: int
    state: str
    since: float
    why: str


class NewRollout(NamedTuple):
    """A rollout to be made.

    Attributes:
        group: the name of its group.
        generation: what it brings boards to.
        previous: the group's generation before.
        token: the hash of the token that asks.
        plan: its target, options and position.
        boards: id of a board -> its wave.
        contents: SHA-256 -> bytes of the generation's files; empty if it is stored already.
        network: what boards get if it changes their network settings; it may have a password.
    """

    group: str
    generation: GenerationRow
    previous: str | None
    token: str
    plan: dict[str, Any]
    boards: Mapping[str, int]
    contents: Mapping[str, bytes]
    network: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        """Leave out what may have a password."""
        return f"NewRollout({self.group!r}, {self.generation.sha256!r})"


class GroupState(NamedTuple):
    """What a group of boards has come to, by its rollouts.

    Attributes:
        newest: its newest rollout.
        proven: its newest rollout that is done; None: none is.
        offered: the ids of the boards that were given that generation, whether it worked or not.
    """

    newest: RolloutRow
    proven: RolloutRow | None
    offered: frozenset[str]


class RolloutPlace(NamedTuple):
    """Where a rollout is carried out and stored.

    Attributes:
        owner: the id of the server.
        max_bytes: of the files of all generations.
    """

    owner: str
    max_bytes: int


class NextRollout(NamedTuple):
    """A rollout that follows from another one.

    Attributes:
        new: the rollout.
        place: where it is carried out and stored.
    """

    new: NewRollout
    place: RolloutPlace


class RolloutChange(NamedTuple):
    """A change of the state of a rollout that somebody asks for.

    Attributes:
        state: its new state.
        why: the reason.
        permitted: the states in which it may be.
    """

    state: str
    why: str
    permitted: tuple[str, ...]


_NETWORK_PREFIX: Final = "network "  # of names in the table ``shared``
ROLLOUT_COLUMNS = [rollouts.c[name] for name in RolloutRow._fields]
_BOARD_COLUMNS = [rollout_boards.c[name] for name in RolloutBoardRow._fields]


class RolloutRows:
    """The tables of generations and rollouts.

    Args:
        connection: the store's connection.
        blob_rows: the contents of generations.
        rollback_on_error: a context that rolls back if a write inside fails.
        insert: SQLAlchemy's ``insert`` of the database, with ON CONFLICT.
    """

    def __init__(
        self,
        connection: sa.Connection,
        blob_rows: BlobRows,
        rollback_on_error: Callable[[], AbstractContextManager[None]],
        insert: Callable[[sa.Table], Any],
    ) -> None:
        self._connection = connection
        self._blob_rows = blob_rows
        self._rollback_on_error = rollback_on_error
        self._insert = insert

    # In a transaction that the calling code commits

    def add(self, new: NewRollout, owner: str, max_bytes: int) -> int:
        """Add a rollout, its boards and its generation; return its number.

        A rollout of the same group that has not ended is replaced.

        Args:
            new: the rollout.
            owner: the id of this server.
            max_bytes: of the files of all generations.

        Raises:
            ServerError: there is no room for its files.
        """
        now = time.time()
        self._blob_rows.lock()
        self._make_room(sum(map(len, new.contents.values())), max_bytes)
        row = self._insert(generations).values(new.generation._asdict())
        self._connection.execute(row.on_conflict_do_nothing())
        self._blob_rows.pin(_user(new.generation.sha256), new.contents)
        is_open = rollouts.c.state.in_(OPEN_STATES) & (rollouts.c.group == new.group)
        replaced = sa.update(rollouts).where(is_open)
        self._connection.execute(
            replaced.values(
                state="replaced",
                why="a newer one of its group",
                changed=now,
                epoch=rollouts.c.epoch + 1,
            )
        )
        number = 1 + (
            self._connection.execute(sa.select(sa.func.max(rollouts.c.number))).scalar() or 0
        )
        values = RolloutRow(
            number,
            new.group,
            new.generation.sha256,
            new.previous,
            "running",
            "",
            new.token,
            owner,
            1,
            new.plan,
            now,
            now,
        )
        self._connection.execute(sa.insert(rollouts), [values._asdict()])
        boards = [
            RolloutBoardRow(number, board, wave, "waiting", now, "")._asdict()
            for board, wave in new.boards.items()
        ]
        if boards:
            self._connection.execute(sa.insert(rollout_boards), boards)
        if new.network is not None:
            sent = json.dumps(dict(new.network)).encode()
            kept = sa.insert(shared).values(name=_network_name(new.generation.sha256), value=sent)
            self._connection.execute(kept)
        self._prune(now)
        return number

    def _make_room(self, size: int, max_bytes: int) -> None:
        """Delete the oldest generations, as long as there is no room for more bytes.

        The generation of the newest rollout of each group stays, and the one before it.
        """
        if not size:
            return
        newest = sa.select(sa.func.max(rollouts.c.number)).group_by(rollouts.c.group)
        query = sa.select(rollouts.c.generation, rollouts.c.previous)
        rows = self._connection.execute(query.where(rollouts.c.number.in_(newest))).all()
        kept = {each for row in rows for each in row}
        by_age = sa.select(generations.c.sha256).order_by(generations.c.created)
        for (generation,) in self._connection.execute(by_age).all():
            if self._blob_rows.total_bytes() + size <= max_bytes:
                return
            if generation not in kept:
                self._delete([generation])
        if self._blob_rows.total_bytes() + size > max_bytes:
            raise ServerError("there is no room for the files of another generation")

    def _delete(self, ids: list[str]) -> None:
        self._connection.execute(sa.delete(generations).where(generations.c.sha256.in_(ids)))
        self._blob_rows.unpin([_user(each) for each in ids])

    def set_state(self, number: int, change: RolloutChange) -> bool:
        """Change the state of a rollout by a request; return whether its state permits that."""
        statement = sa.update(rollouts).where(
            rollouts.c.number == number, rollouts.c.state.in_(change.permitted)
        )
        values = {"state": change.state, "why": change.why, "changed": time.time()}
        return bool(self._connection.execute(statement.values(**values)).rowcount)

    def change(self, number: int, epoch: int, **values: Any) -> bool:
        """Change a rollout as ``update`` does, in a transaction of the calling code."""
        statement = sa.update(rollouts).where(
            rollouts.c.number == number,
            rollouts.c.epoch == epoch,
            rollouts.c.state == "running",
        )
        return bool(self._connection.execute(statement.values(**values)).rowcount)

    def may_join(self, new: NewRollout, proven: int) -> bool:
        """Return whether boards may join a group: it is at rest, and has what they would get.

        Args:
            new: the rollout for them; its generation is one that is stored.
            proven: the number of the group's newest rollout that is done.
        """
        self._blob_rows.lock()
        same = rollouts.c.group == new.group
        query = sa.select(sa.func.count()).where(same, rollouts.c.state.in_(OPEN_STATES))
        is_open = self._connection.execute(query).scalar()
        newest = sa.select(sa.func.max(rollouts.c.number)).where(same, rollouts.c.state == "done")
        is_newest = self._connection.execute(newest).scalar() == proven
        stored = sa.select(sa.func.count()).where(generations.c.sha256 == new.generation.sha256)
        return not is_open and is_newest and bool(self._connection.execute(stored).scalar())

    def _prune(self, now: float) -> None:
        """Delete the oldest rollouts, and generations that nothing names any more."""
        ended = sa.select(rollouts.c.number).where(rollouts.c.state.not_in(OPEN_STATES))
        ended = ended.order_by(rollouts.c.number.desc()).offset(_KEPT_ROLLOUTS)
        old = [row[0] for row in self._connection.execute(ended).all()]
        if old:
            self._connection.execute(sa.delete(rollouts).where(rollouts.c.number.in_(old)))
            boards = sa.delete(rollout_boards).where(rollout_boards.c.rollout.in_(old))
            self._connection.execute(boards)
        named = sa.exists().where(
            (rollouts.c.generation == generations.c.sha256)
            | (rollouts.c.previous == generations.c.sha256)
        )
        unnamed = sa.select(generations.c.sha256).where(
            ~named, generations.c.created < now - _KEPT_SECONDS
        )
        gone = [row[0] for row in self._connection.execute(unnamed).all()]
        if gone:
            self._delete(gone)

    # Transactions of their own

    def update(self, number: int, epoch: int, **values: Any) -> bool:
        """Change a rollout that this server carries out; return whether it still does.

        Args:
            number: of the rollout.
            epoch: in which this server carries it out.
            values: of columns.
        """
        with self._rollback_on_error():
            is_owned = self.change(number, epoch, **values)
            self._connection.commit()
        return is_owned

    def pause_all(self, why: str) -> None:
        """Pause all rollouts that are in progress."""
        statement = sa.update(rollouts).where(rollouts.c.state == "running")
        values = {"state": "paused", "why": why, "changed": time.time()}
        with self._rollback_on_error():
            self._connection.execute(statement.values(**values))
            self._connection.commit()

    def set_boards(
        self, number: int, epoch: int, changes: Mapping[str, tuple[str, float, str]]
    ) -> bool:
        """Change boards of a rollout; return whether this server still carries it out.

        Args:
            number: of the rollout.
            epoch: in which this server carries it out.
            changes: board's id -> its state, since when, and why.
        """
        owned = sa.exists().where(rollouts.c.number == number, rollouts.c.epoch == epoch)
        done = True
        with self._rollback_on_error():
            for board, (state, since, why) in changes.items():
                statement = sa.update(rollout_boards).where(
                    rollout_boards.c.rollout == number, rollout_boards.c.board == board, owned
                )
                values = {"state": state, "since": since, "why": why}
                done &= bool(self._connection.execute(statement.values(**values)).rowcount)
            self._connection.commit()
        return done

    def claim(self, owner: str, live: Collection[str] | None) -> list[RolloutRow]:
        """Take over rollouts whose server is gone; return all that are this one's.

        They are those that are open, and those that have ended while boards were being switched:
        these boards finish.

        Args:
            owner: the id of this server.
            live: the ids of the servers that are there; None: this is the only one.
        """
        is_switching = sa.exists().where(
            rollout_boards.c.rollout == rollouts.c.number,
            rollout_boards.c.state.in_(ACTIVE_STATES),
        )
        is_open = rollouts.c.state.in_(OPEN_STATES) | is_switching
        is_orphan = rollouts.c.owner.is_(None) | (rollouts.c.owner != owner)
        if live is not None:
            is_orphan = rollouts.c.owner.is_(None) | rollouts.c.owner.not_in([*live, owner])
        statement = sa.update(rollouts).where(is_open, is_orphan)
        with self._rollback_on_error():
            self._connection.execute(statement.values(owner=owner, epoch=rollouts.c.epoch + 1))
            query = sa.select(*ROLLOUT_COLUMNS).where(is_open, rollouts.c.owner == owner)
            rows = self._connection.execute(query.order_by(rollouts.c.number)).all()
            self._delete_network_changes()
            self._connection.commit()
        return [RolloutRow(*row) for row in rows]

    def _delete_network_changes(self) -> None:
        """Delete what boards got from rollouts that have ended: it may have passwords."""
        is_open = rollouts.c.state.in_(OPEN_STATES)
        names = sa.select(_NETWORK_PREFIX + rollouts.c.generation).where(is_open)
        self._connection.execute(
            sa.delete(shared).where(
                shared.c.name.startswith(_NETWORK_PREFIX), shared.c.name.not_in(names)
            )
        )

    def read_network_change(self, generation: str) -> dict[str, Any]:
        """Return what boards get from a rollout of network settings that has not ended.

        Raises:
            ServerError: it has ended.
        """
        query = sa.select(shared.c.value).where(shared.c.name == _network_name(generation))
        row = self._connection.execute(query).first()
        self._connection.commit()
        if row is None:
            raise ServerError("its rollout has ended")
        return dict(json.loads(row[0]))

    def boards_of(self, number: int) -> list[RolloutBoardRow]:
        """Return the boards of a rollout."""
        query = sa.select(*_BOARD_COLUMNS).where(rollout_boards.c.rollout == number)
        rows = self._connection.execute(query).all()
        self._connection.commit()
        return [RolloutBoardRow(*row) for row in rows]

    def latest(self) -> list[RolloutRow]:
        """Return the newest rollout of each group."""
        newest = sa.select(sa.func.max(rollouts.c.number)).group_by(rollouts.c.group)
        query = sa.select(*ROLLOUT_COLUMNS).where(rollouts.c.number.in_(newest))
        rows = self._connection.execute(query.order_by(rollouts.c.group)).all()
        self._connection.commit()
        return [RolloutRow(*row) for row in rows]

    def failed_before(self, joined: RolloutRow) -> RolloutRow | None:
        """Return the rollout that somebody has asked for last in a group, if it failed.

        Args:
            joined: the newest rollout of the group, for boards that have joined it since.
        """
        query = sa.select(*ROLLOUT_COLUMNS).where(
            rollouts.c.group == joined.group, rollouts.c.number < joined.number
        )
        rows = self._connection.execute(query.order_by(rollouts.c.number.desc())).all()
        self._connection.commit()
        asked = next(
            (row for row in map(RolloutRow._make, rows) if not row.plan.get("joined")), None
        )
        return asked if asked is not None and asked.state == "failed" else None

    def version(self) -> tuple[int, float]:
        """Return what differs once a rollout has been made, or the state of one has changed."""
        query = sa.select(sa.func.max(rollouts.c.number), sa.func.max(rollouts.c.changed))
        number, changed = self._connection.execute(query).one()
        self._connection.commit()
        return number or 0, changed or 0.0

    def newest_done(self, group: str, *, besides: str = "") -> RolloutRow | None:
        """Return the newest rollout of a group that is done; None without one.

        Args:
            group: its name.
            besides: the id of a generation whose rollouts do not count.
        """
        return self._newest_done(group, rollouts.c.generation != besides)

    def newest_done_of(self, group: str, generation: str) -> RolloutRow | None:
        """Return the newest rollout of a group to a generation that is done; None without one."""
        return self._newest_done(group, rollouts.c.generation == generation)

    def _newest_done(self, group: str, condition: Any) -> RolloutRow | None:
        query = sa.select(*ROLLOUT_COLUMNS).where(
            rollouts.c.group == group, rollouts.c.state == "done", condition
        )
        row = self._connection.execute(query.order_by(rollouts.c.number.desc()).limit(1)).first()
        self._connection.commit()
        return None if row is None else RolloutRow(*row)

    def groups(self) -> list[GroupState]:
        """Return what all groups have come to."""
        states = []
        for newest in self.latest():
            proven = self.newest_done(newest.group)
            offered: set[str] = set()
            if proven is not None:
                query = sa.select(rollouts.c.plan).where(
                    rollouts.c.group == newest.group, rollouts.c.generation == proven.generation
                )
                for (plan,) in self._connection.execute(query).all():
                    offered.update(plan["boards"])
                self._connection.commit()
            states.append(GroupState(newest, proven, frozenset(offered)))
        return states

    def history(self, count: int) -> list[RolloutRow]:
        """Return the newest rollouts, the newest first."""
        query = sa.select(*ROLLOUT_COLUMNS).order_by(rollouts.c.number.desc()).limit(count)
        rows = self._connection.execute(query).all()
        self._connection.commit()
        return [RolloutRow(*row) for row in rows]

    def generations_of(self, ids: Collection[str]) -> dict[str, GenerationRow]:
        """Return generations, by their ids; those that do not exist are missing."""
        query = sa.select(*[generations.c[name] for name in GenerationRow._fields])
        rows = self._connection.execute(query.where(generations.c.sha256.in_(ids))).all()
        self._connection.commit()
        return {row[0]: GenerationRow(*row) for row in rows}

    def contents_of(self, generation: str) -> dict[str, bytes]:
        """Return the files of a generation, by SHA-256."""
        found = self._blob_rows.read_of(_user(generation))
        self._connection.commit()
        return found

    def find_generation(self, text: str) -> list[str]:
        """Return the ids of generations that begin with a text."""
        query = sa.select(generations.c.sha256)
        query = query.where(generations.c.sha256.startswith(text, autoescape=True))
        rows: Sequence[Any] = self._connection.execute(query).all()
        self._connection.commit()
        return [row[0] for row in rows]


def _network_name(generation: str) -> str:
    return _NETWORK_PREFIX + generation


def _user(generation: str) -> str:
    return f"generation {generation}"
