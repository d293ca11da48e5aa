"""Faults of links, and the exact outcome that each must have.

Each row becomes a test (test_board_link.py, test_caller_link.py). The rows describe links without
TLS and MACs: a changed byte is not noticed there, so that a fault may corrupt a cell or its output;
but a cell never has two outcomes, and nothing hangs. ``guarded`` returns the outcome of a row on a
link that TLS or MACs protect.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .proxy import Strike

COUNT = "with open('/runs', 'a') as file: file.write('.')\n"
#: Messages: EXEC; OUTPUT, OUTPUT, RESULT.
PRINTS = COUNT + "import time\nprint('go')\ntime.sleep(0.1)\nprint('on')\ntime.sleep(0.1)\n42"
#: Sent in three messages: EXEC, MORE, MORE.
LONG = COUNT + "x = 1  # " + "-" * 2200 + "\nprint('go')\n42"
#: Its value is sent in parts: EXEC; VALUE, VALUE, RESULT.
LONG_VALUE = COUNT + "print('go')\n'-' * 2000"
#: Never ends by itself; interrupted after its output: EXEC; OUTPUT; INTERRUPT; RESULT.
SPINS = COUNT + "print('go')\nwhile True: pass"
#: Like PRINTS, after a soft reset: RESET; a new link; EXEC …
FRESH = "fresh"

NEVER: Final = "it never reached the board"
UNCONFIRMED: Final = "has not confirmed"
LOST: Final = "<lost with the link>"  # in place of a value


class Row(NamedTuple):
    """One fault, and its outcome.

    Attributes:
        strike: the fault and its place.
        status: the only status that the caller ever receives.
        runs: how often the cell ran, by the board's own count.
        why: part of the server's reason, or of the traceback.
        output: that the caller received; None for any beginning of it.
        record: the final status in the store, if the board reported it after ``status``.
        cell: the code that runs.
    """

    strike: Strike
    status: str
    runs: int
    why: str = ""
    output: str | None = "go\non\n"
    record: str = ""
    cell: str = PRINTS

    def __str__(self) -> str:
        """Name the test."""
        strike = self.strike
        bit = f"bit {strike.bit} of " if strike.fault == "flip" else ""
        nth = f" {strike.nth}" if strike.nth > 1 else ""
        way = "" if strike.up else " down"
        return f"{strike.fault} {bit}{strike.at}{nth}{way}".replace(" ", "-")


def row(fault: str, at: str, status: str, runs: int, **more: object) -> Row:
    """Return a row; ``nth`` and ``bit`` are the strike's."""
    place = {name: more.pop(name) for name in ("nth", "bit") if name in more}
    return Row(Strike(fault, at, **place), status, runs, **more)  # type: ignore[arg-type]


#: Faults that can happen with TCP: their outcomes are the same on all kinds of links.
TCP: Final = ("cut before", "cut within", "cut after", "delay", "trickle", "half-open")
#: With TLS only records are visible: message -> whether it is sent to the server, and the number of
#: its record, counted from the start of the cell or of the board's connection.
_RECORDS: Final = {
    **{"EXEC": (False, 1), "MORE": (False, 2), "INTERRUPT": (False, 2), "RESET": (False, 1)},
    **{"OUTPUT": (True, 1), "VALUE": (True, 2), "RESULT": (True, 3)},
    **{"request": (True, 1), "HELLO": (True, 2), "PROOF": (True, 3)},
    **{"answer": (False, 1), "CHALLENGE": (False, 2), "WELCOME": (False, 3)},
}


def guarded(row: Row, kind: str) -> Row:
    """Return the outcome on a link with TLS or MACs, which a changed byte closes.

    A cell that was not executed before never is; otherwise the board reports its result after it
    has reconnected.
    """
    fault, at = row.strike.fault, row.strike.at
    if fault in TCP or (fault, at) == (
        "duplicate",
        "RESET",
    ):  # the link is closed before the second arrives
        return row
    if (fault, kind) == ("drop", "mac") and at in ("EXEC", "INTERRUPT"):
        return row  # no later message reveals the loss; after RESULT the board sends its facts
    if at in ("EXEC", "MORE", "RESET") and fault != "duplicate":
        return row._replace(status="lost", runs=0, why=NEVER, output="", record="")
    if at == "INTERRUPT" and fault != "duplicate":
        return row._replace(status="timeout", record="")
    status = "interrupted" if at == "INTERRUPT" else "ok"
    output = {"RESULT": "go\non\n", "INTERRUPT": "go\n"}.get(at, "")
    if (fault, at) == ("duplicate", "OUTPUT"):
        output = "go\n"
    if (fault, at) == ("duplicate", "EXEC"):  # the board reads the second one later
        return row._replace(status=status, why="", output=None)
    return row._replace(status=status, why="", record="", output=output)


def guarded_connecting(row: Row, kind: str) -> Row:
    """Return the outcome of a row of CONNECTING on a link with TLS or MACs."""
    # The cell follows WELCOME at once. With TLS the server reads the second PROOF only then.
    breaking = ("WELCOME", "PROOF") if kind == "tls" else ("WELCOME",)
    if row.strike.fault == "duplicate" and row.strike.at in breaking:
        return row._replace(status="lost", runs=0, why=NEVER, output="")
    return row


def in_records(strike: Strike) -> Strike:
    """Return the same strike for a record of TLS, counted from when the fault is armed."""
    if strike.at == "handshake":
        return strike
    up, first = _RECORDS[strike.at]
    return strike._replace(nth=first + strike.nth - 1, up=up)


#: Between a board and the server, while a cell is sent, runs, and ends.
WORK: Final = [
    # The cell is sent: a board that did not receive all of it runs nothing.
    row("cut before", "EXEC", "lost", 0, why=NEVER, output=""),
    row("cut within", "EXEC", "lost", 0, why=NEVER, output=""),
    row("cut after", "EXEC", "ok", 1, output=""),
    row("delay", "EXEC", "ok", 1),
    row("drop", "EXEC", "timeout", 0, why=UNCONFIRMED, output=""),
    row("duplicate", "EXEC", "ok", 1),
    row("flip head", "EXEC", "lost", 0, why=NEVER, output=""),
    row(
        "flip", "EXEC", "error", 0, why="Error", output="", bit=8 * 14 + 3
    ),  # first byte of the code
    row("flip", "EXEC", "timeout", 1, why=UNCONFIRMED, output="", bit=8 * 5 + 3),  # job number
    row("half-open", "EXEC", "lost", 0, why=NEVER, output=""),
    row("trickle", "EXEC", "ok", 1),
    row("cut before", "MORE", "lost", 0, why=NEVER, output="", cell=LONG),
    row("cut before", "MORE", "lost", 0, why=NEVER, output="", cell=LONG, nth=2),
    row("drop", "MORE", "timeout", 0, why=UNCONFIRMED, output="", cell=LONG),
    row("reorder", "EXEC", "timeout", 0, why=UNCONFIRMED, output="", cell=LONG),
    row("half-open", "MORE", "lost", 0, why=NEVER, output="", cell=LONG),
    row("trickle", "MORE", "ok", 1, output="go\n", cell=LONG),
    # It runs and prints: only the board knows its result, and reports it after reconnecting.
    row("cut before", "OUTPUT", "ok", 1, output=""),
    row("cut within", "OUTPUT", "ok", 1, output=""),
    row("cut after", "OUTPUT", "ok", 1, output="go\n"),
    row("delay", "OUTPUT", "ok", 1),
    row("drop", "OUTPUT", "ok", 1, output="on\n"),
    row("duplicate", "OUTPUT", "ok", 1, output="go\ngo\non\n"),
    row("reorder", "OUTPUT", "ok", 1, output="on\ngo\n"),
    row("flip head", "OUTPUT", "ok", 1, output=""),
    row("flip", "OUTPUT", "ok", 1, output="oo\non\n", bit=8 * 6 + 4),
    row("half-open", "OUTPUT", "ok", 1, output=""),
    row("trickle", "OUTPUT", "ok", 1),
    row("cut before", "VALUE", "ok", 1, output="go\n", cell=LONG_VALUE),
    row("cut within", "VALUE", "ok", 1, output="go\n", cell=LONG_VALUE),
    row("half-open", "VALUE", "ok", 1, output="go\n", cell=LONG_VALUE),
    row("trickle", "VALUE", "ok", 1, output="go\n", cell=LONG_VALUE),
    # It ends: a lost result is reported again, without lost output.
    row("cut before", "RESULT", "ok", 1),
    row("cut within", "RESULT", "ok", 1),
    row("cut after", "RESULT", "ok", 1),
    row("delay", "RESULT", "ok", 1),
    row("drop", "RESULT", "timeout", 1, why=UNCONFIRMED, record="ok"),
    row("duplicate", "RESULT", "ok", 1),
    row("flip head", "RESULT", "ok", 1),
    row("flip", "RESULT", "error", 1, bit=15),  # the status itself
    row("half-open", "RESULT", "ok", 1),
    row("trickle", "RESULT", "ok", 1),
    # It is interrupted; if the message is lost, its timeout ends it.
    row("cut before", "INTERRUPT", "timeout", 1, output="go\n", cell=SPINS),
    row("cut after", "INTERRUPT", "interrupted", 1, output="go\n", cell=SPINS),
    row("delay", "INTERRUPT", "interrupted", 1, output="go\n", cell=SPINS),
    row("drop", "INTERRUPT", "timeout", 1, output="go\n", cell=SPINS),
    row("duplicate", "INTERRUPT", "interrupted", 1, output="go\n", cell=SPINS),
    row("half-open", "INTERRUPT", "timeout", 1, why=UNCONFIRMED, output="go\n", cell=SPINS),
    # It waits for a reset, whose message may be lost, too.
    row("cut before", "RESET", "error", 0, why="did not restart", output="", cell=FRESH),
    row("cut after", "RESET", "ok", 1, cell=FRESH),
    row("duplicate", "RESET", "ok", 1, cell=FRESH),
    row("half-open", "RESET", "error", 0, why="did not restart", output="", cell=FRESH),
]

#: While a board reconnects, for which a cell is queued: it retries until it is connected.
CONNECTING: Final = [
    *(
        row(fault, at, "ok", 1)
        for at in ("request", "answer", "HELLO", "CHALLENGE")
        for fault in ("cut before", "cut within", "cut after", "delay", "drop", "duplicate")
        + ("flip", "half-open", "trickle")
        if (fault, at) != ("duplicate", "CHALLENGE")
    ),
    *(row(fault, at, "ok", 1) for at in ("PROOF", "WELCOME") for fault in ("delay", "trickle")),
    *(
        row(fault, "PROOF", "ok", 1)
        for fault in ("cut before", "cut within", "drop", "flip", "half-open")
    ),
    # The server takes the board as authenticated and sends the cell, only once.
    row("duplicate", "CHALLENGE", "lost", 0, why=NEVER, output=""),
    row("cut after", "PROOF", "lost", 0, why=NEVER, output=""),
    row("duplicate", "PROOF", "ok", 1, output=""),  # the second closes the link, after the cell
    *(
        row(fault, "WELCOME", "lost", 0, why=NEVER, output="")
        for fault in ("cut before", "cut within", "cut after", "drop", "flip", "half-open")
    ),
    row("duplicate", "WELCOME", "ok", 1),
]


#: Like CONNECTING, in the TLS handshake, with the numbers of records that each side sends.
HANDSHAKE: Final = [
    Row(Strike(fault, "handshake", nth, up, bit=6), "ok", 1)
    for up, records in ((True, 4), (False, 6))
    for nth in range(1, records + 1)
    for fault in ("flip", "drop", "duplicate", "cut within")
]


class CallerRow(NamedTuple):
    """One fault between a caller and the server, and its outcome.

    Attributes:
        strike: the fault and its place.
        caller_result: a status, or the class of the error that is raised.
        record: the final status in the store; "" if the server never received the cell.
        runs: how often the cell ran.
        output: that the caller received.
    """

    strike: Strike
    caller_result: str
    record: str
    runs: int
    output: str = ""

    def __str__(self) -> str:
        """Name the test."""
        return f"{self.strike.fault} {self.strike.at}".replace(" ", "-")


def caller_row(
    fault: str, at: str, caller_result: str, record: str, runs: int, output: str = ""
) -> CallerRow:
    """Return a row."""
    return CallerRow(Strike(fault, at), caller_result, record, runs, output)


ALL: Final = "go\non\n"
GONE: Final = "ServerUnreachable"
#: If a complete message is lost, only TLS reveals it: the caller waits until its link is closed.
WAITS: Final = "waits"

CALLER: Final = [
    *(
        caller_row(fault, at, GONE, "", 0)
        for at in ("request", "answer")
        for fault in ("cut before", "cut within", "drop", "half-open")
    ),
    caller_row("cut after", "request", GONE, "", 0),
    caller_row("flip", "answer", GONE, "", 0),
    *(caller_row(fault, "request", "ok", "ok", 1, ALL) for fault in ("delay", "trickle")),
    *(caller_row(fault, "answer", "ok", "ok", 1, ALL) for fault in ("delay", "trickle")),
    # A cell that was not received completely never runs; one that was received always does.
    *(caller_row(fault, "SUBMIT", GONE, "", 0) for fault in ("cut before", "cut within")),
    caller_row("cut after", "SUBMIT", GONE, "ok", 1),
    caller_row("flip head", "SUBMIT", GONE, "", 0),
    caller_row("half-open", "SUBMIT", GONE, "", 0),
    caller_row("drop", "SUBMIT", WAITS, "", 0),
    caller_row("duplicate", "SUBMIT", GONE, "ok", 1),
    *(caller_row(fault, "SUBMIT", "ok", "ok", 1, ALL) for fault in ("delay", "trickle")),
    *(
        caller_row(fault, "ACCEPTED", GONE, "ok", 1)
        for fault in ("cut before", "cut within", "flip head", "half-open")
    ),
    caller_row("cut after", "ACCEPTED", "lost", "ok", 1),
    caller_row("drop", "ACCEPTED", WAITS, "ok", 1),
    caller_row("duplicate", "ACCEPTED", "lost", "ok", 1),
    *(caller_row(fault, "ACCEPTED", "ok", "ok", 1, ALL) for fault in ("delay", "trickle")),
    *(
        caller_row(fault, "OUTPUT", "lost", "ok", 1)
        for fault in ("cut before", "cut within", "flip head", "half-open")
    ),
    caller_row("cut after", "OUTPUT", "lost", "ok", 1, "go\n"),
    caller_row("drop", "OUTPUT", "ok", "ok", 1, "on\n"),
    caller_row("duplicate", "OUTPUT", "ok", "ok", 1, "go\ngo\non\n"),
    *(caller_row(fault, "OUTPUT", "ok", "ok", 1, ALL) for fault in ("delay", "trickle")),
    *(
        caller_row(fault, "RESULT", "lost", "ok", 1, ALL)
        for fault in ("cut before", "cut within", "flip head", "half-open")
    ),
    caller_row("cut after", "RESULT", "ok", "ok", 1, ALL),
    caller_row("drop", "RESULT", WAITS, "ok", 1, ALL),
    caller_row("duplicate", "RESULT", "ok", "ok", 1, ALL),
    *(caller_row(fault, "RESULT", "ok", "ok", 1, ALL) for fault in ("delay", "trickle")),
]


def guarded_caller(row: CallerRow) -> CallerRow:
    """Return the outcome of a caller's row with TLS, where a changed byte closes the link."""
    fault, at = row.strike.fault, row.strike.at
    if fault in TCP:
        return row
    arrived = fault == "duplicate"
    if at == "SUBMIT":
        return row if arrived else row._replace(caller_result=GONE, record="", runs=0)
    if at == "ACCEPTED":
        return row._replace(caller_result="lost" if arrived else GONE)
    if at == "OUTPUT":
        return row._replace(caller_result="lost", output="go\n" if arrived else "")
    return row if arrived else row._replace(caller_result="lost")
