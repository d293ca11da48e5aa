"""Write the protocol's numbers into the files of the client, or check them.

``python -m tests.board.client_numbers`` rewrites the block after each file's first lines: a
`const()` for every number below whose name the file uses. MicroPython resolves `const()` only
within one file: as a module of their own, the numbers would take 704 bytes of heap, and each use a
lookup (docs/decisions/0021-numbers-in-each-file.md).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from cloudmanager.protocol import frames, proofs, wire
from cloudmanager.virtual import interrupt_thread

CLIENT: Final = Path(__file__).parents[2] / "mpy_client"
START: Final = "# Numbers: written by `python -m tests.board.client_numbers`."
_FIN: Final = 0x80  # RFC 6455, 5.2: each message is one frame

#: The board's one buffer (link.py), in bytes. An idle board reads messages to IN; the bytes before
#: it are for a pong's header. A busy one collects output from OUT to OUT_END, after room for all
#: headers, and reads messages to BUSY_IN; between the two is room for a MAC.
_BUFFER: Final = {"_BUF": 1024, "_IN": 8, "_OUT": 16, "_OUT_END": 880, "_BUSY_IN": 896}
_LINK: Final = {
    name: getattr(wire, name.lstrip("_"))
    for name in (
        "_HELLO",
        "_CHALLENGE",
        "_PROOF",
        "_WELCOME",
        "_ENROL",
        "_ENROLLED",
        "_EXEC",
        "_MORE",
        "_INTERRUPT",
        "_ANSWER",
        "_RESET",
        "_REKEY",
        "_FILE",
        "_OUTPUT",
        "_VALUE",
        "_RESULT",
        "_INPUT",
        "_CHUNK",
        "_REKEYED",
        "_EMIT",
        "_PROGRAM",
        "_FACTS",
        "_LOG",
        "_READ",
        "_BLOCK",
        "_SLEEP",
        "_SLEEP_REPLY",
        "_TIME",
        "_TIME_REPLY",
        "_LATENESS",
        "_RUN_LATE",
        "_STAY_AWAKE",
        "_TOP_LEVEL_AWAIT",
        "_AGAIN",
        "_INPUT_EOF",
        "_VALUE_TRUNCATED",
        "_RESTART_FILE",
        "_RESUME_STATE",
        "_OP_RESULT",
        "_NEXT_OPS",
        "_BLOCKING",
    )
}
_STATUSES: Final = {f"_STATUS_{name.upper()}": n for n, name in enumerate(wire.STATUSES)}
_FRAMES: Final = {
    "_FRAME_BINARY": _FIN | frames.BINARY,
    "_FRAME_CLOSE": _FIN | frames.CLOSE,
    "_FRAME_PING": _FIN | frames.PING,
    "_FRAME_PONG": _FIN | frames.PONG,
    "_CLOSE_PROTOCOL_ERROR": frames.CLOSE_PROTOCOL_ERROR,
    "_CLOSE_POLICY": frames.CLOSE_POLICY,
    "_CLOSE_TOO_BIG": frames.CLOSE_MESSAGE_TOO_BIG,
}
_MAILBOX: Final = {
    name: getattr(interrupt_thread, name)
    for name in (
        "_USER_CODE_RUNS",
        "_CELL_RUNS",
        "_INTERRUPT_STATE",
        "_INTERRUPTING",
        "_OUTPUT_PENDING",
        "_CALLBACK_SCHEDULED",
        "_ASLEEP",
        "_CALL_AGAIN",
        "_CALLBACK_ADDRESS",
        "_DEADLINE",
        "_LINK_FD",
        "_CAPTURES",
        "_COPYING",
        "_OUTPUT_FULL",
        "_OUTPUT_CLOSED",
        "_THREADS",
        "_LOG_ONLY",
        "_LOG_PENDING",
    )
}
#: Name -> value, in the order of the blocks.
NUMBERS: Final[dict[str, int]] = {
    "_PROTOCOL": wire.PROTOCOL,
    **_BUFFER,
    "_HEADER": wire.HEADER.size,
    "_TAG": proofs.TAG_BYTES,
    "_NONCE": proofs.NONCE_BYTES,
    "_HASH": proofs.PROOF_BYTES,
    **_LINK,
    **_STATUSES,
    **_FRAMES,
    **_MAILBOX,
    "_RESTART": interrupt_thread.RESTART,
}
_HEX: Final = frozenset((*_LINK, *_FRAMES)) - {n for n in _FRAMES if n.startswith("_CLOSE")}
_BLOCK: Final = re.compile(rf"^{re.escape(START)}\n(?:_\w+ = const\(.*\)\n)*", re.MULTILINE)
_WORD: Final = re.compile(r"\b_[A-Z][A-Z_]*\b")


def with_numbers(source: str) -> str:
    """Return a client file with the numbers that it uses in its block.

    Args:
        source: the file; one without a block is returned as it is.

    Raises:
        ValueError: it defines one of the numbers itself.
    """
    rest = _BLOCK.sub("", source)
    code = "\n".join(line.partition("#")[0] for line in rest.splitlines())
    used = [name for name in NUMBERS if name in _WORD.findall(code)]
    for name in used:
        if re.search(rf"^{name} = ", rest, re.MULTILINE):
            raise ValueError(f"{name} is defined by hand; the block has its value")
    if rest == source:
        if used:
            raise ValueError(f"the file uses {used[0]}, but has no line {START!r}")
        return source
    lines = [f"{n} = const({f'0x{NUMBERS[n]:02X}' if n in _HEX else NUMBERS[n]})\n" for n in used]
    return _BLOCK.sub(lambda _: START + "\n" + "".join(lines), source)


def client_sources() -> list[Path]:
    """Return the files of the client that run as modules of the package `cm`."""
    return sorted(CLIENT.glob("cm/*.py"))


def main() -> None:
    """Rewrite the blocks; print the files that changed."""
    for path in client_sources():
        old = path.read_text()
        new = with_numbers(old)
        if new != old:
            path.write_text(new)
            print(path.relative_to(CLIENT.parent), file=sys.stderr)


if __name__ == "__main__":
    main()
