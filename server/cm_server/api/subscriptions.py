"""Who watches which boards, and what they are told; no sockets, no SQL.

Changes are gathered and told a few times a second: of a board that changed often meanwhile, the
last state. What is emitted goes out with them. Who does not read is told the last state when he
does, and how many values he missed; he delays nobody.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.targets import Target
from cm_server import limits
from cm_server.jobs.registry import Board, Registry
from cm_server.sample_buffer import Sample

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Subscription:
    """What one caller watches.

    Args:
        ref: the caller's number for it.
        target: the boards, chosen anew at each update, there or not.
        reachable: the boards that the caller's token reaches, which may change.
        send: sends a message to the caller.
        is_ready: says whether the caller has read all that was sent.
    """

    def __init__(
        self,
        ref: int,
        target: Target,
        *,
        reachable: Mapping[str, Board],
        send: Callable[[bytes], None],
        is_ready: Callable[[], bool],
        samples: bool = True,
    ) -> None:
        self.ref = ref
        self._target = target
        self._reachable = reachable
        self._send = send
        self._is_ready = is_ready
        self._with_samples = samples
        self._sent_names: dict[str, str] = {}  # id -> the name that the caller knows it by
        self._changed: dict[Board, None] = {}
        self._samples: deque[tuple[Board, Sample]] = deque()
        self._dropped_samples = 0
        self._started = False

    @property
    def has_updates(self) -> bool:
        """Whether there is something to tell."""
        return not self._started or bool(self._changed or self._samples or self._dropped_samples)

    def add_changes(
        self, changed: Iterable[Board], samples: Iterable[tuple[Board, Sample]], left_out: int = 0
    ) -> None:
        """Note what happened."""
        self._changed.update(dict.fromkeys(changed))
        if not self._with_samples:
            return
        self._samples.extend(samples)
        self._dropped_samples += left_out
        while len(self._samples) > limits.SUBSCRIPTION_PENDING_SAMPLES:
            self._samples.popleft()
            self._dropped_samples += 1

    def send_update(self, board_json: dict[Board, str]) -> None:
        """Send pending changes if the caller has read the last message.

        ``board_json`` is a cache that all subscriptions share.
        """
        if not self.has_updates or not self._is_ready():
            return
        boards, gone = self._collect_boards(board_json)
        samples = [
            sample.to_json(board.name) for board, sample in self._samples if self._covers(board)
        ]
        whole = not self._started
        left_out, self._dropped_samples, self._started = self._dropped_samples, 0, True
        self._samples.clear()
        if not (whole or boards or gone or samples or left_out):
            return
        text = (
            f'{{"time":{time.time():.3f},"boards":[{",".join(boards)}],"gone":{_to_json(gone)},'
            f'"samples":[{",".join(samples)}],"left_out":{left_out}}}'
        )
        flags = wire.FULL_SNAPSHOT if whole else 0
        self._send(wire.pack(wire.CHANGES, text.encode(), job=self.ref, flags=flags))

    def _collect_boards(self, board_json: dict[Board, str]) -> tuple[list[str], list[str]]:
        """Return changed boards as JSON, and the names of those that are no more to be seen."""
        boards, gone = [], []
        for board in list(itertools.islice(self._changed, limits.SUBSCRIPTION_UPDATE_BOARDS)):
            del self._changed[board]
            known = self._sent_names.pop(board.id, None)
            sees = self._covers(board)
            if sees:
                if board not in board_json:
                    board_json[board] = _to_json(board.describe())
                boards.append(board_json[board])
                self._sent_names[board.id] = board.name
            if known is not None and not (sees and known == board.name):
                gone.append(known)
        return boards, gone

    def _covers(self, board: Board) -> bool:
        return self._reachable.get(board.name) is board and self._target.covers(board.name, board)


class Subscriptions:
    """All that is watched.

    Args:
        registry: the boards.
        call_later: calls a function after so many seconds.
    """

    def __init__(
        self, registry: Registry, call_later: Callable[[float, Callable[[], None]], Any]
    ) -> None:
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
        """Tell all that there is now, then what changes."""
        self._subscriptions.append(subscription)
        self._registry.subscriptions_listener = self._on_change
        subscription.add_changes(self._registry.by_name.values(), ())
        subscription.send_update({})
        self._schedule_tick()

    def remove(self, subscription: Subscription) -> None:
        """Tell no more."""
        self._subscriptions.remove(subscription)
        if not self._subscriptions:
            self._registry.subscriptions_listener = None

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Note that a board emitted something."""
        if not self._subscriptions:
            return
        if len(self._samples) < limits.SUBSCRIPTION_PENDING_SAMPLES:
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
            self._call_later(limits.SUBSCRIPTION_UPDATE_SECONDS, self._send_updates)

    def _send_updates(self) -> None:
        self._tick_scheduled = False
        changed, self._changed = self._changed, {}
        samples, self._samples = self._samples, []
        left_out, self._dropped_samples = self._dropped_samples, 0
        said: dict[Board, str] = {}
        for watch in self._subscriptions:
            watch.add_changes(changed, samples, left_out)
            watch.send_update(said)
        if any(watch.has_updates for watch in self._subscriptions):
            self._schedule_tick()
