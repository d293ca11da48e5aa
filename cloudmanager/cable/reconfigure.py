"""Other settings for boards that are members: over the cable or over the air.

A board keeps its old settings until the new ones have worked (mpy_client/cm/dial.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloudmanager.client.fleet import Boards
from cloudmanager.protocol.errors import CableError
from cloudmanager.results.results import Results

from .serial_ports import BoardRepl

PROMPT_SECONDS: Final = 10.0  # that a board may take to show its REPL
CELL_SECONDS: Final = 10.0
#: Runs on a board, with `new`: what is to change. dial.py takes /cm.new over once it has worked.
_CONFIGURE_CODE: Final = """
import json
with open('/cm.json') as f:
    c = json.load(f)
c.update(new)
with open('/cm.new', 'w') as f:
    f.write(json.dumps(c))
"""
#: Before that: a virtual board cannot restart, and a bridged one dials nothing.
_CHECK_CODE: Final = """
import machine, sys
if 'cm_start' not in sys.modules or not hasattr(machine, 'reset'):
    raise OSError('it has no such settings: its client was not put there by mbm flash')
"""


def configure_by_cable(port: str, changes: Mapping[str, Any]) -> str:
    """Give a board on a cable other settings; it goes back to the old ones if they do not work.

    Args:
        port: the serial port.
        changes: of cm.json, what is to change: ``wifi``, ``host``, ``tcp_port``, ``watchdog``.

    Returns:
        The board's id.

    Raises:
        CableError: the board is no member of a fleet, or does not answer.
    """
    with BoardRepl(port) as repl:
        repl.await_prompt(PROMPT_SECONDS)
        board_id, _ = repl.identity()
        if not board_id:
            hint = "Make it one: `mbm flash --no-flash`."
            raise CableError(port, "The board is no member of a fleet", hint)
        if changes:
            repl.run(f"new = {dict(changes)!r}\n{_CONFIGURE_CODE}")
            repl.restart()
        else:
            repl.leave_raw_repl()
    return board_id


def configure_by_link(boards: Boards, changes: Mapping[str, Any]) -> Results:
    """Give boards that are connected other settings, and restart them; see above."""
    done = boards.run(
        _CHECK_CODE + _CONFIGURE_CODE, inputs={"new": dict(changes)}, timeout=CELL_SECONDS
    )
    if done.ok:
        boards.submit("import machine\nmachine.reset()")
    return done
