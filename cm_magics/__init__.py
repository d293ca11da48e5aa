"""IPython magics that run cells on boards, and a dashboard: ``%load_ext cm_magics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .base import TargetMagics
from .board_magics import ManagementMagics
from .file_magics import FileMagics
from .magics import BoardMagics, close_fleet, dashboard, fleet
from .package_magics import PackageMagics
from .rollout_magics import RolloutMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

#: The classes whose magics begin with a target: files, packages, boards, rollouts.
TARGET_MAGICS: Final[tuple[type[TargetMagics], ...]] = (
    FileMagics,
    PackageMagics,
    ManagementMagics,
    RolloutMagics,
)

__all__ = [
    "TARGET_MAGICS",
    "BoardMagics",
    "FileMagics",
    "ManagementMagics",
    "PackageMagics",
    "RolloutMagics",
    "dashboard",
    "fleet",
    "load_ipython_extension",
    "register_target_magics",
    "unload_ipython_extension",
]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics, their completion and the formatters of results."""
    magics = BoardMagics(shell)
    shell.register_magics(magics)
    magics.register_hooks()
    register_target_magics(shell, magics)


def register_target_magics(shell: InteractiveShell, boards: BoardMagics) -> None:
    """Register the magics for files, packages and boards.

    Args:
        shell: registers them.
        boards: the ``%%board`` magics; ``%board_use`` of these sets the default target.
    """
    for kind in TARGET_MAGICS:
        magics = kind(shell, boards)
        shell.register_magics(magics)
        magics.register_hooks()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Unregister everything and close the connection; running cells continue on the boards."""
    kinds: tuple[type[BoardMagics | TargetMagics], ...] = (BoardMagics, *TARGET_MAGICS)
    for kind in kinds:
        magics = shell.magics_manager.registry.pop(kind.__name__, None)
        if isinstance(magics, kind):
            magics.unregister_hooks()
    close_fleet()
