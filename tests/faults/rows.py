"""What goes wrong on a link, where, and exactly what comes of it.

Each row becomes a test (test_board_link.py, test_caller_link.py). ``PLAIN`` links carry nothing
that could tell a changed byte, so that there a fault may garble what a cell says or does; but a
cell never has two outcomes, and nobody hangs. On links with TLS or a MAC all that is not a delay
ends the link.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .proxy import Strike

COUNT = "with open('/runs', 'a') as file: file.write('.')\n"
#: Prints in three messages and has a value: EXEC; OUTPUT "go", RESULT "on" and 42.
TALKS = COUNT + "import time\nprint('go')\ntime.sleep(0.1)\nprint('on')\n42"
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
        said: what the caller has of its output.
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
        place = f"bit {strike.bit} of " if strike.fault == "flip" else ""
        return f"{strike.fault} {place}{strike.at}".replace(" ", "-")


def row(fault: str, at: str, status: str, runs: int, **more: object) -> Row:
    """Return a row; ``nth`` and ``bit`` are the strike's."""
    place = {name: more.pop(name) for name in ("nth", "bit") if name in more}
    return Row(Strike(fault, at, **place), status, runs, **more)  # type: ignore[arg-type]


#: Between a board and the server, while a cell is on its way, runs, and ends.
WORK: Final = [
    # The cell on its way: a board that has not got all of it has run none of it.
    row("cut before", "EXEC", "lost", 0, why=NEVER, said=""),
    row("cut within", "EXEC", "lost", 0, why=NEVER, said=""),
    row("cut after", "EXEC", "ok", 1, said=""),
    row("delay", "EXEC", "ok", 1),
    row("drop", "EXEC", "timeout", 0, why=UNCONFIRMED, said=""),
    row("duplicate", "EXEC", "ok", 1),
    row("flip", "EXEC", "lost", 0, why=NEVER, said="", bit=-64),  # the frame's first byte
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
    row("reorder", "OUTPUT", "ok", 1, said="on\n"),
    row("flip", "OUTPUT", "ok", 1, said="", bit=-64),
    row("flip", "OUTPUT", "ok", 1, said="oo\non\n", bit=8 * 6 + 4),
    row("half-open", "OUTPUT", "ok", 1, said=""),
    row("trickle", "OUTPUT", "ok", 1),
    row("cut before", "VALUE", "ok", 1, said="", cell=TELLS),
    row("cut within", "VALUE", "ok", 1, said="", cell=TELLS),
    row("half-open", "VALUE", "ok", 1, said="", cell=TELLS),
    row("trickle", "VALUE", "ok", 1, said="go\n", cell=TELLS),
    # It ends: what was lost on the way is told again, without its output.
    row("cut before", "RESULT", "ok", 1, said="go\n"),
    row("cut within", "RESULT", "ok", 1, said="go\n"),
    row("cut after", "RESULT", "ok", 1),
    row("delay", "RESULT", "ok", 1),
    row("drop", "RESULT", "timeout", 1, why=UNCONFIRMED, said="go\n", record="ok"),
    row("duplicate", "RESULT", "ok", 1),
    row("flip", "RESULT", "ok", 1, said="go\n", bit=-64),
    row("flip", "RESULT", "error", 1, bit=15),  # the status itself
    row("half-open", "RESULT", "ok", 1, said="go\n"),
    row("trickle", "RESULT", "ok", 1),
    # It is interrupted; its own timeout ends it where that does not arrive.
    row("cut before", "INTERRUPT", "timeout", 1, said="go\n", cell=SPINS),
    row("cut after", "INTERRUPT", "interrupted", 1, said="go\n", cell=SPINS),
    row("delay", "INTERRUPT", "interrupted", 1, said="go\n", cell=SPINS),
    row("drop", "INTERRUPT", "timeout", 1, said="go\n", cell=SPINS),
    row("duplicate", "INTERRUPT", "interrupted", 1, said="go\n", cell=SPINS),
    row(
        *("half-open", "INTERRUPT", "timeout", 1),
        **{"why": UNCONFIRMED, "said": "go\n", "cell": SPINS},
    ),
    # It waits for a reset, which may be lost, too.
    row("cut before", "RESET", "error", 0, why="did not restart", said="", cell=FRESH),
    row("cut after", "RESET", "ok", 1, cell=FRESH),
    row("duplicate", "RESET", "ok", 1, cell=FRESH),
    row("half-open", "RESET", "error", 0, why="did not restart", said="", cell=FRESH),
]

#: While a board comes back: it dials again until it is there, and does what waits for it, once.
GREETING: Final = [
    row(fault, at, "ok", 1)
    for at in ("request", "answer", "HELLO", "CHALLENGE", "PROOF", "WELCOME")
    for fault in ("cut before", "cut within", "cut after", "delay", "drop", "duplicate", "flip",
                  "half-open", "trickle")
]  # fmt: skip
