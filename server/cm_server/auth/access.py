"""Which boards a caller may use: for a caller, other boards do not exist. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cloudmanager.protocol.targets import parse_target
from cm_server.jobs.model import Board
from cm_server.store.rows import TokenRow

from .credentials import ROLES

ALL_BOARDS = "all"  # the target of a token that reaches every board
SUBMIT_ROLE = "operator"  # the lowest role that may run cells


def has_role(token: TokenRow, role: str) -> bool:
    """Return whether a token's role is this one or a higher one."""
    return ROLES.index(token.role) >= ROLES.index(role)


def reachable_boards(token: TokenRow, boards: Mapping[str, Board]) -> Mapping[str, Board]:
    """Return the boards that a token reaches now, by name, connected or not."""
    return boards if token.target == ALL_BOARDS else ReachableBoards(boards, token.target)


def reaches_all(token: TokenRow) -> bool:
    """Return whether a token reaches every board, also those that are enrolled later."""
    return token.target == ALL_BOARDS


class ReachableBoards(Mapping[str, Board]):
    """A view of the boards that a target covers, evaluated at each access.

    Args:
        boards: all boards, by name.
        target: selects some of them, for example by label. A look-up by name evaluates the target
            for that board only.
    """

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
    """Stands for a board that is not enrolled yet: only its name is known."""

    online = False
    labels: Mapping[str, str] = {}
    facts: Mapping[str, str] = {}


def may_enrol(token: TokenRow, name: str, boards: Mapping[str, Board]) -> bool:
    """Return whether a token's target covers a name, whether or not such a board exists."""
    if reaches_all(token):
        return True
    return parse_target(token.target).covers(name, boards.get(name, UnenrolledBoard()))
