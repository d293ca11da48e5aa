"""The outcome of a cell: a ``Result`` for each board, ``Results`` for all; no I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol.errors import BoardError, BoardOffline, FleetError, LinkLost
from cloudmanager.protocol.text import sanitize_text

from .board_values import Repr, read_value
from .html_table import outcomes_html, result_html, results_html

if TYPE_CHECKING:
    import pandas

#: The longest integer, in bits, that is converted to JSON: Python refuses to write 4,300 digits.
MAX_JSON_BITS: Final = 8192
#: The status of a job that the server keeps until its board is there.
WAITING: Final = "waiting"
_SUMMARY_CHARS: Final = 80
_HEADER: Final = re.compile(r"\ATraceback[^\n]*:\n")  # of an error that has no frames
_UP_TO_LAST_FRAME: Final = re.compile(r'(?s).*(?:^|\n)  File "[^\n]*(?:\n    [^\n]*)?\n')


class Result:
    """How one job ended.

    Attributes:
        board: the board's name.
        job: the job's number.
        status: ok, error, interrupted, timeout, offline or lost; or waiting: the server keeps the
            job until its board is there, and ``Fleet.job`` returns how it ended.
        stdout: what the job printed, with LF for CRLF; only the end of it if ``truncated``.
        text: the value's ``repr`` as the board wrote it; empty for None.
        traceback: the board's own traceback, with the line numbers of the cell; empty if ok.
        why: the server's explanation, if the server ended the job; else empty.
        elapsed: seconds from sending the cell to receiving its result, measured here.
        truncated: whether output was left out.
        value_truncated: whether the value was cut off.
        late: with ``at``, by how many seconds the cell started after its time, by the board's
            clock; None if it did not start, or without ``at``.
        clock_error: by how many seconds that clock may be wrong; None as ``late``.
    """

    def __init__(self, board: str, job: int, status: str, **fields: Any) -> None:
        self.board = board
        self.job = job
        self.status = status
        self.stdout: str = fields.get("stdout", "")
        self.text: str = fields.get("text", "")
        self.traceback: str = fields.get("traceback", "")
        self.why: str = fields.get("why", "")
        self.elapsed: float = fields.get("elapsed", 0.0)
        self.truncated: bool = fields.get("truncated", False)
        self.value_truncated: bool = fields.get("value_truncated", False)
        self.late: float | None = fields.get("late")
        self.clock_error: float | None = fields.get("clock_error")

    @property
    def ok(self) -> bool:
        """Whether the job ended without an error, or waits for its board."""
        return self.status in ("ok", WAITING)

    @property
    def value(self) -> Any:
        """The value of the cell's last expression, as a Python object; None if there is none.

        What has no literal, such as ``<Pin 4>``, and a value that was cut off are returned as
        `Repr`, which says why.

        Raises:
            CloudmanagerError: the job failed; the same exception as ``error``.
        """
        if self.error is not None:
            raise self.error
        if not self.text:  # also that of a job that waits
            return None
        if self.value_truncated:
            return Repr(self.text, "the end of it is missing")
        return read_value(self.text)

    @property
    def error(self) -> Exception | None:
        """The exception that ``raise_for_error`` raises for this board; None if ok."""
        if self.ok:
            return None
        if self.status == "offline":
            return BoardOffline(self.board, why=self.why)
        if self.status == "lost":
            return LinkLost(self.board, self.job, why=self.why)
        ename, evalue = _last_error(self.traceback) or (self.status, self.why)
        return BoardError(self.board, ename, evalue, self.traceback or self.why, self.status)

    def to_json(self) -> dict[str, Any]:
        """Return what ``mbm --json`` prints for this result."""
        value = self.value if self.ok else None
        try:
            json_value = value if _is_json(value) else self.text
        except RecursionError:
            json_value = self.text
        return {
            "status": self.status,
            "stdout": self.stdout,
            "value": json_value,
            "error": None if self.error is None else (self.traceback or self.why or self.status),
            "elapsed": round(self.elapsed, 6),
            **({"job": self.job, "why": self.why} if self.status == WAITING else {}),
            **({} if self.late is None else {"late": self.late, "clock_error": self.clock_error}),
        }

    def __repr__(self) -> str:
        """Return the outcome in one line."""
        if self.ok:
            outcome = self.text or self.why
        else:
            last_error = _last_error(self.traceback)
            outcome = last_error[0] if last_error else self.why
        space = " " if outcome else ""
        return _one_line(f"<Result {self.board}: {self.status}{space}{outcome}") + ">"

    def _repr_html_(self) -> str:
        """Return the outcome as an HTML table; text from boards is escaped."""
        return result_html(self)


class Results(Mapping[str, Result]):
    """The outcome of a cell: board -> Result, in the order of the target.

    Attributes:
        left_out: boards that the target matched but that were not connected.
    """

    def __init__(self, results: Mapping[str, Result], left_out: tuple[str, ...] = ()) -> None:
        self._results = dict(results)
        self.left_out = left_out

    def __getitem__(self, board: str) -> Result:
        return self._results[board]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    @property
    def ok(self) -> bool:
        """Whether the job ended without an error on every board, or waits for it."""
        return all(result.ok for result in self._results.values())

    @property
    def failed(self) -> Results:
        """The results of the boards that failed."""
        return Results({name: result for name, result in self.items() if not result.ok})

    @property
    def value(self) -> Any:
        """The value, if there is exactly one board.

        Raises:
            ValueError: there are several boards, or none; ``to_dict()`` returns all values.
            CloudmanagerError: the job failed.
        """
        if len(self) != 1:
            raise ValueError(f"there are {len(self)} boards: use [name].value or to_dict()")
        return next(iter(self.values())).value

    def to_dict(self) -> dict[str, Any]:
        """Return {board: value}.

        Raises:
            BoardError, FleetError: as ``raise_for_error``.
        """
        self.raise_for_error()
        return {name: result.value for name, result in self.items()}

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table: one row per board, with status, value, stdout and elapsed."""
        import pandas

        rows = [
            {
                "board": result.board,
                "status": result.status,
                "value": result.value if result.ok else None,
                "stdout": result.stdout,
                "elapsed": result.elapsed,
            }
            for result in self.values()
        ]
        columns = ["board", "status", "value", "stdout", "elapsed"]
        return pandas.DataFrame(rows, columns=columns).set_index("board")

    def raise_for_error(self) -> Results:
        """Raise if any board failed; else return these results.

        Raises:
            BoardError, BoardOffline, LinkLost: exactly one board failed.
            FleetError: several boards failed.
        """
        errors = {name: result.error for name, result in self.items() if result.error is not None}
        if len(errors) == 1:
            raise next(iter(errors.values()))
        if errors:
            raise FleetError(errors)
        return self

    def _repr_html_(self) -> str | None:
        """Return the outcomes as an HTML table, None if there are none; all text is escaped."""
        if not self:
            return None
        return results_html(self, self.left_out) or outcomes_html(self, self.left_out)

    def __repr__(self) -> str:
        """Return one line per board."""
        lines = [f"{name}: {_summarize_result(result)}" for name, result in self.items()]
        return "\n".join(lines) if lines else "<no results>"


def waiting_text(until: float) -> str:
    """Return a few words about a job that waits for its board.

    Args:
        until: when it ends if it has not run, in seconds since 1970.
    """
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
    return f"waits for the board until {when}"


def _summarize_result(result: Result) -> str:
    """Return a result's value, output or error in one line."""
    if result.ok:
        return _one_line(result.text or result.stdout.strip() or result.why or "ok")
    last = _last_error(result.traceback)
    reason = ": ".join(part for part in last if part) if last else result.why
    return _one_line(f"{result.status} ({reason})" if reason else result.status)


def _one_line(text: str) -> str:
    """Return the beginning of ``text`` as one line that is safe to show."""
    line = sanitize_text(text[:_SUMMARY_CHARS]).replace("\n", " ")
    return line if len(text) <= _SUMMARY_CHARS else line + "…"


def _last_error(traceback: str) -> tuple[str, str] | None:
    """Return (name, message) of the exception at the end of a traceback; None if it is empty."""
    if not traceback.strip():
        return None
    exception = _HEADER.sub("", _UP_TO_LAST_FRAME.sub("", traceback, count=1), count=1)
    name, _, message = exception.strip().partition(": ")
    return name.rstrip(":"), message


def _is_json(value: Any) -> bool:
    """Whether ``value`` is unchanged after encoding to JSON and decoding."""
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    if type(value) is int:
        return value.bit_length() <= MAX_JSON_BITS
    return value is None or type(value) in (str, bool)


def error_text(error: Exception | None) -> str:
    """Return the message of a board's error, without its traceback."""
    return str(getattr(error, "evalue", "") or error)
