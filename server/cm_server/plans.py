"""What a caller wants installed -> a plan for his boards, its contents ready to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.errors import PackageError, ServerError

from .packages import lock
from .packages.plan import Plan

if TYPE_CHECKING:
    from .app import Server
    from .registry import Board

_OPTIONS = {
    "wanted": list,
    "target_dir": str,
    "source_only": bool,
    "indexes": dict,
    "lock": str,
    "locked": bool,
    "force": bool,
}


async def plan_for(server: Server, boards: Sequence[Board], body: dict[str, Any]) -> dict[str, Any]:
    """Resolve, fetch and compile once for all boards, by their kinds of bytecode.

    Raises:
        PackageError: there is no such plan.
        ServerError: the request is malformed.
    """
    options = _options(body)
    kinds = {board.name: _mpy(board) for board in boards}
    sent = {str(name): _sent(server, files) for name, files in body.get("sent", {}).items()}
    plan = await server.packages.plan(mpys=set(kinds.values()), sent=sent, **options)
    for digest in {file.sha256 for files in plan.files.values() for file in files}:
        server.contents.keep(await server.packages.content(digest))
    return _told(plan, kinds)


def _options(body: dict[str, Any]) -> dict[str, Any]:
    found = {name: body[name] for name in _OPTIONS if body.get(name) is not None}
    sound = all(isinstance(value, _OPTIONS[name]) for name, value in found.items())
    texts = [*found.get("wanted", ()), *found.get("indexes", {}).values()]
    if not sound or not all(isinstance(text, str) for text in texts) or "wanted" not in found:
        raise ServerError("an install is asked for with `wanted`, a list of requirements")
    if not isinstance(body.get("sent", {}), dict):
        raise ServerError("files that are sent along are given by name")
    return found


def _sent(server: Server, files: Any) -> dict[str, bytes]:
    """Return files that the caller sent before, as contents."""
    found = {}
    if not isinstance(files, dict):
        raise ServerError("files that are sent along are given by their paths")
    for path, digest in files.items():
        content = server.contents.get(digest) if isinstance(digest, str) else None
        if content is None:
            raise PackageError(f"the content for {str(path)[:64]} was not sent to the server")
        found[str(path)] = content.read(0, content.size)
    return found


def _mpy(board: Board) -> int:
    number = board.told.get("mpy")
    return number if isinstance(number, int) else 0


def _told(plan: Plan, kinds: dict[str, int]) -> dict[str, Any]:
    return {
        "plan": plan.describe(),
        "boards": kinds,
        "files": {
            str(mpy): [[file.path, file.sha256, file.size, file.package] for file in files]
            for mpy, files in plan.files.items()
        },
        "lock": lock.dump(plan.wanted, plan.packages),
    }
