"""Constants of time that several modules need."""

from __future__ import annotations

from typing import Final

DAY: Final = 86400.0  # seconds
#: 2024-01-01. This program is younger, so an earlier time (1970, 2000) is wrong.
EARLIEST: Final = 1_704_067_200.0
