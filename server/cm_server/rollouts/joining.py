"""Find boards that have joined a group: they were enrolled or labelled after its rollout; no I/O.

They get the generation that the group's newest finished rollout has proven, in a rollout of their
own. Each board is given a generation once in this way: one that fails it keeps what it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.targets import Target, parse_target
from cm_server.auth import access
from cm_server.auth.tokens import Tokens
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.store.rollout_rows import (
    OPEN_STATES,
    GenerationRow,
    GroupState,
    NewRollout,
    RolloutRow,
)
from cm_server.store.rows import TokenRow

from . import desired, network_change
from .plans import present_generation, refusal_reason

_MAX_BOARDS: Final = 1000  # of one rollout; the others follow


class _Group(NamedTuple):
    """A group at rest, and its target."""

    state: GroupState
    proven: RolloutRow
    target: Target


def access_reason(tokens: Tokens, token_hash: str, caller: str) -> tuple[str, TokenRow | None]:
    """Return why the token of a rollout may change no boards, and the token if it may."""
    token = tokens.by_hash(token_hash)
    if token is None:
        return f"the token of {caller!r} is not known here", None
    if why := tokens.refusal_reason(token):
        return why, None
    if not access.has_role(token, access.SUBMIT_ROLE):
        return f"the token {token.name!r} may not change boards", None
    return "", token


class JoiningBoards:
    """Finds boards that have joined a group.

    Args:
        registry: all boards.
        tokens: all tokens.
    """

    def __init__(self, registry: Registry, tokens: Tokens) -> None:
        self._registry, self._tokens = registry, tokens
        self._groups: list[_Group] = []
        # Board's id -> its name and labels, when it was last looked at.
        self._seen: dict[str, tuple[str, Mapping[str, str]]] = {}

    def set_groups(self, states: Sequence[GroupState]) -> None:
        """Set what all groups have come to; all boards are looked at again."""
        self._seen.clear()
        self._groups = []
        # Of two groups that have the same board, it is in the one that was applied last.
        for state in sorted(states, key=lambda each: -each.newest.number):
            if state.newest.group.startswith(network_change.GROUP_PREFIX):
                continue  # network settings are for boards that were there
            try:
                target = parse_target(state.newest.plan["target"])
            except TargetError:  # of an earlier version
                continue
            if state.proven is not None:
                self._groups.append(_Group(state, state.proven, target))

    def find(self, now: float) -> list[tuple[NewRollout, int]]:
        """Return a rollout for the boards that have joined each group.

        Args:
            now: the time, in seconds since 1970.

        Returns:
            Each with the number of the group's newest rollout that is done.
        """
        if not self._groups:
            return []
        found: dict[str, list[Board]] = {}
        for board in self._registry.by_id.values():
            # The server that has its link looks after it.
            if board.link is None:
                continue
            name, labels = self._seen.get(board.id, ("", None))
            if name == board.name and labels is board.labels:
                continue
            group = next((each for each in self._groups if _has(each, board)), None)
            if group is not None and (_is_open(group) or not _suits(group, board)):
                continue  # it is looked at when that has ended, or it has another client
            self._seen[board.id] = board.name, board.labels
            if group is not None and _has_joined(group, board):
                found.setdefault(group.proven.group, []).append(board)
        groups = {each.proven.group: each for each in self._groups}
        made = [self._make(groups[name], boards, now) for name, boards in found.items()]
        return [each for each in made if each is not None]

    def look_again(self, board_ids: Sequence[str]) -> None:
        """Look at boards again: what was found was not stored."""
        for board_id in board_ids:
            self._seen.pop(board_id, None)

    def _make(
        self, group: _Group, boards: Sequence[Board], now: float
    ) -> tuple[NewRollout, int] | None:
        row = group.proven
        _, token = access_reason(self._tokens, row.token, "")
        if token is None:
            return None
        reachable = access.reachable_boards(token, self._registry.by_name)
        permitted = [board for board in boards if reachable.get(board.name) is board]
        if not permitted:
            return None
        self.look_again([board.id for board in permitted[_MAX_BOARDS:]])
        ids = [board.id for board in permitted[:_MAX_BOARDS]]
        plan: dict[str, Any] = {
            **row.plan,
            "target": group.state.newest.plan["target"],
            "pin": group.state.newest.plan["pin"],
            "waves": ["100%"],
            "options": {**row.plan["options"], "on_failure": "failed", "max_failures": len(ids)},
            "boards": ids,
            "position": [0, now, None],
            "joined": True,
        }
        waves = dict.fromkeys(ids, 0)
        generation = GenerationRow(row.generation, {}, now, "")  # it is stored already
        new = NewRollout(row.group, generation, row.previous, row.token, plan, waves, {})
        return new, row.number


def _is_open(group: _Group) -> bool:
    return group.state.newest.state in OPEN_STATES


def _has(group: _Group, board: Board) -> bool:
    """Return whether a board is one of a group's, and not held back."""
    plan = group.state.newest.plan
    return group.target.covers(board.name, board) and board.name not in plan["pin"]


def _suits(group: _Group, board: Board) -> bool:
    """Return whether a board's client can switch to a generation, or is brought with it."""
    brings_client = bool(group.proven.plan.get("client"))
    return bool(board.client_parts) and not refusal_reason(board, brings_client=brings_client)


def _has_joined(group: _Group, board: Board) -> bool:
    """Return whether a board has not been given the generation of its group yet."""
    short = desired.short_id(group.proven.generation)
    # One that was changed there is mended only by applying the file again.
    is_drifted = str(board.reported_facts.get("generation", "")).startswith("drifted ")
    has_it = present_generation(board) == short
    current = desired.read_board_generation(board.reported_facts.get("generation"))
    if current.state == "cleared":  # the rollout that has cleared it did not wait for it any more
        newest = group.state.newest.plan
        return not (newest.get("joined") and board.id in newest["boards"])
    return not (has_it or is_drifted or board.id in group.state.offered)
