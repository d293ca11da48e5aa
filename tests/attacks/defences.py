"""Every defence (``make attacks``)."""

from __future__ import annotations

from typing import Final

from .bounds import BOUNDS
from .defence import Defence
from .doors import DOORS

DEFENCES: Final[list[Defence]] = [*DOORS, *BOUNDS]
