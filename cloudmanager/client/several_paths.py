"""Runs a file verb for several paths of boards, one path after the other, as the shell's do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, files
from .exchange import Exchange
from .file_jobs import as_file_results, is_refusal, join_errors
from .files import FileResult
from .verb import HasTarget

#: A path on boards, or several.
BoardPaths = str | Sequence[str]
#: Runs the verb for one path, on the given boards.
RunPath = Callable[[HasTarget, str], Coroutine[Any, Any, Results]]
#: Makes the value of a board from its values for the paths, in their order.
JoinValues = Callable[[list[Any]], Any]


class SomeBoards(HasTarget):
    """Some of the boards of a target, by their names."""

    def __init__(self, boards: HasTarget, names: Sequence[str]) -> None:
        self._boards = boards
        self.target = fold_names(names)

    def exchange(self) -> Exchange:
        """Return the exchange with the server."""
        return self._boards.exchange()


async def run_for_paths(
    boards: HasTarget, paths: BoardPaths, run: RunPath, join: JoinValues
) -> Results:
    """Run a verb for one path or several, all on the same boards.

    A path for which it fails does not keep a board from the others; the failed result has the
    values of these as ``partial``.

    Args:
        boards: the boards.
        paths: one path, or several.
        run: runs the verb for one of them.
        join: makes the value for several paths.

    Raises:
        ValueError: one of them is no path on boards, or there are none; nothing was done.
    """
    if isinstance(paths, str):
        return await run(boards, paths)
    for path in paths:
        board_paths.parse_board_path(path)
    if not paths:
        raise ValueError("name at least one path")
    outcomes: dict[str, list[FileResult]] = {}
    left_out: tuple[str, ...] | None = None
    remaining = boards
    for path in paths:
        part = await run(remaining, path)
        left_out = part.left_out if left_out is None else left_out
        for name, result in as_file_results(part).items():
            outcomes.setdefault(name, []).append(result)
        names = [name for name, result in part.items() if result.ok or is_refusal(result.error)]
        if not names:
            break
        remaining = SomeBoards(boards, names)
    results = {name: _join_results(name, each, join) for name, each in outcomes.items()}
    return Results(results, left_out or ())


def _join_results(name: str, outcomes: Sequence[FileResult], join: JoinValues) -> Result:
    """Return one board's result of all paths; the last is that of the job that ended the verb."""
    last = outcomes[-1]
    elapsed = sum(outcome.elapsed for outcome in outcomes[:-1])
    values = [
        outcome.value if outcome.ok else outcome.partial
        for outcome in outcomes
        if outcome.ok or outcome.partial is not None
    ]
    errors = [error for outcome in outcomes if isinstance(error := outcome.error, OSError)]
    value = join(values) if values else None
    if not errors and last.ok:
        return last.with_value(value, elapsed)
    if last.ok or is_refusal(last.error):
        return files.failed_result(name, join_errors(errors), partial=value)
    return last.with_partial(value)
