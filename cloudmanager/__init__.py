"""Cloudmanager: Jupyter for fleets of MicroPython boards."""

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

__all__ = [
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
