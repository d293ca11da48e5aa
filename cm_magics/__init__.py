"""Cells on boards, in a notebook: ``%load_ext cm_magics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .board_magics import ManageMagics
from .file_magics import FileMagics
from .magics import BoardMagics, dashboard, fleet, hang_up
from .package_magics import PackageMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "BoardMagics",
    "FileMagics",
    "ManageMagics",
    "PackageMagics",
    "dashboard",
    "fleet",
    "load_ipython_extension",
    "load_words",
    "unload_ipython_extension",
]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics, their completion and how results look."""
    magics = BoardMagics(shell)
    shell.register_magics(magics)
    magics.plug_in()
    load_words(shell, magics)


def load_words(shell: InteractiveShell, boards: BoardMagics) -> None:
    """Register the other magics; ``boards`` knows which were chosen."""
    for kind in (FileMagics, PackageMagics, ManageMagics):
        magics = kind(shell, boards)
        shell.register_magics(magics)
        magics.plug_in()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take everything back; boards go on with what they run."""
    for kind in (BoardMagics, FileMagics, PackageMagics, ManageMagics):
        magics = shell.magics_manager.registry.pop(kind.__name__, None)
        if isinstance(magics, kind):
            magics.unplug()
    hang_up()
