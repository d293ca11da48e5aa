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


class Watch:
    """What one caller watches.

    Args:
        ref: the caller's number for it.
        target: the boards, chosen anew at each update, there or not.
        reach: the boards that the caller's token reaches, which may change.
        send: sends a message to the caller.
        ready: says whether the caller has read all that was sent.
    """

    def __init__(
        self,
        ref: int,
        target: Target,
        *,
        reach: Mapping[str, Board],
        send: Callable[[bytes], None],
        ready: Callable[[], bool],
        samples: bool = True,
    ) -> None:
        self.ref = ref
        self._target = target
        self._reach = reach
        self._send = send
        self._ready = ready
        self._with_samples = samples
        self._shown: dict[str, str] = {}  # id -> the name that the caller knows it by
        self._changed: dict[Board, None] = {}
        self._samples: deque[tuple[Board, Sample]] = deque()
        self._left_out = 0
        self._begun = False

    @property
    def waits(self) -> bool:
        """Whether there is something to tell."""
        return not self._begun or bool(self._changed or self._samples or self._left_out)

    def take(
        self, changed: Iterable[Board], samples: Iterable[tuple[Board, Sample]], left_out: int = 0
    ) -> None:
        """Note what happened."""
        self._changed.update(dict.fromkeys(changed))
        if not self._with_samples:
            return
        self._samples.extend(samples)
        self._left_out += left_out
        while len(self._samples) > limits.WATCH_SAMPLES:
            self._samples.popleft()
            self._left_out += 1

    def tell(self, said: dict[Board, str]) -> None:
        """Send what there is to tell, if the caller has read the last; ``said`` is for all."""
        if not self.waits or not self._ready():
            return
        boards, gone = self._look(said)
        samples = [sample.text(board.name) for board, sample in self._samples if self._sees(board)]
        whole = not self._begun
        left_out, self._left_out, self._begun = self._left_out, 0, True
        self._samples.clear()
        if not (whole or boards or gone or samples or left_out):
            return
        text = (
            f'{{"time":{time.time():.3f},"boards":[{",".join(boards)}],"gone":{_to_json(gone)},'
            f'"samples":[{",".join(samples)}],"left_out":{left_out}}}'
        )
        flags = wire.WHOLE if whole else 0
        self._send(wire.pack(wire.CHANGES, text.encode(), job=self.ref, flags=flags))

    def _look(self, said: dict[Board, str]) -> tuple[list[str], list[str]]:
        """Return changed boards as JSON, and the names of those that are no more to be seen."""
        boards, gone = [], []
        for board in list(itertools.islice(self._changed, limits.WATCH_BOARDS)):
            del self._changed[board]
            known = self._shown.pop(board.id, None)
            sees = self._sees(board)
            if sees:
                if board not in said:
                    said[board] = _to_json(board.describe())
                boards.append(said[board])
                self._shown[board.id] = board.name
            if known is not None and not (sees and known == board.name):
                gone.append(known)
        return boards, gone

    def _sees(self, board: Board) -> bool:
        return self._reach.get(board.name) is board and self._target.covers(board.name, board)


class Watches:
    """All that is watched.

    Args:
        registry: the boards.
        later: calls a function after so many seconds.
    """

    def __init__(
        self, registry: Registry, later: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self._registry = registry
        self._later = later
        self._soon = False
        self._watches: list[Watch] = []
        self._changed: dict[Board, None] = {}
        self._samples: list[tuple[Board, Sample]] = []
        self._left_out = 0

    def __len__(self) -> int:
        return len(self._watches)

    def begin(self, watch: Watch) -> None:
        """Tell all that there is now, then what changes."""
        self._watches.append(watch)
        self._registry.on_change = self._on_change
        watch.take(self._registry.by_name.values(), ())
        watch.tell({})
        self._wake()

    def end(self, watch: Watch) -> None:
        """Tell no more."""
        self._watches.remove(watch)
        if not self._watches:
            self._registry.on_change = None

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Note that a board emitted something."""
        if not self._watches:
            return
        if len(self._samples) < limits.WATCH_SAMPLES:
            self._samples.append((board, sample))
        else:
            self._left_out += 1
        self._wake()

    def _on_change(self, board: Board) -> None:
        self._changed[board] = None
        self._wake()

    def _wake(self) -> None:
        if not self._soon:
            self._soon = True
            self._later(limits.WATCH_SECONDS, self._tick)

    def _tick(self) -> None:
        self._soon = False
        changed, self._changed = self._changed, {}
        samples, self._samples = self._samples, []
        left_out, self._left_out = self._left_out, 0
        said: dict[Board, str] = {}
        for watch in self._watches:
            watch.take(changed, samples, left_out)
            watch.tell(said)
        if any(watch.waits for watch in self._watches):
            self._wake()
