"""The verb ``health``: restarts and errors of boards in the last day. No sockets, no SQL."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cm_server.auth import access
from cm_server.store.health_rows import CrashRow
from cm_server.store.store import Store

from .request_context import RequestContext

_HOURS: Final = 24
LOGS_ROLE: Final = "operator"  # the role that reads logs, unless viewers may, too


async def read_health(context: RequestContext) -> dict[str, Any]:
    """Return what went wrong on boards in the last day, and which parts their clients have."""
    services = context.services
    context.audit_entry.boards = len(context.boards)
    services.board_health.write()  # the store carries out what follows after it
    since = time.time() - _HOURS * 3600.0
    names = {board.id: name for name, board in context.boards.items()}

    def read(store: Store) -> tuple[dict[str, dict[str, int]], list[CrashRow]]:
        rows = store.health_rows
        return rows.restarts_since(since), rows.crashes_since(since)

    restarts, crashes = await services.store_queue.run(read, refusable=True)
    groups = _group(crashes, names)
    digests = [group["digest"] for group in groups[: 2 * services.limits.reply_crashes]]
    texts = await services.store_queue.run(
        lambda store: store.health_rows.crash_texts(digests), refusable=True
    )
    return {
        "hours": _HOURS,
        "restarts": {names[key]: counts for key, counts in restarts.items() if key in names},
        "crashes": _describe(groups, texts, reads_logs=_may_read_logs(context))[
            : services.limits.reply_crashes
        ],
        "parts": _group_parts(context),
    }


def _may_read_logs(context: RequestContext) -> bool:
    return context.services.viewers_read_logs or access.has_role(context.token, LOGS_ROLE)


def _group(crashes: Iterable[CrashRow], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return equal errors of the boards with these ids as one each, those of most boards first."""
    groups: dict[str, dict[str, Any]] = {}
    for row in crashes:
        if row.board_id not in names:
            continue
        new = {"digest": row.digest, "boards": [], "first": row.first, "last": row.last}
        group = groups.setdefault(row.digest, new)
        group["boards"].append(names[row.board_id])
        group["first"] = min(group["first"], row.first)
        group["last"] = max(group["last"], row.last)
    return sorted(groups.values(), key=lambda group: (-len(group["boards"]), -group["last"]))


def _describe(
    groups: Iterable[dict[str, Any]], texts: Mapping[str, str], *, reads_logs: bool
) -> list[dict[str, Any]]:
    """Return errors with their texts.

    A board reports the last line of the traceback that it prints, too: then that is left out. A
    traceback is of the log: without the right to read logs, it is None.
    """
    known = [
        {**group, "text": texts[group["digest"]]} for group in groups if group["digest"] in texts
    ]
    printed: dict[str, list[str]] = {}  # board -> last lines of its tracebacks
    for group in known:
        if _is_traceback(group["text"]):
            for name in group["boards"]:
                printed.setdefault(name, []).append(group["text"].rpartition("\n")[2])
    found = []
    for group in known:
        del group["digest"]
        text = group["text"]
        if not _is_traceback(text):
            group["boards"] = [
                name
                for name in group["boards"]
                if not any(line.startswith(text) for line in printed.get(name, ()))
            ]
        elif not reads_logs:
            group["text"] = None
        if group["boards"]:
            found.append(group)
    return found


def _is_traceback(text: str) -> bool:
    return "\n" in text


def _group_parts(context: RequestContext) -> list[list[list[str]]]:
    """Return the parts of clients, each list of parts with the boards that have these.

    Only of boards that are connected to this server: it has no others.
    """
    boards: dict[frozenset[str], list[str]] = {}
    for name, board in context.boards.items():
        if board.link is not None:
            boards.setdefault(board.client_parts, []).append(name)
    return [[sorted(parts), names] for parts, names in boards.items()]
