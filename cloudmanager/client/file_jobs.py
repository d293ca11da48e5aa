"""Jobs with files, one after the other and side by side: what the verbs for files are made of."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from cloudmanager.protocol.file_ops import Act
from cloudmanager.protocol.text import fold
from cloudmanager.results.results import Result, Results

from .exchange import Exchange
from .files import FileGroup, FileResult, Moved, Sink
from .future import Once
from .sources import Source
from .verbs import Targeted, ending

T = TypeVar("T")

#: A board holds a job's acts in memory, as text and taken apart: so many bytes of text, no more.
ACTS_BYTES: Final = 1500
AHEAD: Final = 8  # pieces of a content that travel to the server before it has confirmed the first

#: Takes a board, the bytes that were moved for it so far, and how many there are in all.
Progress = Callable[[str, int, int], None]


async def act(
    boards: Targeted,
    acts: Sequence[Act],
    *,
    target: str = "",
    read: Callable[[list[Any]], Any] = list,
    sink: Sink | None = None,
    moved: Moved | None = None,
) -> Results:
    """Have the same acts done on all boards of a target, in one job of each."""
    group = FileGroup(acts, read=read, sink=sink, moved=moved)
    boards.exchange().submit(group, target or boards.target, {"acts": acts})
    return await ending(group)


async def ask(boards: Targeted, acts: Iterable[Act], *, target: str = "") -> Results:
    """Have many acts done, in as many jobs as a board's memory wants; the value: all answers."""
    answers: dict[str, list[Any]] = {}
    last: dict[str, FileResult] = {}
    left_out: tuple[str, ...] | None = None
    for batch in batches(acts):
        part = await act(boards, batch, target=target)
        left_out = part.left_out if left_out is None else left_out
        for name, result in results_of(part).items():
            last[name] = result
            answers.setdefault(name, []).extend(result.answers if result.ok else [])
        target = fold([name for name, result in part.items() if result.ok])
        if not target:
            break
    results = {name: result.with_value(answers[name]) for name, result in last.items()}
    return Results(results, left_out or ())


async def send(exchange: Exchange, source: Source) -> None:
    """Have the server hold a content; what it has already does not travel.

    Raises:
        OSError: it cannot be read.
        ServerError: it is too large, or changed meanwhile.
    """
    upload = await exchange.request("offer", {"sha256": source.digest, "size": source.size})
    if not upload:
        return
    ahead: deque[Once[Any]] = deque()
    for piece in source.pieces():
        ahead.append(exchange.send_content(upload, piece))
        if len(ahead) >= AHEAD:
            await ahead.popleft()
    for reply in ahead:
        await reply


def batches(acts: Iterable[Act]) -> Iterator[list[Act]]:
    """Split acts so that each job's fit into a board's memory."""
    batch: list[Act] = []
    room = ACTS_BYTES
    for each in acts:
        size = len(json.dumps(each))
        if batch and size > room:
            yield batch
            batch, room = [], ACTS_BYTES
        batch.append(each)
        room -= size
    if batch:
        yield batch


def results_of(results: Mapping[str, Result]) -> dict[str, FileResult]:
    """Return the results of a job with files, by board."""
    return cast("dict[str, FileResult]", dict(results))


async def together(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Do several things at once; return what each gave.

    Where one raises, or the waiting is interrupted, the others are ended, too.
    """
    done: dict[int, T] = {}
    waiting: dict[int, Once[Any]] = {}
    try:
        for number, each in enumerate(coroutines):
            _advance(number, each, waiting, done)
        while waiting:
            await _first(waiting.values())
            for number, once in list(waiting.items()):
                if once.done:
                    _advance(number, coroutines[number], waiting, done)
    finally:
        for number in waiting:
            coroutines[number].close()  # interrupts what it waits for
    return [done[number] for number in range(len(coroutines))]


def _advance(
    number: int,
    coroutine: Coroutine[Any, Any, T],
    waiting: dict[int, Once[Any]],
    done: dict[int, T],
) -> None:
    waiting.pop(number, None)
    try:
        waiting[number] = coroutine.send(None)
    except StopIteration as end:
        done[number] = end.value


def _first(several: Iterable[Once[Any]]) -> Once[None]:
    """Return what is set as soon as one of them is."""
    first = Once[None]()

    def settle() -> None:
        if not first.done:
            first.set(None)

    for once in list(several):
        once.then(settle)
    return first


def alike(plans: Mapping[str, T]) -> list[tuple[list[str], T]]:
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
