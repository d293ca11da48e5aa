"""Make install plans for callers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError
from cm_server.limits import MIB, Limits
from cm_server.packages import lock
from cm_server.packages.http_fetcher import NoResponse, without_credentials

from .board_install import SOURCES, mpy_number
from .content_store import Content
from .plan_cache import PreparedPlan
from .services import InstallServices

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.rows import TokenRow

_NO_RESPONSE_ADVICE = (
    "The server fetches packages, not your computer: if the server needs a proxy, start it with "
    "https_proxy in its environment. Without internet, `--index URL` of `mbm server-start` or of "
    "`mbm board-install` names an index that the server reaches, and a folder such as ./logging is "
    "installed from your computer"
)
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


class PlanCaller(NamedTuple):
    """Who makes a plan.

    Attributes:
        connection: the caller's link, which will own the plan.
        token: the caller's, whose share of the server's disk the plan's files use.
    """

    connection: object
    token: TokenRow


async def plan_install(
    services: InstallServices,
    caller: PlanCaller,
    boards: Sequence[Board],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Answer a `plan` request: resolve, fetch and compile once for all boards.

    Args:
        services: provide the planner, the contents and the plans.
        caller: who will own the plan.
        boards: the boards that the plan is for; they determine the kinds of bytecode.
        options: what `read_plan_options` returns, and `owner` and `trusted` of `PlanRequest`;
            `waits`: whether some boards may not be known yet.

    Returns:
        The reply: the number of the plan, its description, and its lock file.

    Raises:
        PackageError: the requirements cannot be fulfilled.
    """
    async with services.plan_turns.of(caller.token.hash):
        return await _make_plan(services, caller, boards, options)


async def _make_plan(
    services: InstallServices,
    caller: PlanCaller,
    boards: Sequence[Board],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Make a plan when it is its turn; see ``plan_install``."""
    prepared = await prepare_plan(services, caller, boards, options)
    plan = prepared.plan
    return {
        "number": services.plan_cache.add(caller.connection, prepared),
        "plan": plan.describe(),
        "lock": lock.dump(plan.wanted, plan.packages),
    }


async def prepare_plan(
    services: InstallServices,
    caller: PlanCaller,
    boards: Sequence[Board],
    options: dict[str, Any],
) -> PreparedPlan:
    """Resolve, fetch and compile packages; see ``plan_install``."""
    planner = services.package_planner()
    sent = _read_sent_files(services, options["owner"], options.pop("sent"))
    mpys = {mpy_number(board) for board in boards}
    if options.pop("waits", False):
        mpys.add(SOURCES)
    try:
        plan = await planner.make_plan(mpys=mpys, sent=sent, **options)
    except NoResponse as error:
        raise PackageError(f"{error.args[0]}. {_NO_RESPONSE_ADVICE}") from error
    contents: dict[str, Content] = {}
    for digest in {file.sha256 for files in plan.files.values() for file in files}:
        data = await planner.read_content(digest)
        contents[digest] = services.content_store.add_bytes(data, caller.token)
    return PreparedPlan(plan, contents, _upgrade_options(options))


def _upgrade_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that an upgrade must repeat, without passwords in URLs."""
    kept = {name: options[name] for name in ("target_dir", "source_only") if options.get(name)}
    if indexes := options.get("indexes"):
        kept["indexes"] = {alias: without_credentials(url) for alias, url in indexes.items()}
    return kept


def read_plan_options(body: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Return the planner's options in a `plan` request, and `sent`, checked for their types.

    Raises:
        ServerError: the request is malformed, or has more requirements than a plan may have.
    """
    options = {"sent": {}, **body}
    options = {name: options[name] for name in _OPTION_TYPES if options.get(name) is not None}
    for name, value in options.items():
        if not isinstance(value, _OPTION_TYPES[name]):
            raise ServerError(f"`{name}` of the install has a value of the wrong type")
    for name in ("wanted", "sent", "indexes"):
        if len(options.get(name, ())) > limits.packages:
            raise ServerError(f"`{name}` of the install has more than {limits.packages} entries")
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
    services: InstallServices, owner: str, sent: dict[str, dict[str, str]]
) -> dict[str, dict[str, bytes]]:
    """Return files that the caller's token uploaded before the request, by requirement and path.

    Their number and sizes are added up before any is read, and a content that is named several
    times is read once.

    Raises:
        PackageError: the content of a file was not uploaded, or there are too many or too large
            ones.
    """
    contents: dict[str, Content] = {}
    parts = [(path, digest) for files in sent.values() for path, digest in files.items()]
    for path, digest in parts:
        content = services.content_store.get(digest, owner)
        if content is None:
            raise PackageError(f"the content of {path[:64]} was not sent to the server")
        contents[digest] = content
    _check_total((contents[digest].size for _, digest in parts), services.limits)
    data = {digest: content.read(0, content.size) for digest, content in contents.items()}
    return {
        name: {path: data[digest] for path, digest in files.items()} for name, files in sent.items()
    }


def _check_total(sizes: Iterable[int], limits: Limits) -> None:
    """Refuse files of a plan that are more or larger together than an install may have."""
    sizes = list(sizes)
    if len(sizes) > limits.package_files:
        raise PackageError(f"an install may have at most {limits.package_files} files")
    if sum(sizes) > limits.package_unpacked_bytes:
        mib = limits.package_unpacked_bytes // MIB
        raise PackageError(f"the files of an install may have at most {mib} MiB together")
