"""The model of boards and jobs: a board, its queue and its link; a job, its cell and its state.

A job is one cell, or one list of file operations, on one board. No sockets, no SQL.
"""

from __future__ import annotations

import errno
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cloudmanager.protocol import proofs, wire
from cloudmanager.protocol.errors import PackageError, ServerError
from cloudmanager.protocol.facts import published_facts, target_facts
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cm_server.limits import Limits
from cm_server.sample_buffer import Sample, SampleBuffer

if TYPE_CHECKING:
    from cm_server.rate_limits import TokenBucket
    from cm_server.store.rows import BoardRow

    from .open_jobs import OpenCell

MAX_TIMEOUT_MS = 0x3FFFFFFF  # 12 days: the largest small int of 32-bit MicroPython ports
#: Smallest buffer of a board that can be served, in bytes: a frame header, a message head, some
#: code.
MIN_BUFFER = 64
_SENT_STATES = ("running", "adrift")  # of a job that its board may have started
#: In which a board is back that a job has restarted, with slow Wi-Fi and a client on trial.
_RESTART_SECONDS = 120.0
_PART_SETS = 64  # different lists of the parts of clients that boards share
_OWN_FACTS = frozenset(("boot", "address", "mac"))  # different on each board
MAX_WAIT_CALLERS = 4  # callers that a queued job's ACCEPTED names; of more, the user sees "others"


class TimerHandle(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call."""


class JobObserver(Protocol):
    """A caller that follows its jobs."""

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Send one message to the caller.

        Args:
            message: as it travels on the wire.
            droppable: whether it may be dropped if the caller reads too slowly.
        """


class BoardLinkProtocol(Protocol):
    """A board's link, as far as jobs use it."""

    def send(self, message: bytes) -> object:
        """Send one message to the board."""

    def close(self, code: int, reason: str = "") -> None:
        """Close the link with a WebSocket close code."""

    def abort(self) -> None:
        """Close the link immediately, without a close frame."""


class JobRefused(Exception):
    """The server ends a job with an error; ``error_text`` is the text that a board would send."""

    def __init__(self, error: PackageError | ServerError | OSError) -> None:
        if isinstance(error, OSError):
            number = error.errno or errno.EIO
            self.error_text = (
                f"OSError: [Errno {number}] {errno.errorcode[number]}: {error.filename}"
            )
        else:
            self.error_text = f"{type(error).__name__}: {error.args[0]}"
        super().__init__(self.error_text)


class BoardChannel(NamedTuple):
    """How a transfer reaches its board, and ends its job.

    Attributes:
        send: sends a message to the board.
        refuse: ends the job with an error, given as the text that a board would send.
    """

    send: Callable[[bytes], object]
    refuse: Callable[[str], object]


class PendingRead(NamedTuple):
    """A READ of a board that was not answered yet.

    Attributes:
        job: the number in its header, which the answer repeats.
        request: its contents.
    """

    job: int
    request: wire.ReadRequest

    def place(self, piece_bytes: int) -> tuple[bytes, int]:
        """Return the path of the file, and the number of the piece that is wanted of it.

        Args:
            piece_bytes: the size of a piece.
        """
        return self.request.path, self.request.offset // piece_bytes


class Transfer(Protocol):
    """The files of a job while it runs on its board."""

    def on_chunk(self, message: wire.Message) -> bool:
        """Handle a CHUNK of the board; return whether the caller receives it too.

        Raises:
            JobRefused: the job ends with an error.
            PeerWireError: the message is malformed or was not requested.
        """

    def on_bytes_forwarded(self, size: int) -> None:
        """Note that bytes of a board's file were written to the caller's socket."""


class TransferSpec(Protocol):
    """What a job does with files, on any number of boards.

    Attributes:
        reads_files: whether the board sends files to the caller.
        replaces_starter: whether the job replaces the file that starts the client on a board.
        part: the part of the client that carries it out.
        is_local: whether only the server of the caller's own link can do it.
    """

    @property
    def part(self) -> str:
        """The part of the client that carries it out."""

    @property
    def is_local(self) -> bool:
        """Whether only the server of the caller's own link can do it."""

    @property
    def reads_files(self) -> bool:
        """Whether the board sends files to the caller."""

    @property
    def replaces_starter(self) -> bool:
        """Whether the job replaces the file that starts the client on a board."""

    def start(self, job: Job, channel: BoardChannel) -> Transfer:
        """Start the transfers on one board."""


class Cell(NamedTuple):
    """What a caller asked to run.

    Attributes:
        code: the text of the cell; with ``files``, file operations in JSON.
        options: how it is run.
        awaits: whether the cell is a coroutine function that the board has to run.
        files: how the file operations are carried out; None for a cell.
        kind: cell, reset, files, settings, mount, install, uninstall, packages, drift or rollout;
            "" if it is not known.
        title: what lists of jobs call it: the first line of its code, or the operations and their
            paths.
        restarts: whether it restarts the board, which is a good end then.
    """

    code: bytes
    options: RunOptions = DEFAULT_OPTIONS
    awaits: bool = False
    files: TransferSpec | None = None
    kind: str = "cell"
    title: str = ""
    restarts: bool = False


class Tail:
    """The last bytes of a stream.

    Args:
        max_bytes: how many are kept.

    Attributes:
        truncated: whether older bytes were dropped.
    """

    __slots__ = ("_bytes", "_max_bytes", "truncated")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self.truncated = False

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._bytes += data
        if len(self._bytes) > self._max_bytes:
            self.truncated = True
            self._trim()

    def _trim(self) -> None:
        """Drop old bytes; at twice the limit only, so that not every write copies the buffer."""
        if len(self._bytes) > 2 * self._max_bytes:
            self._bytes = self._bytes[-self._max_bytes :]

    def __len__(self) -> int:
        return len(self._bytes)

    def text(self) -> str:
        """Return the bytes as text, with LF for CRLF."""
        return self._bytes[-self._max_bytes :].decode("utf-8", "replace").replace("\r\n", "\n")


class Requester(NamedTuple):
    """Who requested a job.

    Attributes:
        caller: the name of the caller's token.
        observer: receives the job's messages; None: nobody follows it.
        token: the hash of the caller's token, which is checked when the job starts; "" if the job
            was sent already.
        board_name: the board's name at the time of the request, by which the caller knows it; its
            current one if empty.
    """

    caller: str
    observer: JobObserver | None = None
    token: str = ""
    board_name: str = ""


class Job:
    """One cell on one board.

    Args:
        number: its number in the store, and on the wire.
        board: where it runs.
        cell: what runs.
        requester: who requested it.
        tail_bytes: how much is kept of the ends of its output and of its value.

    Attributes:
        state: queued, resetting, running, adrift or ended (the picture is in ``dispatch``).
        status: how it ended, one of ``wire.STATUSES``; None until then.
        error: the traceback, or the server's reason for its status.
        resends: how often it was put back into the queue after it was sent.
        owner: the id of the other server that owns it; "" if this one does, "?" if only the store
            knows.
        started_monotonic: when it was sent, by the monotonic clock.
        created: when it was submitted, or became known here, in seconds since 1970.
        ended: when it ended, in seconds since 1970.
        output_tail: the end of its output.
        value: the end of the text of its value.
        awaiting_input: whether its ``input()`` is waiting for an answer.
        timer: its timeout, or the time that its caller waits for the board.
        transfer: its file transfer while it runs.
        open_cell: counts the jobs of its cell that have not ended.
        has_lateness: whether its board has said how exactly it started at its time.
        has_waited: whether it waited for its board in the store, so that what it prints is kept.
    """

    __slots__ = (
        "_started",
        "awaiting_input",
        "board",
        "caller",
        "cell",
        "created",
        "ended",
        "error",
        "has_lateness",
        "has_waited",
        "id",
        "name",
        "observer",
        "open_cell",
        "output_tail",
        "owner",
        "resends",
        "started_monotonic",
        "state",
        "status",
        "timer",
        "token_hash",
        "transfer",
        "value",
    )

    def __init__(
        self,
        number: int,
        board: Board,
        cell: Cell,
        requester: Requester,
        tail_bytes: int = Limits.tail_bytes,
    ) -> None:
        self.id = number
        self.board = board
        self.name = requester.board_name or board.name
        self.cell = cell
        self.caller = requester.caller
        self.token_hash = requester.token
        self.resends = 0
        self.observer = requester.observer
        self.state = "queued"
        self.created = time.time()
        self.status: str | None = None
        self.error = ""
        self.started_monotonic: float | None = None
        self._started: float | None = None
        self.ended: float | None = None
        self.output_tail = Tail(tail_bytes)
        self.value = Tail(tail_bytes)
        self.timer: TimerHandle | None = None
        self.awaiting_input = False
        self.owner = ""
        self.transfer: Transfer | None = None
        self.open_cell: OpenCell | None = None
        self.has_lateness = False
        self.has_waited = False

    @property
    def started(self) -> float | None:
        """When it was sent, in seconds since 1970; None until then."""
        return self._started

    @started.setter
    def started(self, at: float | None) -> None:
        self._started = at
        self.started_monotonic = None if at is None else time.monotonic()

    @property
    def may_have_started(self) -> bool:
        """Whether its board may have started it: it was sent."""
        return self.state in _SENT_STATES

    @property
    def start_delay(self) -> float:
        """For how many seconds its board has to wait until the time at which it starts."""
        start = self.cell.options.start
        return max(start - time.time(), 0.0) if start else 0.0

    def exec_messages(self) -> Iterator[bytes]:
        """Yield the messages that bring the job to its board (EXEC or FILE)."""
        options = self.cell.options
        timeout = options.timeout
        head = wire.ExecHead(
            timeout_ms=_milliseconds(None if timeout is None else timeout + self.start_delay),
            awaits=self.cell.awaits,
            op=wire.EXEC if self.cell.files is None else wire.FILE,
            again=self.resends > 0,
            at=options.start or None,
            run_late=options.late == "run",
        )
        return wire.exec_messages(self.id, self.cell.code, head, buffer_size=self.board.buffer_size)

    def describe(self) -> dict[str, Any]:
        """Return the job as the description of its board has it."""
        until = self.ended or time.time()
        return {
            "job": self.id,
            "board": self.board.name,
            "caller": self.caller,
            "state": "ended" if self.status else self.state,
            "status": self.status,
            "created": self.created,
            "started": self.started,
            "elapsed": max(until - self.started, 0.0) if self.started else None,
        }

    def describe_with_title(self) -> dict[str, Any]:
        """Return the job as the verb ``jobs`` lists it: with what it is, which may be code."""
        return {**self.describe(), "kind": self.cell.kind, "what": self.cell.title}

    def describe_with_output(self) -> dict[str, Any]:
        """Return the job as the verb ``job`` shows it: with the ends of its output and value."""
        return {
            **self.describe_with_title(),
            "stdout": self.output_tail.text(),
            "truncated": self.output_tail.truncated,
            "value": self.value.text(),
            "error": self.error,
        }

    def describe_wait(self) -> tuple[int, dict[str, Any]]:
        """Return what this queued job waits for, as ACCEPTED lists it.

        Returns:
            How many jobs its board runs first; 0 if the job waits for its board to connect. Then
            what is known about them: ``callers``, ``elapsed`` (seconds) of the one that runs, and
            ``program``, if the board's own program keeps it busy. If another caller has reserved
            the board: ``reserved_by`` and ``reserved_until``, and at least 1 job. If the board
            sleeps, or should have woken: ``wakes_at``.
        """
        count, known = self._describe_queue()
        wakes_at = self.board.wakes_at
        if wakes_at is not None:
            known["wakes_at"] = wakes_at
        reservation = self.board.reservation_against(self)
        if reservation is None or (not count and not self.board.online):
            return count, known
        reserved = {"reserved_by": reservation.caller, "reserved_until": reservation.until}
        return max(count, 1), {**known, **reserved}

    def _describe_queue(self) -> tuple[int, dict[str, Any]]:
        board = self.board
        if self.owner:
            return _describe_remote_wait(board.remote_state)
        running = board.current_job
        ahead = [
            *([running] if running else []),
            *takewhile(lambda job: job is not self, board.queue),
        ]
        known: dict[str, Any] = {
            "callers": list(dict.fromkeys(job.caller for job in ahead))[:MAX_WAIT_CALLERS]
        }
        if running is not None:
            known["elapsed"] = running.describe()["elapsed"]
        elif board.blocked:
            return len(ahead) + 1, {**known, "program": board.reported_facts.get("program", "")}
        return len(ahead), known

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Send a message to the caller, if one follows the job."""
        if self.observer is not None:
            self.observer.deliver(message, droppable=droppable)

    def stop_timer(self) -> None:
        """Cancel its timer, if there is one."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Reservation(NamedTuple):
    """A caller has a board to itself for a while: the jobs of others wait.

    Attributes:
        caller: the name of the caller's token.
        until: when it ends, in seconds since 1970.
    """

    caller: str
    until: float


class Stay(NamedTuple):
    """A board that sleeps is to stay awake for a while.

    Attributes:
        seconds: for how long from its next wake; None: it is awake.
        until: until when it stays awake, or by when it must have woken, in seconds since 1970.
    """

    seconds: float | None
    until: float


class RemoteBoardState(NamedTuple):
    """The state of a board at another server, which has its link or had it last.

    Attributes:
        server: the id of that server.
        epoch: the board's epoch when that server acquired its lease.
        state: idle, busy, lost or offline, as ``Board.state``.
        since: when the board connected, in seconds since 1970; None if it has no link there.
        job: its current job, as ``Job.describe`` returns it.
        queued: the number of jobs in its queue there.
    """

    server: str
    epoch: int
    state: str
    since: float | None = None
    job: dict[str, Any] | None = None
    queued: int = 0

    @property
    def online(self) -> bool:
        """Whether the board has a link to that server."""
        return self.since is not None


class Board:
    """One enrolled board with its queue and, while it is connected, its link.

    Args:
        row: the board in the store.
        on_changed: called with the board after each change that callers can see.
        on_labels_changed: called after its labels changed, because they decide which tokens may
            access it.

    Attributes:
        reported_facts: what the board reported about itself; untrusted.
        link_count: links since the server started.
        consecutive_takeovers: how often in a row a new link replaced one that still worked.
        client_parts: the optional parts of the client that the board has, such as ``files``.
        last_result: the number of its last job's result, see ``Store.end_job``.
        strays: rate of messages about jobs that are not its current one; made when needed.
        blocked: whether its own program keeps it busy, so that cells wait.
        serial: its serial number; "" if nobody wrote one.
        note: what people wrote about it; "" if nothing.
        epoch: with several servers: how often the board connected to any of them.
        stay: whether and how long it stays awake, if it is a board that sleeps.
        free_since: when it connected, or its last job ended, by the monotonic clock.
        pending_read: what it waits for of a file in a mounted folder; None if nothing.
        has_worked: whether a job was sent to it since it connected, which may have changed what it
            reported then.
    """

    # A server has very many: without slots, so many attributes take three times as much memory.
    __slots__ = (
        "__weakref__",
        "_current_job",
        "_expected_until",
        "_labels",
        "_on_changed",
        "_on_labels_changed",
        "_remote_state",
        "_reported_facts",
        "_reservation",
        "_restart_until",
        "_sample_buffer",
        "_stay",
        "blocked",
        "buffer_size",
        "client_parts",
        "connected_since",
        "consecutive_takeovers",
        "epoch",
        "free_since",
        "gen",
        "has_worked",
        "id",
        "key",
        "last_result",
        "last_seen",
        "link",
        "link_count",
        "name",
        "nonce",
        "note",
        "pending_read",
        "plain",
        "queue",
        "serial",
        "strays",
        "token",
    )

    def __init__(
        self,
        row: BoardRow,
        on_changed: Callable[[Board], None] | None = None,
        on_labels_changed: Callable[[], None] | None = None,
    ) -> None:
        self._on_changed = on_changed
        self._on_labels_changed = on_labels_changed
        self.id = row.id
        self.name = row.name
        self.key = row.key
        self.gen = row.gen
        self.nonce = row.nonce
        self.plain = row.plain
        self.token = row.token
        self.serial = row.serial or ""
        self.note = row.note or ""
        self._reservation = read_reservation(row)
        self._labels: Mapping[str, str] = row.labels
        self._reported_facts = share_texts(row.facts)
        self.last_seen = row.last_seen
        self.link: BoardLinkProtocol | None = None
        self.link_count = 0
        self.consecutive_takeovers = 0
        self.connected_since: float | None = None
        self.buffer_size = MIN_BUFFER
        self.client_parts = _part_set(())
        self._current_job: Job | None = None
        # A list: while nothing waits, a deque has 600 bytes.
        self.queue: list[Job] = []
        self.last_result = 0
        self._sample_buffer: SampleBuffer | None = None  # made when needed
        self.strays: TokenBucket | None = None
        self.blocked = False
        self.epoch = 0
        self._stay = read_stay(row)
        self.free_since = 0.0
        self.pending_read: PendingRead | None = None
        self.has_worked = False
        self._expected_until = 0.0  # by the monotonic clock
        self._restart_until = 0.0  # the same
        self._remote_state: RemoteBoardState | None = None

    def notify_changed(self) -> None:
        """Notify subscribers and other servers that something about the board changed."""
        if self._on_changed is not None:
            self._on_changed(self)

    @property
    def reported_facts(self) -> dict[str, Any]:
        """What it reported about itself; replaced as a whole, never changed."""
        return self._reported_facts

    @reported_facts.setter
    def reported_facts(self, facts: dict[str, Any]) -> None:
        self._reported_facts = share_texts(facts)

    @property
    def sample_buffer(self) -> SampleBuffer:
        """Its latest samples."""
        if self._sample_buffer is None:
            self._sample_buffer = SampleBuffer()
        return self._sample_buffer

    @property
    def samples(self) -> Sequence[Sample]:
        """Its latest samples; () if it has sent none."""
        return () if self._sample_buffer is None else self._sample_buffer.samples

    @property
    def current_job(self) -> Job | None:
        """The job that was sent to the board and has not ended there; None if it is free."""
        return self._current_job

    @current_job.setter
    def current_job(self, job: Job | None) -> None:
        self._current_job = job
        self.has_worked = self.has_worked or job is not None
        self.free_since = time.monotonic()
        self.notify_changed()

    @property
    def remote_state(self) -> RemoteBoardState | None:
        """Its state at the server that had it last; None if that is this one."""
        return self._remote_state

    @remote_state.setter
    def remote_state(self, state: RemoteBoardState | None) -> None:
        self._remote_state = state
        self.notify_changed()

    @property
    def idle(self) -> bool:
        """Whether a new job would be sent to the board immediately."""
        is_busy = self.current_job or self.queue or self.blocked or self.reservation
        return self.link is not None and not is_busy

    @property
    def reservation(self) -> Reservation | None:
        """Who has reserved it; None if nobody has, or no more."""
        reservation = self._reservation
        return reservation if reservation and reservation.until > time.time() else None

    @reservation.setter
    def reservation(self, reservation: Reservation | None) -> None:
        self._reservation = reservation
        self.notify_changed()

    def is_free_for(self, caller: str) -> bool:
        """Return whether it is idle, and no other caller has reserved it.

        Args:
            caller: the name of the caller's token.
        """
        reservation = self.reservation
        is_own = reservation is None or reservation.caller == caller
        return self.state == "idle" and is_own

    def reservation_against(self, job: Job) -> Reservation | None:
        """Return the reservation that keeps a job from starting; None if there is none.

        A job that was sent already, and is sent again, is not kept.
        """
        reservation = self.reservation
        if reservation is None or job.resends or reservation.caller == job.caller:
            return None
        return reservation

    @property
    def stay(self) -> Stay | None:
        """Whether and how long it stays awake, if it sleeps; None if nobody wants that any more."""
        return self._stay if self._stay and self._stay.until > time.time() else None

    @stay.setter
    def stay(self, stay: Stay | None) -> None:
        self._stay = stay
        self.notify_changed()

    @property
    def is_restarting(self) -> bool:
        """Whether this server has asked it to restart: it is expected back, connected or not."""
        job = self.current_job
        if job is None:
            return False
        return job.state == "resetting" or (job.cell.restarts and job.state in _SENT_STATES)

    def note_restart(self) -> None:
        """Note that a job was sent to it that restarts it, perhaps a moment after its end."""
        self._restart_until = time.monotonic() + _RESTART_SECONDS

    @property
    def was_asked_to_restart(self) -> bool:
        """Whether a restart of the last minutes is one that somebody has asked for."""
        return self.is_restarting or time.monotonic() < self._restart_until

    @property
    def is_kept_busy(self) -> bool:
        """Whether its own program keeps it busy, at whichever server it is connected."""
        remote = self._remote_state
        if self.link is not None or remote is None:
            return self.blocked
        return remote.state == "busy" and remote.job is None

    def expect(self, seconds: float) -> None:
        """Note that a server has asked the board to connect again, to any server, and until when.

        Args:
            seconds: in which it is back; jobs for it wait for so long.
        """
        self._expected_until = time.monotonic() + seconds

    @property
    def expected_seconds(self) -> float:
        """The seconds in which a board is back that was asked to connect again; else 0."""
        is_back = self.link is not None or (
            self._remote_state is not None and self._remote_state.online
        )
        return 0.0 if is_back else max(self._expected_until - time.monotonic(), 0.0)

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels that users gave it."""
        return self._labels

    @labels.setter
    def labels(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self.notify_changed()
        if self._on_labels_changed is not None:
            self._on_labels_changed()

    @property
    def next_key(self) -> bytes | None:
        """The key of a pending rotation, None if there is none; pending until the key is used."""
        return proofs.next_key(self.key, self.gen + 1, self.nonce) if self.nonce else None

    def key_for(self, gen: int) -> bytes | None:
        """Return the key with this number: the current one or that of a pending rotation.

        Returns:
            None for any other number.
        """
        if gen == self.gen:
            return self.key
        return self.next_key if gen == self.gen + 1 else None

    @property
    def online(self) -> bool:
        """Whether the board has a link to this server or to another one, or will have it soon."""
        return (
            self.link is not None
            or (self._remote_state is not None and self._remote_state.online)
            or self.expected_seconds > 0
        )

    @property
    def state(self) -> str:
        """Return its state.

        Returns:
            offline, idle, busy, lost (its link broke while a job ran), asleep, or overdue (it has
            slept for longer than it said).
        """
        if self.link is None:
            if self.expected_seconds > 0:
                return "idle"
            if self._remote_state is not None:
                return self._remote_state.state
            return "lost" if self.current_job else self._absent_state()
        return "busy" if self.current_job or self.blocked else "idle"

    def _absent_state(self) -> str:
        if self.overdue_at is None:
            return "offline"
        return "asleep" if time.time() < self.overdue_at else "overdue"

    @property
    def overdue_at(self) -> float | None:
        """When it is late, in seconds since 1970; None if it did not say that it sleeps."""
        return self._sleep_fact("overdue_at")

    @property
    def wakes_at(self) -> float | None:
        """When it wakes, or should have woken, in seconds since 1970; None if it does not sleep."""
        return self._sleep_fact("wakes_at") if self.state in ("asleep", "overdue") else None

    def _sleep_fact(self, name: str) -> float | None:
        at = self.reported_facts.get(name)
        return float(at) if isinstance(at, (int, float)) else None

    @property
    def facts(self) -> Mapping[str, str]:
        """Return the facts that targets can select by (``platform=esp32``), as text."""
        return target_facts(self.reported_facts, self.state)

    @property
    def last_seen_text(self) -> str:
        """Return a sentence about when the board was last connected, for error messages."""
        if self.last_seen is None:
            return "it has never connected"
        if self.state == "asleep" and self.wakes_at is not None:
            return f"it is asleep until {format_clock(self.wakes_at)}; `--when-online` waits for it"
        return f"it was last seen {_format_age(time.time() - self.last_seen)} ago"

    def connect(
        self,
        link: BoardLinkProtocol,
        facts: dict[str, Any],
        buffer_size: int,
        parts: Iterable[str] = (),
    ) -> None:
        """Record that the board has authenticated on a new link."""
        self.link = link
        self._expected_until = 0.0
        self.free_since = time.monotonic()
        self.link_count += 1
        self.blocked = False
        self.has_worked = self._current_job is not None
        self.reported_facts = facts
        self.buffer_size = buffer_size
        self.client_parts = _part_set(tuple(parts))
        self.connected_since = self.last_seen = time.time()
        self.notify_changed()

    def interrupt(self, job: int = 0) -> None:
        """Send INTERRUPT, if the board is connected; what it waits for of a file is not sent then.

        It goes on with something else, for which its buffer has little room.

        Args:
            job: the number of the job; 0: its own program.
        """
        self.pending_read = None
        if self.link is not None:
            self.link.send(wire.pack(wire.INTERRUPT, job=job))

    def disconnect(self) -> None:
        """Record that the link is closed."""
        self.link = None
        self.pending_read = None
        self.connected_since = None
        self.last_seen = time.time()
        self.notify_changed()

    def describe(self) -> dict[str, Any]:
        """Return the board as the verb ``boards`` lists it."""
        return {**self._describe_local(), **self._describe_remote()}

    def _describe_remote(self) -> dict[str, Any]:
        """Return the fields that another server knows better, if it has the board."""
        remote = self._remote_state
        if self.link is not None or remote is None:
            return {}
        return {
            "connected_since": remote.since,
            "last_seen": time.time() if remote.online else self.last_seen,
            "job": remote.job,
            "queued": remote.queued + len(self.queue),
        }

    def _describe_local(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "id": self.id,
            "state": self.state,
            **published_facts(self.reported_facts),
            "booted": self.reported_facts.get("booted"),
            "labels": dict(self.labels),
            "serial": self.serial,
            "note": self.note,
            "reserved": self.reservation and self.reservation._asdict(),
            "new_key": self.nonce is not None,
            "stay": self.stay and self.stay._asdict(),
            "connected_since": self.connected_since,
            "last_seen": time.time() if self.link else self.last_seen,
            "job": self.current_job.describe() if self.current_job else None,
            "queued": len(self.queue),
        }


def share_texts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts without those that are not known, and with texts that boards share.

    A fleet's boards are of few kinds. What is read from JSON has texts of its own for each.
    """
    return {
        sys.intern(name): value if name in _OWN_FACTS else _shared_value(value)
        for name, value in facts.items()
        if value is not None and value != ""
    }


def _shared_value(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return _part_list(tuple(value))
    return value


@functools.lru_cache(_PART_SETS)
def _part_list(parts: tuple[str, ...]) -> list[str]:
    """Return the same list of the parts of a client each time; nobody changes it."""
    return list(parts)


@functools.lru_cache(_PART_SETS)
def _part_set(parts: tuple[str, ...]) -> frozenset[str]:
    """Return the same set of the parts of a client each time."""
    return frozenset(parts)


def read_reservation(row: BoardRow) -> Reservation | None:
    """Return the reservation in a board's row; None if there is none, or no more."""
    if row.reserved_by is None or (row.reserved_until or 0) <= time.time():
        return None
    return Reservation(row.reserved_by, row.reserved_until or 0)


def read_stay(row: BoardRow) -> Stay | None:
    """Return what a board's row says of how long it stays awake; None: nothing."""
    return None if row.stay_until is None else Stay(row.stay_seconds, row.stay_until)


def _describe_remote_wait(remote: RemoteBoardState | None) -> tuple[int, dict[str, Any]]:
    """Return what a job for a board of another server waits for; see ``Job.describe_wait``."""
    if remote is None:
        return 0, {}
    if remote.job is None:
        return remote.queued + 1, {}
    known = {"elapsed": remote.job.get("elapsed")}
    if remote.queued == 0:
        known["callers"] = [str(remote.job.get("caller", ""))]
    return remote.queued + 1, known


def format_clock(at: float) -> str:
    """Return a time of this day or another as text, in UTC: callers may be anywhere."""
    now, then = time.gmtime(), time.gmtime(at)
    is_today = now[:3] == then[:3]
    return time.strftime("%H:%M UTC" if is_today else "%Y-%m-%d %H:%M UTC", then)


def _milliseconds(timeout: float | None) -> int:
    """Return a timeout as it travels; 0 for none."""
    return 0 if timeout is None else min(max(int(timeout * 1000), 1), MAX_TIMEOUT_MS)


def _format_age(seconds: float) -> str:
    """Return a duration in words, in its largest unit, such as ``3 hours``."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(int(seconds), 0)} s"
