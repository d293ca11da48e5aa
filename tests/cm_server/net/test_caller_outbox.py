"""The queue of a caller's messages: order, truncation and batching, without sockets."""

from __future__ import annotations

import pytest

from cloudmanager.protocol import wire
from cm_server.net.caller_outbox import CallerOutbox


def output(job: int, text: bytes = b"x") -> bytes:
    return wire.pack(wire.OUTPUT, text, job=job)


def value(job: int, text: bytes = b"x") -> bytes:
    return wire.pack(wire.VALUE, text, job=job)


def ended(job: int) -> bytes:
    return wire.pack_json(wire.ENDED, {"why": ""}, job=job)


def accepted(ref: int = 1) -> bytes:
    return wire.pack_json(wire.ACCEPTED, {}, job=ref)


def sent(outbox: CallerOutbox) -> list[list[bytes]]:
    """Return the messages of all frames."""
    frames = []
    while outbox:
        frames.append(outbox.next_frame())
    return frames


@pytest.fixture
def outbox() -> CallerOutbox:
    return CallerOutbox(max_output_bytes=100, max_frame_bytes=100)


# Order


def test_messages_keep_their_order_in_one_frame(outbox):
    messages = [output(1), output(2), ended(1)]
    assert all(outbox.add(message) for message in messages)
    assert sent(outbox) == [messages]
    assert not outbox
    assert outbox.next_frame() == []


def test_accepted_is_in_front_of_the_messages_of_its_jobs(outbox):
    outbox.add(output(9))
    place = outbox.announce(2)
    outbox.add(output(1))
    outbox.add(ended(2))
    outbox.accept(place, accepted())
    assert sent(outbox) == [[output(9), accepted(), output(1), ended(2)]]


def test_outbox_is_complete_when_all_jobs_have_ended(outbox):
    place = outbox.announce(2)
    outbox.accept(place, accepted())
    outbox.add(ended(1))
    assert not outbox.is_complete
    outbox.add(ended(2))
    assert outbox.is_complete


def test_outbox_is_not_complete_before_accepted(outbox):
    """Jobs may end while they are launched, and ACCEPTED goes in front of that."""
    place = outbox.announce(1)
    outbox.add(ended(1))
    assert not outbox.is_complete
    outbox.accept(place, accepted())
    assert outbox.is_complete


def test_cell_without_jobs_is_complete_with_accepted(outbox):
    outbox.accept(outbox.announce(0), accepted())
    assert outbox.is_complete
    assert sent(outbox) == [[accepted()]]


# Truncation


def test_output_beyond_the_limit_is_replaced_by_one_truncated(outbox):
    big = output(1, b"x" * 200)
    outbox.add(big)
    assert not any(outbox.add(output(1), droppable=True) for _ in range(50))
    assert sent(outbox) == [[big], [wire.pack(wire.TRUNCATED, job=1)]]


def test_output_and_value_of_each_job_are_marked_separately(outbox):
    outbox.add(output(1, b"x" * 200))
    for message in (output(1), output(2), value(1), value(1), output(2)):
        outbox.add(message, droppable=True)
    (_, marks) = sent(outbox)
    assert marks == [
        wire.pack(wire.TRUNCATED, job=1),
        wire.pack(wire.TRUNCATED, job=2),
        wire.pack(wire.TRUNCATED, job=1, flags=wire.VALUE_TRUNCATED),
    ]


def test_results_are_added_to_a_full_outbox(outbox):
    outbox.add(output(1, b"x" * 200))
    outbox.add(output(1), droppable=True)
    assert outbox.add(ended(1))
    assert sent(outbox)[1] == [wire.pack(wire.TRUNCATED, job=1), ended(1)]


def test_output_is_added_again_after_a_frame_was_sent(outbox):
    outbox.add(output(1, b"x" * 200))
    outbox.add(output(1), droppable=True)
    sent(outbox)
    assert outbox.add(output(1), droppable=True)
    outbox.add(output(1, b"x" * 200))
    outbox.add(output(1), droppable=True)
    assert sent(outbox)[-1] == [wire.pack(wire.TRUNCATED, job=1)]


def test_one_message_may_exceed_the_limit(outbox):
    assert outbox.add(output(1, b"x" * 500), droppable=True)


# Batching


@pytest.mark.parametrize("size", [1, 30, 50, 92, 93, 500])
def test_frames_are_bounded_and_contain_every_message_once(outbox, size):
    messages = [output(number, b"x" * size) for number in range(20)]
    for message in messages:
        outbox.add(message)
    assert outbox.pending_bytes == sum(map(len, messages))
    frames = sent(outbox)
    assert [message for frame in frames for message in frame] == messages
    for frame in frames:
        assert len(frame) == 1 or sum(map(len, frame)) <= 100
    assert outbox.pending_bytes == 0


def test_message_that_is_longer_than_a_frame_is_alone(outbox):
    messages = [output(1), output(2, b"x" * 500), output(3)]
    for message in messages:
        outbox.add(message)
    assert sent(outbox) == [[messages[0]], [messages[1]], [messages[2]]]
