"""The verbs for boards' files, written once, as those in verbs.py; ``:`` marks a path on boards."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from . import files, paths, sources
from .acts import Act
from .exchange import Exchange
from .files import FileGroup, FileResult, Progress, Sink
from .results import Result, Results
from .sources import Source
from .text import fold
from .verbs import Targeted, ending, options

#: A board holds a job's acts in memory, as text and taken apart: so many bytes of text, no more.
ACTS_BYTES: Final = 1500
AHEAD: Final = 8  # pieces of a content that travel to the server before it has confirmed the first

PathLike = str | os.PathLike[str]


class FileVerbs:
    """What can be done with the files of a target's boards.

    Each verb returns ``Results``: a board's failure is in its Result, of the ``OSError``
    family where it is the board's file system that fails.
    """

    async def ls(self: Targeted, path: str = ":/", *, recursive: bool = False) -> Results:
        """List a folder; each board's value is a list of ``Entry`` (path, is_dir, size)."""
        return await act(self, [["ls", paths.on_board(path), recursive]], read=_first(files.entries))

    async def stat(self: Targeted, path: str) -> Results:
        """Look at a path; each board's value is a ``Stat`` (is_dir, size, mtime)."""
        return await act(self, [["stat", paths.on_board(path)]], read=_first(files.stat))

    async def df(self: Targeted, path: str = ":/") -> Results:
        """Return the room on a file system; each board's value is a ``Space``, in bytes."""
        return await act(self, [["statvfs", paths.on_board(path)]], read=_first(files.space))

    async def mkdir(self: Targeted, path: str, *, parents: bool = False) -> Results:
        """Make a folder; with ``parents``, those that it is in, too, and it may be there."""
        name = "makedirs" if parents else "mkdir"
        return await act(self, [[name, paths.on_board(path)]], read=_nothing)

    async def rmdir(self: Targeted, path: str) -> Results:
        """Remove a folder that is empty."""
        place = paths.on_board(path)  # littlefs would take a file, too
        return await act(self, [["ls", place, False], ["rmdir", place]], read=_nothing)

    async def rm(self: Targeted, path: str, *, recursive: bool = False) -> Results:
        """Remove a file; with ``recursive``, a folder and all that is in it."""
        return await act(self, [["rm", paths.on_board(path), recursive]], read=_nothing)

    async def mv(self: Targeted, path: str, to: str) -> Results:
        """Rename a file or folder on the boards."""
        acts = [["rename", paths.on_board(path), paths.on_board(to)]]
        return await act(self, acts, read=_nothing)

    async def put(
        self: Targeted,
        source: PathLike | bytes | Sequence[PathLike],
        dest: str = ":/",
        *,
        progress: Progress | None = None,
    ) -> Results:
        """Copy files, folders or bytes to the boards; what is there and equal stays as it is.

        A path that ends in ``/``, or a folder that is there, gets it below its own name. The
        folders that are needed are made. An upload that broke off goes on where it stopped.

        Args:
            source: a file, a folder, several of them, or the bytes of one file.
            dest: where it goes, such as ``:lib/``.
            progress: called with a board and the bytes that were moved for it, from the link's
                thread.

        Returns:
            For each board how many bytes were written.

        Raises:
            OSError: a source cannot be read.
        """
        results = await _put(self, source, dest, progress)
        return results


async def act(
    boards: Targeted,
    acts: Sequence[Act],
    *,
    read: Callable[[list[Any]], Any] = list,
    sink: Sink | None = None,
    progress: Progress | None = None,
    target: str = "",
) -> Results:
    """Have the same acts done on all boards of a target, in one job of each."""
    group = FileGroup(acts, read=read, sink=sink, progress=progress)
    given = {**options(None, False, 0), "acts": acts}
    boards.exchange().submit(group, target or boards.target, given)
    return await ending(group)


async def send(exchange: Exchange, source: Source) -> None:
    """Have the server hold a content; what it has already does not travel."""
    upload = await exchange.request("offer", {"sha256": source.digest, "size": source.size})
    if not upload:
        return
    ahead = deque()
    for piece in source.pieces():
        ahead.append(exchange.send_content(upload, piece))
        if len(ahead) >= AHEAD:
            await ahead.popleft()
    for reply in ahead:
        await reply


async def _put(boards, source, dest, progress):
    path = paths.on_board(dest)
    into = dest.endswith(("/", ":"))
    if isinstance(source, bytes):
        item = sources.of_bytes(source)
    else:
        item = sources.of_file(Path(source))
        if into:
            path = paths.joined(path, Path(source).name)
    await send(boards.exchange(), item)
    acts = []
    if parent := path.rpartition("/")[0]:
        acts.append(["makedirs", parent])
    acts.append(["put", path, item.digest])
    return await act(boards, acts, read=_last, progress=progress)


def _first(read: Callable[[Any], Any]) -> Callable[[list[Any]], Any]:
    return lambda answers: read(answers[0])


def _last(answers):
    return answers[-1]


def _nothing(_: list[Any]) -> None:
    return None
