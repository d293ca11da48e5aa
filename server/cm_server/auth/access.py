"""The boards that a caller reaches: to all he asks for, there are no others. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cloudmanager.protocol.targets import parse_target
from cm_server.jobs.registry import Board
from cm_server.store.rows import TokenRow

ALL_BOARDS = "all"  # the target of a token without bounds


def reachable_boards(token: TokenRow, boards: Mapping[str, Board]) -> Mapping[str, Board]:
    """Return the boards that a token reaches now, there or not, by name."""
    return boards if token.target == ALL_BOARDS else ReachableBoards(boards, token.target)


def reaches_all(token: TokenRow) -> bool:
    """Whether a token reaches every board, also those that are yet to be enrolled."""
    return token.target == ALL_BOARDS


class ReachableBoards(Mapping[str, Board]):
    """Some of the boards, chosen anew at each look; to name one costs no look at the others."""

    def __init__(self, boards: Mapping[str, Board], target: str) -> None:
        self._boards = boards
        self._covers = parse_target(target).covers

    def __getitem__(self, name: str) -> Board:
        board = self._boards[name]
        if not self._covers(name, board):
            raise KeyError(name)
        return board

    def __iter__(self) -> Iterator[str]:
        return (name for name, board in self._boards.items() if self._covers(name, board))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class UnenrolledBoard:
    """A board that is yet to be enrolled: it has only its name."""

    online = False
    labels: Mapping[str, str] = {}
    facts: Mapping[str, str] = {}


def may_enrol(token: TokenRow, name: str, boards: Mapping[str, Board]) -> bool:
    """Whether a name is within a token's reach, be there a board of that name or not."""
    if reaches_all(token):
        return True
    return parse_target(token.target).covers(name, boards.get(name, UnenrolledBoard()))
