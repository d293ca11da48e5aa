"""Uploads that wait on the server until their boards are there, and the options of all such work.

A verb that waits sends one job for each board: nobody can look at what is on the board before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions, WaitKeywords
from cloudmanager.results.results import Results

from .file_jobs import run_file_jobs
from .files import FileJobGroup
from .jobs import JobGroup
from .verb import HasTarget

#: How long work may wait for its boards; the server has the same limit.
MAX_WAIT_SECONDS: Final = 30 * 86400.0


def wait_options(given: WaitKeywords) -> RunOptions:
    """Return the options of work that waits for its boards, or of work that does not.

    Args:
        given: as the caller gave them.

    Raises:
        ValueError: it expires before it waits, or too late, or it does not wait.
    """
    expires = given.get("expires")
    options = RunOptions(when_online=given.get("when_online", False), expires=expires)
    if options == DEFAULT_OPTIONS:
        return DEFAULT_OPTIONS
    if why := options.contradiction():
        raise ValueError(f"{why}.")
    if expires is not None and not 0 < expires <= MAX_WAIT_SECONDS:
        raise ValueError("expires is a number of seconds above 0, at most 30 days.")
    return options


class WaitingUploadGroup(FileJobGroup):
    """An upload that waits, one job for each board.

    Args:
        request: what is written: docs/protocol.md, ``upload``.
        options: how long it waits.
    """

    def __init__(self, request: Mapping[str, Any], options: RunOptions) -> None:
        super().__init__((), options=options)
        self._request = request

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**JobGroup.submit_head(self), "upload": self._request}


async def submit_upload(
    boards: HasTarget, ops: Sequence[Sequence[Any]], options: RunOptions
) -> Results:
    """Let an upload wait whose contents the server has; each board has a result ``waiting``.

    Args:
        boards: the boards.
        ops: ``makedirs`` and ``put``.
        options: how long it waits.
    """
    return await run_file_jobs(boards, WaitingUploadGroup({"acts": list(ops)}, options))
