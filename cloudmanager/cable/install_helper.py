"""Code that lends a board without the client the part that completes installs (cm/switch.py)."""

from __future__ import annotations

from typing import Final

from cloudmanager.board_client import client_source_folder

JOURNAL_PATH: Final = "/.cm/journal"
#: Creates the module ``cm.switch``, unless the board has it; {0} is its source.
_INSTALL_TEMPLATE: Final = """
try:
 __cm_i__('cm.switch')
except ImportError:
 __cm_d__={{'open':__cm_o__}}
 exec({0!r},__cm_d__)
 class __cm_m__:finish=__cm_d__['finish']
 __cm_i__('sys').modules.update({{'cm':__cm_m__,'cm.switch':__cm_m__}})
 del __cm_d__
"""
FINISH_CODE: Final = "__cm_i__('cm.switch',None,None,('finish',)).finish()"
REMOVE_CODE: Final = """
try:
 del __cm_m__
 for __cm_n__ in ('cm','cm.switch'):__cm_i__('sys').modules.pop(__cm_n__,None)
except NameError:pass
"""


def make_install_code() -> str:
    """Return code that creates the module ``cm.switch`` on a board."""
    source = (client_source_folder() / "cm/switch.py").read_text(encoding="utf-8")
    # A board without the client imports MicroPython's modules itself.
    source = source.replace("from cm.firmware import ", "import ")
    return _INSTALL_TEMPLATE.format(
        "\n".join(line for line in source.splitlines() if line[:1] != "#")
    )
