"""Ask idle boards about names, for a short time; a running cell is never disturbed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from cloudmanager.client import cell_verbs
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.runner import wait_done
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import RunOptions
from cm_magics import fleet

ANSWER_SECONDS: Final = 0.3  # a later answer is of no use to a user who is typing
_BOARD_CALL: Final = (
    '__import__("cm.look").look.'  # an expression, which binds no name on the board
)


class FoundName:
    """A name, its kind (function, class, module, instance or ""), and the boards that have it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.boards: list[str] = []


async def list_names(target: str, path: str, prefix: str) -> tuple[dict[str, FoundName], list[str]]:
    """Return the attributes of ``path`` that begin with ``prefix``, and the boards that answered.

    Args:
        target: the boards to ask.
        path: a dotted name; "" means the names that a cell can use.
        prefix: the beginning of the attributes.
    """
    answers = await _ask_boards(target, f"names({path!r}, {prefix!r})")
    found: dict[str, FoundName] = {}
    for board, pairs in answers.items():
        for kind, name in pairs if isinstance(pairs, list) else ():
            found.setdefault(str(name), FoundName(str(kind))).boards.append(board)
    return found, list(answers)


async def describe_name(target: str, path: str) -> dict[str, tuple[str, str, str]]:
    """Return kind, type and value of the object at ``path`` for each board that has it.

    The value is the repr of a number or text, the length of a container, and else "".
    """
    answers = await _ask_boards(target, f"about({path!r})")
    return {
        board: (str(answer[0]), str(answer[1]), str(answer[2]))
        for board, answer in answers.items()
        if isinstance(answer, tuple) and len(answer) == 3
    }


async def _ask_boards(target: str, call: str) -> dict[str, Any]:
    """Return the answer of each board that answered in time; {} if the server is unreachable."""
    options = RunOptions(idle=True, timeout=ANSWER_SECONDS)
    group = JobGroup(cell_verbs.prepare_cached(_BOARD_CALL + call), options)
    # Completion shows no errors.
    with contextlib.suppress(CloudmanagerError, asyncio.TimeoutError):
        await asyncio.wait_for(_submit_and_wait(target, group), ANSWER_SECONDS)
    results = {board: job.result for board, job in group.jobs.items() if job.result is not None}
    return {board: result.value for board, result in results.items() if result.ok}


async def _submit_and_wait(target: str, group: JobGroup) -> None:
    # In a thread, because it connects to the server if there is no link, which may take seconds.
    exchange = await asyncio.to_thread(fleet().exchange)
    exchange.submit(group, target)
    await wait_done(group.finished)
    group.finished.result()
