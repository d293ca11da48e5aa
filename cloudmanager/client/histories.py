"""Reads what ran on boards, page by page."""

from __future__ import annotations

from typing import Any

from cloudmanager.results.history import History, read_entry

from .exchange import Exchange


async def read_history(exchange: Exchange, target: str, since: float) -> History:
    """Return what ran on the boards of a target; see ``CellVerbs.history``.

    Args:
        exchange: of the link to the server.
        target: the boards, connected or not.
        since: only jobs from then on, in seconds since 1970.
    """
    entries = []
    texts: dict[str, str] = {}
    body: dict[str, Any] = {"target": target, "since": since}
    while True:
        reply = await exchange.request("history", body)
        texts |= reply["texts"]
        entries += [read_entry(job, texts) for job in reply["jobs"]]
        if reply["before"] is None:
            return History(reversed(entries))
        body["before"] = reply["before"]
