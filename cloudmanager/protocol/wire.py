"""Messages of the protocol <-> bytes; no sockets, no clock, no event loop.

docs/protocol.md is the specification; this module implements the host's side, without
authentication, which is in ``proofs``. ``BOARD_OPS_BY_STATE`` has what a board may send in each
state of its link; anything else closes the link::

    new ──HELLO──▶ challenged ──PROOF──▶ open ──OUTPUT, VALUE, INPUT, CHUNK, EMIT, RESULT,──▶ open
     └─ENROL──▶ new                             REKEYED, PROGRAM, FACTS, LOG, SLEEP,
                                                READ, TIME, LATENESS
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from . import file_ops
from .errors import PeerWireError

PROTOCOL: Final = 1  # incremented with each change that an older peer cannot ignore

# A board's link (docs/protocol.md, "Board link: …").
HELLO: Final = 0x01
CHALLENGE: Final = 0x02
PROOF: Final = 0x03
WELCOME: Final = 0x04
ENROL: Final = 0x05
ENROLLED: Final = 0x06
EXEC: Final = 0x10
MORE: Final = 0x11
INTERRUPT: Final = 0x12
ANSWER: Final = 0x13
RESET: Final = 0x14
REKEY: Final = 0x15
FILE: Final = 0x16
DATA: Final = 0x17
TIME_REPLY: Final = 0x18
SLEEP_REPLY: Final = 0x19
BLOCK: Final = 0x1A
OUTPUT: Final = 0x20
VALUE: Final = 0x21
RESULT: Final = 0x22
INPUT: Final = 0x23
CHUNK: Final = 0x24
REKEYED: Final = 0x25
EMIT: Final = 0x26
PROGRAM: Final = 0x27
FACTS: Final = 0x28
LOG: Final = 0x29
TIME: Final = 0x2A
SLEEP: Final = 0x2B
READ: Final = 0x2C
LATENESS: Final = 0x2E

# A caller's link.
REQUEST: Final = 0x40
REPLY: Final = 0x41
SUBMIT: Final = 0x42
ACCEPTED: Final = 0x43
EVENTS: Final = 0x44
STARTED: Final = 0x45
ENDED: Final = 0x46
TRUNCATED: Final = 0x47
CONTENT: Final = 0x48
WATCH: Final = 0x4C
CHANGES: Final = 0x4D
UNWATCH: Final = 0x4E

# Flags; the comment names the message that has each.
TOP_LEVEL_AWAIT: Final = 0x01  # EXEC: the cell awaits at its top level
AGAIN: Final = 0x02  # EXEC, FILE: sent before; a board that has run the job does nothing
AT_TIME: Final = 0x04  # EXEC: the cell starts at the time in the last line of its code
RUN_LATE: Final = 0x08  # EXEC, with AT_TIME: it also runs if it can only start later
INPUT_EOF: Final = 0x01  # ANSWER: there is no input; input() raises EOFError
VALUE_TRUNCATED: Final = 0x10  # RESULT: the value was cut off
RESTART_FILE: Final = 0x01  # DATA: start the file again; the partial file has another content
RESUME_STATE: Final = 0x01  # CHUNK: how much of a file the board has from an earlier attempt
OP_RESULT: Final = 0x02  # CHUNK: the result of a file operation, in JSON
NEXT_OPS: Final = 0x02  # DATA: the next file operations
UNREADABLE: Final = 0x01  # BLOCK: there are no bytes, the file cannot be read
TOTAL_BYTES: Final = 0x04  # CHUNK, to a caller: how many bytes will be transferred
FULL_SNAPSHOT: Final = 0x01  # CHANGES: these are all boards; earlier messages no longer hold
ACCEPTS_PARTS: Final = 0x01  # REQUEST: the caller can read a reply of several parts
MORE_PARTS: Final = 0x01  # REPLY: another part follows; their lists, or objects, are joined
BLOCKING: Final = 0x01  # PROGRAM: it keeps the board busy
STAY_AWAKE: Final = 0x01  # SLEEP_REPLY: the board does not sleep yet, and asks again

#: How a job ended, by its number on the wire; ``running`` occurs only in a board's ``last``.
STATUSES: Final = ("ok", "error", "interrupted", "timeout", "running", "offline", "lost")
RUNNING: Final = STATUSES.index("running")

HEADER: Final = struct.Struct(">BBI")  # op, flags, job
_EXEC: Final = struct.Struct(">II")  # timeout in ms, length of the whole code
_RESUME_STATE: Final = struct.Struct(">I32s")  # bytes, their SHA-256
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
BLOCK_NUMBER_BYTES: Final = _U32.size  # of a BLOCK, before the bytes of the file
_U64: Final = struct.Struct(">Q")
MAX_SLEEP_SECONDS: Final = 30 * 86400  # until a board that sleeps connects again
_SLEEP: Final = struct.Struct(">II")  # ms until it connects again, ms for which it was awake
_READ: Final = struct.Struct(">III")  # number, offset in bytes, bytes
_FACTS: Final = struct.Struct(">Ib")  # free heap in bytes, RSSI in dBm
_CLOCK_FACTS: Final = struct.Struct(">iIi")  # µs ahead, µs of error, drift in parts in 10**9
_TIME_REPLY: Final = struct.Struct(">4sQ")  # the board's counter, µs since 1970
_LATENESS: Final = struct.Struct(">iI")  # µs after its time, µs by which the clock may be wrong
_SAMPLE_NAME_CHARS: Final = 64
_AGE_NAME: Final = ""  # in a sample that was kept without a link: how many ms ago it was measured
MAX_SAMPLE_AGE: Final = 31 * 86_400  # seconds
_MAX_AGE_MS: Final = MAX_SAMPLE_AGE * 1000
_FIRST_TIME_MS: Final = 1 << 40  # in EMIT, a time (from 2004 on), and no counter of a board
_PLAIN_TYPES: Final = (str, int, float)  # a bool is an int, too
#: What json.loads raises for bad text; RecursionError for text that is nested too deeply.
_JSON_ERRORS: Final = (ValueError, RecursionError)
#: json.dumps with these separators would create a JSONEncoder for each cell.
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
#: Not json.loads, which first looks what it has got.
_from_json: Final = json.JSONDecoder().decode

JOB_END_OPS: Final = frozenset((RESULT, ENDED))  # the last message of a job, on a caller's link

#: What a board may send, by the state of its link.
BOARD_OPS_BY_STATE: Final = {
    "new": frozenset((HELLO, ENROL)),
    "challenged": frozenset((PROOF,)),
    "open": frozenset(
        (
            *(OUTPUT, VALUE, RESULT, INPUT, CHUNK, REKEYED, EMIT, PROGRAM, FACTS, LOG, SLEEP),
            *(READ, TIME, LATENESS),
        )
    ),
}


class Message(NamedTuple):
    """One message: ``payload`` is what follows the header."""

    op: int
    flags: int
    job: int
    payload: bytes


def check_op(state: str, message: Message) -> None:
    """Refuse a message that a board may not send in ``state``.

    Raises:
        PeerWireError: the state does not allow its op.
    """
    if message.op not in BOARD_OPS_BY_STATE[state]:
        raise PeerWireError(f"a board whose link is {state} may not send op 0x{message.op:02x}")


def pack(op: int, payload: bytes = b"", *, job: int = 0, flags: int = 0) -> bytes:
    """Return a message's bytes."""
    return HEADER.pack(op, flags, job) + payload


def unpack(data: bytes) -> Message:
    """Return the message that ``data`` holds.

    Raises:
        PeerWireError: it is shorter than a header.
    """
    if len(data) < HEADER.size:
        raise PeerWireError("the message is shorter than its header")
    op, flags, job = HEADER.unpack_from(data)
    return Message(op, flags, job, data[HEADER.size :])


def pack_json(op: int, body: Any, *, job: int = 0, flags: int = 0) -> bytes:
    """Return a message whose payload is JSON."""
    return pack(op, _to_json(body).encode(), job=job, flags=flags)


def read_json(payload: bytes) -> dict[str, Any]:
    """Return the JSON object in ``payload``.

    Raises:
        PeerWireError: it is not a JSON object in UTF-8.
    """
    try:
        body = _from_json(payload.decode())
    except _JSON_ERRORS as error:
        raise PeerWireError("the message is not JSON") from error
    if not isinstance(body, dict):
        raise PeerWireError("the message is not a JSON object")
    return body


def is_nested_deeper(value: Any, depth: int) -> bool:
    """Return whether a value of JSON has more than ``depth`` lists and objects in each other.

    What ``json.loads`` has just read may be nested so deeply that no function that calls itself can
    handle it: one that is called a few calls deeper in the stack fails.
    """
    level = [value]
    for _ in range(depth):
        level = [item for each in level for item in _items_of(each)]
        if not level:
            return False
    return any(isinstance(each, (list, dict)) for each in level)


def _items_of(value: Any) -> Iterable[Any]:
    """Return the items of a list or the values of an object; nothing of another value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


# Jobs


class ExecHead(NamedTuple):
    """How a board runs a cell or file operations.

    Attributes:
        timeout_ms: how long they may run; 0 for no limit.
        awaits: whether the cell awaits at its top level.
        op: EXEC, or FILE for file operations.
        again: whether the job may have been sent before.
        at: when it starts, in seconds since 1970; None: at once.
        run_late: whether it also runs if it can only start after ``at``.
    """

    timeout_ms: int = 0
    awaits: bool = False
    op: int = EXEC
    again: bool = False
    at: float | None = None
    run_late: bool = False


def exec_messages(job: int, code: bytes, head: ExecHead, *, buffer_size: int) -> Iterator[bytes]:
    """Yield the messages that send a cell, or file operations, to a board.

    Args:
        job: its number.
        code: the cell in UTF-8, or what ``pack_file_ops`` returned.
        head: how the board runs it.
        buffer_size: the greatest length of a message, in bytes: the board's buffer.
    """
    room = buffer_size - HEADER.size - _EXEC.size
    flags = TOP_LEVEL_AWAIT * head.awaits | AGAIN * head.again
    if head.at is not None:
        flags |= AT_TIME | RUN_LATE * head.run_late
        # A comment at the end: the board need not copy the code to compile it, and its lines keep
        # their numbers.
        code += b"\n#%016d" % round(head.at * 1_000_000)
    payload = _EXEC.pack(head.timeout_ms, len(code)) + code[:room]
    yield pack(head.op, payload, job=job, flags=flags)
    step = buffer_size - HEADER.size
    for start in range(room, len(code), step):
        yield pack(MORE, code[start : start + step], job=job)


#: The end of the traceback of ``sys.exit()``, ``sys.exit(None)``, ``sys.exit(0)``.
_CLEAN_EXIT: Final = re.compile(r"\n  File [^\n]*\nSystemExit(?:: ?(?:0|None|False)?)?\s*\Z")


class ResultBody(NamedTuple):
    """The contents of a RESULT.

    Attributes:
        status: one of STATUSES before ``running``.
        output: the last output of the job, in UTF-8.
        value_or_traceback: the value's repr if the status is ok, else a traceback.
        truncated: whether the value was cut off.
    """

    status: str
    output: bytes
    value_or_traceback: bytes
    truncated: bool


def read_result(message: Message) -> ResultBody:
    """Return the contents of the RESULT in ``message``.

    Raises:
        PeerWireError: it is malformed.
    """
    status = message.flags & 0x0F
    if len(message.payload) < _U16.size or status >= RUNNING:
        raise PeerWireError("RESULT is malformed")
    end = _U16.size + _U16.unpack_from(message.payload)[0]
    if end > len(message.payload):
        raise PeerWireError("RESULT's output is longer than RESULT")
    output, rest = message.payload[_U16.size : end], message.payload[end:]
    name = STATUSES[status]
    if name == "error" and is_clean_exit(name, rest.decode("utf-8", "replace")):
        name, rest = "ok", b""
    return ResultBody(name, output, rest, bool(message.flags & VALUE_TRUNCATED))


def is_clean_exit(status: str, traceback: str) -> bool:
    """Return whether a cell ended itself with ``sys.exit()`` or ``sys.exit(0)``.

    That is a good end, as for python3 and mpremote; boards report it as an error.
    """
    return status == "error" and _CLEAN_EXIT.search(traceback) is not None


def pack_file_ops(ack_bytes: int, ops: Sequence[Sequence[Any]], *, stepwise: bool = False) -> bytes:
    """Return file operations as a board reads them.

    Args:
        ack_bytes: after how many bytes the board reports its progress.
        ops: the operations.
        stepwise: whether the board reports the result of each and waits for the next ones.
    """
    board_ops = [[_board_argument(argument) for argument in op] for op in ops]
    body = [ack_bytes, board_ops, 1] if stepwise else [ack_bytes, board_ops]
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return text.encode()  # not escaped: MicroPython's json does not read surrogate pairs


def _board_argument(argument: Any) -> Any:
    """Return an argument of a file operation for JSON: a path that is not UTF-8 as its bytes."""
    is_undecodable = isinstance(argument, str) and file_ops.is_undecodable(argument)
    return list(file_ops.encode_path(argument)) if is_undecodable else argument


class ResumeState(NamedTuple):
    """What a board has of a file from an earlier attempt: its size in bytes and its SHA-256."""

    size: int
    digest: bytes


def read_resume_state(message: Message) -> ResumeState:
    """Return the contents of a CHUNK with the flag RESUME_STATE.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) != _RESUME_STATE.size:
        raise PeerWireError("CHUNK is malformed")
    return ResumeState(*_RESUME_STATE.unpack(message.payload))


def read_byte_count(message: Message) -> int:
    """Return the number of bytes in a CHUNK that reports progress, or the total.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) != _U32.size:
        raise PeerWireError("CHUNK is malformed")
    return int(_U32.unpack(message.payload)[0])


def pack_byte_count(op: int, count: int, *, job: int, flags: int = 0) -> bytes:
    """Return a message with a number of bytes, such as those that a job has transferred."""
    return pack(op, _U32.pack(count), job=job, flags=flags)


class ReadRequest(NamedTuple):
    """The contents of a READ: bytes of a file in a mounted folder are wanted.

    Attributes:
        number: chosen by the sender; BLOCK has the same.
        offset: of the first byte in the file.
        size: how many bytes, at most.
        path: of the file, relative to the folder.
    """

    number: int
    offset: int
    size: int
    path: bytes


def pack_read_request(request: ReadRequest, *, job: int) -> bytes:
    """Return a READ."""
    head = _READ.pack(request.number, request.offset, request.size)
    return pack(READ, head + request.path, job=job)


def read_read_request(message: Message) -> ReadRequest:
    """Return the contents of a READ.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) < _READ.size:
        raise PeerWireError("READ is malformed")
    number, offset, size = _READ.unpack_from(message.payload)
    return ReadRequest(number, offset, size, message.payload[_READ.size :])


def pack_block(number: int, data: bytes, *, job: int, flags: int = 0) -> bytes:
    """Return a BLOCK: the answer to the READ with this number."""
    return pack(BLOCK, _U32.pack(number) + data, job=job, flags=flags)


def read_block(message: Message) -> tuple[int, bytes]:
    """Return the number and the bytes of a BLOCK.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) < _U32.size:
        raise PeerWireError("BLOCK is malformed")
    return int(_U32.unpack_from(message.payload)[0]), message.payload[_U32.size :]


def read_facts(message: Message) -> dict[str, int | None]:
    """Return the contents of a FACTS: facts of boards that change.

    Returns:
        The free heap in bytes, RSSI in dBm or None; and of a board that has measured its clock, by
        how many µs that was ahead (``clock_offset``) and may be wrong (``clock_error``), and by how
        much its counter is too fast, in parts in 10**9 (``clock_drift``).

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) not in (_FACTS.size, _FACTS.size + _CLOCK_FACTS.size):
        raise PeerWireError("FACTS is malformed")
    heap, rssi = _FACTS.unpack_from(message.payload)
    facts = {"heap": heap, "rssi": rssi or None}
    if len(message.payload) > _FACTS.size:
        names = ("clock_offset", "clock_error", "clock_drift")
        facts |= zip(names, _CLOCK_FACTS.unpack_from(message.payload, _FACTS.size), strict=True)
    return facts


def answer_time(message: Message, now_us: int) -> bytes:
    """Return the answer to TIME.

    Args:
        message: the TIME; its counter is returned as it is.
        now_us: microseconds since 1970.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) != _U32.size:
        raise PeerWireError("TIME is malformed")
    return pack(TIME_REPLY, _TIME_REPLY.pack(message.payload, now_us))


class Lateness(NamedTuple):
    """The contents of a LATENESS: how exactly a cell started at its time.

    Attributes:
        late: by how many seconds it started after its time, by the board's clock.
        error: by how many seconds that clock may be wrong.
    """

    late: float
    error: float


def read_lateness(message: Message) -> Lateness:
    """Return the contents of the LATENESS in ``message``.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) != _LATENESS.size:
        raise PeerWireError("LATENESS is malformed")
    late_us, error_us = _LATENESS.unpack(message.payload)
    return Lateness(late_us / 1_000_000, error_us / 1_000_000)


class EmittedSample(NamedTuple):
    """The contents of an EMIT.

    Attributes:
        ticks: milliseconds since 1970 by the board's clock, or of its counter; see ``is_time``.
        dropped: how many samples the board left out before this one; 255 stands for more, too.
        values: a JSON object in ASCII, its names in the board's order.
        age: seconds since it was measured, if the board had no link then.
    """

    ticks: int
    dropped: int
    values: str
    age: float = 0.0


def is_time(ticks: int) -> bool:
    """Return whether the number in an EMIT is a time in milliseconds since 1970."""
    return ticks >= _FIRST_TIME_MS


def read_emit(message: Message) -> EmittedSample:
    """Return the contents of the EMIT in ``message``, checked and encoded again.

    Raises:
        PeerWireError: it is malformed, or holds more than numbers, strings, bools and null.
    """
    if len(message.payload) < _U64.size:
        raise PeerWireError("EMIT is malformed")
    values = read_json(message.payload[_U64.size :])
    age_ms = values.pop(_AGE_NAME, 0)
    if type(age_ms) is not int or not 0 <= age_ms <= _MAX_AGE_MS:
        raise PeerWireError("EMIT has a wrong age")
    plain = all(
        0 < len(name) <= _SAMPLE_NAME_CHARS and (value is None or isinstance(value, _PLAIN_TYPES))
        for name, value in values.items()
    )
    if not plain or not values:
        raise PeerWireError("EMIT has a value that is not a number, string, bool or null")
    try:
        text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise PeerWireError("EMIT has a number that is not finite") from error
    ticks = _U64.unpack_from(message.payload)[0]
    return EmittedSample(ticks, message.flags, text, age_ms / 1000)


class LogPiece(NamedTuple):
    """The contents of a LOG: how many bytes were lost before these, and the bytes."""

    lost: int
    data: bytes


def read_log(message: Message) -> LogPiece:
    """Return the contents of the LOG in ``message``.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) < _U32.size:
        raise PeerWireError("LOG is malformed")
    return LogPiece(_U32.unpack_from(message.payload)[0], message.payload[_U32.size :])


class SleepRequest(NamedTuple):
    """The contents of a SLEEP.

    Attributes:
        seconds: until the board connects again.
        awake: seconds for which it has been awake.
    """

    seconds: float
    awake: float


def read_sleep(message: Message) -> SleepRequest:
    """Return the contents of the SLEEP in ``message``.

    Raises:
        PeerWireError: it is malformed, or no time that a board may sleep.
    """
    if len(message.payload) != _SLEEP.size:
        raise PeerWireError("SLEEP is malformed")
    seconds_ms, awake_ms = _SLEEP.unpack(message.payload)
    if not _is_sleep_time(seconds_ms):
        raise PeerWireError("a board sleeps for more than 0 s, and at most for 30 days")
    return SleepRequest(seconds_ms / 1000, awake_ms / 1000)


def _is_sleep_time(milliseconds: int) -> bool:
    return 0 < milliseconds <= MAX_SLEEP_SECONDS * 1000


def pack_sleep_reply(wait: float | None) -> bytes:
    """Return the answer to SLEEP.

    Args:
        wait: the seconds after which the board asks again, unless it has done a job before; None:
            it may sleep.
    """
    if wait is None:
        return pack(SLEEP_REPLY)
    return pack(SLEEP_REPLY, _U32.pack(round(wait * 1000)), flags=STAY_AWAKE)


# A caller's messages


def pack_content(ref: int, upload: int, data: bytes) -> bytes:
    """Return the CONTENT that uploads a piece of a file."""
    return pack(CONTENT, _U32.pack(upload) + data, job=ref)


def read_content(message: Message) -> tuple[int, bytes]:
    """Return the number of the upload, and the piece, of the CONTENT in ``message``.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) < _U32.size:
        raise PeerWireError("CONTENT is malformed")
    return int(_U32.unpack_from(message.payload)[0]), message.payload[_U32.size :]


def pack_submit(ref: int, head: dict[str, Any], code: bytes) -> bytes:
    """Return a SUBMIT: target and options as JSON, then the code's bytes."""
    text = _to_json(head).encode()
    return pack(SUBMIT, _U32.pack(len(text)) + text + code, job=ref)


def submit_head_bytes(message: Message) -> int:
    """Return the number of bytes of the options' JSON in a SUBMIT, which is not read yet.

    Raises:
        PeerWireError: it is malformed.
    """
    if len(message.payload) < _U32.size:
        raise PeerWireError("SUBMIT is malformed")
    size = int(_U32.unpack_from(message.payload)[0])
    if _U32.size + size > len(message.payload):
        raise PeerWireError("SUBMIT's options are longer than SUBMIT")
    return size


def split_submit(message: Message, head_bytes: int) -> tuple[bytes, bytes]:
    """Return the JSON of the options, and the code, of the SUBMIT in ``message``.

    Args:
        message: the SUBMIT.
        head_bytes: as ``submit_head_bytes`` returned it.
    """
    end = _U32.size + head_bytes
    return message.payload[_U32.size : end], message.payload[end:]


def read_submit(message: Message) -> tuple[dict[str, Any], bytes]:
    """Return the options and the code of the SUBMIT in ``message``.

    Raises:
        PeerWireError: it is malformed.
    """
    text, code = split_submit(message, submit_head_bytes(message))
    return read_json(text), code


def pack_events(messages: Iterable[bytes]) -> bytes:
    """Return an EVENTS that contains messages, each after its length: many in one frame."""
    parts = [HEADER.pack(EVENTS, 0, 0)]
    for message in messages:
        parts.append(_U32.pack(len(message)))
        parts.append(message)
    return b"".join(parts)


def read_events(data: bytes, at: int = 0) -> Iterator[Message]:
    """Yield the messages in the payload of EVENTS; each is copied once.

    Args:
        data: the payload, or bytes that end with it.
        at: where the payload begins.

    Raises:
        PeerWireError: a message is longer than the rest of the payload.
    """
    end = len(data)
    while at < end:
        if at + _U32.size > end:
            raise PeerWireError("EVENTS is malformed")
        start = at + _U32.size
        at = start + int(_U32.unpack_from(data, at)[0])
        if at > end or at < start + HEADER.size:
            raise PeerWireError("EVENTS is malformed")
        op, flags, job = HEADER.unpack_from(data, start)
        yield Message(op, flags, job, data[start + HEADER.size : at])
