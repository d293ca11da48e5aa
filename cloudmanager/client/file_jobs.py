"""Jobs with files, one after the other and side by side: what the verbs for files are made of."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .exchange import Exchange
from .files import ByteSink, FileJobGroup, FileResult, OnMoved
from .future import Future
from .sources import ContentSource
from .verbs import HasTarget, wait_results

T = TypeVar("T")

#: A board holds a job's acts in memory, as text and taken apart: so many bytes of text, no more.
MAX_OPS_BYTES: Final = 1500
PIECES_IN_FLIGHT: Final = (
    8  # pieces of a content that travel to the server before it has confirmed the first
)

#: Takes a board, the bytes that were moved for it so far, and how many there are in all.
ProgressCallback = Callable[[str, int, int], None]


async def run_file_ops(
    boards: HasTarget,
    ops: Sequence[FileOp],
    *,
    target: str = "",
    make_value: Callable[[list[Any]], Any] = list,
    sink: ByteSink | None = None,
    on_moved: OnMoved | None = None,
) -> Results:
    """Have the same acts done on all boards of a target, in one job of each."""
    group = FileJobGroup(ops, make_value=make_value, sink=sink, on_moved=on_moved)
    boards.exchange().submit(group, target or boards.target, {"acts": ops})
    return await wait_results(group)


async def run_file_ops_in_batches(
    boards: HasTarget, ops: Iterable[FileOp], *, target: str = ""
) -> Results:
    """Have many acts done, in as many jobs as a board's memory wants; the value: all answers."""
    answers: dict[str, list[Any]] = {}
    last: dict[str, FileResult] = {}
    left_out: tuple[str, ...] | None = None
    for batch in split_batches(ops):
        part = await run_file_ops(boards, batch, target=target)
        left_out = part.left_out if left_out is None else left_out
        for name, result in as_file_results(part).items():
            last[name] = result
            answers.setdefault(name, []).extend(result.op_results if result.ok else [])
        target = fold_names([name for name, result in part.items() if result.ok])
        if not target:
            break
    results = {name: result.with_value(answers[name]) for name, result in last.items()}
    return Results(results, left_out or ())


async def upload_content(exchange: Exchange, source: ContentSource) -> None:
    """Have the server hold a content; what it has already does not travel.

    Raises:
        OSError: it cannot be read.
        ServerError: it is too large, or changed meanwhile.
    """
    upload = await exchange.request("offer", {"sha256": source.digest, "size": source.size})
    if not upload:
        return
    ahead: deque[Future[Any]] = deque()
    for piece in source.pieces():
        ahead.append(exchange.send_content(upload, piece))
        if len(ahead) >= PIECES_IN_FLIGHT:
            await ahead.popleft()
    for reply in ahead:
        await reply


def split_batches(ops: Iterable[FileOp]) -> Iterator[list[FileOp]]:
    """Split acts so that each job's fit into a board's memory."""
    batch: list[FileOp] = []
    room = MAX_OPS_BYTES
    for each in ops:
        size = len(json.dumps(each))
        if batch and size > room:
            yield batch
            batch, room = [], MAX_OPS_BYTES
        batch.append(each)
        room -= size
    if batch:
        yield batch


def as_file_results(results: Mapping[str, Result]) -> dict[str, FileResult]:
    """Return the results of a job with files, by board."""
    return cast("dict[str, FileResult]", dict(results))


async def gather(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Do several things at once; return what each gave.

    Where one raises, or the waiting is interrupted, the others are ended, too.
    """
    done: dict[int, T] = {}
    waiting: dict[int, Future[Any]] = {}
    try:
        for number, each in enumerate(coroutines):
            _advance_coroutine(number, each, waiting, done)
        while waiting:
            await _first_done(waiting.values())
            for number, once in list(waiting.items()):
                if once.done:
                    _advance_coroutine(number, coroutines[number], waiting, done)
    finally:
        for number in waiting:
            coroutines[number].close()  # interrupts what it waits for
    return [done[number] for number in range(len(coroutines))]


def _advance_coroutine(
    number: int,
    coroutine: Coroutine[Any, Any, T],
    pending: dict[int, Future[Any]],
    results: dict[int, T],
) -> None:
    pending.pop(number, None)
    try:
        pending[number] = coroutine.send(None)
    except StopIteration as end:
        results[number] = end.value


def _first_done(futures: Iterable[Future[Any]]) -> Future[None]:
    """Return what is set as soon as one of them is."""
    first = Future[None]()

    def settle() -> None:
        if not first.done:
            first.set_result(None)

    for once in list(futures):
        once.add_done_callback(settle)
    return first


def group_equal_plans(plans: Mapping[str, T]) -> list[tuple[list[str], T]]:
    """Return boards whose plans are equal, together with their plan."""
    found: list[tuple[list[str], T]] = []
    for board, plan in plans.items():
        for names, known in found:
            if known == plan:
                names.append(board)
                break
        else:
            found.append(([board], plan))
    return found
