"""Jobs that read and change ``/settings.json`` on boards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.results.results import Results

from .file_jobs import run_file_jobs
from .files import FileJobGroup
from .jobs import JobGroup
from .verb import HasTarget


class SettingsJobGroup(FileJobGroup):
    """The same job about settings on several boards.

    Args:
        change: the keys that change; None to read only.
        options: how long it waits for its boards.
    """

    def __init__(self, change: Mapping[str, Any] | None, options: RunOptions) -> None:
        super().__init__((), make_value=_read_settings, options=options)
        self._request = {} if change is None else {"change": _to_text(change)}

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**JobGroup.submit_head(self), "settings": self._request}


def _to_text(change: Mapping[str, Any]) -> str:
    """Return settings as JSON.

    Raises:
        ValueError: JSON has no such value.
    """
    try:
        return json.dumps(dict(change), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"settings must be values of JSON: {error}") from error


def _read_settings(op_results: list[Any]) -> dict[str, Any] | str:
    """Return the settings; the text of a file that is no JSON object."""
    (text,) = op_results
    try:
        settings = json.loads(text, parse_constant=str)
    except ValueError:
        return str(text)
    return settings if isinstance(settings, dict) else str(text)


async def run_settings_jobs(
    boards: HasTarget, change: Mapping[str, Any] | None, options: RunOptions = DEFAULT_OPTIONS
) -> Results:
    """Read or change the settings of all boards; a result's value is a dict of them."""
    return await run_file_jobs(boards, SettingsJobGroup(change, options))
