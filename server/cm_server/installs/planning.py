"""Make install plans for callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import PackageError, ServerError
from cm_server.packages import lock
from cm_server.packages.http_fetcher import without_credentials

from .board_install import mpy_number
from .content_store import Content, ContentStore
from .plan_cache import PreparedPlan
from .services import InstallServices

if TYPE_CHECKING:
    from cm_server.jobs.model import Board

#: Fields of a `plan` request; docs/protocol.md describes them.
_OPTION_TYPES = {
    "wanted": list,
    "sent": dict,
    "target_dir": str,
    "source_only": bool,
    "indexes": dict,
    "lock": str,
    "locked": bool,
}


async def plan_install(
    services: InstallServices,
    connection: object,
    boards: Sequence[Board],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Answer a `plan` request: resolve, fetch and compile once for all boards.

    Args:
        services: provide the planner, the contents and the plans.
        connection: the caller's link, which will own the plan.
        boards: the boards that the plan is for; they determine the kinds of bytecode.
        options: what `read_plan_options` returns, and `owner` and `trusted` of `PlanRequest`.

    Returns:
        The reply: the number of the plan, its description, and its lock file.

    Raises:
        PackageError: the requirements cannot be fulfilled.
    """
    planner = services.package_planner
    owner = options["owner"]
    sent = {
        name: _read_sent_files(services.content_store, owner, files)
        for name, files in options.pop("sent").items()
    }
    mpys = {mpy_number(board) for board in boards}
    plan = await planner.make_plan(mpys=mpys, sent=sent, **options)
    contents: dict[str, Content] = {}
    for digest in {file.sha256 for files in plan.files.values() for file in files}:
        contents[digest] = services.content_store.add_bytes(await planner.read_content(digest))
    prepared = PreparedPlan(plan, contents, _upgrade_options(options))
    return {
        "number": services.plan_cache.add(connection, prepared),
        "plan": plan.describe(),
        "lock": lock.dump(plan.wanted, plan.packages),
    }


def _upgrade_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that an upgrade must repeat, without passwords in URLs."""
    kept = {name: options[name] for name in ("target_dir", "source_only") if options.get(name)}
    if indexes := options.get("indexes"):
        kept["indexes"] = {alias: without_credentials(url) for alias, url in indexes.items()}
    return kept


def read_plan_options(body: dict[str, Any]) -> dict[str, Any]:
    """Return the planner's options in a `plan` request, and `sent`, checked for their types.

    Raises:
        ServerError: the request is malformed.
    """
    options = {"sent": {}, **body}
    options = {name: options[name] for name in _OPTION_TYPES if options.get(name) is not None}
    for name, value in options.items():
        if not isinstance(value, _OPTION_TYPES[name]):
            raise ServerError(f"`{name}` of the install has a value of the wrong type")
    texts = [*options.get("wanted", ()), *options.get("indexes", {}).values()]
    if not all(isinstance(text, str) for text in texts):
        raise ServerError("`wanted` and `indexes` of the install contain texts only")
    for files in options.setdefault("sent", {}).values():
        if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
            raise ServerError("the files of `sent` must be an object: path -> SHA-256")
    if "wanted" not in options:
        raise ServerError("an install needs `wanted`, a list of requirements")
    return options


def _read_sent_files(
    content_store: ContentStore, owner: str, files: dict[str, str]
) -> dict[str, bytes]:
    """Return files that the caller's token uploaded before the request, by path.

    Raises:
        PackageError: the content of a file was not uploaded.
    """
    found = {}
    for path, digest in files.items():
        content = content_store.get(digest, owner)
        if content is None:
            raise PackageError(f"the content of {path[:64]} was not sent to the server")
        found[path] = content.read(0, content.size)
    return found
