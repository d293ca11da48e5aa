"""The requests of callers and the roles that they require: the table ``VERBS``.

No sockets, no SQL.
"""

from __future__ import annotations

import functools
import heapq
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NamedTuple

from cloudmanager.protocol import errors
from cloudmanager.protocol.errors import CloudmanagerError, NotAllowed, ServerError, TargetError
from cloudmanager.protocol.targets import check_label, check_name, fold_names, parse_target
from cm_server.auth import access
from cm_server.auth.credentials import BOARD_ROLE, ROLES
from cm_server.auth.tokens import NewToken
from cm_server.installs import planning
from cm_server.jobs.model import Board
from cm_server.sample_buffer import Sample
from cm_server.store.installed_packages import InstalledOnBoard
from cm_server.store.rows import TokenRow
from cm_server.store.store import Store

from . import (
    health_verbs,
    history_verbs,
    inventory_verbs,
    job_verbs,
    network_verbs,
    replacement_verbs,
    reservation_verbs,
    rollout_verbs,
    sample_verbs,
    secret_verbs,
    sleep_verbs,
)
from .replies import SKIPPED, Json, ListReply, MapReply
from .request_context import RequestContext, Services, resolve_boards
from .request_limits import check_fields, is_whole_number

ENROL_TOKEN_SECONDS = 3600.0  # that a token for enrolment is valid by default
_MAX_SECONDS = 1e12  # since 1970: more is no time
_MAX_LOG_ID = 2**63 - 1  # the largest number of a row


class Verb(NamedTuple):
    """One kind of request.

    Attributes:
        role: the lowest role that may make it.
        handler: returns the reply; if that takes a while, it is a coroutine function, or returns
            one without arguments.
        requires_all_boards: whether the token has to cover all boards.
        changes_rows: whether it changes boards or tokens in the store, one request at a time.
    """

    role: str
    handler: Callable[[RequestContext], Any]
    requires_all_boards: bool = False
    changes_rows: bool = False


def check_role(token: TokenRow, verb: str, *, viewers_read_logs: bool = False) -> None:
    """Check that a token permits a verb or a message.

    Args:
        token: the caller's.
        verb: of the request, or the name of a message.
        viewers_read_logs: the server's option.

    Raises:
        NotAllowed: the role is too low, or the token covers only some boards.
        ServerError: the verb does not exist.
    """
    needed = VERBS[verb].role if verb in VERBS else MESSAGE_ROLES.get(verb)
    if verb == "logs" and viewers_read_logs:
        needed = "viewer"
    if needed is None:
        raise ServerError(f"there is no request called {verb[:64]!r}")
    if not access.has_role(token, needed):
        raise NotAllowed(needed)
    if verb in VERBS and VERBS[verb].requires_all_boards and not _covers_all_boards(token):
        raise NotAllowed(f"{needed} on all boards")


def _covers_all_boards(token: TokenRow) -> bool:
    """Return whether a token covers all boards, as server-wide verbs require."""
    return access.reaches_all(token)


def handle_request(
    services: Services,
    token: TokenRow,
    body: dict[str, Any],
    address: str = "",
    connection: object = None,
) -> Any:
    """Carry out a request, and record it in the audit log.

    Args:
        services: the parts of the server.
        token: the caller's.
        body: the request's JSON, with its ``verb``.
        address: the caller's IP address, for the audit log.
        connection: the caller's; uploads and plans belong to it.

    Returns:
        The reply, which can be sent as JSON, or a coroutine of it.

    Raises:
        CloudmanagerError: it was refused.
    """
    name = str(body.get("verb"))
    boards = access.reachable_boards(token, services.registry.by_name)
    context = RequestContext(
        services,
        token,
        boards,
        body,
        services.audit_log.new_entry(token.name, address, name, _audit_target(body)),
        connection,
    )
    try:
        check_role(token, name, viewers_read_logs=services.viewers_read_logs)
        check_fields(body, services.limits)
        if name not in VERBS:
            raise ServerError(f"{name!r} is not a request: it has a message type of its own")
        reply: Any
        if VERBS[name].changes_rows:
            reply = functools.partial(_change_rows, context, VERBS[name])
        elif inspect.iscoroutinefunction(VERBS[name].handler):
            reply = functools.partial(VERBS[name].handler, context)
        else:
            reply = VERBS[name].handler(context)
    except CloudmanagerError as error:
        services.audit_log.log_refusal(context.audit_entry, error)
        raise
    if callable(reply):
        return _log_when_done(context, reply)
    _log_request(context)
    return reply


async def _change_rows(context: RequestContext, verb: Verb) -> Any:
    """Check and carry out a change of boards or tokens while no other one is in progress."""
    async with context.services.store_queue.change_lock:
        if why := context.services.tokens.refusal_reason(context.token):
            raise ServerError(why)  # revoked while the request waited
        return await verb.handler(context)


async def _log_when_done(
    context: RequestContext, carry_out: Callable[[], Coroutine[Any, Any, Any]]
) -> Any:
    """Return a reply that takes a while, and record the request in the audit log.

    Nothing is begun before this coroutine is: the caller's link may end first.
    """
    try:
        result = await carry_out()
    except CloudmanagerError as error:
        context.services.audit_log.log_refusal(context.audit_entry, error)
        raise
    _log_request(context)
    return result


def _log_request(context: RequestContext) -> None:
    """Record a request that was carried out, unless its row is in the store already.

    An interrupt does not wait for that: whoever stops a board must not wait for a database.
    """
    entry = context.audit_entry
    name = entry.verb
    if VERBS[name].role == ROLES[0] or name in ("offer", "plan"):  # the job that follows gets a row
        context.services.audit_log.log_read(entry)
    elif not entry.written:
        context.services.audit_log.log_action(entry)


def pack_error(error: CloudmanagerError) -> dict[str, Any]:
    """Return an error as it is sent to the caller, which raises the same class.

    A class that is not one of ``protocol.errors`` is replaced by its nearest base class there.
    """
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return {"error": known.__name__, "args": list(error.args)}


def _server_status(context: RequestContext) -> dict[str, Any]:
    services, boards = context.services, context.boards.values()
    return {
        "version": services.status.version,
        "address": services.status.address,
        "uptime": services.status.uptime,
        "boards": len(boards),
        "online": sum(board.online for board in boards),
        "busy": sum(board.state == "busy" for board in boards),
        "callers": len(services.callers),
        "pid": services.status.pid,
        "store": services.cluster.store_kind,
        "bus": services.cluster.bus_state,
        "servers": sorted(services.cluster.servers.values()),
        "problems": [*services.status.problems(), *services.status.warnings()],
    }


def _list_boards(context: RequestContext) -> ListReply:
    """Describe the boards that match, connected or not, or those that a cell would run on."""
    target = context.body.get("target")
    if target is None or context.body.get("as_for_cells"):
        boards = resolve_boards(context)
    else:
        names = parse_target(str(target)).listed_names(context.boards)
        boards = [context.boards[name] for name in names]
        context.audit_entry.boards = len(boards)
    return ListReply(board.describe() for board in boards)


async def _set_labels(context: RequestContext) -> list[str]:
    changes = context.body.get("labels")
    if not isinstance(changes, dict) or not changes:
        raise ServerError("labels must be given as key=value")
    max_labels = context.services.limits.labels
    if len(changes) > max_labels:
        raise ServerError(f"a board may have at most {max_labels} labels")
    for key, value in changes.items():
        check_label(str(key), str(value or "x"))  # an empty value, or null, removes the label
    boards = resolve_boards(context)
    context.audit_entry.detail = " ".join(f"{key}={value or ''}" for key, value in changes.items())
    new_values = {str(key): str(value or "") for key, value in changes.items()}
    for board in boards:
        merged = {key: value for key, value in {**board.labels, **new_values}.items() if value}
        _check_label_count(merged, max_labels, board.name)
    ids, audit_row = [board.id for board in boards], context.audit_entry.to_row()
    new_labels = await context.services.store_queue.run(
        lambda store: store.set_labels(ids, new_values, audit_row), refusable=True, durable=True
    )
    context.audit_entry.written = True
    for board in boards:
        board.labels = new_labels.get(board.id, board.labels)
    return [board.name for board in boards]


def _check_label_count(labels: dict[str, str], max_count: int, name: str) -> None:
    """Refuse more labels than a board may have: each list of boards contains them."""
    if len(labels) > max_count:
        raise ServerError(f"{name} would have {len(labels)} labels: {max_count} are allowed")


def _stop_programs(context: RequestContext) -> list[str]:
    """Interrupt the own programs of boards; return the names of the connected boards."""
    services, boards = context.services, resolve_boards(context)
    reservation_verbs.check_not_reserved(boards, context.token.name)
    return [board.name for board in boards if services.cluster.stop_program(board)]


def _start_upload(context: RequestContext) -> int:
    """Start the upload of a content; return its number, 0 if the token has sent it already."""
    digest, size = context.body.get("sha256"), context.body.get("size")
    context.audit_entry.detail = str(digest)
    return context.services.installs.content_store.start_upload(
        context.connection, context.token, digest, size
    )


def _plan_install(context: RequestContext) -> Any:
    """Return a coroutine that makes the plan of an install."""
    if context.body.get("when_online"):
        names = parse_target(str(context.body.get("target") or "")).listed_names(context.boards)
        boards = [context.boards[name] for name in names]
        context.audit_entry.boards = len(boards)
    else:
        boards = resolve_boards(context)
    options = planning.read_plan_options(context.body, context.services.limits)
    max_chars = context.services.limits.audit_chars
    context.audit_entry.detail = " ".join(options["wanted"])[:max_chars]
    options["waits"] = bool(context.body.get("when_online"))
    options["trusted"] = context.token.role == ROLES[-1] and access.reaches_all(context.token)
    options["owner"] = context.token.hash
    caller = planning.PlanCaller(context.connection, context.token)
    return planning.plan_install(context.services.installs, caller, boards, options)


def _list_installed(context: RequestContext) -> MapReply:
    """Return the packages that boards have confirmed, and when; also of offline boards."""
    names = parse_target(str(context.body.get("target") or "all")).matching_names(context.boards)
    context.audit_entry.boards = len(names)
    return MapReply(_read_installed(context, [context.boards[name] for name in names]))


async def _read_installed(
    context: RequestContext, boards: list[Board]
) -> AsyncIterator[list[tuple[str, Any]]]:
    """Read what is installed from the store, for some boards at a time."""
    size = context.services.limits.installed_boards
    for start in range(0, len(boards), size):
        batch = boards[start : start + size]
        ids = [board.id for board in batch]
        found = await context.services.store_queue.run(
            functools.partial(_installed_of, ids), refusable=True
        )
        yield [(board.name, _describe_installed(board, found[board.id])) for board in batch]


def _installed_of(ids: list[str], store: Store) -> dict[str, InstalledOnBoard]:
    return store.installed_packages.of_boards(ids)


def _describe_installed(board: Board, installed: InstalledOnBoard) -> dict[str, Any]:
    return {
        "online": board.online,
        "absence": board.last_seen_text,
        "confirmed": installed.confirmed,
        "packages": installed.packages,
    }


def _list_samples(context: RequestContext) -> ListReply:
    """Return recent samples, also of offline boards, the newest last."""
    count = context.body.get("count") or context.services.limits.reply_samples
    if not is_whole_number(count) or not 0 < count <= context.services.limits.reply_samples:
        raise ServerError(
            f"between 1 and {context.services.limits.reply_samples} values can be read at a time"
        )
    names = parse_target(str(context.body.get("target") or "all")).matching_names(context.boards)
    context.audit_entry.boards = len(names)
    buffers = {name: tuple(context.boards[name].samples) for name in names}
    return ListReply(_newest_samples(buffers, count))


def _newest_samples(buffers: dict[str, tuple[Sample, ...]], count: int) -> Iterator[Any]:
    """Yield the newest samples of several boards in the order of their times."""
    skipped = sum(map(len, buffers.values())) - count
    named = (zip(samples, itertools.repeat(name)) for name, samples in buffers.items())
    for number, (sample, name) in enumerate(heapq.merge(*named)):
        yield SKIPPED if number < skipped else Json(sample.to_json(name))


async def _read_logs(context: RequestContext) -> dict[str, Any]:
    """Return what boards printed outside of cells, the oldest first; also offline boards."""
    body, limits = context.body, context.services.limits
    since, after = body.get("since") or 0.0, body.get("after") or 0
    is_time = isinstance(since, int | float) and abs(since) < _MAX_SECONDS
    if not is_time or not is_whole_number(after) or not 0 <= after <= _MAX_LOG_ID:
        raise ServerError("since must be a time in seconds since 1970, and after a row's number")
    names = parse_target(str(body.get("target") or "all")).matching_names(context.boards)
    context.audit_entry.boards = len(names)
    ids = {context.boards[name].id: name for name in names}
    context.services.board_logs.write()  # the store carries out what follows after it
    page = await context.services.store_queue.run(
        lambda store: store.log_rows.read(list(ids), float(since), after, limits.reply_log_chars),
        refusable=True,
    )
    return {
        "logs": [[ids[row.board_id], row.at, row.lost, row.text] for row in page.rows],
        "after": page.last_id,
        "complete": page.complete,
    }


async def _enrol_boards(context: RequestContext) -> list[dict[str, Any]]:
    """Give each name an identity and a new key; an earlier key of the name is no longer valid."""
    names, boards = context.body.get("names"), context.services.registry.by_name
    if not isinstance(names, list) or not 0 < len(names) <= context.services.limits.enrol_names:
        raise ServerError(
            f"1 to {context.services.limits.enrol_names} names can be enrolled at a time"
        )
    for name in names:
        _check_new_name(context, name)
        if name in boards and boards[name].online:
            raise ServerError(f"a board called {name} is connected already; choose another name")
    names = list(dict.fromkeys(names))
    context.audit_entry.target, context.audit_entry.boards = fold_names(names), len(names)
    return await context.services.enrolment.enrol(
        names, context.audit_entry, plain=bool(context.body.get("plain"))
    )


def _check_new_name(context: RequestContext, name: Any) -> None:
    if not isinstance(name, str):
        raise ServerError("names must be text")
    check_name(name)
    if not access.may_enrol(context.token, name, context.services.registry.by_name):
        raise NotAllowed(f"admin on {name}")


async def _create_enrol_token(context: RequestContext) -> dict[str, Any]:
    """Create a token that boards enrol themselves with; it is shown in this reply only."""
    options = _with_defaults(
        context.body, target=access.ALL_BOARDS, uses=1, expires=ENROL_TOKEN_SECONDS
    )
    request = NewToken(
        context.services.tokens.unused_name("enrol"),
        BOARD_ROLE,
        options["target"],
        options["expires"],
        options["uses"],
    )
    token = await context.services.tokens.create(request, context.audit_entry)
    made = context.services.tokens.describe()[-1]
    return {**made, "token": token, "ca": context.services.enrolment.ca_base64}


async def _revoke_boards(context: RequestContext) -> list[str]:
    """Remove boards from the fleet; their keys are no longer valid."""
    boards = resolve_boards(context)
    await context.services.enrolment.revoke(boards, context.audit_entry)
    return [board.name for board in boards]


async def _rename_board(context: RequestContext) -> str:
    """Rename one board; it keeps its jobs, labels and key."""
    boards, name = resolve_boards(context), context.body.get("name")
    if len(boards) != 1:
        text, hint = str(context.body.get("target", "")), "Name one board, or select one."
        raise TargetError("One board is renamed at a time.", text, 0, hint)
    _check_new_name(context, name)
    context.audit_entry.detail = f"to {name}"
    await context.services.enrolment.rename(boards[0], str(name), context.audit_entry)
    return boards[0].name


async def _import_boards(context: RequestContext) -> list[dict[str, Any]]:
    """Change names, labels, serial numbers and notes of boards, all or nothing."""
    return await inventory_verbs.import_boards(context, _check_new_name)


async def _rotate_keys(context: RequestContext) -> dict[str, str]:
    """Rotate the keys of boards; return for each whether it was asked already or has to wait."""
    boards = resolve_boards(context)
    await context.services.enrolment.rotate(boards, context.audit_entry)
    return {board.name: "asked" if board.state == "idle" else "waits" for board in boards}


async def _create_token(context: RequestContext) -> dict[str, Any]:
    """Create a token; it is shown in this reply only."""
    options = _with_defaults(context.body, role="operator", target=access.ALL_BOARDS)
    request = NewToken(
        options.get("name"), options["role"], options["target"], options.get("expires")
    )
    token = await context.services.tokens.create(request, context.audit_entry)
    pin = context.services.pin
    return {**context.services.tokens.describe()[-1], "token": f"{token}.{pin}"}


def _list_tokens(context: RequestContext) -> list[dict[str, Any]]:
    return context.services.tokens.describe()


async def _revoke_token(context: RequestContext) -> dict[str, Any]:
    """Revoke a token and close its links; running jobs continue."""
    services = context.services
    used = services.tokens.find_unrevoked(str(context.body.get("name")))
    elsewhere = sum([await services.cluster.count_links(row) for row in used])
    row = await services.tokens.revoke(context.body.get("name"), context.audit_entry)
    closed = services.callers.close_revoked(row) + elsewhere
    await services.tokens.renew_local_token()
    return {"name": row.name, "closed": closed}


async def _list_audit_rows(context: RequestContext) -> list[dict[str, Any]]:
    count = context.body.get("count") or context.services.limits.reply_audit_rows
    if not is_whole_number(count) or not 0 < count <= context.services.limits.reply_audit_rows:
        raise ServerError(
            f"between 1 and {context.services.limits.reply_audit_rows} rows can be read at a time"
        )
    rows = await context.services.store_queue.run(
        lambda store: store.audit_rows(count), refusable=True
    )
    return [row._asdict() for row in rows]


def _with_defaults(body: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return a request's fields; a field that is absent or null gets its default."""
    return {**defaults, **{key: value for key, value in body.items() if value is not None}}


def _audit_target(body: dict[str, Any]) -> str:
    """Return a request's target for the audit log; empty if it is absent or no text."""
    target = body.get("target")
    return target if isinstance(target, str) else ""


#: Messages that are no requests (SUBMIT, WATCH), and the roles that they require.
MESSAGE_ROLES = {"submit": access.SUBMIT_ROLE, "watch": "viewer"}

VERBS = {
    "status": Verb("viewer", _server_status),
    "boards": Verb("viewer", _list_boards),
    "label": Verb("operator", _set_labels, changes_rows=True),
    "reserve": Verb("operator", reservation_verbs.reserve_boards, changes_rows=True),
    "release": Verb("operator", reservation_verbs.release_boards, changes_rows=True),
    "stay": Verb("operator", sleep_verbs.keep_awake, changes_rows=True),
    "interrupt": Verb("operator", job_verbs.interrupt_jobs),
    "offer": Verb("operator", _start_upload),
    "stop": Verb("operator", _stop_programs),
    "plan": Verb("operator", _plan_install),
    "installed": Verb("viewer", _list_installed),
    "jobs": Verb("viewer", job_verbs.list_jobs),
    "job": Verb("viewer", job_verbs.show_job),
    "history": Verb("viewer", history_verbs.read_history),
    "history-forget": Verb("operator", history_verbs.forget_history),
    "samples": Verb("viewer", _list_samples),
    "sample-history": Verb("viewer", sample_verbs.read_history),
    "logs": Verb(health_verbs.LOGS_ROLE, _read_logs),
    "health": Verb("viewer", health_verbs.read_health),
    "fleet-plan": Verb("operator", rollout_verbs.plan_rollouts),
    "fleet-apply": Verb("operator", rollout_verbs.apply_rollouts, changes_rows=True),
    "fleet-status": Verb("viewer", rollout_verbs.list_rollouts),
    "fleet-history": Verb("viewer", rollout_verbs.rollout_history),
    "fleet-pause": Verb("operator", rollout_verbs.pause_rollouts, changes_rows=True),
    "fleet-resume": Verb("operator", rollout_verbs.resume_rollouts, changes_rows=True),
    "fleet-abort": Verb("operator", rollout_verbs.abort_rollouts, changes_rows=True),
    "firmware": Verb("admin", rollout_verbs.find_firmware),
    "fleet-rollback": Verb("operator", rollout_verbs.roll_back, changes_rows=True),
    "fleet-wifi": Verb("admin", network_verbs.change_wifi, changes_rows=True),
    "fleet-server": Verb("admin", network_verbs.change_server, changes_rows=True),
    "enrol": Verb("admin", _enrol_boards, changes_rows=True),
    "enrol-token": Verb("admin", _create_enrol_token, requires_all_boards=True, changes_rows=True),
    "revoke": Verb("admin", _revoke_boards, changes_rows=True),
    "rename": Verb("admin", _rename_board, changes_rows=True),
    "replace": Verb("admin", replacement_verbs.replace_board, changes_rows=True),
    "import": Verb("admin", _import_boards, changes_rows=True),
    "rotate": Verb("admin", _rotate_keys, changes_rows=True),
    "secret-set": Verb(
        "admin", secret_verbs.set_secret, requires_all_boards=True, changes_rows=True
    ),
    "secret-list": Verb("admin", secret_verbs.list_secrets, requires_all_boards=True),
    "secret-remove": Verb(
        "admin", secret_verbs.remove_secret, requires_all_boards=True, changes_rows=True
    ),
    "token-create": Verb("admin", _create_token, requires_all_boards=True, changes_rows=True),
    "token-list": Verb("admin", _list_tokens, requires_all_boards=True),
    "token-revoke": Verb("admin", _revoke_token, requires_all_boards=True, changes_rows=True),
    "audit": Verb("admin", _list_audit_rows, requires_all_boards=True),
}
