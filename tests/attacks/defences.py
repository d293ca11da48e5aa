"""Every defence (``make attacks``)."""

from __future__ import annotations

from typing import Final

from .access_control import ACCESS_CONTROL
from .bounds import BOUNDS
from .defence import Defence
from .faults import FAULTS
from .files import FILES
from .keeping import KEEPING
from .logs import BOARD_LOGS
from .packages import PACKAGES
from .servers import SERVERS
from .shares import SHARES
from .streams import STREAMS
from .timers import TIMERS
from .trust import TRUST

DEFENCES: Final[list[Defence]] = [
    *ACCESS_CONTROL,
    *TRUST,
    *BOUNDS,
    *PACKAGES,
    *SERVERS,
    *TIMERS,
    *KEEPING,
    *STREAMS,
    *FAULTS,
    *FILES,
    *SHARES,
    *BOARD_LOGS,
]
