"""The queue of a store's operations: a database that does not answer blocks only who waits for it.

The event loop hands each use of the store to this queue, which carries them out one at a time and
in order. SQLite answers within a tenth of a millisecond: an operation on it is carried out at once,
in the loop, unless another program holds a lock on the file, or others wait already. Then, and for
PostgreSQL always, a thread does it, and the loop goes on. So an operation that follows another one
sees its effects, and what was written later is stored later.

Call from the thread of the event loop, except where noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from typing import Any, Generic, TypeVar

from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup
from cm_server.limits import Limits

from .statements import NotExecuted
from .store import Store

log = logging.getLogger("cm_server")

_STOPPED = "the server stops"
S = TypeVar("S", bound=Store)
T = TypeVar("T")
Item = TypeVar("Item")
#: Uses the store for several items; returns the result of each, or why it failed.
SharedUse = Callable[[S, Sequence[Item]], Sequence[T | Exception]]

RETRY_SECONDS = 0.01  # between two attempts to use an SQLite file that another program locked
SLOW_SECONDS = 1.0  # after which /healthz reports that the store does not answer
CLOSE_SECONDS = 10.0  # that a server that stops waits for its last writes
SHARED_BYTES = 64 * 1024  # of operations that share a transaction; they wait for each other's rows
GATHERED_BYTES = 4096  # of one that waits for others; what follows a larger one takes long


class Operation(Generic[T]):
    """One use of the store: done already, or waiting for the database.

    Args:
        use: what is done; called with the store.
        size: bytes that are held in memory meanwhile.
        refusable: whether a peer requested it, and hears of it if it cannot be done.
        is_limited: whether it counts as one of ``Limits.store_operations``; the results and keys of
            boards do not, of which a server has no more than boards and jobs.

    Attributes:
        created: when it began to wait, by the monotonic clock; 0 if it does not.
        done: whether it has ended; then ``result`` returns at once.
        shared: for an operation that may share a transaction: how, and its item.
    """

    __slots__ = (
        "_callbacks",
        "_error",
        "_result",
        "_use",
        "created",
        "done",
        "is_limited",
        "refusable",
        "shared",
        "size",
    )

    def __init__(
        self,
        use: Callable[[Any], T],
        size: int = 0,
        *,
        refusable: bool = False,
        is_limited: bool = False,
    ) -> None:
        self._use = use
        self.size = size
        self.refusable = refusable
        self.is_limited = is_limited
        self.created = 0.0
        self.done = False
        self.shared: tuple[SharedUse[Any, Any, T], Any] | None = None
        self._result: T | None = None
        self._error: Exception | None = None
        self._callbacks: list[Callable[[Operation[T]], object]] = []

    def execute(self, store: Store) -> None:
        """Use the store, in whichever thread; the result is kept until ``finish``.

        Raises:
            NotExecuted: nothing was done, and it may be tried again.
        """
        self.set_outcome(_use_store(store, self._use))

    def set_outcome(self, outcome: T | Exception) -> None:
        """Set the result, or why there is none."""
        if isinstance(outcome, Exception):
            self._error = outcome
        else:
            self._result = outcome

    def refuse(self, error: Exception) -> None:
        """Let the operation fail without trying it."""
        self._error = error

    def complete(self, result: T) -> None:
        """Set the result of an operation that needs no database."""
        self._result = result
        self.finish()

    def finish(self) -> None:
        """Mark the operation as done, and call those who wait for it."""
        self.done = True
        self._use = _nothing
        if not self._callbacks:
            return
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception as error:  # those after it must not wait for ever
                cleanup.log_failure("what follows an operation of the store", error)
        self._callbacks.clear()

    def when_done(self, callback: Callable[[Operation[T]], object]) -> None:
        """Call a function with this operation once it is done: at once, if it is."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    @property
    def error(self) -> Exception | None:
        """Why it failed; None if it succeeded, or is not done."""
        return self._error

    def result(self) -> T:
        """Return the result of an operation that is done.

        Raises:
            ServerError: the database could not be used.
        """
        assert self.done
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # None is one of the values of T then

    def __await__(self) -> Generator[Any, None, T]:
        """Wait until it is done; if it is, go on without a break."""
        if not self.done:
            future = asyncio.get_running_loop().create_future()
            self._callbacks.append(lambda _: None if future.done() else future.set_result(None))
            yield from future
        return self.result()


class StoreQueue(Generic[S]):
    """Carries out the operations of one store, one at a time and in order.

    Args:
        store: used by nobody else until ``close``.
        limits: of what may wait.

    Attributes:
        store: for use before the event loop serves anybody.
        change_lock: held while a change of boards or tokens is checked, written and applied, so
            that two of them do not overlap.
    """

    def __init__(self, store: S, limits: Limits | None = None) -> None:
        self.store = store
        self.change_lock = asyncio.Lock()
        self._limits = limits or Limits()
        self._is_immediate = store.database.answers_at_once
        self._waiting: deque[Operation[Any]] = deque()
        self._waiting_size = 0
        self._limited_count = 0  # of those that wait
        self._running: list[Operation[Any]] = []
        self._running_future: Future[None] | None = None
        self._flush: Operation[None] | None = None
        self._gathered: list[Operation[Any]] = []  # until the end of the loop's turn
        self._gathered_size = 0
        self._shared_at = 0.0  # when the last one ended that may share a transaction
        self._last_peer: object = None  # who wanted that one
        self._thread: ThreadPoolExecutor | None = None
        self._checkpoint_thread: ThreadPoolExecutor | None = None
        self._checkpoint: Future[int] | None = None
        self._checkpointed_rows = 0
        self._closing = self._closed = False
        self._give_up_at = math.inf  # by the monotonic clock
        store.database.enter_queue()

    # Use

    def run(
        self,
        use: Callable[[S], T],
        *,
        size: int = 0,
        refusable: bool = False,
        durable: bool = False,
    ) -> Operation[T]:
        """Use the store: now if possible, else when all earlier operations are done.

        Args:
            use: what is done, called with the store in this thread or another one. If the database
                is locked or ends the transaction, it is called again, so it must not change
                anything else before.
            size: bytes that it holds in memory.
            refusable: whether it may be refused because too much waits; its result is an error
                then.
            durable: whether it waits for the disk, and is therefore not done in the loop.
        """
        operation: Operation[T] = Operation(use, size, refusable=refusable, is_limited=refusable)
        why = _STOPPED if self._closed else self._refusal_reason(size) if refusable else ""
        if why:
            operation.refuse(ServerError(why))
            operation.finish()
        else:
            self._execute(operation, durable=durable)
        return operation

    def run_shared(
        self,
        use: SharedUse[S, Item, T],
        item: Item,
        *,
        size: int,
        refusable: bool = False,
        peer: object = None,
    ) -> Operation[T]:
        """Use the store as ``run`` does, in one transaction with others that wait for the same.

        While the database carries out an operation, more arrive; or, if many arrive one after the
        other, in one turn of the event loop. What each transaction costs is more than its rows.

        Args:
            use: see there; a function of a module or class, since those that share a transaction
                have the same.
            item: what this operation is about.
            size: see there.
            refusable: see there.
            peer: who wants it; None: it does not wait for those of others.
        """
        operation: Operation[T] = Operation(
            lambda store: _raise_error(use(store, [item])[0]),
            size,
            refusable=refusable,
            is_limited=refusable,
        )
        operation.shared = use, item
        why = _STOPPED if self._closed else self._refusal_reason(size) if refusable else ""
        if why:
            operation.refuse(ServerError(why))
            operation.finish()
        elif not self._gather(operation, peer):
            self._execute(operation, durable=False)
            self._shared_at = time.monotonic()
        self._last_peer = peer
        return operation

    def _gather(self, operation: Operation[Any], peer: object) -> bool:
        """Keep an operation for the end of the loop's turn, if others are likely to join it.

        Those of one peer alone come one after the other: nothing is gained if they wait.
        """
        if operation.size > GATHERED_BYTES or not self._is_idle():
            return False
        if self._gathered:
            if not _may_share(self._gathered[0], operation):
                return False
        elif (
            peer is None
            or peer is self._last_peer
            or time.monotonic() - self._shared_at >= self._limits.store_gather_seconds
        ):
            return False
        else:
            try:
                asyncio.get_running_loop().call_soon(self._execute_gathered)
            except RuntimeError:  # the server does not serve yet, or no more
                return False
        self._gathered.append(operation)
        self._gathered_size += operation.size
        if self._gathered_size > SHARED_BYTES:
            self._execute_gathered()
        return True

    def _execute_gathered(self) -> None:
        """Carry out the gathered operations, in one transaction."""
        operations, self._gathered, self._gathered_size = self._gathered, [], 0
        if not operations:
            return
        try:
            self._execute_together(operations)
        except NotExecuted:
            for operation in operations:
                self._enqueue(operation)
            self._start_next()
            return
        for operation in operations:
            operation.finish()
        self._shared_at = time.monotonic()
        self._schedule_checkpoint()

    def run_later(self, use: Callable[[S], object], *, durable: bool = False) -> Operation[Any]:
        """Use the store for something that nobody waits for; it is dropped if too much waits.

        What the store cannot write, it logs itself.
        """
        operation: Operation[Any] = Operation(use, is_limited=True)
        if self._closed or self._refusal_reason(0):
            operation.finish()
            return operation
        self._execute(operation, durable=durable)
        operation.when_done(_log_failure)
        return operation

    def _execute(self, operation: Operation[Any], *, durable: bool) -> None:
        """Carry out an operation now if possible, else let it wait for its turn."""
        if self._gathered:
            self._execute_gathered()
        if durable or not self._is_idle() or not self._execute_now(operation):
            self._enqueue(operation)
            self._start_next()

    def _enqueue(self, operation: Operation[Any]) -> None:
        """Let an operation wait for its turn."""
        operation.created = time.monotonic()
        self._waiting.append(operation)
        self._waiting_size += operation.size
        self._limited_count += operation.is_limited

    def flush(self) -> None:
        """Write pending results and facts; those that cannot be written stay pending."""
        if self._flush is None and self.store.has_pending:
            operation = self.run(lambda store: store.flush())
            if not operation.done:
                self._flush = operation
                operation.when_done(self._on_flushed)

    def _on_flushed(self, _operation: Operation[None]) -> None:
        self._flush = None

    def _is_idle(self) -> bool:
        """Return whether an operation can be carried out in the loop."""
        return self._is_immediate and not self._running and not self._waiting

    def _execute_now(self, operation: Operation[T]) -> bool:
        """Carry out an operation in the loop; return False if the database is locked."""
        try:
            operation.execute(self.store)
        except NotExecuted:
            return False
        operation.finish()
        self._schedule_checkpoint()
        return True

    def _refusal_reason(self, size: int) -> str:
        """Return why no more may wait; "" if more may."""
        if self._closing:
            return _STOPPED
        is_full = (
            self._limited_count >= self._limits.store_operations
            or self._waiting_size + size > self._limits.store_bytes
        )
        if self._waiting and is_full:
            return (
                f"its store has not answered for {self.waiting_seconds:.0f} s and too many "
                "requests wait for it; try again later"
            )
        return ""

    # In the thread

    def _start_next(self) -> None:
        if self._running or not self._waiting:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the server does not serve yet, or no more: ``drain`` follows
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "store")
        operations = self._running = self._next_waiting()
        self._running_future = self._thread.submit(self._execute_patiently, operations)
        self._running_future.add_done_callback(
            lambda _: _call_in_loop(loop, self._on_executed, operations)
        )

    def _next_waiting(self) -> list[Operation[Any]]:
        """Remove and return the operation that has waited longest, and those that may share it."""
        first = self._waiting[0]
        operations: list[Operation[Any]] = []
        size = 0
        while self._waiting:
            operation = self._waiting[0]
            size += operation.size
            if operations and (size > SHARED_BYTES or not _may_share(first, operation)):
                break
            operations.append(self._waiting.popleft())
            self._limited_count -= operation.is_limited
        return operations

    def _execute_patiently(self, operations: list[Operation[Any]]) -> None:
        """Carry out operations; while the database is locked, try again (any thread)."""
        for retries in itertools.count():
            try:
                self._execute_together(operations)
            except NotExecuted as error:
                if self._gives_up(operations[0], retries):
                    for operation in operations:
                        operation.refuse(ServerError(str(error)))
                    self.store.write_error = str(error)
                    return
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _execute_together(self, operations: Sequence[Operation[Any]]) -> None:
        """Carry out one operation, or several in one transaction (any thread)."""
        if len(operations) == 1:
            operations[0].execute(self.store)
        else:
            _execute_shared(self.store, operations)

    def _gives_up(self, operation: Operation[Any], retries: int) -> bool:
        """Return whether an operation that was not executed is not tried again (any thread)."""
        now = time.monotonic()
        waited_too_long = now - operation.created > self._limits.store_lock_seconds
        return (
            now > self._give_up_at
            or (operation.refusable and waited_too_long)
            or retries >= self.store.database.max_retries
        )

    def _on_executed(self, operations: list[Operation[Any]]) -> None:
        """Report that the thread has carried out operations, and give it the next ones."""
        if operations is not self._running:
            return  # ``drain`` was faster
        self._running = []
        self._finish(operations)
        self._schedule_checkpoint()
        self._start_next()

    def _finish(self, operations: list[Operation[Any]]) -> None:
        for operation in operations:
            self._waiting_size -= operation.size
            operation.finish()

    # Checkpoints

    def _schedule_checkpoint(self) -> None:
        """Let another thread move SQLite's write-ahead log into its file, if it has grown.

        While cells are written without a pause, that thread never moves the last rows, and the log
        grows. If it has become long, a checkpoint takes its turn in the queue, and moves all of it.
        """
        database = self.store.database
        changed = database.changed_rows
        if changed - self._checkpointed_rows < self._limits.store_checkpoint_rows:
            return
        if self._checkpoint is not None and not self._checkpoint.done():
            return
        self._checkpointed_rows = changed
        log_bytes = self._checkpoint.result() if self._checkpoint is not None else 0
        if log_bytes > self._limits.store_log_bytes:
            self._checkpoint = None
            self.run_later(lambda store: store.database.checkpoint(restart=True), durable=True)
            return
        if self._checkpoint_thread is None:
            self._checkpoint_thread = ThreadPoolExecutor(1, "checkpoint")
        self._checkpoint = self._checkpoint_thread.submit(database.checkpoint)

    # State

    @property
    def is_gathering(self) -> bool:
        """Whether a transaction follows at the end of the event loop's turn."""
        return bool(self._gathered)

    @property
    def waiting_seconds(self) -> float:
        """The seconds that the oldest operation has waited; 0 if none waits."""
        oldest = next(itertools.chain(self._running, self._waiting), None)
        return time.monotonic() - oldest.created if oldest is not None else 0.0

    @property
    def is_overloaded(self) -> bool:
        """Whether requests are refused because too much waits."""
        return bool(self._refusal_reason(0))

    @property
    def slow_reason(self) -> str:
        """A sentence if the database does not answer; "" if it does."""
        seconds = self.waiting_seconds
        if seconds < SLOW_SECONDS:
            return ""
        return f"its store has not answered for {seconds:.0f} s: new cells wait for it"

    # The end

    def drain(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Carry out everything that waits, in this thread; return whether it was done in time."""
        deadline = self._give_up_at = time.monotonic() + seconds
        self._execute_gathered()
        try:
            while self._running or self._waiting:
                if not self._drain_one(deadline):
                    return False
        finally:
            self._give_up_at = math.inf
        return True

    def _drain_one(self, deadline: float) -> bool:
        """Wait for the operation in the thread, or carry out the next one here."""
        left = deadline - time.monotonic()
        if self._running:
            assert self._running_future is not None
            try:
                self._running_future.result(max(left, 0) + 2 * RETRY_SECONDS)
            except TimeoutError:
                return False
            operations, self._running = self._running, []
        elif left < 0:
            return False
        else:
            operations = self._next_waiting()
            self._execute_patiently(operations)
        self._finish(operations)
        return True

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Refuse requests that wait, carry out everything else, and close the store.

        Args:
            seconds: to wait for a database that does not answer; then what was not written is
                lost, and logged.
        """
        self._execute_gathered()
        for operation in [operation for operation in self._waiting if operation.refusable]:
            self._waiting.remove(operation)
            self._limited_count -= operation.is_limited
            operation.refuse(ServerError(_STOPPED))
            self._finish([operation])
        self._closing = True
        self.flush()
        answered = self.drain(seconds)
        self._closed = True
        for thread in (self._thread, self._checkpoint_thread):
            if thread is not None:
                thread.shutdown(wait=answered)
        if answered:
            self.store.close()
        else:
            log.error(
                "the store did not answer for %.0f s: %d writes are lost",
                seconds,
                len(self._waiting) + len(self._running),
            )


def completed(result: T) -> Operation[T]:
    """Return an operation that needed no database."""
    operation: Operation[T] = Operation(lambda _: result)
    operation.complete(result)
    return operation


def _use_store(store: S, use: Callable[[S], T]) -> T | Exception:
    """Return the result of a use of the store, or why it failed.

    Raises:
        NotExecuted: nothing was done, and it may be tried again.
    """
    try:
        return use(store)
    except NotExecuted:
        raise
    except store.database.errors as error:
        store.database.rollback()
        reason = store.database.describe_error(error)
        return ServerError(f"its store cannot be used: {reason}")
    except Exception as error:
        return error


def _may_share(first: Operation[Any], operation: Operation[Any]) -> bool:
    """Return whether two operations may be carried out in one transaction."""
    if first.shared is None or operation.shared is None:
        return False
    return first.shared[0] is operation.shared[0]


def _execute_shared(store: Store, operations: Sequence[Operation[Any]]) -> None:
    """Carry out operations in one transaction; see ``Operation.execute``."""
    assert operations[0].shared is not None
    use = operations[0].shared[0]
    items = [operation.shared[1] for operation in operations if operation.shared is not None]
    outcomes = _use_store(store, lambda store: use(store, items))
    for place, operation in enumerate(operations):
        operation.set_outcome(outcomes if isinstance(outcomes, Exception) else outcomes[place])


def _raise_error(outcome: T | Exception) -> T:
    """Return a result; raise what stands for it."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _nothing(_store: Any) -> Any:
    """Take the place of what an operation did, so that its parts can be freed."""


def _log_failure(operation: Operation[Any]) -> None:
    if operation.error is not None and not isinstance(operation.error, ServerError):
        cleanup.log_failure("an operation of the store", operation.error)


def _call_in_loop(loop: asyncio.AbstractEventLoop, act: Callable[[T], object], value: T) -> None:
    """Call a function in the thread of the event loop, unless the loop has ended (any thread)."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(act, value)
