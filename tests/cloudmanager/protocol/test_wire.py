"""Encoding and decoding of every message, against docs/protocol.md and the golden vectors."""

import json
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError
from cloudmanager.protocol.wire import Message, pack, pack_json, unpack

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/wire_vectors/messages.json").read_text(encoding="utf-8"))
PROTOCOL = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")

#: Op, name and sender of each message; ANSWER stands there twice, being one op on both links.
ROWS = re.findall(
    r"^\| (0x[0-9a-f]{2}) \| ([A-Z_]+) \|(?: (board|server|caller) \|)?", PROTOCOL, re.M
)
BODIES = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


def message(vector):
    return unpack(bytes.fromhex(vector["hex"]))


def vectors(*names):
    chosen = [vector for vector in VECTORS if vector["name"] in names]
    return pytest.mark.parametrize("vector", chosen, ids=lambda vector: vector["what"])


# The list of messages


def own_ops():
    """Return the ops that ``wire`` defines, by name."""
    text = Path(wire.__file__).read_text(encoding="utf-8")
    block = text[text.index("# A board's link") : text.index("TOP_LEVEL_AWAIT")]
    return {
        name: int(value, 16)
        for name, value in re.findall(r"^([A-Z_]+): Final = (0x..)", block, re.M)
    }


def test_protocol_md_lists_every_op_with_its_number():
    assert {name: int(number, 16) for number, name, _ in ROWS} == own_ops()


def test_every_op_has_its_own_number_and_a_golden_vector():
    ops = own_ops()
    assert len(set(ops.values())) == len(ops)
    assert {vector["name"] for vector in VECTORS} == set(ops)


def test_board_ops_are_those_of_protocol_md():
    documented = {int(number, 16) for number, _, sender in ROWS if sender == "board"}
    assert set().union(*wire.BOARD_OPS_BY_STATE.values()) == documented


@pytest.mark.parametrize("state", wire.BOARD_OPS_BY_STATE)
def test_ops_not_allowed_in_the_link_state_are_refused(state):
    for op in range(256):
        if op in wire.BOARD_OPS_BY_STATE[state]:
            wire.check_op(state, Message(op, 0, 0, b""))
        else:
            with pytest.raises(PeerWireError, match=f"{state} may not send op 0x{op:02x}"):
                wire.check_op(state, Message(op, 0, 0, b""))


def test_protocol_md_lists_every_status():
    listed = PROTOCOL[PROTOCOL.index("Status: 0") :]
    for number, status in enumerate(wire.STATUSES):
        assert f"{number} `{status}`" in listed


# Golden vectors


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_header_matches_the_golden_vector(vector):
    found = message(vector)
    assert (found.op, found.flags, found.job) == (vector["op"], vector["flags"], vector["job"])
    assert vector["op"] == getattr(wire, vector["name"])
    assert pack(found.op, found.payload, job=found.job, flags=found.flags).hex() == vector["hex"]


@vectors("WELCOME", "REQUEST", "REPLY", "ACCEPTED", "WATCH", "CHANGES")
def test_golden_json(vector):
    assert wire.read_json(message(vector).payload) == vector["means"]
    made = pack_json(vector["op"], vector["means"], job=vector["job"], flags=vector["flags"])
    assert made.hex() == vector["hex"]


@vectors("READ")
def test_golden_read(vector):
    means = vector["means"]
    request = wire.ReadRequest(
        means["number"], means["offset"], means["size"], means["path"].encode()
    )
    assert wire.read_read_request(message(vector)) == request
    assert wire.pack_read_request(request, job=vector["job"]).hex() == vector["hex"]
    with pytest.raises(PeerWireError, match="READ is malformed"):
        wire.read_read_request(Message(wire.READ, 0, 1, bytes(11)))


@vectors("BLOCK")
def test_golden_block(vector):
    number, data = vector["means"]["number"], vector["means"]["data"].encode()
    assert wire.read_block(message(vector)) == (number, data)
    made = wire.pack_block(number, data, job=vector["job"], flags=vector["flags"])
    assert made.hex() == vector["hex"]
    with pytest.raises(PeerWireError, match="BLOCK is malformed"):
        wire.read_block(Message(wire.BLOCK, 0, 1, bytes(3)))


@vectors("ENDED")
def test_golden_ended(vector):
    status, means = wire.STATUSES[vector["flags"]], wire.read_json(message(vector).payload)
    assert {"status": status, **means} == vector["means"]


@vectors("EXEC", "MORE")
def test_golden_exec_and_more(vector):
    means = vector["means"]
    head = wire.ExecHead(means.get("timeout_ms", 0), means.get("awaits", False))
    code = means["code"].encode()
    made = wire.exec_messages(vector["job"], code, head, buffer_size=means["buffer_size"])
    assert vector["hex"] in [part.hex() for part in made]


@vectors("ANSWER", "OUTPUT", "VALUE", "INPUT", "PROGRAM")
def test_golden_text(vector):
    means = vector["means"]
    assert message(vector).payload.decode() == means["text"]
    nobody = vector["op"] == wire.ANSWER and bool(vector["flags"] & wire.INPUT_EOF)
    assert nobody == means.get("nobody", False)


@vectors("INTERRUPT", "RESET", "STARTED", "TRUNCATED", "UNWATCH")
def test_golden_message_without_payload(vector):
    assert message(vector).payload == b""


@vectors("RESULT")
def test_golden_result(vector):
    found = wire.read_result(message(vector))
    means = vector["means"]
    assert found.status == means["status"]
    assert (found.output.decode(), found.value_or_traceback.decode()) == (
        means["output"],
        means["rest"],
    )
    assert found.truncated is means["cut"]


@vectors("EMIT")
def test_golden_emit(vector):
    ticks, missed, values, _ = wire.read_emit(message(vector))
    assert {"ticks": ticks, "missed": missed, "values": json.loads(values)} == vector["means"]
    assert values.isascii()


@vectors("SLEEP")
def test_golden_sleep(vector):
    assert wire.read_sleep(message(vector))._asdict() == vector["means"]


@vectors("TIME")
def test_golden_time(vector):
    means = vector["means"]
    asked = message(vector)
    assert asked.payload.hex() == means["counter"]
    answer = next(each for each in VECTORS if each["name"] == "TIME_REPLY")
    assert wire.answer_time(asked, means["now_us"]).hex() == answer["hex"]


@vectors("LATENESS")
def test_golden_lateness(vector):
    assert wire.read_lateness(message(vector))._asdict() == vector["means"]


@pytest.mark.parametrize("payload", [b"", bytes(3), bytes(5), bytes(12)])
def test_malformed_time_and_lateness_are_refused(payload):
    with pytest.raises(PeerWireError):
        wire.answer_time(Message(wire.TIME, 0, 0, payload), 1)
    with pytest.raises(PeerWireError):
        wire.read_lateness(Message(wire.LATENESS, 0, 0, payload))


def test_cell_with_a_time_ends_in_it_and_its_lines_keep_their_numbers():
    first, *rest = exec_messages(b"x = 1", at=1_796_000_000.123456, buffer_size=200)
    assert not rest
    assert unpack(first).flags == wire.AT_TIME
    assert unpack(first).payload[8:] == b"x = 1\n#1796000000123456"
    assert int.from_bytes(unpack(first).payload[4:8], "big") == len(unpack(first).payload) - 8
    (late,) = exec_messages(b"", at=1.0, run_late=True, awaits=True)
    assert unpack(late).flags == wire.AT_TIME | wire.RUN_LATE | wire.TOP_LEVEL_AWAIT
    assert unpack(late).payload[8:] == b"\n#0000000001000000"


@vectors("SLEEP_REPLY")
def test_golden_sleep_reply(vector):
    assert wire.pack_sleep_reply(vector["means"]["wait"]).hex() == vector["hex"]


def test_sample_that_was_kept_without_a_link_has_an_age_and_keeps_its_names():
    kept = wire.read_emit(Message(wire.EMIT, 2, 0, bytes(8) + b'{"t":1,"":90500}'))
    assert (kept.values, kept.age, kept.dropped) == ('{"t":1}', 90.5, 2)


@pytest.mark.parametrize("age", ["-1", "1.5", "true", '"5"', "null", str(32 * 86_400_000)])
def test_sample_with_a_wrong_age_is_refused(age):
    with pytest.raises(PeerWireError):
        wire.read_emit(Message(wire.EMIT, 0, 0, bytes(8) + b'{"t":1,"":%s}' % age.encode()))


@pytest.mark.parametrize("payload", [b"", bytes(7), bytes(9)])
def test_malformed_sleep_is_refused(payload):
    with pytest.raises(PeerWireError):
        wire.read_sleep(Message(wire.SLEEP, 0, 0, payload))


@vectors("FACTS")
def test_golden_facts(vector):
    assert wire.read_facts(message(vector)) == vector["means"]


def test_facts_without_wifi_have_no_rssi_and_malformed_ones_are_refused():
    assert wire.read_facts(Message(wire.FACTS, 0, 0, b"\0\0\1\0\0"))["rssi"] is None
    for payload in (b"", b"\0\0\1\0", bytes(6), bytes(16), bytes(18)):
        with pytest.raises(PeerWireError):
            wire.read_facts(Message(wire.FACTS, 0, 0, payload))


@vectors("SUBMIT")
def test_golden_submit(vector):
    head, code = vector["means"]["head"], vector["means"]["code"].encode()
    assert wire.read_submit(message(vector)) == (head, code)
    assert wire.pack_submit(vector["job"], head, code).hex() == vector["hex"]


@vectors("FILE")
def test_golden_file(vector):
    means = vector["means"]
    text = wire.pack_file_ops(means["step"], means["acts"])
    head = wire.ExecHead(means["timeout_ms"], op=wire.FILE)
    (made,) = wire.exec_messages(vector["job"], text, head, buffer_size=means["buffer_size"])
    assert made.hex() == vector["hex"]


def test_path_that_is_not_utf8_is_sent_as_its_bytes():
    text = wire.pack_file_ops(1, [["rename", "/\udcff", "/é"], ["rm", "/x", True]])
    assert text == '[1,[["rename",[47,255],"/é"],["rm","/x",true]]]'.encode()


@vectors("DATA", "CHUNK", "CONTENT")
def test_golden_file_bytes(vector):
    means, found = vector["means"], message(vector)
    if "count" in means:
        assert wire.read_byte_count(found) == means["count"]
        made = wire.pack_byte_count(vector["op"], means["count"], job=vector["job"])
        assert made.hex() == vector["hex"]
    elif "sha256" in means:
        assert wire.read_resume_state(found) == (means["size"], bytes.fromhex(means["sha256"]))
    elif "upload" in means:
        data = bytes.fromhex(means["data"])
        assert wire.read_content(found) == (means["upload"], data)
        assert wire.pack_content(vector["job"], means["upload"], data).hex() == vector["hex"]
    else:
        assert (found.flags, found.payload) == (wire.RESTART_FILE, bytes.fromhex(means["data"]))


@pytest.mark.parametrize("read", [wire.read_resume_state, wire.read_byte_count, wire.read_content])
def test_malformed_chunk_is_refused(read):
    with pytest.raises(PeerWireError, match="is malformed"):
        read(Message(wire.CHUNK, 0, 1, b"abc"))


@vectors("EVENTS")
def test_golden_events(vector):
    parts = [bytes.fromhex(part) for part in vector["means"]["messages"]]
    assert list(wire.read_events(message(vector).payload)) == [unpack(part) for part in parts]
    assert wire.pack_events(parts).hex() == vector["hex"]


# Headers and JSON


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=40))
@settings(max_examples=50)
def test_unpack_reverses_pack(op, flags, job, payload):
    assert unpack(pack(op, payload, job=job, flags=flags)) == (op, flags, job, payload)


@pytest.mark.parametrize("data", [b"", b"\x20", b"\x20\0\0\0\0"])
def test_message_shorter_than_its_header_is_refused(data):
    with pytest.raises(PeerWireError, match="shorter than its header"):
        unpack(data)


@given(BODIES)
@settings(max_examples=50)
def test_read_json_reverses_pack_json(body):
    assert wire.read_json(unpack(pack_json(wire.REQUEST, body)).payload) == body


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="the beginning"),
        pytest.param(b"{} {}", id="two"),
        pytest.param(b'{"a": "\xff"}', id="no UTF-8"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="UTF-16, which json would guess"),
        pytest.param(b"[" * 100_000, id="very deep"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", id="a number without end"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"text"', id="text"),
    ],
)
def test_payload_that_is_not_a_json_object_is_refused(payload):
    with pytest.raises(PeerWireError, match="is not"):
        wire.read_json(payload)


# Work


def exec_messages(code, *, buffer_size=64, **options):
    return list(wire.exec_messages(7, code, wire.ExecHead(**options), buffer_size=buffer_size))


def joined(parts):
    """Join EXEC and MORE as a board does; return (announced length, code)."""
    first, *rest = map(unpack, parts)
    _, length = struct.unpack_from(">II", first.payload)
    return length, b"".join([first.payload[8:], *(part.payload for part in rest)])


@given(st.binary(max_size=500), st.integers(64, 200))
@settings(max_examples=100)
def test_cell_is_split_to_the_buffer_size(code, buffer_size):
    parts = exec_messages(code, buffer_size=buffer_size)
    assert all(len(part) <= buffer_size for part in parts)
    assert joined(parts) == (len(code), code)


@pytest.mark.parametrize(("size", "count"), [(0, 1), (50, 1), (51, 2), (108, 2), (109, 3)])
def test_cell_needs_no_superfluous_messages(size, count):
    assert [unpack(part).op for part in exec_messages(bytes(size))] == [
        wire.EXEC,
        *[wire.MORE] * (count - 1),
    ]


def test_cell_sent_again_has_the_flag_again():
    parts = [unpack(part) for part in exec_messages(bytes(99), timeout_ms=0, again=True)]
    assert [part.flags for part in parts] == [wire.AGAIN, 0]
    both = exec_messages(b"x", timeout_ms=0, awaits=True, again=True)[0]
    assert unpack(both).flags == wire.TOP_LEVEL_AWAIT | wire.AGAIN


def test_exec_has_job_timeout_and_await_flag():
    found = unpack(exec_messages(b"x", timeout_ms=2500, awaits=True)[0])
    assert (found.job, found.flags, found.payload[:8]) == (
        7,
        wire.TOP_LEVEL_AWAIT,
        struct.pack(">II", 2500, 1),
    )


@pytest.mark.parametrize("number", range(4))
def test_result_has_status_output_and_value(number):
    found = wire.read_result(Message(wire.RESULT, number | wire.VALUE_TRUNCATED, 7, b"\0\2hiout"))
    assert found == (wire.STATUSES[number], b"hi", b"out", True)


@pytest.mark.parametrize(
    ("flags", "payload"),
    [
        (0, b""),
        (0, b"\0"),
        (0, b"\0\1"),
        (0, b"\xff\xff."),
        (4, b"\0\0"),
        (5, b"\0\0"),
        (15, b"\0\0"),
    ],
)
def test_malformed_result_is_refused(flags, payload):
    with pytest.raises(PeerWireError, match="RESULT"):
        wire.read_result(Message(wire.RESULT, flags, 7, payload))


# Callers


@given(BODIES, st.binary(max_size=100))
@settings(max_examples=50)
def test_read_submit_reverses_pack_submit(head, code):
    assert wire.read_submit(unpack(wire.pack_submit(1, head, code))) == (head, code)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\0\0", id="half a length"),
        pytest.param(b"\0\0\0\3{}", id="a length that leads beyond the message"),
        pytest.param(b"\0\0\0\1{}", id="half a head"),
        pytest.param(b"\0\0\0\2[]", id="a head that is no object"),
    ],
)
def test_malformed_submit_is_refused(payload):
    with pytest.raises(PeerWireError):
        wire.read_submit(Message(wire.SUBMIT, 0, 1, payload))


@given(st.lists(st.binary(min_size=6, max_size=40), max_size=6))
@settings(max_examples=50)
def test_read_events_reverses_pack_events(messages):
    payload = unpack(wire.pack_events(messages)).payload
    assert [
        pack(m.op, m.payload, job=m.job, flags=m.flags) for m in wire.read_events(payload)
    ] == messages


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\0\0\0", id="half a length"),
        pytest.param(b"\0\0\0\x07\x20\0\0\0\0\7", id="a length that leads beyond the message"),
        pytest.param(b"\0\0\0\1\x20", id="a message shorter than its header"),
        pytest.param(b"\xff\xff\xff\xff", id="4 GiB"),
    ],
)
def test_malformed_events_are_refused(payload):
    with pytest.raises(PeerWireError):
        list(wire.read_events(payload))


# What boards emit


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"1234567",
        b"12345678",
        b"12345678[]",
        b"12345678{}",
        b'12345678{"a":[1]}',
        b'12345678{"a":{"b":1}}',
        b'12345678{"":1}',
        b'12345678{"a":NaN}',
        b'12345678{"a":nan}',
        b'12345678{"a":Infinity}',
        b'12345678{"a":1e999}',
        b'12345678{"a":' + b"9" * 5000 + b"}",
        b'12345678{"a":\xff}',
        b"12345678" + b'{"a":' * 3000,
    ],
)
def test_malformed_emit_is_refused(payload):
    with pytest.raises(PeerWireError):
        wire.read_emit(Message(wire.EMIT, 0, 0, payload))


def test_name_of_a_value_is_bounded():
    values = b'{"%s":1}' % (b"n" * 64)
    assert wire.read_emit(Message(wire.EMIT, 0, 0, bytes(8) + values)).values == values.decode()
    with pytest.raises(PeerWireError):
        wire.read_emit(Message(wire.EMIT, 0, 0, bytes(8) + values.replace(b"n", b"nn", 1)))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(min_size=1, max_size=8), PLAIN | st.text(max_size=8), min_size=1))
def test_emit_returns_the_emitted_values(values):
    payload = bytes(8) + json.dumps(values).encode()
    sample = wire.read_emit(Message(wire.EMIT, 3, 0, payload))
    assert (sample.ticks, sample.dropped, json.loads(sample.values)) == (0, 3, values)


FRAME = 'Traceback (most recent call last):\r\n  File "<cell>", line 3, in <module>\r\n'


@pytest.mark.parametrize(
    ("traceback", "status"),
    [
        (f"{FRAME}SystemExit: 0\r\n", "ok"),
        (f"{FRAME}SystemExit: \r\n", "ok"),
        (f"{FRAME}SystemExit\r\n", "ok"),
        (f"{FRAME}SystemExit: None\r\n", "ok"),
        (f"{FRAME}SystemExit: 1\r\n", "error"),
        (f"{FRAME}SystemExit: no board\r\n", "error"),
        (f"{FRAME}ValueError: \nSystemExit: 0\r\n", "error"),
        (f"{FRAME}MySystemExit: 0\r\n", "error"),
        ("SystemExit: 0", "error"),
        ("", "error"),
    ],
)
def test_cell_that_ends_itself_without_a_status_ended_well(traceback: str, status: str):
    payload = b"\0\2hi" + traceback.encode()
    found = wire.read_result(Message(wire.RESULT, 1, 7, payload))
    rest = b"" if status == "ok" else traceback.encode()
    assert (found.status, found.output, found.value_or_traceback) == (status, b"hi", rest)
