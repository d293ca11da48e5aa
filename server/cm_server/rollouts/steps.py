"""What a rollout does next, computed from the states of its boards; pure.

A board of a rollout is in one of these states::

    waiting ──▶ switching ──▶ trial ──▶ proven
      ▲ │           │           │
      │ │           ▼           ▼
      │ │        failed ◀────────┤     its health or its switch failed: the board went back
      │ └──▶ missed              │
      └────── unproven ◀─────────┘     it went back for want of a link, and is tried again

A board that gets another client first is ``upgrading`` and ``starting`` before it is ``switching``.
A board that could not keep what it had (``rollback = "network"``) is ``returning`` before it is
``failed`` or ``unproven``: the server sends it the earlier generation again.

``proven``, ``failed`` and ``missed`` are final. A board that is away is neither a success nor a
failure: one that has not begun by its deadline is ``missed``, one that has begun and is not proven
by then is ``failed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .windows import Window

ENDED: Final = frozenset(("proven", "failed", "missed"))
UPGRADING: Final = frozenset(("upgrading", "starting"))
ACTIVE: Final = frozenset(("switching", "trial", "returning", *UPGRADING))
#: Begins the reason of a board that is unproven as soon as it has returned.
UNPROVEN_MARK: Final = "?"
#: Seconds until a board that came back unproven is tried again.
RETRY_SECONDS: Final = 60.0
#: Seconds that a board may be gone in the middle of its switch until its wave does not wait for it.
RETURN_SECONDS: Final = 600.0


@dataclass(frozen=True)
class RolloutOptions:
    """How a rollout proceeds.

    Attributes:
        pause: seconds between the end of a wave and the next one.
        parallel: how many boards switch at the same time; 0: all of a wave.
        deadline: seconds from the start of its wave in which a board has to be proven.
        max_failures: with more failed boards, no further one begins.
        health: the cell that has to succeed; "": the program runs for a while.
        health_code: the coroutine function that this cell is, if it awaits; else "".
        health_timeout: seconds for that cell, or that the program has to run.
        on_failure: "failed": failed boards go back; "all": all boards of the rollout do.
    """

    pause: float = 600.0
    parallel: int = 0
    deadline: float = 86400.0
    max_failures: int = 0
    health: str = ""
    health_code: str = ""
    health_timeout: float = 60.0
    on_failure: str = "failed"


class BoardProgress(NamedTuple):
    """Where a board is in a rollout.

    Attributes:
        board_id: the board's.
        wave: the wave it belongs to, from 0.
        state: see the module.
        since: when it got into that state, in seconds since 1970.
        online: whether it is connected.
        begun: whether it has been given the generation, or a part of it, before.
        has_failed: whether it fails as soon as it has returned.
    """

    board_id: str
    wave: int
    state: str
    since: float
    online: bool
    begun: bool = False
    has_failed: bool = False


class Position(NamedTuple):
    """How far a rollout has come.

    Attributes:
        wave: the present wave, from 0.
        started: when that began, in seconds since 1970.
        settled: when all its boards that are there had ended; None: they have not.
    """

    wave: int
    started: float
    settled: float | None = None


@dataclass(frozen=True)
class Step:
    """What happens next.

    Attributes:
        position: of the rollout from now on.
        begin: ids of boards that begin now.
        overdue: id -> (its new state, why) of boards whose deadline has passed.
        outcome: "": it goes on; "done", "failed", or "paused".
        why: the reason of the outcome.
    """

    position: Position
    begin: tuple[str, ...] = ()
    overdue: dict[str, tuple[str, str]] = field(default_factory=dict)
    outcome: str = ""
    why: str = ""


def next_step(
    boards: Sequence[BoardProgress],
    options: RolloutOptions,
    position: Position,
    now: float,
    window: Window | None = None,
) -> Step:
    """Return what a rollout that runs does next.

    Args:
        boards: all its boards, in the order in which they begin.
        options: of the rollout.
        position: how far it has come.
        now: the time, in seconds since 1970.
        window: outside of it no board begins, and deadlines do not come nearer; None: any time.
    """
    overdue: dict[str, tuple[str, str]] = {}
    if _has_passed(options.deadline, position.started, now, window):
        overdue = _overdue(boards, position)
    if overdue:
        boards = [
            each._replace(state=overdue[each.board_id][0]) if each.board_id in overdue else each
            for each in boards
        ]
    failed = sum(each.state == "failed" or each.has_failed for each in boards)
    active = [each for each in boards if each.state in ACTIVE]
    if failed > options.max_failures:
        outcome = (
            "" if any(each.online for each in active) or _is_returning(active, now) else "failed"
        )
        why = f"{failed} failed, and max_failures is {options.max_failures}" if outcome else ""
        return Step(position, overdue=overdue, outcome=outcome, why=why)
    present = [each for each in boards if each.wave <= position.wave]
    ready = [each for each in present if may_begin(each, now)]
    room = options.parallel - len(active) if options.parallel else len(ready)
    if window is not None and not window.is_open(now):
        room = 0
    begin = tuple(each.board_id for each in ready[: max(room, 0)])
    if ready or any(each.online for each in active) or _is_returning(active, now):
        return Step(position._replace(settled=None), begin, overdue)
    return _at_rest(boards, options, position, now, overdue)


def may_begin(board: BoardProgress, now: float) -> bool:
    """Return whether a board of the present wave, or an earlier one, can begin."""
    if not board.online:
        return False
    is_due = board.state == "unproven" and now - board.since >= RETRY_SECONDS
    return board.state == "waiting" or is_due


def _is_returning(active: Sequence[BoardProgress], now: float) -> bool:
    """Return whether a board is gone in the middle of its switch, and expected back."""
    return any(not each.online and now - each.since < RETURN_SECONDS for each in active)


def _has_passed(deadline: float, started: float, now: float, window: Window | None) -> bool:
    """Return whether a deadline has passed; of a rollout with a window, that time alone counts."""
    if now - started < deadline:
        return False
    return window is None or window.open_seconds(started, now) >= deadline


def _overdue(boards: Sequence[BoardProgress], position: Position) -> dict[str, tuple[str, str]]:
    """Return the boards that have not ended, with their new states at the deadline and why."""
    found = {}
    for each in boards:
        if each.wave > position.wave or each.state in ENDED:
            continue
        if each.online and each.state in ACTIVE:
            continue  # it is about to end
        if each.begun:
            found[each.board_id] = ("failed", "it was not proven by the deadline")
        else:
            found[each.board_id] = ("missed", "it was away until the deadline")
    return found


def _at_rest(
    boards: Sequence[BoardProgress],
    options: RolloutOptions,
    position: Position,
    now: float,
    overdue: dict[str, tuple[str, str]],
) -> Step:
    """Return what happens when no board is being switched, and none that is there can be."""
    of_wave = [each for each in boards if each.wave == position.wave]
    last_wave = max((each.wave for each in boards), default=0)
    if all(each.state in ENDED for each in boards):
        if any(each.state == "proven" for each in boards) or not boards:
            return Step(position, overdue=overdue, outcome="done")
        return _without_proof("no board was proven", boards, position, overdue)
    is_last = position.wave >= last_wave
    if is_last or any(each.state == "unproven" and each.online for each in of_wave):
        return Step(position._replace(settled=None), overdue=overdue)
    if not any(each.state == "proven" for each in of_wave):
        if not all(each.state in ENDED for each in of_wave):  # what is away proves nothing
            return Step(position._replace(settled=None), overdue=overdue)
        why = f"no board of wave {position.wave + 1} was proven"
        return _without_proof(why, of_wave, position, overdue)
    settled = now if position.settled is None else position.settled
    if now - settled < options.pause:
        return Step(position._replace(settled=settled), overdue=overdue)
    return Step(Position(position.wave + 1, now), overdue=overdue)


def _without_proof(
    why: str,
    boards: Sequence[BoardProgress],
    position: Position,
    overdue: dict[str, tuple[str, str]],
) -> Step:
    """Return that a rollout does not go on: it failed, or nobody was there to try it."""
    if any(each.state == "failed" for each in boards):
        return Step(position, overdue=overdue, outcome="failed", why=why)
    why += ": all of them were away until the deadline"
    return Step(position, overdue=overdue, outcome="paused", why=why)
