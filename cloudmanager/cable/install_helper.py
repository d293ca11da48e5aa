"""The part of the client that finishes installs, lent to a board behind a raw REPL; only code."""

from __future__ import annotations

from typing import Final

from cloudmanager.board_client import client_source

JOURNAL: Final = "/.cm/journal"
#: Makes a module of the part, unless the board has it: {0} is its source.
_LEND: Final = """
try:
 __import__('cm.switch')
except ImportError:
 __cm_d__={{}}
 exec({0!r},__cm_d__)
 class __cm_m__:finish=__cm_d__['finish']
 __import__('sys').modules.update({{'cm':__cm_m__,'cm.switch':__cm_m__}})
 del __cm_d__
"""
FINISH: Final = "__import__('cm.switch',None,None,('finish',)).finish()"
TAKE_BACK: Final = """
try:
 del __cm_m__
 for __cm_n__ in ('cm','cm.switch'):__import__('sys').modules.pop(__cm_n__,None)
except NameError:pass
"""


def lend() -> str:
    """Return the code that lends a board the part."""
    source = (client_source() / "cm/switch.py").read_text(encoding="utf-8")
    return _LEND.format("\n".join(line for line in source.splitlines() if line[:1] != "#"))
