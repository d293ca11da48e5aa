"""Names for completion: the one before the cursor, and those that boards have.

Idle boards are asked, for a short time; a running cell is never disturbed. The coroutines run in
asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import RunOptions

from . import cell_verbs
from .exchange import Exchange
from .jobs import JobGroup
from .runner import wait_done

ANSWER_SECONDS: Final = 0.3  # a later answer is of no use to a user who is typing
_BOARD_CALL: Final = (
    '__import__("cm.look").look.'  # an expression, which binds no name on the board
)
_JOB_NAME: Final = "names for completion"  # in lists of jobs

_TOKEN_PATTERN: Final = re.compile(r"(?:[^\W\d]\w*\s*\.\s*)*(?:[^\W\d]\w*)?\Z")
_FROM_IMPORT: Final = re.compile(r"\s*from\s+([\w.]+)\s+import\s+(?:[\w\s,()]*[,(\s])?(\w*)\Z")
_IMPORT: Final = re.compile(r"\s*(?:import|from)\s+(?:[\w.\s]+,\s*)*([\w.]*)\Z")

Connect = Callable[[], Exchange]  # returns the exchange with the server; connects if needed


class Token(NamedTuple):
    """A dotted name before the cursor; for ``a.b.na`` the path is ``a.b`` and the prefix ``na``.

    Attributes:
        path: all parts but the last.
        prefix: the last part, which may be incomplete.
        importing: whether it is in an import statement; then boards may not have the module yet.
    """

    path: str
    prefix: str
    importing: bool


def token_before(code: str, cursor: int) -> Token:
    """Return the dotted name before the cursor; its parts are empty if there is none."""
    line = code[:cursor].rpartition("\n")[2]
    if found := _FROM_IMPORT.match(line):
        return Token(found[1], found[2], importing=True)
    if found := _IMPORT.match(line):
        path, _, prefix = found[1].rpartition(".")
        return Token(path, prefix, importing=True)
    found = _TOKEN_PATTERN.search(line)
    path, _, prefix = re.sub(r"\s", "", found[0] if found else "").rpartition(".")
    return Token(path, prefix, importing=False)


class FoundName:
    """A name, its kind (function, class, module, instance or ""), and the boards that have it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.boards: list[str] = []


async def list_names(
    connect: Connect, target: str, path: str, prefix: str
) -> tuple[dict[str, FoundName], list[str]]:
    """Return the attributes of ``path`` that begin with ``prefix``, and the boards that answered.

    Args:
        connect: connects to the server.
        target: the boards to ask.
        path: a dotted name; "" means the names that a cell can use.
        prefix: the beginning of the attributes.
    """
    answers = await _ask_boards(connect, target, f"names({path!r}, {prefix!r})")
    found: dict[str, FoundName] = {}
    for board, pairs in answers.items():
        for kind, name in pairs if isinstance(pairs, list) else ():
            found.setdefault(str(name), FoundName(str(kind))).boards.append(board)
    return found, list(answers)


async def describe_name(
    connect: Connect, target: str, path: str
) -> dict[str, tuple[str, str, str]]:
    """Return kind, type and value of the object at ``path`` for each board that has it.

    The value is the repr of a number or text, the length of a container, and else "".
    """
    answers = await _ask_boards(connect, target, f"about({path!r})")
    return {
        board: (str(answer[0]), str(answer[1]), str(answer[2]))
        for board, answer in answers.items()
        if isinstance(answer, tuple) and len(answer) == 3
    }


async def _ask_boards(connect: Connect, target: str, call: str) -> dict[str, Any]:
    """Return the answer of each board that answered in time; {} if the server is unreachable."""
    options = RunOptions(idle=True, timeout=ANSWER_SECONDS)
    cell = cell_verbs.prepare_cached(_BOARD_CALL + call)
    group = JobGroup(dataclasses.replace(cell, name=_JOB_NAME, own=()), options)
    # Completion shows no errors.
    with contextlib.suppress(CloudmanagerError, asyncio.TimeoutError):
        await asyncio.wait_for(_submit_and_wait(connect, target, group), ANSWER_SECONDS)
    results = {board: job.result for board, job in group.jobs.items() if job.result is not None}
    return {board: result.value for board, result in results.items() if result.ok}


async def _submit_and_wait(connect: Connect, target: str, group: JobGroup) -> None:
    # In a thread, because it connects to the server if there is no link, which may take seconds.
    exchange = await asyncio.to_thread(connect)
    exchange.submit(group, target)
    await wait_done(group.finished)
    group.finished.result()
