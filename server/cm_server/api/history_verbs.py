"""The verbs ``history`` and ``history-forget``: what ran on boards. No sockets, no SQL."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import NotAllowed, ServerError
from cloudmanager.protocol.targets import parse_target
from cm_server.auth import access
from cm_server.jobs.model import Board
from cm_server.store.rows import MAX_JOB_ID, TokenRow
from cm_server.store.store import Store
from cm_server.store.text_rows import (
    Forgotten,
    HistoryPage,
    HistoryRow,
    IsForgotten,
    read_about,
)

from .request_context import RequestContext, Services
from .request_limits import is_whole_number

_MAX_SECONDS = 1e12  # since 1970, or in the past: more is no time
#: What a job's row says of where it comes from, for all who may run jobs; the rest is private.
_PUBLIC = ("kind", "fresh")


async def read_history(context: RequestContext) -> dict[str, Any]:
    """Return jobs of boards, the newest first, with what they ran.

    What a cell ran, and from which notebook, is for its author and for administrators. Paths of
    files and names of packages are for all who may run jobs.

    Returns:
        ``jobs``; ``texts``: SHA-256 -> text; ``before``: the number before which the next request
        continues, None if this was all.
    """
    services = context.services
    identities = _identities(context, _listed_boards(context))
    since = _read_number(context.body, "since", 0.0)
    before = context.body.get("before", MAX_JOB_ID + 1)
    if not is_whole_number(before) or not 0 < before <= MAX_JOB_ID + 1:
        raise ServerError("before must be the number of a job")
    services.dispatch.job_texts.write_all()  # before what follows: what just ran is included
    jobs: list[dict[str, Any]] = []
    texts: dict[str, str] = {}
    chars = 0
    reached: int | None = before
    while reached is not None and len(jobs) < services.limits.reply_jobs:
        page, found = await _read_page(context, frozenset(identities), reached, texts)
        for row in page.rows:
            identity = identities[row.board]
            if row.created < since or not identity.includes(row):
                continue
            description = _describe(context, row, identity.name)
            digest = description["text"]
            if digest in found and digest not in texts:
                texts[digest] = found[digest]
                chars += len(found[digest])
            jobs.append(description)
            is_full = (
                len(jobs) == services.limits.reply_jobs
                or chars > services.limits.reply_history_chars
            )
            if is_full and (row is not page.rows[-1] or page.reached is not None):
                return {"jobs": jobs, "texts": texts, "before": row.id}
        reached = None if page.newest < since else page.reached
    return {"jobs": jobs, "texts": texts, "before": None}


async def _read_page(
    context: RequestContext, board_ids: Collection[str], before: int, known: Collection[str]
) -> tuple[HistoryPage, dict[str, str]]:
    """Return the next jobs, and those texts of them that the caller may read."""
    max_examined = context.services.limits.examined_jobs

    def read(store: Store) -> tuple[HistoryPage, dict[str, str]]:
        page = store.read(lambda: store.text_rows.history(board_ids, before, max_examined))
        wanted = {row.text for row in page.rows if row.text and _may_read_text(context, row)}
        return page, store.read(lambda: store.text_rows.texts(wanted.difference(known)))

    # In the store's thread: a page takes milliseconds.
    return await context.services.store_queue.run(read, refusable=True, durable=True)


def _listed_boards(context: RequestContext) -> list[Board]:
    """Return the boards of a request's target, connected or not."""
    target = parse_target(str(context.body.get("target") or ""))
    boards = [context.boards[name] for name in target.listed_names(context.boards)]
    context.audit_entry.boards = len(boards)
    return boards


class _Identity(NamedTuple):
    """An identity whose jobs belong to a board's history.

    Attributes:
        name: of the board.
        since: what had ended before is not the board's, in seconds since 1970: it ran on what took
            the board's place, when that was another board.
    """

    name: str
    since: float

    def includes(self, row: HistoryRow) -> bool:
        """Return whether a job belongs to the board; also if it had waited for the other one."""
        return row.ended is None or row.ended >= self.since


def _identities(context: RequestContext, boards: Collection[Board]) -> dict[str, _Identity]:
    """Return the identities of boards, and those that they replaced, by their ids."""
    periods = context.services.enrolment.find_periods(boards)
    return {
        each.id: _Identity(board.name, each.since) for board in boards for each in periods[board.id]
    }


def _read_number(body: dict[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < _MAX_SECONDS:
        raise ServerError(f"{name} must be a number of seconds")
    return float(value)


def _describe(context: RequestContext, row: HistoryRow, board: str) -> dict[str, Any]:
    """Return a job as the caller may see it."""
    about = read_about(row)
    may_read = _may_read(context.token, row, str(about.get("kind", "")))
    shown = about if may_read else {key: about[key] for key in _PUBLIC if key in about}
    return {
        "job": row.id,
        "board": board,
        "caller": row.caller,
        "created": row.created,
        "ended": row.ended,
        "status": row.status,
        "error": row.error or "",
        "kind": "",
        **shown,
        "text": row.text if may_read else None,
    }


def _may_read_text(context: RequestContext, row: HistoryRow) -> bool:
    """Return whether the caller gets the text of a job."""
    if row.created < time.time() - context.services.keep_texts_seconds:
        return False
    return _may_read(context.token, row, str(read_about(row).get("kind", "")))


def _may_read(token: TokenRow, row: HistoryRow, kind: str) -> bool:
    """Return whether a token may read what a job ran."""
    if access.has_role(token, "admin") or _is_author(token, row):
        return True
    return kind not in ("cell", "") and access.has_role(token, access.SUBMIT_ROLE)


def _is_author(token: TokenRow, row: HistoryRow) -> bool:
    """Return whether a job was submitted with this token; another one of its name is not it."""
    return bool(row.token) and row.token == token.hash


async def forget_history(context: RequestContext) -> dict[str, Any]:
    """Forget what jobs ran; that they ran, and how they ended, stays.

    An operator forgets what the own token has run, an administrator also what others have.

    Returns:
        ``jobs`` and ``texts``: how many; ``erased``: whether the database's files have nothing
        of them any more.
    """
    body, services, token = context.body, context.services, context.token
    caller, older_than = body.get("caller"), _read_number(body, "older_than", 0.0)
    if caller is not None and not isinstance(caller, str):
        raise ServerError("caller must be the name of a token")
    if body.get("target") is None and caller is None and not older_than:
        raise ServerError("say what to forget: of which boards, of which caller, or how old")
    is_admin = access.has_role(token, "admin")
    if caller not in (None, token.name) and not is_admin:
        raise NotAllowed("admin")
    board_ids = _forgotten_boards(context)
    before = time.time() - older_than
    details = [f"of {caller}" if caller else "", f"older than {older_than:g} s" * (older_than > 0)]
    context.audit_entry.detail = ", ".join(filter(None, details))

    def is_forgotten(row: HistoryRow) -> bool:
        if board_ids is not None and row.board not in board_ids:
            return False
        if not is_admin and not _is_author(token, row):
            return False
        return row.created <= before and caller in (None, row.caller)

    services.dispatch.job_texts.write_all()  # before what follows: what just ran is included
    await services.audit_log.log_action(context.audit_entry)
    context.audit_entry.written = True
    jobs, digests = await _forget_jobs(services, is_forgotten)
    texts = await _delete_texts(services, digests)
    services.dispatch.job_texts.on_forgotten()
    services.dispatch.recent_jobs.forget_titles(jobs)
    erased = await services.store_queue.run(lambda store: store.database.erase_log(), durable=True)
    return {"jobs": len(jobs), "texts": texts, "erased": erased}


def _forgotten_boards(context: RequestContext) -> frozenset[str] | None:
    """Return the ids of the boards of a request; None for all, also for those that were removed."""
    # Also what ran before a board took the place of another one: no other target has it.
    if context.body.get("target") is not None:
        return frozenset(_identities(context, _listed_boards(context)))
    if access.reaches_all(context.token):
        return None
    return frozenset(_identities(context, context.boards.values()))


async def _forget_jobs(services: Services, is_forgotten: IsForgotten) -> tuple[set[int], set[str]]:
    """Forget what jobs ran, batch by batch; return their numbers, and their texts' SHA-256s."""
    max_rows = services.limits.examined_jobs
    jobs: set[int] = set()
    digests: set[str] = set()
    after: int | None = 0
    while after is not None:
        batch = await services.store_queue.run(
            functools.partial(_forget_batch, is_forgotten, after, max_rows),
            refusable=True,
            durable=True,
        )
        jobs |= batch.jobs
        digests |= batch.texts
        after = batch.reached
    return jobs, digests


def _forget_batch(is_forgotten: IsForgotten, after: int, max_rows: int, store: Store) -> Forgotten:
    return store.text_rows.forget(is_forgotten, after, max_rows)


async def _delete_texts(services: Services, digests: set[str]) -> int:
    """Delete those of these texts that no other job has run; return how many."""
    max_rows = services.limits.examined_jobs
    unused, examined = set(digests), 0
    after: int | None = 0
    while unused and after is not None:
        used, after = await services.store_queue.run(
            functools.partial(_find_used, frozenset(unused), after, max_rows),
            refusable=True,
            durable=True,
        )
        unused -= used
        examined = after or examined
    if not unused:
        return 0
    return await services.store_queue.run(
        lambda store: store.text_rows.delete_texts(unused, examined), durable=True
    )


def _find_used(
    digests: frozenset[str], after: int, max_rows: int, store: Store
) -> tuple[set[str], int | None]:
    return store.read(lambda: store.text_rows.used_texts(digests, after, max_rows))
