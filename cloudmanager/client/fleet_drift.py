"""Find out what differs on boards from their generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloudmanager.protocol.text import fold_names

from .exchange import Exchange
from .files import FileJobGroup
from .jobs import JobGroup


class _DriftJobGroup(FileJobGroup):
    """The comparison of several boards with their generations."""

    def __init__(self) -> None:
        super().__init__((), make_value=_read_report)

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**JobGroup.submit_head(self), "drift": {}}


def _read_report(op_results: list[Any]) -> dict[str, Any]:
    return dict(op_results[0])


def _reported_generations(boards: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the generations, by their first digits, that boards say that they have proven."""
    found = {}
    for board in boards:
        words = str(board.get("generation") or "").split("\n")[0].split()
        if len(words) > 1 and words[0] in ("proven", "drifted"):
            found[str(board["name"])] = words[1]
    return found


async def find_drift(exchange: Exchange) -> dict[str, list[str]]:
    """Return what differs on boards: see ``FleetVerbs.drift``."""
    rollouts = await exchange.request("fleet-status", {})
    # A newest rollout that failed, or mended a few boards, has not all that have a generation.
    expected = _reported_generations(await exchange.request("boards", {"target": None}))
    expected |= {
        board["board"]: str(rollout["generation"])
        for rollout in rollouts
        if not rollout["what"]  # else it changes network settings
        for board in rollout["boards"]
        if board["state"] == "proven"
    }
    if not expected:
        return {}
    group = _DriftJobGroup()
    exchange.submit(group, fold_names(expected))
    drift: dict[str, list[str]] = {}
    for name, result in (await group.completed()).items():
        if not result.ok:
            drift[name] = [result.why or str(result.error) or result.status]
            continue
        found = result.value["generation"]
        drift[name] = list(result.value["differences"])
        if found and not expected[name].startswith(found):
            drift[name] = [f"it has the generation {found}, not {expected[name][:16]}"]
    return drift
