"""Checks whether a caller's token still permits a job. No sockets, no SQL.

A job may wait for days: behind other jobs, or for its board to connect. Meanwhile its token may
expire or be revoked, and its board may get a name or labels that the token does not reach. So the
permission is checked right before a job starts, and for all jobs whenever a token or a board
changes: waiting jobs that are no longer permitted end immediately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cm_server.jobs.model import Job

from . import access

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.registry import Registry
    from cm_server.store.rows import TokenRow

    from .tokens import Tokens

#: Longest time between two checks of a token that expires: somebody may set the wall clock.
EXPIRY_CHECK_SECONDS = 60.0
#: Delay until a caller is detached from a running job on a board that its token does not reach any
#: more: the same as that of subscriptions, and a label may be replaced in two steps meanwhile.
DETACH_SECONDS = 0.25


class Permission:
    """Checks jobs against their callers' tokens.

    Args:
        tokens: all tokens.
        registry: all boards.
        dispatch: all jobs; it calls ``refusal_reason`` before it starts a job.
        call_later: calls a function after a number of seconds.
    """

    def __init__(
        self,
        tokens: Tokens,
        registry: Registry,
        dispatch: Dispatch,
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._tokens = tokens
        self._registry = registry
        self._dispatch = dispatch
        self._call_later = call_later
        self._expiring: set[str] = set()  # hashes of tokens that have a timer
        self._review_scheduled = False
        self._detach_scheduled = False
        dispatch.scheduler.permission_check = self.refusal_reason
        registry.on_access_changed = self.schedule_review

    def refusal_reason(self, job: Job) -> str:
        """Return why a job may not start, or its caller not follow it; "" if they may.

        The text contains the board's name from when the job was submitted: the caller may not
        learn a new name that its token does not reach.
        """
        if not job.token_hash:
            return ""  # from an older version of the server, or a job of the server itself
        token = self._tokens.by_hash(job.token_hash)
        if token is None:
            return f"the token of {job.caller!r} is not known here"
        if reason := self._tokens.refusal_reason(token):
            return reason
        if not access.has_role(token, access.SUBMIT_ROLE):
            return f"the token {token.name!r} may not run cells"
        reachable = access.reachable_boards(token, self._registry.by_name)
        if reachable.get(job.board.name) is not job.board:
            return f"{job.name} is no longer within reach of your token"
        if token.expires is not None:
            self._watch_expiry(token)
        return ""

    def _watch_expiry(self, token: TokenRow) -> None:
        """Schedule a review for the time when a token expires, which ends its waiting jobs."""
        left = self._tokens.seconds_left(token)
        if left is None or token.hash in self._expiring:
            return
        self._expiring.add(token.hash)
        seconds = min(max(left, 0.01), EXPIRY_CHECK_SECONDS)
        self._call_later(seconds, lambda: self._on_expiry(token.hash))

    def _on_expiry(self, token_hash: str) -> None:
        self._expiring.discard(token_hash)
        self.review()  # sets the timer again for a token that is still valid and has jobs

    def schedule_review(self) -> None:
        """Review all jobs in the next iteration of the event loop, once for many changes."""
        if not self._review_scheduled:
            self._review_scheduled = True
            self._call_later(0, self._run_scheduled_review)

    def _run_scheduled_review(self) -> None:
        self._review_scheduled = False
        self.review()

    def review(self) -> None:
        """End waiting jobs that are no longer permitted.

        A running job continues, because half an upload or half an install would be worse. Its
        caller gets no more messages about it; the outcome that it sees is that its token does not
        reach the board any more.
        """
        for job in list(self._dispatch.jobs.values()):
            if not (reason := self.refusal_reason(job)):
                continue
            if not job.may_have_started:
                self._withdraw(job, reason)
            elif job.observer is not None and not self._detach_scheduled:
                self._detach_scheduled = True
                self._call_later(DETACH_SECONDS, self._detach_callers)

    def _withdraw(self, job: Job, reason: str) -> None:
        """End a waiting job that is no longer permitted."""
        self._dispatch.withdraw_job(job, reason)

    def _detach_callers(self) -> None:
        """Detach callers from running jobs that their tokens no longer permit."""
        self._detach_scheduled = False
        for job in list(self._dispatch.jobs.values()):
            is_followed = job.may_have_started and job.observer is not None
            if is_followed and (reason := self.refusal_reason(job)):
                self._detach_caller(job, reason)

    def _detach_caller(self, job: Job, reason: str) -> None:
        """Stop sending messages about a running job to its caller."""
        self._dispatch.stop_following(job, reason)
