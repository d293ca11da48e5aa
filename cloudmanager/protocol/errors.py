"""All errors that Cloudmanager raises, and their messages; no I/O here.

```
CloudmanagerError
  ServerUnreachable        no server answers; names the address and where it was configured
  NotAllowed               the token lacks a right; names it
  VersionMismatch          the server speaks another version of the protocol
  TargetError              a target is malformed or selects no board; also a ValueError
  NoSuchBoard              no board has this name; suggests the most similar one
  BoardOffline             the board is not connected; states when it was last seen
  LinkLost                 the link broke while a job ran; the board may still be running it
  CellSyntaxError          the cell is not valid Python; it was not sent to any board
  BoardError               raised on the board; shows the board's own traceback
  FleetError               several boards failed; shows four errors, counts the rest
  ServerError              the server refused a request; gives the reason
  ServiceError             the local server cannot be started or stopped; gives the reason
  CableError               a board on a cable: names the port, what happened and what to try
  WireError                bytes that break the protocol
    LocalWireError         this side was about to send them: a bug of this program
    PeerWireError          the other side sent them
  PackageError             a package cannot be resolved, fetched or installed
```

A message states what is wrong (`detail`) and ends with what to do next (`hint`); only the
traceback of an exception on a board has no hint. Text from boards is made safe to show. All errors
can be pickled. The verbs for files raise the built-in `OSError` family instead.
"""

import re
import textwrap
import time
from collections.abc import Mapping, Sequence

from .text import fold_names, line_with_caret, sanitize_text

_MAX_SHOWN = 4  # how many errors, or names, one message shows; of the rest it gives the number


def as_sentence(text: str) -> str:
    """Return a text with a full stop at its end, unless it ends in a question mark."""
    return text if text.endswith("?") else text.rstrip(".") + "."


class CloudmanagerError(Exception):
    """The base class of all errors that Cloudmanager raises.

    Attributes:
        subject: the board that the error concerns; empty if it concerns none.
        detail: what is wrong, safe to show.
        hint: what to do next.
    """

    subject = ""
    hint = "`mbm server-status` shows the state of the server."

    def __init__(self, *args: object, detail: str = "") -> None:
        super().__init__(*args)  # all arguments of __init__: pickle makes a copy with them
        self.detail = sanitize_text(detail or as_sentence(": ".join(str(arg) for arg in args)))

    def message_without_subject(self) -> str:
        """Return what is wrong and what to do next, without the board's name."""
        gap = "\n" if "\n" in self.detail else " "
        return f"{self.detail}{gap}{sanitize_text(self.hint)}" if self.hint else self.detail

    def __str__(self) -> str:
        message = self.message_without_subject()
        gap = "\n" if "\n" in message else " "
        return f"{sanitize_text(self.subject)}:{gap}{message}" if self.subject else message

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback: the message alone."""
        return f"{type(self).__name__}: {self}".split("\n")


class ServerUnreachable(CloudmanagerError):
    """No usable server at `url`, which was configured in `source`, such as "CM_URL"."""

    hint = "Start a server with `mbm server-start`, or name another one in CM_URL."

    def __init__(self, url: str, source: str, reason: str = "no answer", hint: str = "") -> None:
        detail = f"No server at {url} (from {source}): {reason}."
        super().__init__(url, source, reason, hint, detail=detail)
        self.url, self.source = url, source
        self.hint = hint or self.hint


class NotAllowed(CloudmanagerError):
    """The caller's token lacks a right.

    Attributes:
        right: the missing right, such as "operator on lab-1".
        why: the reason as a sentence, which replaces `right` in the message.
    """

    hint = "Ask an administrator for a token that may do this, and set CM_TOKEN to that."

    def __init__(self, right: str, why: str = "") -> None:
        reason = why or f"this needs the right {right!r}"
        super().__init__(right, why, detail=f"Not allowed: {reason}.")
        self.right, self.why = right, why


class VersionMismatch(CloudmanagerError):
    """The server uses version `theirs` of the protocol, this Cloudmanager `ours`."""

    def __init__(self, ours: int, theirs: int) -> None:
        detail = f"The server speaks protocol {theirs}, this Cloudmanager {ours}."
        super().__init__(ours, theirs, detail=detail)
        self.ours, self.theirs = ours, theirs
        older = "here" if ours < theirs else "on the server's machine"
        self.hint = (
            f"Update the older one, {older}: `pip install --upgrade cloudmanager`, or `pip install "
            ".` in an updated clone."
        )


class TargetError(CloudmanagerError, ValueError):
    """A target is malformed or selects no board, or a name or label is not valid.

    Attributes:
        text: the whole target.
        position: index in `text` of the character that is wrong.
    """

    def __init__(self, reason: str, text: str, position: int, hint: str) -> None:
        detail = f"{reason}\n{line_with_caret(text, position)}"
        super().__init__(reason, text, position, hint, detail=detail)
        self.text, self.position, self.hint = text, position, hint


class NoSuchBoard(CloudmanagerError):
    """No board with this name is enrolled.

    Attributes:
        board: the unknown name; the first of several.
        suggestion: the most similar known name, or None.
        others: the unknown names after the first.
    """

    def __init__(
        self, board: str, suggestion: str | None = None, others: Sequence[str] = ()
    ) -> None:
        shown = ", ".join((board, *others)[:_MAX_SHOWN])
        rest = 1 + len(others) - _MAX_SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        super().__init__(board, suggestion, others, detail=f"No board is called {shown}{more}.")
        self.board, self.suggestion, self.others = board, suggestion, tuple(others)
        nearest = f"Did you mean {suggestion}? " if suggestion else ""
        self.hint = f"{nearest}`mbm board-list` shows every board."


class BoardOffline(CloudmanagerError):
    """`board` is enrolled, but not connected.

    Attributes:
        board: its name.
        last_seen: seconds since 1970, or None if that is not known.
        why: the server's text, which replaces `last_seen` in the message, such as "it was last
            seen 3 minutes ago".
    """

    hint = "Check its power and its network, or wait for it with `--wait`."

    def __init__(self, board: str, last_seen: float | None = None, why: str = "") -> None:
        detail = f"The board is offline: {why or _last_seen_text(last_seen)}."
        super().__init__(board, last_seen, why, detail=detail)
        self.board = self.subject = board
        self.last_seen, self.why = last_seen, why


class LinkLost(CloudmanagerError):
    """The link to `board` broke and was not restored in time: `job` may still be running.

    Attributes:
        board: its name.
        job: the job's number, or None.
        why: what is known, such as "the board restarted while it ran".
    """

    hint = (
        "`mbm board-list` shows whether the board is back; a cell is never repeated automatically."
    )

    def __init__(self, board: str, job: int | str | None = None, why: str = "") -> None:
        known = why or "the link broke, and the board may still be running the job"
        super().__init__(board, job, why, detail=f"Lost: {known}.")
        self.board, self.job, self.why = board, job, why
        self.subject = board if job is None else f"{board}, job {job}"


#: Lines that only IPython understands, and what to do with them.
_NOTEBOOK_LINES = (
    (
        re.compile(r"\s*%%"),
        "A cell magic must be the first line of its cell: put it into a cell of its own.",
    ),
    (
        re.compile(r"\s*(?:[\w\s,.*]+=\s*)?!"),
        "`!` runs a command of this computer, not of a board: put the line into a cell of its own. "
        "`%board_ls`, `%board_cp` and `%board_rm` work with the files of boards.",
    ),
    (
        re.compile(r"\s*(?:[\w\s,.*]+=\s*)?%"),
        "Magics run in the notebook, not on a board: put the line into a cell of its own.",
    ),
    (
        re.compile(r"\s*(\?+\s*[\w.]+|[\w.]+\s*\?+)\s*\Z"),
        "A question mark shows help for a name if the cell contains nothing else.",
    ),
)


def notebook_hint(line: str) -> str:
    """Return what to do with a line that only IPython understands; "" for other lines."""
    return next((hint for pattern, hint in _NOTEBOOK_LINES if pattern.match(line)), "")


class CellSyntaxError(CloudmanagerError):
    """The cell is not valid Python; it was not sent to any board.

    Attributes:
        msg: what is wrong.
        lineno: the number of the line in the cell, from 1.
        offset: the number of the character in that line, from 1.
        text: that line.
    """

    hint = "Nothing was sent to a board. Correct the line and run the cell again."

    def __init__(self, msg: str, lineno: int, offset: int, text: str) -> None:
        indent = len(text) - len(text.lstrip())
        line = line_with_caret(text.strip(), offset - 1 - indent)
        super().__init__(msg, lineno, offset, text, detail=f"{msg} (line {lineno})\n{line}")
        self.hint = notebook_hint(text) or self.hint
        self.msg, self.lineno, self.offset, self.text = msg, lineno, offset, text


class BoardError(CloudmanagerError):
    """A cell, or another job, failed on `board`.

    Attributes:
        board: its name.
        ename: the name of the exception's class.
        evalue: the exception's message.
        traceback: the board's own traceback, as the board sent it: not yet safe to show.
        status: how the job ended: "error", "interrupted" or "timeout".
    """

    _HINTS = {
        "interrupted": "The board keeps its variables: continue, or run the cell again.",
        "timeout": "Give the cell more time with `timeout=` or `--timeout`.",
    }
    _FULL_HEAP = "The board's heap is full: `--fresh` frees the variables of earlier cells."
    #: Of errors of files for which many firmwares have no names (py/moderrno.c).
    _ERRNO_HINTS = {
        "28": "28 is ENOSPC: the board's flash is full.",
        "30": "30 is EROFS: the file system is read-only, as a mounted folder is.",
        "39": "39 is ENOTEMPTY: the folder is not empty.",
    }

    def __init__(
        self, board: str, ename: str, evalue: str, traceback: str = "", status: str = "error"
    ) -> None:
        detail = (traceback or f"{ename}: {evalue}").rstrip(" \n:")
        super().__init__(board, ename, evalue, traceback, status, detail=detail)
        self.board = self.subject = board
        self.ename, self.evalue, self.status = ename, evalue, status
        self.traceback = traceback
        hints = {"MemoryError": self._FULL_HEAP, "OSError": self._ERRNO_HINTS.get(evalue, "")}
        self.hint = hints.get(ename) or self._HINTS.get(status, "")


class FleetError(CloudmanagerError):
    """Several boards failed; `errors` holds each board's own error, by the board's name."""

    hint = "Each board's own error is in `.errors`."

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        head = f"{_count_boards(len(errors))} failed."
        super().__init__(errors, detail="\n".join([head, *_group_by_message(errors)]))
        self.errors = dict(errors)


class ServerError(CloudmanagerError):
    """The server refused a request; `reason` is the server's explanation."""

    hint = ""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, detail=f"The server refused: {as_sentence(reason)}")
        self.reason = reason


class ServiceError(CloudmanagerError):
    """The local server cannot be started, stopped, saved or restored.

    Attributes:
        reason: why.
        log: the path of its log, or "".
    """

    hint = ""

    def __init__(self, reason: str, log: str = "", hint: str = "") -> None:
        super().__init__(reason, log, hint, detail=as_sentence(reason))
        self.reason, self.log = reason, log
        self.hint = hint or (f"The server's own log is {log}." if log else self.hint)


class CableError(CloudmanagerError):
    """Something failed with a board on a cable.

    Attributes:
        port: the serial port; empty if the error concerns none.
        problem: what happened.
        step: the step that failed, if the board was being flashed; else empty.
    """

    def __init__(self, port: str, problem: str, hint: str = "", step: str = "") -> None:
        super().__init__(port, problem, hint, step, detail=as_sentence(problem))
        self.port = self.subject = port
        self.problem, self.hint, self.step = problem, hint, step


class WireError(CloudmanagerError):
    """Bytes that break the protocol."""


class LocalWireError(WireError):
    """This side was about to send bytes that break the protocol."""

    hint = "This is a bug in Cloudmanager: please report it."


class PeerWireError(WireError):
    """The other side sent bytes that break the protocol."""

    hint = "The link was closed. If this happens again, update the older side."


class PackageError(CloudmanagerError):
    """A package cannot be resolved, fetched or installed; the message says what to do."""

    hint = ""


def _last_seen_text(last_seen: float | None) -> str:
    """Return when, in local time; a time that `localtime` cannot convert is shown as a number."""
    if last_seen is None:
        return "it was never seen"
    try:
        return time.strftime("it was last seen %Y-%m-%d %H:%M:%S", time.localtime(last_seen))
    except (ValueError, OverflowError, OSError):
        return f"it was last seen at {last_seen!r}"


def _message_without_board(error: Exception, board: str) -> str:
    """Return an error's message without the board's name; an OSError has it before the path."""
    if isinstance(error, CloudmanagerError):
        return error.message_without_subject()
    name = type(error).__name__
    return sanitize_text(f"{name}: {error}".replace(f"'{board}:", "':"))


def _group_by_message(errors: Mapping[str, Exception]) -> list[str]:
    """Return one block of text for each different error, with its boards; count the rest."""
    boards_by_message: dict[str, list[str]] = {}
    for board, error in errors.items():
        boards_by_message.setdefault(_message_without_board(error, board), []).append(board)
    rest = len(errors)
    blocks = []
    for message, boards in list(boards_by_message.items())[:_MAX_SHOWN]:
        blocks.append(f"{fold_names(boards)}:\n{textwrap.indent(message, '  ')}")
        rest -= len(boards)
    return [*blocks, f"... and {_count_boards(rest, 'more ')}"] if rest else blocks


def _count_boards(count: int, adjective: str = "") -> str:
    return f"{count} {adjective}board" if count == 1 else f"{count} {adjective}boards"
