"""What a caller wants installed -> a plan for his boards, its contents ready to be sent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import PackageError, ServerError
from cm_server import limits
from cm_server.packages import lock
from cm_server.packages.http_fetcher import without_credentials

from .board_install import PreparedPlan, mpy_number

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.jobs.registry import Board

_OPTION_TYPES = {
    "wanted": list,
    "target_dir": str,
    "source_only": bool,
    "indexes": dict,
    "lock": str,
    "locked": bool,
    "force": bool,
}


class PlanCache:
    """Plans that were made and are to be made good: some of each caller's link, the newest."""

    def __init__(self) -> None:
        self._plans: dict[object, dict[int, PreparedPlan]] = {}
        self._numbers = itertools.count(1)

    def add(self, connection: object, planned: PreparedPlan) -> int:
        """Keep a plan and return its number."""
        own = self._plans.setdefault(connection, {})
        while len(own) >= limits.PLANS_PER_LINK:
            del own[min(own)]
        number = next(self._numbers)
        own[number] = planned
        return number

    def get(self, connection: object, number: object) -> PreparedPlan:
        """Return a plan of that owner's.

        Raises:
            ServerError: it is not known any more.
        """
        own = self._plans.get(connection, {})
        if not isinstance(number, int) or number not in own:
            raise ServerError("that plan is not known any more; install again")
        return own[number]

    def discard_plans(self, connection: object) -> None:
        """Let go of the plans of who went away."""
        self._plans.pop(connection, None)


async def plan_install(
    server: Server,
    connection: object,
    boards: Sequence[Board],
    body: dict[str, Any],
    *,
    trusted: bool,
) -> dict[str, Any]:
    """Resolve, fetch and compile once for all boards, by their kinds of bytecode.

    Args:
        server: that makes it.
        connection: whose it is.
        boards: that it is for.
        body: what was asked.
        trusted: whether the indexes that it names may be private.

    Raises:
        PackageError: there is no such plan.
        ServerError: the request is malformed.
    """
    options = _read_options(body)
    kinds = {mpy_number(board) for board in boards}
    sent = {
        str(name): _read_sent_files(server, files) for name, files in body.get("sent", {}).items()
    }
    plan = await server.package_planner.make_plan(mpys=kinds, sent=sent, trusted=trusted, **options)
    digests = {file.sha256 for files in plan.files.values() for file in files}
    contents = {
        name: server.content_store.add_bytes(await server.package_planner.read_content(name))
        for name in digests
    }
    number = server.plan_cache.add(
        connection, PreparedPlan(plan, contents, _upgrade_options(options))
    )
    text = lock.dump(plan.wanted, plan.packages)
    return {"number": number, "plan": plan.describe(), "lock": text}


def _upgrade_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that an upgrade is to have, too; of a URL, without what opens it."""
    how = {name: options[name] for name in ("target_dir", "source_only") if options.get(name)}
    indexes = options.get("indexes") or {}
    return how | (
        {"indexes": {k: without_credentials(v) for k, v in indexes.items()}} if indexes else {}
    )


def _read_options(body: dict[str, Any]) -> dict[str, Any]:
    found = {name: body[name] for name in _OPTION_TYPES if body.get(name) is not None}
    sound = all(isinstance(value, _OPTION_TYPES[name]) for name, value in found.items())
    texts = [*found.get("wanted", ()), *found.get("indexes", {}).values()]
    if not sound or not all(isinstance(text, str) for text in texts) or "wanted" not in found:
        raise ServerError("an install is asked for with `wanted`, a list of requirements")
    if not isinstance(body.get("sent", {}), dict):
        raise ServerError("files that are sent along are given by name")
    return found


def _read_sent_files(server: Server, files: Any) -> dict[str, bytes]:
    """Return files that the caller sent before, as contents."""
    found = {}
    if not isinstance(files, dict):
        raise ServerError("files that are sent along are given by their paths")
    for path, digest in files.items():
        content = server.content_store.get(digest) if isinstance(digest, str) else None
        if content is None:
            raise PackageError(f"the content for {str(path)[:64]} was not sent to the server")
        found[str(path)] = content.read(0, content.size)
    return found
