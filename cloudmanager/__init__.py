"""Cloudmanager: Jupyter for fleets of MicroPython boards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.async_fleet import AsyncFleet
    from .client.fleet import Boards, Fleet
    from .client.jobs import Event, Job, JobGroup
    from .client.samples import Sample, Samples
    from .client.watch import Update, Watch
    from .protocol.errors import (
        BoardError,
        BoardOffline,
        CellSyntaxError,
        CloudmanagerError,
        FleetError,
        LinkLost,
        NoSuchBoard,
        NotAllowed,
        ServerError,
        ServerUnreachable,
        TargetError,
        VersionMismatch,
    )
    from .results.board_values import Repr
    from .results.results import Result, Results

#: The version of the library, the server, the magics, the kernel and ``mbm``; setup.cfg reads it.
__version__ = "0.1.0"

__all__ = [
    "AsyncFleet",
    "BoardError",
    "BoardOffline",
    "Boards",
    "CellSyntaxError",
    "CloudmanagerError",
    "Event",
    "Fleet",
    "FleetError",
    "Job",
    "JobGroup",
    "LinkLost",
    "NoSuchBoard",
    "NotAllowed",
    "Repr",
    "Result",
    "Results",
    "Sample",
    "Samples",
    "ServerError",
    "ServerUnreachable",
    "TargetError",
    "Update",
    "VersionMismatch",
    "Watch",
]


_PUBLIC_MODULES = (
    "protocol.errors",
    "client.fleet",
    "client.jobs",
    "results.results",
    "client.samples",
    "client.watch",
    "client.async_fleet",
)  # async_fleet last: it imports asyncio, which takes 50 ms


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: every pytest run imports this package (plugin)."""
    if name in __all__:
        for home in _PUBLIC_MODULES:
            module = importlib.import_module(f".{home}", __name__)
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted({*globals(), *__all__})
