"""The cell that restarts a board in a rollout: it applies a switch, or goes back; no I/O.

It may arrive late, or twice, when servers and links fail. So the board looks at its state first,
and restarts only if that still leads to what is wanted: a restart too many in a trial would be
taken for a crash of the program.

The start of the board's program counts as good then: only restarts that nobody has asked for lead
to safe mode (mpy_client/cm/app.py), and rollouts of settings may follow one another.
"""

from __future__ import annotations

import ast
from typing import Final

_VALUE_ERRORS: Final = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_REASON_CHARS: Final = 100  # of why a board goes back; it reports the first part of it

#: ``name``: of the generation; ``reason``: why it goes back, "" for a restart that applies it;
#: ``report``: takes the value of the cell. The format of the state is in mpy_client/cm/trial.py,
#: which goes back at the next start, with the reason.
_CODE: Final = """
import os, sys
try:
    with open("/.cm/state") as file:
        words = file.readline().split(None, 4)
except OSError:
    words = []
state = words[0] if words[1:2] == [name] else ""
if (state == "trying") == bool(reason):
    if reason:
        with open("/.cm/state.new", "w") as file:
            file.write(" ".join(words[:4] + [reason]))
        os.rename("/.cm/state.new", "/.cm/state")
    app = sys.modules.get("cm.app")
    if hasattr(app, "good"):
        app.good()
    try:
        from cm.state import console
        console.hard_reset()
    except ImportError:  # the client of version 0.1
        from machine import reset
        reset()
report((state,))
"""


def restart_code(name: str, reason: str = "") -> bytes:
    """Return the code of a cell that restarts a board.

    Args:
        name: the first digits of the id of the generation.
        reason: why it has failed there, so that the board goes back; "": it has yet to start.

    Returns:
        The code; where it does not restart the board, its value is for ``read_state``.
    """
    text = " ".join(reason.split())[:_REASON_CHARS].lstrip("?")
    names = f"{{'report': __cm__, 'name': {name!r}, 'reason': {text!r}}}"
    return f"exec({_CODE!r}, {names})".encode()


def read_state(value: str) -> str:
    """Return the state of the generation on the board, "" for none, of the text of a value."""
    try:
        (state,) = ast.literal_eval(value)
    except _VALUE_ERRORS:
        return ""
    return str(state)
