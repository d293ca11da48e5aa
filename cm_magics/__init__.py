"""Cells on boards, in a notebook: ``%load_ext cm_magics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .files import FileMagics
from .magics import BoardMagics, dashboard, fleet, hang_up
from .packages import PackageMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "BoardMagics",
    "FileMagics",
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
    """Register the magics for files and packages; ``boards`` knows which were chosen."""
    for kind in (FileMagics, PackageMagics):
        magics = kind(shell, boards)
        shell.register_magics(magics)
        magics.plug_in()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take everything back; boards go on with what they run."""
    for kind in (BoardMagics, FileMagics, PackageMagics):
        magics = shell.magics_manager.registry.pop(kind.__name__, None)
        if isinstance(magics, kind):
            magics.unplug()
    hang_up()
