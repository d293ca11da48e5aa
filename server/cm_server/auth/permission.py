"""Whether a caller's token still permits a job, asked whenever the job would begin.

A job may wait for days: behind other jobs, or for its board to dial in. Meanwhile its token may
expire or be revoked, and its board may get a name or labels that the token does not reach. So
permission is read when it is used, and again whenever a token or a board changes: then all jobs
that have not begun and are permitted no more end at once. No sockets, no SQL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloudmanager.protocol.errors import NotAllowed, ServerError
from cm_server.api.verbs import check_role
from cm_server.jobs.jobs import Job

from . import access

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.registry import Registry
    from cm_server.store.rows import TokenRow

    from .tokens import Tokens

#: Longest time in seconds between two looks at a token that expires: the clock may be set.
LOOK_SECONDS = 60.0
#: Seconds until a caller is parted from what runs on a board that it does not reach any more: as
#: fast as watches follow (limits.WATCH_SECONDS), and a label may be replaced in two steps.
PART_SECONDS = 0.25


class Permission:
    """Judges jobs by their callers' tokens.

    Args:
        tokens: every token that is known.
        registry: the boards.
        dispatch: the jobs; it asks ``refusal`` before each start.
        later: calls a function after so many seconds.
    """

    def __init__(
        self,
        tokens: Tokens,
        registry: Registry,
        dispatch: Dispatch,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._tokens, self._registry, self._dispatch = tokens, registry, dispatch
        self._later = later
        self._expiring: set[str] = set()  # hashes of tokens that have a timer
        self._reviews = False  # whether a review is scheduled
        self._parts = False  # whether callers are to be parted from running jobs
        dispatch.permit(self.refusal)
        registry.on_access = self.review_soon

    def refusal(self, job: Job) -> str:
        """Return why a job may not begin, or its caller not follow it; "" where they may.

        The sentence names the board as the caller knew it: a new name outside of the token's
        reach is not the caller's to know.
        """
        if not job.token:
            return ""  # sent by an earlier server, or by this one for itself
        token = self._token(job.token)
        if token is None:
            return f"the token of {job.caller!r} is not known here"
        if why := self._tokens.refusal_reason(token):
            return why
        try:
            check_role(token, "submit")
        except NotAllowed:
            return f"the token {token.name!r} may not run cells"
        if (
            access.reachable_boards(token, self._registry.by_name).get(job.board.name)
            is not job.board
        ):
            return f"{job.name} is no longer within reach of your token"
        self._watch_expiry(token)
        return ""

    def _token(self, token_hash: str) -> TokenRow | None:
        """Return a job's token; one that another server has just made comes out of the store."""
        token = self._tokens.by_hash(token_hash)
        if token is None:
            with contextlib.suppress(ServerError):
                self._tokens.reload()
                token = self._tokens.by_hash(token_hash)
        return token

    def _watch_expiry(self, token: TokenRow) -> None:
        """See that what waits when a token expires ends then, not when it would begin."""
        left = self._tokens.seconds_left(token)
        if left is None or token.hash in self._expiring:
            return
        self._expiring.add(token.hash)
        seconds = min(max(left, 0.01), LOOK_SECONDS)
        self._later(seconds, lambda: self._on_expiry(token.hash))

    def _on_expiry(self, token_hash: str) -> None:
        self._expiring.discard(token_hash)
        self.review()  # sets the timer again for a token that is still valid and has jobs

    def review_soon(self) -> None:
        """Review all jobs once this turn of the loop is over; many changes share one review."""
        if not self._reviews:
            self._reviews = True
            self._later(0, self._review_now)

    def _review_now(self) -> None:
        self._reviews = False
        self.review()

    def review(self) -> None:
        """End the jobs that have not begun and are permitted no more.

        A job that has begun goes on: half an upload or an install would be worse. Its caller
        learns no more of it, and no outcome but that its token does not reach it any more.
        """
        for job in list(self._dispatch.jobs.values()):
            if not (why := self.refusal(job)):
                continue
            if not job.begun:
                self._dispatch.withdraw(job, why)
            elif job.observer is not None and not self._parts:
                self._parts = True
                self._later(PART_SECONDS, self._part)

    def _part(self) -> None:
        """Have callers follow no job any more that their tokens do not permit."""
        self._parts = False
        for job in list(self._dispatch.jobs.values()):
            if job.begun and job.observer is not None and (why := self.refusal(job)):
                self._dispatch.part(job, why)
