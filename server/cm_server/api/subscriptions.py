"""Subscriptions: callers that watch boards receive changes, samples and logs.

Changes are collected and sent a few times a second: for a board that changed several times, only
the last state. Samples and logs are sent with them. A caller that does not read receives the last
state when it reads again, and how many samples and log texts it missed; it does not delay others.
No sockets, no SQL.
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
from cm_server.board_logs import LogText
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.quotas import Quota, Shares
from cm_server.sample_buffer import Sample
from cm_server.store.rows import TokenRow

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class WatchRequest(NamedTuple):
    """What a caller wants to watch.

    Attributes:
        ref: the caller's number for the subscription.
        target: selects the boards, connected or not; evaluated again at each update.
        reachable: the boards that the caller's token covers, by name; a view that may change.
        samples: whether the caller wants the samples that boards emit.
        logs: whether the caller wants what boards print outside of cells.
    """

    ref: int
    target: Target
    reachable: Mapping[str, Board]
    samples: bool = True
    logs: bool = False


class NewData(NamedTuple):
    """What boards have sent since the last update, each piece with its board.

    Attributes:
        samples: the samples.
        logs: the texts.
        dropped_samples: how many samples were dropped before.
        dropped_logs: how many texts were dropped before.
    """

    samples: Iterable[tuple[Board, Sample]] = ()
    logs: Iterable[tuple[Board, LogText]] = ()
    dropped_samples: int = 0
    dropped_logs: int = 0


NO_DATA = NewData()


class Subscription:
    """The boards that one caller watches, and what it has not been sent yet.

    Args:
        request: what the caller wants.
        owner: the hash of the caller's token.
        send: sends a message to the caller.
        is_ready: returns whether the caller has read everything that was sent.
        limits: how much is sent in an update, and pending.

    Attributes:
        with_logs: whether the caller wants what boards print outside of cells.
    """

    def __init__(
        self,
        request: WatchRequest,
        *,
        owner: str,
        send: Callable[[bytes], None],
        is_ready: Callable[[], bool],
        limits: Limits,
    ) -> None:
        self.owner = owner
        self.ref, self._target, self._reachable, self._with_samples, self.with_logs = request
        self._send = send
        self._is_ready = is_ready
        self._limits = limits
        self._sent_names: dict[str, str] = {}  # board id -> name, as last sent
        self._changed: dict[Board, None] = {}
        self._samples: deque[tuple[Board, Sample]] = deque()
        self._logs: deque[tuple[Board, LogText]] = deque()
        self._log_chars = 0
        self._dropped_samples = self._dropped_logs = 0
        self._started = False

    @property
    def has_updates(self) -> bool:
        """Whether there is something to send."""
        dropped = self._dropped_samples or self._dropped_logs
        return not self._started or bool(self._changed or self._samples or self._logs or dropped)

    def add_changes(self, changed: Iterable[Board], data: NewData = NO_DATA) -> None:
        """Add changed boards, new samples and log texts to what is pending.

        Args:
            changed: boards; duplicates are merged.
            data: the samples and texts.
        """
        self._changed.update(dict.fromkeys(changed))
        if self._with_samples:
            self._samples.extend(data.samples)
            self._dropped_samples += data.dropped_samples
        while len(self._samples) > self._limits.subscription_pending_samples:
            self._samples.popleft()
            self._dropped_samples += 1
        if self.with_logs:
            self._dropped_logs += data.dropped_logs
            for each in data.logs:
                self._logs.append(each)
                self._log_chars += self._log_cost(each[1])
        while self._log_chars > self._limits.subscription_pending_log_chars:
            self._log_chars -= self._log_cost(self._logs.popleft()[1])
            self._dropped_logs += 1

    def _log_cost(self, text: LogText) -> int:
        """Return as how many characters a text counts: a short one needs memory, too."""
        return max(len(text.text), self._limits.log_min_chars)

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
        logs = [[board.name, *text] for board, text in self._logs if self._covers(board)]
        dropped = {"left_out": self._dropped_samples, "logs_left_out": self._dropped_logs}
        is_first = not self._started
        self._samples.clear()
        self._logs.clear()
        self._log_chars = self._dropped_samples = self._dropped_logs = 0
        self._started = True
        if not (is_first or boards or removed or samples or logs or any(dropped.values())):
            return
        text = (
            f'{{"time":{time.time():.3f},"boards":[{",".join(boards)}],"gone":{_to_json(removed)},'
            f'"samples":[{",".join(samples)}],"logs":{_to_json(logs)},{_to_json(dropped)[1:]}'
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

    Attributes:
        on_logs_followed: called with whether any subscription wants logs, after each change of it.
    """

    def __init__(
        self,
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], Any],
        limits: Limits,
    ) -> None:
        self._limits = limits
        self.on_logs_followed: Callable[[bool], None] = lambda _is_followed: None
        self._log_followers = 0
        self._registry = registry
        self._call_later = call_later
        self._tick_scheduled = False
        self._subscriptions: list[Subscription] = []
        self._shares = Shares(
            Quota(
                "subscriptions",
                total=limits.subscriptions,
                per_token=limits.subscriptions_per_token,
                reserved=limits.reserved_subscriptions,
            )
        )
        self._changed: dict[Board, None] = {}
        self._samples: list[tuple[Board, Sample]] = []
        self._logs: list[tuple[Board, LogText]] = []
        self._log_chars = 0
        self._dropped_samples = self._dropped_logs = 0

    def __len__(self) -> int:
        return len(self._subscriptions)

    def refusal_reason(self, token: TokenRow) -> str:
        """Return why a token may not have another subscription; "" if it may."""
        return self._shares.refusal_reason(token)

    def add(self, subscription: Subscription) -> None:
        """Add a subscription: the caller receives all its boards now, and changes later."""
        self._subscriptions.append(subscription)
        self._shares.add(subscription.owner)
        self._registry.subscriptions_listener = self._on_change
        self._count_log_followers()
        subscription.add_changes(self._registry.by_name.values())
        subscription.send_update({})
        self._schedule_tick()

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription."""
        self._subscriptions.remove(subscription)
        self._shares.add(subscription.owner, -1)
        self._count_log_followers()
        if not self._subscriptions:
            self._registry.subscriptions_listener = None

    def _count_log_followers(self) -> None:
        before = self._log_followers
        self._log_followers = sum(each.with_logs for each in self._subscriptions)
        if bool(before) != bool(self._log_followers):
            self.on_logs_followed(bool(self._log_followers))

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Record a sample of a board, for the next update."""
        if not self._subscriptions:
            return
        if len(self._samples) < self._limits.subscription_pending_samples:
            self._samples.append((board, sample))
        else:
            self._dropped_samples += 1
        self._schedule_tick()

    def on_log(self, board: Board, text: LogText) -> None:
        """Record what a board printed, for the next update."""
        if not self._subscriptions:
            return
        if self._log_chars < self._limits.subscription_pending_log_chars:
            self._logs.append((board, text))
            self._log_chars += max(len(text.text), self._limits.log_min_chars)
        else:
            self._dropped_logs += 1
        self._schedule_tick()

    def on_logs_left_out(self, count: int) -> None:
        """Count texts that were dropped before they came here."""
        self._dropped_logs += count
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
        data = NewData(self._samples, self._logs, self._dropped_samples, self._dropped_logs)
        self._samples, self._logs = [], []
        self._log_chars = self._dropped_samples = self._dropped_logs = 0
        board_json: dict[Board, str] = {}
        for subscription in self._subscriptions:
            subscription.add_changes(changed, data)
            subscription.send_update(board_json)
        if any(subscription.has_updates for subscription in self._subscriptions):
            self._schedule_tick()
