"""What ran where: writes what jobs run, and where they come from, after they were sent. No SQL.

Who, when and how it ended is in each job's row, which is committed before the job is sent. The
rest follows a moment later, for all cells together, so that no cell waits for it.
"""

from __future__ import annotations

import functools
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cm_server.limits import MIB, Limits
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation, StoreQueue
from cm_server.store.text_rows import JobTextRow

from .model import TimerHandle

WRITE_SECONDS: Final = 0.1  # until what ran is in the store
#: Of one transaction: with SQLite, 0.15 ms in the event loop. The others follow after a pause.
_ROWS_IN_LOOP: Final = 20
_ROWS_IN_THREAD: Final = 200  # with PostgreSQL
_PAUSE_SECONDS: Final = 0.002  # in which cells are served: 10,000 rows a second
#: Of a cell: of a longer one, not even the SHA-256 is stored, which takes milliseconds to make.
_MAX_CODE_BYTES: Final = MIB
_MAX_INPUTS: Final = 64  # names of inputs
_MAX_NAME_CHARS: Final = 300  # of a notebook, a cell's id, a name
_REMEMBERED_TEXTS: Final = 1000  # that do not count again for their token


@dataclass(slots=True)
class JobOrigin:
    """What the jobs of one cell run, and where it comes from.

    Attributes:
        kind: as in ``Cell``.
        head: the JSON head of the SUBMIT, not checked but for its size.
        code: the rest of the SUBMIT, of a cell.
        detail: of another job, what it does with which files or packages.
        found: its text and its description, once they are needed: a cell is often repeated.
    """

    kind: str
    head: Mapping[str, Any]
    code: bytes = b""
    detail: str = ""
    found: tuple[str | None, str] | None = None


class _Pending(NamedTuple):
    """What is not written yet: see ``JobTextRow``."""

    first: int
    last: int
    token: str
    origin: JobOrigin


class JobTexts:
    """Writes what jobs run.

    Args:
        store_queue: where it is written.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        limits: how long a text may be, and how much waits for the store.

    Attributes:
        store_queue: see above.
        limits: see above.
        keep: whether texts are kept, and not only their SHA-256.
        room: how many more characters of texts are kept; ``TextExpiry`` makes room.
        on_full: called when there is no more room.
        written_chars: characters of texts that were written since the start.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        limits: Limits,
    ) -> None:
        self.keep = True
        self.room = limits.text_total_chars
        self.on_full: Callable[[], None] = lambda: None
        self.written_chars = 0
        self.store_queue = store_queue
        self._call_later = call_later
        self.limits = limits
        self._pending: deque[_Pending] = deque(maxlen=limits.store_operations)
        self._timer: TimerHandle | None = None
        self._shares: dict[str, tuple[int, int]] = {}  # token -> day, characters in it
        self._counted: OrderedDict[tuple[str, int], None] = OrderedDict()  # token, hash of a text

    def add(self, numbers: Sequence[int], token: str, origin: JobOrigin) -> None:
        """Write later what the jobs of one cell run.

        Args:
            numbers: of the jobs, which are committed; they follow one another.
            token: the hash of their caller's token.
            origin: what they run.
        """
        if not numbers:
            return
        self._pending.append(_Pending(numbers[0], numbers[-1], token, origin))
        if self._timer is None:
            self._timer = self._call_later(WRITE_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.write()
        if self._pending:
            self._timer = self._call_later(_PAUSE_SECONDS, self._on_timer)

    def write(self) -> Operation[Any] | None:
        """Let the store write what is new; return the operation, None if there is nothing."""
        in_loop = self.store_queue.store.database.answers_at_once
        count = min(len(self._pending), _ROWS_IN_LOOP if in_loop else _ROWS_IN_THREAD)
        if not count:
            return None
        rows = [self._row(self._pending.popleft()) for _ in range(count)]
        now = time.time()
        return self.store_queue.run_later(functools.partial(_write, rows, now))

    def write_all(self) -> None:
        """Let the store write everything that waits."""
        while self.write() is not None:
            pass

    def _row(self, pending: _Pending) -> JobTextRow:
        origin = pending.origin
        if origin.found is None:
            origin.found = find_text(origin), describe_origin(origin)
        text, about = origin.found
        is_kept = (
            self.keep
            and text is not None
            and not self._is_too_long(text)
            and self._has_share(pending.token, text)
        )
        return JobTextRow(pending.first, pending.last, pending.token, about, text, is_kept)

    def _is_too_long(self, text: str) -> bool:
        """Return whether only the SHA-256 of a text is kept."""
        return len(text) > self.limits.text_chars

    def _has_share(self, token: str, text: str) -> bool:
        """Count a text for its token; return whether it may be kept today."""
        if self.room <= 0:
            return False
        key = token, hash(text)
        if key in self._counted:
            self._counted.move_to_end(key)
            return True
        today = int(time.time() // 86400)
        day, chars = self._shares.get(token, (today, 0))
        chars = len(text) + (chars if day == today else 0)
        if chars > self.limits.text_token_chars:
            return False
        self._shares = {key: each for key, each in self._shares.items() if each[0] == today}
        self._shares[token] = (today, chars)
        self._counted[key] = None
        while len(self._counted) > _REMEMBERED_TEXTS:
            self._counted.popitem(last=False)
        self.written_chars += len(text)
        self.room -= len(text)
        if self.room <= 0:
            self.on_full()
        return True

    def on_forgotten(self) -> None:
        """Note that texts were deleted: they count again when they are written again."""
        self._counted.clear()


def _write(rows: Sequence[JobTextRow], now: float, store: Store) -> None:
    store.text_rows.add(rows, now)


def find_text(origin: JobOrigin) -> str | None:
    """Return the text that a job runs, without the inputs of a cell; None if it is not known.

    Where inputs are in the code, only the caller knows; older clients do not say it.
    """
    if origin.kind != "cell":
        return _storable(origin.detail) or None
    if len(origin.code) > _MAX_CODE_BYTES:
        return None
    own = origin.head.get("own")
    if not isinstance(own, list) or len(own) % 2 or not all(type(each) is int for each in own):
        return None
    edges = [0, *own, len(origin.code)]
    if any(before > after for before, after in zip(edges, edges[1:], strict=False)):
        return None
    pairs = zip(own[::2], own[1::2], strict=True)
    text = b"".join(origin.code[start:end] for start, end in pairs)
    return _storable(text.decode("utf-8", "replace")) or None


def describe_origin(origin: JobOrigin) -> str:
    """Return where a job comes from, as JSON for the store.

    ``kind``; and where they are known ``notebook`` and ``cell`` of it, ``number`` of the cell's
    execution, ``inputs``: their names, ``name``: a file that was run, and ``fresh``.
    """
    head = origin.head
    about: dict[str, Any] = {"kind": origin.kind}
    for name in ("notebook", "cell"):
        value = head.get(name)
        if isinstance(value, str) and value:
            about[name] = value[-_MAX_NAME_CHARS:]
    number = head.get("number")
    if type(number) is int and 0 <= number < 2**53:
        about["number"] = number
    inputs = head.get("inputs")
    if isinstance(inputs, list):
        about["inputs"] = [
            each[:_MAX_NAME_CHARS] for each in inputs[:_MAX_INPUTS] if isinstance(each, str)
        ]
    title = head.get("title")
    if head.get("named") is True and isinstance(title, str):
        about["name"] = title[:_MAX_NAME_CHARS]
    if origin.kind == "cell" and head.get("fresh"):
        about["fresh"] = True
    return json.dumps(about, separators=(",", ":"))


def _storable(text: str) -> str:
    """Return a text as every store accepts it: without lone surrogates and NUL characters."""
    clean = text.encode("utf-8", "replace").decode()
    return clean.replace("\0", "\N{REPLACEMENT CHARACTER}")
