"""What goes wrong on a link, where, and exactly what comes of it.

Each row becomes a test (test_board_link.py, test_caller_link.py). The rows tell of links in the
clear: nothing there could tell a changed byte, so that a fault may garble what a cell says or
does; but a cell never has two outcomes, and nobody hangs. ``guarded`` tells what comes of a row
where TLS or a MAC guards the link.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .proxy import Strike

COUNT = "with open('/runs', 'a') as file: file.write('.')\n"
#: Each of its lines is a message of its own: EXEC; OUTPUT, OUTPUT, RESULT.
TALKS = COUNT + "import time\nprint('go')\ntime.sleep(0.1)\nprint('on')\ntime.sleep(0.1)\n42"
#: Travels in three: EXEC, MORE, MORE.
LONG = COUNT + "x = 1  # " + "-" * 2200 + "\nprint('go')\n42"
#: Its value travels in pieces: EXEC; VALUE, VALUE, RESULT.
TELLS = COUNT + "print('go')\n'-' * 2000"
#: Never ends by itself; it is interrupted once it has said so: EXEC; OUTPUT; INTERRUPT; RESULT.
SPINS = COUNT + "print('go')\nwhile True: pass"
#: As TALKS, after a soft reset: RESET; a new link; EXEC …
FRESH = "fresh"

NEVER: Final = "it never reached the board"
UNCONFIRMED: Final = "has not confirmed"
LOST: Final = "<lost with the link>"  # stands for a value


class Row(NamedTuple):
    """One fault, and what comes of it.

    Attributes:
        strike: what happens, and where.
        status: what the caller is told, the only outcome that it ever gets.
        runs: how often the cell ran, by the board's own count.
        why: in the server's words, or the traceback's.
        said: what the caller has of its output; None for a beginning of it.
        record: what the store says in the end, where the truth came later than ``status``.
        cell: what runs.
    """

    strike: Strike
    status: str
    runs: int
    why: str = ""
    said: str | None = "go\non\n"
    record: str = ""
    cell: str = TALKS

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


#: Faults that TCP itself knows: they look alike on every kind of link.
TCP: Final = ("cut before", "cut within", "cut after", "delay", "trickle", "half-open")
#: Of TLS only records of messages are seen: whether they go up, and which one it is from when the
#: strike is armed: at work, or while the board dials.
_RECORDS: Final = {
    **{"EXEC": (False, 1), "MORE": (False, 2), "INTERRUPT": (False, 2), "RESET": (False, 1)},
    **{"OUTPUT": (True, 1), "VALUE": (True, 2), "RESULT": (True, 3)},
    **{"request": (True, 1), "HELLO": (True, 2), "PROOF": (True, 3)},
    **{"answer": (False, 1), "CHALLENGE": (False, 2), "WELCOME": (False, 3)},
}


def guarded(row: Row, kind: str) -> Row:
    """Return what comes of it where TLS or a MAC guards the link: a changed byte ends it.

    What was not executed by then never is; what was, the board tells when it is back.
    """
    fault, at = row.strike.fault, row.strike.at
    if fault in TCP or (fault, at) == ("duplicate", "RESET"):  # it is gone by the second
        return row
    if (fault, kind) == ("drop", "mac") and at in ("EXEC", "INTERRUPT"):
        return row  # nothing follows that could tell; behind RESULT come the board's facts
    if at in ("EXEC", "MORE", "RESET") and fault != "duplicate":
        return row._replace(status="lost", runs=0, why=NEVER, said="", record="")
    if at == "INTERRUPT" and fault != "duplicate":
        return row._replace(status="timeout", record="")
    status = "interrupted" if at == "INTERRUPT" else "ok"
    said = {"RESULT": "go\non\n", "INTERRUPT": "go\n"}.get(at, "")
    if (fault, at) == ("duplicate", "OUTPUT"):
        said = "go\n"
    if (fault, at) == ("duplicate", "EXEC"):  # the board reads the second when it has time
        return row._replace(status=status, why="", said=None)
    return row._replace(status=status, why="", record="", said=said)


def guarded_greeting(row: Row) -> Row:
    """Return what comes of a row of the greeting where TLS or a MAC guards the link."""
    if (row.strike.fault, row.strike.at) == ("duplicate", "WELCOME"):  # the cell is behind it
        return row._replace(status="lost", runs=0, why=NEVER, said="")
    return row


def in_records(strike: Strike) -> Strike:
    """Return the same strike as one of TLS's records, counted from when it is armed."""
    if strike.at == "handshake":
        return strike
    up, first = _RECORDS[strike.at]
    return strike._replace(nth=first + strike.nth - 1, up=up)


#: Between a board and the server, while a cell is on its way, runs, and ends.
WORK: Final = [
    # The cell on its way: a board that has not got all of it has run none of it.
    row("cut before", "EXEC", "lost", 0, why=NEVER, said=""),
    row("cut within", "EXEC", "lost", 0, why=NEVER, said=""),
    row("cut after", "EXEC", "ok", 1, said=""),
    row("delay", "EXEC", "ok", 1),
    row("drop", "EXEC", "timeout", 0, why=UNCONFIRMED, said=""),
    row("duplicate", "EXEC", "ok", 1),
    row("flip head", "EXEC", "lost", 0, why=NEVER, said=""),
    row("flip", "EXEC", "error", 0, why="Error", said="", bit=8 * 14 + 3),  # the code's first
    row("flip", "EXEC", "timeout", 1, why=UNCONFIRMED, said="", bit=8 * 5 + 3),  # its job
    row("half-open", "EXEC", "lost", 0, why=NEVER, said=""),
    row("trickle", "EXEC", "ok", 1),
    row("cut before", "MORE", "lost", 0, why=NEVER, said="", cell=LONG),
    row("cut before", "MORE", "lost", 0, why=NEVER, said="", cell=LONG, nth=2),
    row("drop", "MORE", "timeout", 0, why=UNCONFIRMED, said="", cell=LONG),
    row("reorder", "EXEC", "timeout", 0, why=UNCONFIRMED, said="", cell=LONG),
    row("half-open", "MORE", "lost", 0, why=NEVER, said="", cell=LONG),
    row("trickle", "MORE", "ok", 1, said="go\n", cell=LONG),
    # It runs and speaks: once it has begun, only the board knows, and is asked when it is back.
    row("cut before", "OUTPUT", "ok", 1, said=""),
    row("cut within", "OUTPUT", "ok", 1, said=""),
    row("cut after", "OUTPUT", "ok", 1, said="go\n"),
    row("delay", "OUTPUT", "ok", 1),
    row("drop", "OUTPUT", "ok", 1, said="on\n"),
    row("duplicate", "OUTPUT", "ok", 1, said="go\ngo\non\n"),
    row("reorder", "OUTPUT", "ok", 1, said="on\ngo\n"),
    row("flip head", "OUTPUT", "ok", 1, said=""),
    row("flip", "OUTPUT", "ok", 1, said="oo\non\n", bit=8 * 6 + 4),
    row("half-open", "OUTPUT", "ok", 1, said=""),
    row("trickle", "OUTPUT", "ok", 1),
    row("cut before", "VALUE", "ok", 1, said="go\n", cell=TELLS),
    row("cut within", "VALUE", "ok", 1, said="go\n", cell=TELLS),
    row("half-open", "VALUE", "ok", 1, said="go\n", cell=TELLS),
    row("trickle", "VALUE", "ok", 1, said="go\n", cell=TELLS),
    # It ends: what was lost on the way is told again, without its output.
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
    # It is interrupted; its own timeout ends it where that does not arrive.
    row("cut before", "INTERRUPT", "timeout", 1, said="go\n", cell=SPINS),
    row("cut after", "INTERRUPT", "interrupted", 1, said="go\n", cell=SPINS),
    row("delay", "INTERRUPT", "interrupted", 1, said="go\n", cell=SPINS),
    row("drop", "INTERRUPT", "timeout", 1, said="go\n", cell=SPINS),
    row("duplicate", "INTERRUPT", "interrupted", 1, said="go\n", cell=SPINS),
    row("half-open", "INTERRUPT", "timeout", 1, why=UNCONFIRMED, said="go\n", cell=SPINS),
    # It waits for a reset, which may be lost, too.
    row("cut before", "RESET", "error", 0, why="did not restart", said="", cell=FRESH),
    row("cut after", "RESET", "ok", 1, cell=FRESH),
    row("duplicate", "RESET", "ok", 1, cell=FRESH),
    row("half-open", "RESET", "error", 0, why="did not restart", said="", cell=FRESH),
]

#: While a board comes back to a cell that waits for it: it dials again until it is there.
GREETING: Final = [
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
    # The server takes the board for proven, and sends the cell: it is not sent again.
    row("duplicate", "CHALLENGE", "lost", 0, why=NEVER, said=""),
    row("cut after", "PROOF", "lost", 0, why=NEVER, said=""),
    row("duplicate", "PROOF", "ok", 1, said=""),  # the link dies of the second, behind the cell
    *(
        row(fault, "WELCOME", "lost", 0, why=NEVER, said="")
        for fault in ("cut before", "cut within", "cut after", "drop", "flip", "half-open")
    ),
    row("duplicate", "WELCOME", "ok", 1),
]


#: As GREETING, in the handshake of TLS: how many records a board and a server say there.
HANDSHAKE: Final = [
    Row(Strike(fault, "handshake", nth, up, bit=6), "ok", 1)
    for up, records in ((True, 4), (False, 6))
    for nth in range(1, records + 1)
    for fault in ("flip", "drop", "duplicate", "cut within")
]


class CallerRow(NamedTuple):
    """One fault between a caller and the server, and what comes of it.

    Attributes:
        strike: what happens, and where.
        told: what the caller gets: a status, or the error that is raised.
        record: what the server knows in the end; "" where it never heard of the cell.
        runs: how often the cell ran.
        said: what the caller has of its output.
    """

    strike: Strike
    told: str
    record: str
    runs: int
    said: str = ""

    def __str__(self) -> str:
        """Name the test."""
        return f"{self.strike.fault} {self.strike.at}".replace(" ", "-")


def caller_row(fault: str, at: str, told: str, record: str, runs: int, said: str = "") -> CallerRow:
    """Return a row."""
    return CallerRow(Strike(fault, at), told, record, runs, said)


ALL: Final = "go\non\n"
GONE: Final = "ServerUnreachable"
#: Where bytes are whole but messages are missing, only TLS could tell the caller: it waits, until
#: somebody closes its link.
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
    # What did not arrive whole runs nowhere; what did arrive runs, whoever is told.
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
    """Return what comes of a caller's row where TLS guards the link: a changed byte ends it."""
    fault, at = row.strike.fault, row.strike.at
    if fault in TCP:
        return row
    arrived = fault == "duplicate"
    if at == "SUBMIT":
        return row if arrived else row._replace(told=GONE, record="", runs=0)
    if at == "ACCEPTED":
        return row._replace(told="lost" if arrived else GONE)
    if at == "OUTPUT":
        return row._replace(told="lost", said="go\n" if arrived else "")
    return row if arrived else row._replace(told="lost")
