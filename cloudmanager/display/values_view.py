"""Values that boards emit, as text: a table of the newest ones, or a line for each sample. No I/O.

Boards are not trusted: all text from them passes ``one_line``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from cloudmanager.client.samples import Sample
from cloudmanager.protocol.spans import format_duration
from cloudmanager.protocol.text import one_line

from .text_tables import TextTable, format_table

_MAX_CHARS: Final = 40  # of a value or its name
_MAX_NAMES: Final = 12  # columns of values


def value_text(value: Any) -> str:
    """Return an emitted value as text; "—" for a number that is not finite."""
    if value is None:
        return "—"
    text = f"{value:.6g}" if isinstance(value, float) else one_line(str(value))
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"


def sample_row(sample: Sample) -> str:
    """Return a sample as a line: time, board, values."""
    then = time.strftime("%H:%M:%S", time.localtime(sample.at))
    pairs = (
        f"{one_line(name)[:_MAX_CHARS]}={value_text(value)}"
        for name, value in sample.values.items()
    )
    return f"{then} {sample.board}: {' '.join(pairs)}"


def select_values(sample: Sample, names: Sequence[str]) -> Sample | None:
    """Return a sample with only these values, all if there are no names; None without any."""
    if not names:
        return sample
    values = {name: sample.values[name] for name in names if name in sample.values}
    return sample._replace(values=values) if values else None


class NewestValues:
    """The newest values of each board."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {}
        self._times: dict[str, float] = {}
        self._names: dict[str, None] = {}  # of values, in the order of their first sample
        self.missed = 0  # samples that were left out

    def add(self, samples: Iterable[Sample]) -> None:
        """Add samples, the newest last."""
        for sample in samples:
            self._values.setdefault(sample.board, {}).update(sample.values)
            self._times[sample.board] = sample.at
            self._names.update(dict.fromkeys(sample.values))
            self.missed += sample.missed

    def forget(self, board: str) -> None:
        """Forget a board, which was removed or renamed."""
        self._values.pop(board, None)
        self._times.pop(board, None)

    def table(self, now: float, names: Sequence[str] = (), note: str = "") -> TextTable | str:
        """Return the table: a row for each board; a sentence if there are no values yet.

        Args:
            now: seconds since 1970, by the server's clock.
            names: the values that have a column; by default all, twelve at most.
            note: shown below the table.
        """
        shown = list(names or self._names)[:_MAX_NAMES]
        if not self._values:
            return note or "No values yet: boards send them with `cm.emit(temp=21.5)`."
        rows = [
            [
                board,
                *(value_text(values[name]) if name in values else "" for name in shown),
                f"{format_duration(max(0, round(now - self._times[board])))} ago",
            ]
            for board, values in sorted(self._values.items())
        ]
        notes = [note] if note else []
        if len(shown) < len(names or self._names):
            notes.append(f"{len(names or self._names) - len(shown)} more values: name some of them")
        if self.missed:
            notes.append(f"{self.missed:,} samples were left out: they came too fast")
        headings = ["board", *(one_line(name)[:_MAX_CHARS] for name in shown), "emitted"]
        return format_table(headings, rows, " · ".join(notes))
