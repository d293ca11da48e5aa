"""Cloudmanager: Jupyter for fleets of MicroPython boards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
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
from .fleet import Boards, Fleet
from .jobs import Event, Job, JobGroup, Repr, Result, Results

if TYPE_CHECKING:
    from .aio import AsyncFleet

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
    "ServerError",
    "ServerUnreachable",
    "TargetError",
    "VersionMismatch",
]


def __getattr__(name: str) -> Any:
    """Import what is for asyncio only when it is asked for: asyncio takes 50 ms."""
    if name == "AsyncFleet":
        from .aio import AsyncFleet

        return AsyncFleet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
