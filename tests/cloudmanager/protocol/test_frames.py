"""WebSocket frames, checked against RFC 6455 and the `websockets` library."""

import contextlib
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode
from websockets.protocol import CLIENT, SERVER, Protocol, State

from cloudmanager.protocol import frames
from cloudmanager.protocol.frames import BINARY, CLOSE, PING, PONG, Frame, FrameError, FrameReader

MAX_SIZE = 100_000
SIZES = [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 128, 65_534, 65_535, 65_536, 65_537, MAX_SIZE]


def read(data, *, masked=False, max_size=MAX_SIZE):
    return list(FrameReader(max_size, masked=masked).feed(data))


def masked_frame(payload, opcode=Opcode.BINARY):
    """Return a frame made by `websockets`, with a random mask key."""
    return TheirFrame(opcode, payload).serialize(mask=True)


def strict_peer(side):
    """Return a `websockets` protocol object, as the other end of an open link."""
    return Protocol(side, state=State.OPEN, max_size=None)


# What we send


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "8200"),
        (125, "827d"),
        (126, "827e007e"),
        (65_535, "827effff"),
        (65_536, "827f0000000000010000"),
    ],
)
def test_length_takes_7_16_or_64_bits(size, head):
    assert frames.encode_frame(bytes(size)) == bytes.fromhex(head) + bytes(size)


@pytest.mark.parametrize(
    ("size", "head"),
    [(5, "828500000000"), (126, "82fe007e00000000"), (65_536, "82ff000000000001000000000000")],
)
def test_mask_is_the_zero_key(size, head):
    assert frames.encode_frame(bytes(size), mask=True) == bytes.fromhex(head) + bytes(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [SERVER, CLIENT])
def test_other_implementation_reads_our_frames(side, size):
    peer = strict_peer(side)
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    peer.receive_data(frames.encode_frame(payload, mask=side is SERVER))
    assert peer.parser_exc is None
    assert [(e.opcode, e.data) for e in peer.events_received()] == [(Opcode.BINARY, payload)]


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_other_implementation_reads_our_ping_and_pong(opcode):
    peer = strict_peer(SERVER)
    peer.receive_data(frames.encode_frame(b"beat", opcode, mask=True))
    assert [(e.opcode, e.data) for e in peer.events_received()] == [(opcode, b"beat")]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (1000, "", "done"),
        (1001, "the server stops", "the server stops"),
        (4001, "é" * 100, "é" * 61),
        (1002, "x" * 200, "x" * 123),
    ],
)
def test_close_reason_is_cut_between_characters(code, reason, expected):
    peer = strict_peer(CLIENT)
    peer.receive_data(frames.encode_close_frame(code, reason))
    assert peer.close_rcvd is not None
    assert (peer.close_rcvd.code, peer.close_rcvd.reason or "done") == (code, expected)


def test_close_without_a_code_is_answered_without_a_code():
    """1005 stands for a missing code and must not be sent (RFC 6455, 7.4.1)."""
    assert frames.encode_close_frame(frames.read_close_code(b"")) == bytes((0x88, 0))


def test_accept_key_of_the_rfc_example():
    assert frames.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_accept_key_accepts_any_text():
    assert frames.accept_key("日本") == frames.accept_key("??")


# What we read


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_a_masking_peer_are_read(size):
    payload = bytes(index % 251 for index in range(size))
    assert read(masked_frame(payload), masked=True) == [Frame(BINARY, payload)]


@pytest.mark.parametrize("masked", [False, True])
def test_frames_are_read_byte_by_byte(masked):
    reader = FrameReader(MAX_SIZE, masked=masked)
    payloads = [b"", b"one", bytes(126), bytes(65_536)]
    data = b"".join(TheirFrame(Opcode.BINARY, p).serialize(mask=masked) for p in payloads)
    found = [frame for byte in data for frame in reader.feed(bytes((byte,)))]
    assert found == [Frame(BINARY, payload) for payload in payloads]


def test_several_frames_in_one_piece_are_read():
    data = b"".join(
        frames.encode_frame(payload, opcode)
        for opcode, payload in [(PING, b"1"), (BINARY, b"2"), (PONG, b"3"), (CLOSE, b"\x03\xe8")]
    )
    assert read(data) == [
        Frame(PING, b"1"),
        Frame(BINARY, b"2"),
        Frame(PONG, b"3"),
        Frame(CLOSE, b"\x03\xe8"),
    ]


def test_reader_that_stops_early_continues_with_the_next_frame():
    reader = FrameReader(MAX_SIZE, masked=False)
    taken = reader.feed(
        frames.encode_frame(b"1") + frames.encode_frame(b"2") + frames.encode_frame(b"3")
    )
    assert next(taken) == Frame(BINARY, b"1")
    del taken
    assert list(reader.feed(b"")) == [Frame(BINARY, b"2"), Frame(BINARY, b"3")]


@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans(), st.data())
@settings(max_examples=60)
def test_frames_are_read_however_they_are_split(payloads, mask, data):
    stream = b"".join(frames.encode_frame(payload, mask=mask) for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = FrameReader(MAX_SIZE, masked=mask)
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found = [frame for piece in pieces for frame in reader.feed(piece)]
    assert found == [Frame(BINARY, payload) for payload in payloads]


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
@settings(max_examples=60)
def test_any_mask_is_removed(payload, key):
    mixed = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    head = frames.frame_header(BINARY, len(payload), mask=True)[:-4]
    assert read(head + key + mixed, masked=True) == [Frame(BINARY, payload)]


@given(st.binary(max_size=40))
@settings(max_examples=300)
def test_random_bytes_give_frames_or_a_frame_error(data):
    with contextlib.suppress(FrameError):
        found = read(data, masked=True)
        assert all(frame.opcode in (BINARY, CLOSE, PING, PONG) for frame in found)


# What we refuse


def head(first, second, rest=""):
    return bytes((first, second)) + bytes.fromhex(rest)


@pytest.mark.parametrize(
    ("data", "close_code"),
    [
        pytest.param(head(0xC2, 0x00), 1002, id="reserved bit 1"),
        pytest.param(head(0xA2, 0x00), 1002, id="reserved bit 2"),
        pytest.param(head(0x92, 0x00), 1002, id="reserved bit 3"),
        pytest.param(head(0x82, 0x80), 1002, id="a mask from a server"),
        pytest.param(head(0x81, 0x00), 1003, id="text"),
        pytest.param(head(0x02, 0x00), 1003, id="a fragment"),
        pytest.param(head(0x80, 0x00), 1002, id="the end of no fragments"),
        pytest.param(head(0x83, 0x00), 1002, id="an opcode without a meaning"),
        pytest.param(head(0x8B, 0x00), 1002, id="a control opcode without a meaning"),
        pytest.param(head(0x09, 0x00), 1002, id="a control frame in fragments"),
        pytest.param(head(0x89, 126, "007e"), 1002, id="a ping above 125 bytes"),
        pytest.param(head(0x82, 126, "007d"), 1002, id="16 bits for what fits in 7"),
        pytest.param(head(0x82, 127, "000000000000ffff"), 1002, id="64 bits for what fits in 16"),
        pytest.param(head(0x82, 127, "00000000000186a1"), 1009, id="one byte too long"),
        pytest.param(head(0x82, 127, "8000000000000000"), 1009, id="2^63 bytes"),
        pytest.param(head(0x88, 1, "03"), 1002, id="half a close code"),
        pytest.param(head(0x88, 2, "03e7"), 1002, id="close code 999"),
        pytest.param(head(0x88, 2, "03ec"), 1002, id="close code 1004"),
        pytest.param(head(0x88, 2, "03ed"), 1002, id="close code 1005"),
        pytest.param(head(0x88, 2, "03ee"), 1002, id="close code 1006"),
        pytest.param(head(0x88, 2, "1388"), 1002, id="close code 5000"),
        pytest.param(head(0x88, 3, "03e8ff"), 1007, id="a close reason that is not UTF-8"),
    ],
)
def test_forbidden_frame_is_refused_with_its_close_code(data, close_code):
    with pytest.raises(FrameError) as caught:
        read(data)
    assert caught.value.close_code == close_code


def test_unmasked_frame_is_refused():
    with pytest.raises(FrameError, match="must mask") as caught:
        read(frames.encode_frame(b"x"), masked=True)
    assert caught.value.close_code == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4003, 4999])
def test_valid_close_codes_are_accepted(code):
    payload = struct.pack(">H", code) + "schön".encode()
    assert [
        frames.read_close_code(f.payload) for f in read(frames.encode_frame(payload, CLOSE))
    ] == [code]


def test_frames_before_a_broken_one_are_still_read():
    reader = FrameReader(MAX_SIZE, masked=False)
    taken = reader.feed(frames.encode_frame(b"good") + head(0xFF, 0xFF))
    assert next(taken) == Frame(BINARY, b"good")
    with pytest.raises(FrameError):
        next(taken)


def test_message_of_the_greatest_length_is_accepted():
    assert read(frames.encode_frame(bytes(10)), max_size=10) == [Frame(BINARY, bytes(10))]


def test_too_long_frame_is_refused_before_its_payload_is_received():
    """A header of ten bytes must not make the reader wait for 2^63 bytes."""
    reader = FrameReader(MAX_SIZE, masked=True)
    declared = head(0x82, 0xFF, "7fffffffffffffff")
    assert list(reader.feed(declared[:9])) == []
    with pytest.raises(FrameError, match="9223372036854775807 bytes") as caught:
        list(reader.feed(declared[9:]))
    assert caught.value.close_code == 1009


def test_refusals_are_peer_wire_errors():
    error = FrameError("reserved bits are set")
    assert str(error) == (
        "reserved bits are set. The link was closed. If this happens again, update the older side."
    )


def test_own_close_codes_are_documented():
    """docs/protocol.md has them for boards and callers that are written in other languages."""
    text = (Path(__file__).parents[3] / "docs/protocol.md").read_text(encoding="utf-8")
    documented = set(map(int, re.findall(r"\b4\d{3}\b", text)))
    codes = {name: code for name, code in vars(frames).items() if name.startswith("CLOSE_")}
    assert documented == {code for code in codes.values() if code >= 4000}
