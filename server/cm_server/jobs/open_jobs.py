"""How many jobs of each token have not ended, and the bytes of their cells. No sockets, no SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm_server.limits import Limits
from cm_server.quotas import Quota, Shares

if TYPE_CHECKING:
    from cm_server.store.rows import TokenRow


class OpenCell:
    """A cell of which some jobs have not ended; its code is in memory once.

    Args:
        shares: of all tokens.
        owner: the hash of the token.
        jobs: how many jobs it has.
        size: the bytes of its code.
    """

    __slots__ = ("_jobs", "_owner", "_shares", "_size")

    def __init__(self, shares: OpenJobs, owner: str, jobs: int, size: int) -> None:
        self._shares, self._owner, self._jobs, self._size = shares, owner, jobs, size
        shares.jobs.add(owner, jobs)
        shares.bytes.add(owner, size)

    def end_job(self) -> None:
        """Count the end of one of its jobs."""
        self._jobs -= 1
        self._shares.jobs.add(self._owner, -1)
        if not self._jobs:
            self._shares.bytes.add(self._owner, -self._size)


class OpenJobs:
    """The shares of all tokens.

    Args:
        limits: how much there may be.

    Attributes:
        jobs: how many jobs have not ended.
        bytes: of their cells.
    """

    def __init__(self, limits: Limits) -> None:
        self.jobs = Shares(
            Quota(
                "jobs that have not ended",
                total=limits.open_jobs,
                per_token=limits.open_jobs_per_token,
                reserved=limits.reserved_open_jobs,
            )
        )
        self.bytes = Shares(
            Quota(
                "bytes of cells that have not ended",
                total=limits.open_cells_bytes,
                per_token=limits.open_cells_token_bytes,
                reserved=limits.reserved_open_cells_bytes,
            )
        )

    def refusal_reason(self, token: TokenRow, jobs: int, size: int) -> str:
        """Return why a token may not submit a cell; "" if it may.

        Args:
            token: the caller's.
            jobs: on how many boards the cell would run.
            size: the bytes of its code.
        """
        return self.jobs.refusal_reason(token, jobs) or self.bytes.refusal_reason(token, size)
