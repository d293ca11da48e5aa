"""Subscriptions: callers that watch boards receive changes and samples. No sockets, no SQL.

Changes are collected and sent a few times a second: for a board that changed several times, only
the last state. Samples are sent with them. A caller that does not read receives the last state when
it reads again, and the number of samples that it missed; it does not delay others.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.targets import Target
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.sample_buffer import Sample

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class WatchRequest(NamedTuple):
    """What a caller wants to watch.

    Attributes:
        ref: the caller's number for the subscription.
        target: selects the boards, connected or not; evaluated again at each update.
        reachable: the boards that the caller's token covers, by name; a view that may change.
        samples: whether the caller wants the samples that boards emit.
    """

    ref: int
    target: Target
    reachable: Mapping[str, Board]
    samples: bool = True


class Subscription:
    """The boards that one caller watches, and what it has not been sent yet.

    Args:
        request: what the caller wants.
        send: sends a message to the caller.
        is_ready: returns whether the caller has read everything that was sent.
        limits: how much is sent in an update, and pending.
    """

    def __init__(
        self,
        request: WatchRequest,
        *,
        send: Callable[[bytes], None],
        is_ready: Callable[[], bool],
        limits: Limits,
    ) -> None:
        self.ref, self._target, self._reachable, self._with_samples = request
        self._send = send
        self._is_ready = is_ready
        self._limits = limits
        self._sent_names: dict[str, str] = {}  # board id -> name, as last sent
        self._changed: dict[Board, None] = {}
        self._samples: deque[tuple[Board, Sample]] = deque()
        self._dropped_samples = 0
        self._started = False

    @property
    def has_updates(self) -> bool:
        """Whether there is something to send."""
        return not self._started or bool(self._changed or self._samples or self._dropped_samples)

    def add_changes(
        self, changed: Iterable[Board], samples: Iterable[tuple[Board, Sample]], dropped: int = 0
    ) -> None:
        """Add changed boards and new samples to what is pending.

        Args:
            changed: boards; duplicates are merged.
            samples: each with its board.
            dropped: the number of samples that were dropped before.
        """
        self._changed.update(dict.fromkeys(changed))
        if not self._with_samples:
            return
        self._samples.extend(samples)
        self._dropped_samples += dropped
        while len(self._samples) > self._limits.subscription_pending_samples:
            self._samples.popleft()
            self._dropped_samples += 1

    def send_update(self, board_json: dict[Board, str]) -> None:
        """Send pending changes and samples if the caller has read the last message.

        Args:
            board_json: the boards' states in JSON, a cache that all subscriptions share.
        """
        if not self.has_updates or not self._is_ready():
            return
        boards, removed = self._collect_boards(board_json)
        samples = [
            sample.to_json(board.name) for board, sample in self._samples if self._covers(board)
        ]
        dropped = self._dropped_samples
        is_first = not self._started
        self._samples.clear()
        self._dropped_samples = 0
        self._started = True
        if not (is_first or boards or removed or samples or dropped):
            return
        text = (
            f'{{"time":{time.time():.3f},"boards":[{",".join(boards)}],"gone":{_to_json(removed)},'
            f'"samples":[{",".join(samples)}],"left_out":{dropped}}}'
        )
        flags = wire.FULL_SNAPSHOT if is_first else 0
        self._send(wire.pack(wire.CHANGES, text.encode(), job=self.ref, flags=flags))

    def _collect_boards(self, board_json: dict[Board, str]) -> tuple[list[str], list[str]]:
        """Take changed boards from what is pending, a bounded number at a time.

        Returns:
            The boards in JSON, and names that the caller knows and that no longer stand for a
            visible board: it was removed, renamed, or is not selected any more.
        """
        boards, removed = [], []
        for board in list(itertools.islice(self._changed, self._limits.subscription_update_boards)):
            del self._changed[board]
            sent_name = self._sent_names.pop(board.id, None)
            visible = self._covers(board)
            if visible:
                if board not in board_json:
                    board_json[board] = _to_json(board.describe())
                boards.append(board_json[board])
                self._sent_names[board.id] = board.name
            if sent_name is not None and not (visible and sent_name == board.name):
                removed.append(sent_name)
        return boards, removed

    def _covers(self, board: Board) -> bool:
        """Return whether the caller may see a board and has selected it."""
        return self._reachable.get(board.name) is board and self._target.covers(board.name, board)


class Subscriptions:
    """All subscriptions of all callers.

    Args:
        registry: the boards; it is listened to only while there are subscriptions.
        call_later: calls a function after a number of seconds.
        limits: the time between updates, and how much is pending.
    """

    def __init__(
        self,
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], Any],
        limits: Limits,
    ) -> None:
        self._limits = limits
        self._registry = registry
        self._call_later = call_later
        self._tick_scheduled = False
        self._subscriptions: list[Subscription] = []
        self._changed: dict[Board, None] = {}
        self._samples: list[tuple[Board, Sample]] = []
        self._dropped_samples = 0

    def __len__(self) -> int:
        return len(self._subscriptions)

    def add(self, subscription: Subscription) -> None:
        """Add a subscription: the caller receives all its boards now, and changes later."""
        self._subscriptions.append(subscription)
        self._registry.subscriptions_listener = self._on_change
        subscription.add_changes(self._registry.by_name.values(), ())
        subscription.send_update({})
        self._schedule_tick()

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription."""
        self._subscriptions.remove(subscription)
        if not self._subscriptions:
            self._registry.subscriptions_listener = None

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Record a sample of a board, for the next update."""
        if not self._subscriptions:
            return
        if len(self._samples) < self._limits.subscription_pending_samples:
            self._samples.append((board, sample))
        else:
            self._dropped_samples += 1
        self._schedule_tick()

    def _on_change(self, board: Board) -> None:
        self._changed[board] = None
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        if not self._tick_scheduled:
            self._tick_scheduled = True
            self._call_later(self._limits.subscription_update_seconds, self._send_updates)

    def _send_updates(self) -> None:
        self._tick_scheduled = False
        changed, self._changed = self._changed, {}
        samples, self._samples = self._samples, []
        dropped, self._dropped_samples = self._dropped_samples, 0
        board_json: dict[Board, str] = {}
        for subscription in self._subscriptions:
            subscription.add_changes(changed, samples, dropped)
            subscription.send_update(board_json)
        if any(subscription.has_updates for subscription in self._subscriptions):
            self._schedule_tick()
