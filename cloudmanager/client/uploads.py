"""Files of this machine, and bytes, to boards: the content travels once, whatever their number."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cloudmanager.protocol.file_ops import Act
from cloudmanager.protocol.text import fold
from cloudmanager.results.results import Result, Results

from . import board_paths, sources
from .file_jobs import Progress, act, alike, batches, results_of, send, together
from .files import FileResult
from .sources import Origin, PathLike, Source
from .verbs import Targeted


class Item(NamedTuple):
    """One file on its way: what it holds, and its path on the boards."""

    source: Source
    path: str


async def put(
    boards: Targeted,
    source: Origin | Sequence[PathLike],
    dest: str,
    progress: Progress | None,
) -> Results:
    """Copy to the boards: see ``FileVerbs.put``."""
    place = board_paths.on_board(dest)
    into = dest.endswith(("/", ":"))
    if isinstance(source, bytes):
        if into:
            raise ValueError(f"bytes need a file's name behind {dest}")
        return await deliver(
            boards, boards.target, [Item(sources.of_bytes(source), place)], progress
        )
    if isinstance(source, str | os.PathLike):
        origins = [Path(source)]
    else:
        origins, into = [Path(each) for each in source], True
    inside = _items(origins, place, below=True)
    if not inside:  # folders without a file
        acts = [["makedirs", board_paths.joined(place, each.resolve().name)] for each in origins]
        return await act(boards, acts if into else [["makedirs", place]], read=_written)
    if into:
        return await deliver(boards, boards.target, inside, progress)
    items = _items(origins, place, below=False)
    if origins[0].is_dir():
        return await _put_folder(boards, place, items, inside, progress)
    return await _put_file(boards, items, inside, progress)


async def _put_file(
    boards: Targeted, items: list[Item], inside: list[Item], progress: Progress | None
) -> Results:
    """Put a file there; where a folder is there, into that."""
    results = await deliver(boards, boards.target, items, progress)
    folders = [name for name, result in results.items() if _is_folder(result)]
    if not folders:
        return results
    more = await deliver(boards, fold(folders), inside, progress)
    return Results({**results, **more}, results.left_out)


def _is_folder(result: Result) -> bool:
    return isinstance(result.error, OSError) and result.error.errno == errno.EISDIR


async def _put_folder(
    boards: Targeted, place: str, items: list[Item], inside: list[Item], progress: Progress | None
) -> Results:
    """Put a folder there; where one is there already, into that, as ``cp -r`` does."""
    looks = await act(boards, [["stat", place]])
    plans = {name: inside if result.ok else items for name, result in looks.items()}
    return await spread(boards, plans, progress, looks.left_out)


async def spread(
    boards: Targeted,
    plans: dict[str, list[Item]],
    progress: Progress | None,
    left_out: tuple[str, ...] = (),
) -> Results:
    """Give each board its own files; boards that want the same get them together."""
    parts = await together(
        *(deliver(boards, fold(names), items, progress) for names, items in alike(plans))
    )
    merged = {name: result for part in parts for name, result in part.items()}
    return Results({name: merged[name] for name in plans if name in merged}, left_out)


def _items(origins: list[Path], place: str, *, below: bool) -> list[Item]:
    """Return the files of some origins, each with its path; ``below``: under the origin's name."""
    found = []
    for origin in origins:
        base = board_paths.joined(place, origin.resolve().name) if below else place
        if origin.is_dir():
            found += [
                Item(sources.of_file(path), board_paths.joined(base, str(inner)))
                for inner, path in sources.walk(origin)
            ]
        else:
            found.append(Item(sources.of_file(origin), base))
    return found


async def deliver(
    boards: Targeted, target: str, items: Sequence[Item], progress: Progress | None
) -> Results:
    """Bring files to all boards of a target, in as many jobs as their memory wants."""
    by_digest = {item.source.digest: item.source for item in items}
    tally = Tally(sum(item.source.size for item in items), progress)
    left_out: tuple[str, ...] | None = None
    for batch in batches(_acts(items)):
        for each in batch:
            if each[0] == "put":
                await send(boards.exchange(), by_digest[each[2]])
        results = await act(boards, batch, target=target, read=_written, moved=tally.moved)
        left_out = results.left_out if left_out is None else left_out
        tally.add(results)
        if not (well := [name for name, result in results.items() if result.ok]):
            break
        target = fold(well)
    return Results(tally.results(), left_out or ())


def _acts(items: Sequence[Item]) -> list[Act]:
    acts: list[Act] = []
    made = {"/", ""}
    for item in items:
        folder = item.path.rpartition("/")[0]
        if folder not in made:
            made.add(folder)
            acts.append(["makedirs", folder])
        acts.append(["put", item.path, item.source.digest])
    return acts


def _written(answers: list[Any]) -> int:
    return sum(answer for answer in answers if answer is not None)


class Tally:
    """What came of several jobs in a row: one result for each board, and the sum of its bytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._last: dict[str, FileResult] = {}
        self._bytes: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def moved(self, board: str, moved: int) -> None:
        """Take a board's word on how far its present job is."""
        if self._progress is not None:
            self._progress(board, self._bytes.get(board, 0) + moved, self._total)

    def add(self, results: Results) -> None:
        """Take what came of a job; its value is how many bytes it moved."""
        for board, result in results_of(results).items():
            self._seconds[board] = self._seconds.get(board, 0.0) + result.elapsed
            self._last[board] = result
            if result.ok:
                self._bytes[board] = self._bytes.get(board, 0) + result.value

    def results(self) -> dict[str, Result]:
        """Return each board's one result."""
        return {
            board: result.with_value(
                self._bytes.get(board, 0), self._seconds[board] - result.elapsed
            )
            for board, result in self._last.items()
        }
