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
    from cm_server.jobs.registry import Board

#: Fields of a `plan` request that are passed to the planner; docs/protocol.md describes them.
_OPTION_TYPES = {
    "wanted": list,
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
    body: dict[str, Any],
    *,
    trusted: bool,
) -> dict[str, Any]:
    """Answer a `plan` request: resolve, fetch and compile once for all boards.

    Args:
        services: provide the planner, the contents and the plans.
        connection: the caller's link, which will own the plan.
        boards: the boards that the plan is for; they determine the kinds of bytecode.
        body: the request.
        trusted: whether the indexes in the request may have private addresses.

    Returns:
        The reply: the number of the plan, its description, and its lock file.

    Raises:
        PackageError: the requirements cannot be fulfilled.
        ServerError: the request is malformed.
    """
    options = _read_options(body)
    planner = services.package_planner
    sent: dict[str, dict[str, bytes]] = {}
    for name, files in body.get("sent", {}).items():
        sent[str(name)] = _read_sent_files(services.content_store, files)
    mpys = {mpy_number(board) for board in boards}
    plan = await planner.make_plan(mpys=mpys, sent=sent, trusted=trusted, **options)
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


def _read_options(body: dict[str, Any]) -> dict[str, Any]:
    """Return the planner's options in a request, checked for their types.

    Raises:
        ServerError: the request is malformed.
    """
    options = {name: body[name] for name in _OPTION_TYPES if body.get(name) is not None}
    are_valid = all(isinstance(value, _OPTION_TYPES[name]) for name, value in options.items())
    texts = [*options.get("wanted", ()), *options.get("indexes", {}).values()]
    if not are_valid or not all(isinstance(text, str) for text in texts):
        raise ServerError("an option of the install has a value of the wrong type")
    if "wanted" not in options:
        raise ServerError("an install needs `wanted`, a list of requirements")
    if not isinstance(body.get("sent", {}), dict):
        raise ServerError("`sent` must be an object: requirement -> files")
    return options


def _read_sent_files(content_store: ContentStore, files: Any) -> dict[str, bytes]:
    """Return files that the caller uploaded before the request, by path.

    Raises:
        PackageError: the content of a file was not uploaded.
        ServerError: the request is malformed.
    """
    found = {}
    if not isinstance(files, dict):
        raise ServerError("the files of `sent` must be an object: path -> SHA-256")
    for path, digest in files.items():
        content = content_store.get(digest) if isinstance(digest, str) else None
        if content is None:
            raise PackageError(f"the content of {str(path)[:64]} was not sent to the server")
        found[str(path)] = content.read(0, content.size)
    return found
