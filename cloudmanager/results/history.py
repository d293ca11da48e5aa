"""What ran on boards: ``History``, its table, and a notebook that repeats it; no I/O.

Boards and callers are not trusted: all that is shown passes ``sanitize_text``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.text import fold_names, sanitize_text

from .rows import MAX_HTML_ROWS, caller_text, format_time, html_rows, shorten

HISTORY_HEADINGS: Final = ("job", "board", "when", "took", "outcome", "caller", "from", "what")
_MAX_WHAT_CHARS: Final = 120  # of the last column
HARD_RESET: Final = "hard reset"  # the name of such a job
#: How a cell ended that a notebook does not run again: it may never end.
_NOT_REPEATED: Final = ("timeout", "interrupted")
#: Jobs that change nothing on a board, and are not in a notebook.
_READING: Final = ("packages", "drift")


class HistoryEntry(NamedTuple):
    """One job on one board.

    Attributes:
        job: its number.
        board: the board's name.
        caller: the name of its caller's token.
        at: when it was submitted, in seconds since 1970.
        seconds: how long it took from then; None if it has not ended.
        status: how it ended: ok, error, timeout, …; None if it has not.
        error: the last line of the error.
        kind: cell, reset, files, install, uninstall, settings, …; "" if it is not known.
        text: the cell, or what was done with which files or packages; None if it is not kept, or
            is not for this caller.
        sha256: of the text; None if it is not known.
        notebook: the path of the notebook from which it was run; "" if it is not known.
        cell: the id of the cell there.
        number: of the cell's execution there, as ``In [3]`` shows it; None if it is not known.
        inputs: the names of the cell's inputs; their values are not kept.
        name: a file that was run, or what a job of the library does; "" for other cells.
        fresh: whether the board made a soft reset first.
    """

    job: int
    board: str
    caller: str
    at: float
    seconds: float | None
    status: str | None
    error: str = ""
    kind: str = ""
    text: str | None = None
    sha256: str | None = None
    notebook: str = ""
    cell: str = ""
    number: int | None = None
    inputs: tuple[str, ...] = ()
    name: str = ""
    fresh: bool = False

    @property
    def what(self) -> str:
        """What it was, in one line: the first line of a cell, or what was done."""
        if self.name:
            return self.name
        if self.kind == "cell":
            return _first_line(self.text) if self.text is not None else "a cell"
        text = self.text or ""
        return text if self.kind == "files" and text else f"{self.kind} {text}".strip() or "-"

    @property
    def origin(self) -> str:
        """The notebook's file name and the number of the cell's execution; "-" if not known."""
        number = "" if self.number is None else f"[{self.number}]"
        name = PurePosixPath(self.notebook.replace("\\", "/")).name
        return f"{name} {number}".strip() or "-"


class History(list[HistoryEntry]):
    """What ran on boards, the oldest first; a notebook shows it as a table."""

    def __repr__(self) -> str:
        """Return how many jobs of which boards these are, in one line."""
        if not self:
            return "<no jobs>"
        count = f"{len(self):,} job{'' if len(self) == 1 else 's'}"
        return f"<{count} of {fold_names(dict.fromkeys(entry.board for entry in self))}>"

    def _repr_html_(self) -> str:
        return html_rows(HISTORY_HEADINGS, history_rows(self[-MAX_HTML_ROWS:]), len(self))

    def to_notebook(self) -> str:
        """Return a Jupyter notebook (JSON) that runs the cells again, on boards of the same names.

        Cells and resets become code for ``cm_magics``; installs, too. Uploads, whose files are not
        kept, cells whose text is not kept, and those that were interrupted, become text; in one
        cell where they follow one another. A rollout is one of them, at its first step. What
        failed may fail again without stopping the notebook (the tag ``raises-exception``).
        """
        boards = dict.fromkeys(entry.board for entry in self)
        span = f"{format_time(self[0].at)} to {format_time(self[-1].at)}" if self else "no jobs"
        title = f"# What ran on {_markdown(fold_names(boards)) or 'no board'}\n\n{span}, by "
        callers = fold_names(dict.fromkeys(caller_text(entry.caller) for entry in self))
        cells = [
            _markdown_cell("title", title + (_markdown(callers) or "nobody")),
            _code_cell("load", "%load_ext cm_magics"),
        ]
        cells += _fold_notes(_cells(group) for group in _group(self))
        return json.dumps({"cells": cells, "metadata": _METADATA, **_FORMAT}, indent=1) + "\n"


_FORMAT: Final = {"nbformat": 4, "nbformat_minor": 5}
_METADATA: Final = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read_entry(job: Mapping[str, Any], texts: Mapping[str, str]) -> HistoryEntry:
    """Return a job as the server describes it.

    Args:
        job: from the reply of the verb ``history``.
        texts: SHA-256 -> text.
    """
    ended, sha256 = job["ended"], job.get("text")
    return HistoryEntry(
        job=job["job"],
        board=job["board"],
        caller=job["caller"],
        at=job["created"],
        seconds=None if ended is None else max(ended - job["created"], 0.0),
        status=job["status"],
        error=job["error"],
        kind=job["kind"],
        text=texts.get(sha256) if sha256 else None,
        sha256=sha256,
        notebook=job.get("notebook", ""),
        cell=job.get("cell", ""),
        number=job.get("number"),
        inputs=tuple(job.get("inputs", ())),
        name=job.get("name", ""),
        fresh=bool(job.get("fresh", False)),
    )


def history_rows(entries: Iterable[HistoryEntry]) -> list[tuple[str, ...]]:
    """Return a row for each job, with the columns of ``HISTORY_HEADINGS``."""
    rows = []
    for entry in entries:
        row = (
            str(entry.job),
            entry.board,
            format_time(entry.at),
            "-" if entry.seconds is None else f"{entry.seconds:.3f} s",
            entry.status or "open",
            entry.caller,
            entry.origin,
        )
        rows.append((*map(shorten, row), shorten(entry.what, _MAX_WHAT_CHARS)))
    return rows


def _first_line(text: str) -> str:
    """Return the first line that is neither empty nor a comment; the first one if all are."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")


# Notebooks


def _group(entries: Sequence[HistoryEntry]) -> list[list[HistoryEntry]]:
    """Return the jobs in lists: those of one request, or rollout, together."""
    groups: dict[tuple[Any, ...], list[HistoryEntry]] = {}
    for entry in entries:
        key: tuple[Any, ...] = (entry.at, entry.caller, entry.kind, entry.sha256, entry.name)
        if entry.kind == "rollout":  # its boards come one after the other, and none is repeated
            key = entry.kind, _rollout_step(entry)[0]
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _rollout_step(entry: HistoryEntry) -> tuple[str, str]:
    """Return the number of a rollout and what a job of it does; "" if they are not known."""
    number, _, step = (entry.text or "").partition(": ")
    return number, step


def _fold_notes(groups: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the cells of all groups; those that follow one another and are only text as one."""
    cells: list[dict[str, Any]] = []
    can_add = False
    for group in groups:
        is_note = len(group) == 1
        if is_note and can_add:
            cells[-1]["source"] += ["\n\n", *group[0]["source"]]
        else:
            cells += group
        can_add = is_note or (can_add and not group)
    return cells


def _cells(group: Sequence[HistoryEntry]) -> list[dict[str, Any]]:
    """Return the cells of a notebook for one request: a text alone, or a text and code."""
    first = group[0]
    if first.kind in _READING:
        return []
    target = fold_names(dict.fromkeys(entry.board for entry in group))
    head = _head(group, target)
    code = _code(first, target)
    if code is None or any(entry.status in _NOT_REPEATED for entry in group):
        return [_markdown_cell(f"job-{first.job}", f"{head}\n\n{_not_repeated(group)}")]
    may_fail = bool(first.inputs) or any(entry.status != "ok" for entry in group)
    if first.inputs:
        names = ", ".join(f"`{_markdown(name)}`" for name in first.inputs)
        head += f"\n\nIt had the inputs {names}, whose values are not kept: assign them first."
    return [
        _markdown_cell(f"about-{first.job}", head),
        _code_cell(f"job-{first.job}", code, may_fail=may_fail),
    ]


def _code(entry: HistoryEntry, target: str) -> str | None:
    """Return code that repeats a job; None if that is not known, or not possible."""
    if entry.kind == "reset":
        return f"%board_reset {target}"
    if entry.kind == "cell" and entry.name == HARD_RESET and entry.text is None:
        return f"%board_reset --hard {target}"
    if entry.text is None:
        return None
    if entry.kind == "cell":
        inputs = f" -i {','.join(entry.inputs)}" if entry.inputs else ""
        return f"%%board{' --fresh' * entry.fresh}{inputs} {target}\n{entry.text}"
    if entry.kind in ("install", "uninstall") and not entry.text.endswith("(dry run)"):
        return f"%board_{entry.kind} {target} {entry.text}"
    return None


def _head(group: Sequence[HistoryEntry], target: str) -> str:
    """Return what a notebook says about a request: where, when, who, how it ended."""
    first = group[0]
    outcomes: dict[str, list[str]] = {}
    for entry in group:
        text = "has not ended" if entry.status is None else entry.status
        if entry.kind == "rollout" and text != "ok":
            text = " ".join(filter(None, (_rollout_step(entry)[1], text)))
        outcomes.setdefault(f"{text}: {entry.error}" if entry.error else text, []).append(
            entry.board
        )
    said = []
    for outcome, names in outcomes.items():
        boards = fold_names(dict.fromkeys(names))
        said.append(_markdown(outcome if len(outcomes) == 1 else f"{boards}: {outcome}"))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first.at))
    origin = "" if first.origin == "-" else f", from {_markdown(first.origin)}"
    caller = _markdown(caller_text(first.caller))
    return f"**{_markdown(target)}** {when}, {caller}{origin}: {'; '.join(said)}"


def _not_repeated(group: Sequence[HistoryEntry]) -> str:
    """Return what a notebook shows of a request that it does not run again."""
    entry = group[0]
    if entry.kind == "rollout":
        number, _ = _rollout_step(entry)
        steps = ", ".join(filter(None, dict.fromkeys(_rollout_step(each)[1] for each in group)))
        return "Not repeated: " + _markdown(f"rollout {number}: {steps}" if steps else "a rollout")
    if entry.kind == "cell" and entry.text is not None and not entry.name:
        fence = "`" * max(3, _longest_run(entry.text, "`") + 1)
        return f"Not repeated:\n\n{fence}python\n{sanitize_text(entry.text)}\n{fence}"
    return f"Not repeated: {_markdown(entry.what)}"


def _longest_run(text: str, char: str) -> int:
    longest = current = 0
    for each in text:
        current = current + 1 if each == char else 0
        longest = max(longest, current)
    return longest


def _markdown(text: str) -> str:
    """Return a text as one line in which Markdown and HTML have no meaning."""
    line = shorten(text, 500)
    return "".join(f"\\{char}" if char in "\\`*_{}[]()<>#+-.!|&~$" else char for char in line)


def _markdown_cell(ident: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": ident, "metadata": {}, "source": _lines(text)}


def _code_cell(ident: str, code: str, *, may_fail: bool = False) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": ident,
        "metadata": {"tags": ["raises-exception"]} if may_fail else {},
        "outputs": [],
        "source": _lines(code),
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
