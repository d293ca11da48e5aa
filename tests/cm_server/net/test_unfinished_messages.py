"""Messages that have begun to arrive: bounded per token and in all, and each is completed."""

from __future__ import annotations

from collections.abc import Callable

from cm_server.limits import Limits
from cm_server.net.unfinished_messages import UnfinishedMessages
from cm_server.store.rows import TokenRow

ANN = TokenRow("a" * 64, "ann", "viewer")
BEN = TokenRow("b" * 64, "ben", "viewer")
CAT = TokenRow("c" * 64, "cat", "admin")
LIMITS = Limits(
    unfinished_bytes=100,
    unfinished_token_bytes=50,
    reserved_unfinished_bytes=20,
    free_unfinished_bytes=10,
    message_stall_seconds=4.0,
)


class Rig:
    """Unfinished messages, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Callable[[], None]] = []
        self.messages = UnfinishedMessages(
            LIMITS, lambda _seconds, act: self.timers.append(act), lambda: self.now
        )

    def tick(self, seconds: float) -> None:
        self.now += seconds
        timers, self.timers = self.timers, []
        for act in timers:
            act()


class Link:
    def __init__(self, rig: Rig, token: TokenRow) -> None:
        self.token = token
        self.tries = 0
        self.closed = ""
        self._messages = rig.messages

    def receive(self, size: int) -> bool:
        """Have this many bytes of a message; return whether more may be read."""
        return self._messages.update(self, size)

    def continue_message(self) -> None:
        self.tries += 1

    def close(self, code: int, reason: str) -> None:
        self.closed = reason
        self.receive(0)


def test_small_messages_do_not_count():
    rig = Rig()
    assert all(Link(rig, ANN).receive(10) for _ in range(100))
    assert rig.messages.total_bytes == 0


def test_first_message_of_a_token_is_completed_and_others_wait():
    rig = Rig()
    first, second, of_ben = Link(rig, ANN), Link(rig, ANN), Link(rig, BEN)
    assert first.receive(55)
    assert not second.receive(20)
    assert first.receive(60)
    assert of_ben.receive(20)
    assert rig.messages.total_bytes == 70
    of_ben.receive(21)
    assert second.tries == 0
    first.receive(0)
    assert second.tries == 1
    assert second.receive(55)
    assert rig.messages.total_bytes == 56


def test_part_is_reserved_for_administrators():
    rig = Rig()
    of_ann, of_ben, of_cat = Link(rig, ANN), Link(rig, BEN), Link(rig, CAT)
    assert of_ann.receive(60)
    assert of_ben.receive(40)
    assert not of_ben.receive(41)
    assert of_ann.receive(60)  # it began first
    assert of_cat.receive(29)


def test_closed_link_is_forgotten():
    rig = Rig()
    link = Link(rig, ANN)
    link.receive(60)
    link.receive(0)
    link.receive(0)
    assert rig.messages.total_bytes == 0


def test_link_without_progress_is_closed_while_others_wait():
    rig = Rig()
    stalled, waiting = Link(rig, ANN), Link(rig, ANN)
    stalled.receive(55)
    assert not waiting.receive(20)
    rig.tick(2.0)
    assert stalled.receive(56)  # it makes progress
    rig.tick(2.0)
    assert stalled.closed == ""
    rig.tick(2.0)
    assert stalled.closed == "a message made no progress while others waited"
    assert (waiting.closed, waiting.tries) == ("", 1)
    assert waiting.receive(20)
    rig.tick(60.0)
    assert waiting.closed == ""  # nobody waits for it
