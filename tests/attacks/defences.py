"""Every defence (``make attacks``)."""

from __future__ import annotations

from typing import Final

from .bounds import BOUNDS
from .defence import Defence
from .doors import DOORS
from .keeping import KEEPING
from .packages import PACKAGES
from .servers import SERVERS
from .streams import STREAMS
from .timers import TIMERS
from .trust import TRUST

DEFENCES: Final[list[Defence]] = [
    *DOORS,
    *TRUST,
    *BOUNDS,
    *PACKAGES,
    *SERVERS,
    *TIMERS,
    *KEEPING,
    *STREAMS,
]
