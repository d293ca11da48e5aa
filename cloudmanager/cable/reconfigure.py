"""Change settings of boards in the fleet, over the serial port or over their link.

A board keeps its old settings until the new ones have worked (mpy_client/cm/dial.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Unpack

from cloudmanager.client.fleet import Boards
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.restarts import hard_reset_cell, hard_reset_code
from cloudmanager.protocol.errors import CableError
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, WaitKeywords
from cloudmanager.results.results import Results

from .serial_ports import BoardRepl

PROMPT_SECONDS: Final = 10.0  # until a board must show its REPL
CELL_SECONDS: Final = 10.0
#: Runs on a board, with `new`: the changes. cm/boot.py tries /cm.new for one start.
_CONFIGURE_CODE: Final = """
import json
with open('/cm.json') as f:
    c = json.load(f)
c.update(new)
with open('/cm.new', 'w') as f:
    f.write(json.dumps(c))
"""
#: Runs before that: a virtual board cannot restart, and a bridged one has no settings.
_CHECK_CODE: Final = """
import machine, sys
if 'cm.console' not in sys.modules or not hasattr(machine, 'reset'):
    raise OSError('it has no settings to change: its client was not installed by mbm flash')
"""


def configure_by_cable(port: str, changes: Mapping[str, Any]) -> str:
    """Change settings of a board on a serial port; it discards new settings that do not work.

    Args:
        port: the serial port.
        changes: new values for fields of cm.json: ``wifi``, ``host``, ``tcp_port``, ``watchdog``,
            ``ip`` (address, netmask, gateway, DNS server), ``country``.

    Returns:
        The board's id.

    Raises:
        CableError: the board is not in a fleet, or does not answer.
    """
    with BoardRepl(port) as repl:
        repl.await_prompt(PROMPT_SECONDS)
        board_id, _ = repl.identity()
        if not board_id:
            hint = "Add it: `mbm flash --no-flash`."
            raise CableError(port, "The board is not in a fleet", hint)
        if changes:
            repl.run(f"new = {dict(changes)!r}\n{_CONFIGURE_CODE}")
            repl.restart()
        else:
            repl.leave_raw_repl()
    return board_id


def configure_by_link(
    boards: Boards, changes: Mapping[str, Any], **waits: Unpack[WaitKeywords]
) -> Results:
    """Change settings of boards, and restart them.

    Args:
        boards: the boards.
        changes: as for ``configure_by_cable``.
        waits: whether the server keeps it until each board is there: see ``RunOptions``.

    Returns:
        How writing the settings ended on each board; only if all succeeded are they restarted.
        With ``when_online``, the job of each board, with the status ``waiting``.
    """
    if waits.get("when_online"):  # fresh: the program must not put it to sleep before the restart
        code = _CHECK_CODE + _CONFIGURE_CODE + hard_reset_code()
        new = {"new": dict(changes)}
        return boards.run(code, inputs=new, timeout=CELL_SECONDS, fresh=True, **waits)
    done = boards.run(
        _CHECK_CODE + _CONFIGURE_CODE, inputs={"new": dict(changes)}, timeout=CELL_SECONDS
    )
    if done.ok:
        group = JobGroup(hard_reset_cell(), DEFAULT_OPTIONS)
        boards.exchange().submit(group, boards.target)
        group.accepted.result()
    return done
