"""What callers may ask, and with which role: the table ``VERBS``. No sockets, no SQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol import errors
from cloudmanager.protocol.errors import CloudmanagerError, NotAllowed, ServerError, TargetError
from cloudmanager.protocol.targets import check_label, check_name, fold_names, parse_target
from cm_server import limits
from cm_server.auth import access
from cm_server.auth.audit import AuditEntry
from cm_server.auth.credentials import BOARD_ROLE, ROLES
from cm_server.installs import plan_cache
from cm_server.jobs.registry import Board
from cm_server.store.rows import TokenRow

from . import job_verbs
from .request_context import RequestContext, resolve_boards

if TYPE_CHECKING:
    from cm_server.app import Server


ENROL_TOKEN_SECONDS = 3600.0  # that a token for boards lasts, unless told


class Verb(NamedTuple):
    """One request of callers.

    With ``requires_all_boards`` it needs a token for all boards.
    """

    role: str
    handler: Callable[[RequestContext], Any]
    requires_all_boards: bool = False


def check_role(token: TokenRow, verb: str) -> None:
    """Refuse what the caller's role does not cover.

    Raises:
        NotAllowed: the role is too low, or the token reaches some boards only.
        ServerError: there is no such verb.
    """
    needed = VERBS[verb].role if verb in VERBS else MESSAGE_ROLES.get(verb)
    if needed is None:
        raise ServerError(f"it knows no request called {verb[:64]!r}")
    if not _has_role(token, needed):
        raise NotAllowed(needed)
    if verb in VERBS and VERBS[verb].requires_all_boards and not _covers_all_boards(token):
        raise NotAllowed(f"{needed} on all boards")


def _has_role(token: TokenRow, role: str) -> bool:
    """Return whether a token's role is this one or a higher one."""
    return ROLES.index(token.role) >= ROLES.index(role)


def _covers_all_boards(token: TokenRow) -> bool:
    """Return whether a token covers all boards, as server-wide verbs require."""
    return access.reaches_all(token)


def handle_request(
    server: Server,
    token: TokenRow,
    body: dict[str, Any],
    address: str = "",
    connection: object = None,
) -> Any:
    """Do what ``body`` asks and return the reply, which is JSON; the audit log gets its row.

    Raises:
        CloudmanagerError: it was refused.
    """
    name = str(body.get("verb"))
    boards = access.reachable_boards(token, server.registry.by_name)
    call = RequestContext(
        server,
        token,
        boards,
        body,
        AuditEntry(token.name, address, name, _audit_target(body)),
        connection,
    )
    try:
        check_role(token, name)
        if name not in VERBS:
            raise ServerError(f"{name!r} is a message of its own, and not requested")
        reply = VERBS[name].handler(call)
    except CloudmanagerError as error:
        server.audit_log.log_refusal(call.audit_entry, error)
        raise
    if VERBS[name].role == ROLES[0] or name in ("offer", "plan"):  # their rows are their jobs'
        server.audit_log.log_read(call.audit_entry)
    else:
        server.audit_log.log_action(call.audit_entry)
    return reply


def pack_error(error: CloudmanagerError) -> dict[str, Any]:
    """Return an error as it crosses to the caller, who raises the same one, or its base."""
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return {"error": known.__name__, "args": list(error.args)}


def _server_status(context: RequestContext) -> dict[str, Any]:
    server, boards = context.server, context.boards.values()
    return {
        "version": server.version,
        "address": server.address,
        "uptime": server.uptime,
        "boards": len(boards),
        "online": sum(board.online for board in boards),
        "busy": sum(board.state == "busy" for board in boards),
        "callers": len(server.callers),
        "pid": server.pid,
        "problems": [*server.problems(), *server.warnings()],
    }


def _list_boards(context: RequestContext) -> list[dict[str, Any]]:
    return [board.describe() for board in resolve_boards(context)]


def _set_labels(context: RequestContext) -> list[str]:
    changes = context.body.get("labels")
    if not isinstance(changes, dict) or not changes:
        raise ServerError("labels are given as key=value")
    for key, value in changes.items():
        check_label(str(key), str(value or "x"))  # an empty one, or null, takes the label away
    boards = resolve_boards(context)
    context.audit_entry.detail = " ".join(f"{key}={value or ''}" for key, value in changes.items())
    for board in boards:
        merged = {**board.labels, **{str(key): str(value or "") for key, value in changes.items()}}
        board.labels = {key: value for key, value in merged.items() if value}
    labels = {board.id: dict(board.labels) for board in boards}
    context.server.store.set_labels(labels, context.audit_entry.to_row())
    context.audit_entry.written = True
    return [board.name for board in boards]


def _stop_programs(context: RequestContext) -> list[str]:
    """Ask boards to end their own programs; return the names of those that are there."""
    server = context.server
    stop = server.dispatch.stop_program if server.cluster is None else server.cluster.stop_program
    return [board.name for board in resolve_boards(context) if stop(board)]


def _start_upload(context: RequestContext) -> int:
    """Take a file in that boards are to get; the reply is its upload's number, 0 if it is there."""
    context.audit_entry.detail = str(context.body.get("sha256"))
    return context.server.content_store.start_upload(
        context.connection, context.body.get("sha256"), context.body.get("size")
    )


def _plan_install(context: RequestContext) -> Any:
    """Make the plan of an install; the reply comes when it is made."""
    boards = resolve_boards(context)
    context.audit_entry.detail = " ".join(map(str, context.body.get("wanted") or ()))[
        : limits.AUDIT_CHARS
    ]
    trusted = context.token.role == ROLES[-1] and access.reaches_all(context.token)
    return plan_cache.plan_install(
        context.server, context.connection, boards, context.body, trusted=trusted
    )


def _list_installed(context: RequestContext) -> dict[str, Any]:
    """Return what boards have confirmed to have, there or not, and when."""
    names = parse_target(str(context.body.get("target") or "all")).matching_names(context.boards)
    context.audit_entry.boards = len(names)
    return {name: _describe_installed(context.server, context.boards[name]) for name in names}


def _describe_installed(server: Server, board: Board) -> dict[str, Any]:
    installed = server.store.installed_packages
    return {
        "online": board.online,
        "absence": board.last_seen_text,
        "confirmed": installed.confirmed_at(board.id),
        "packages": installed.packages_of(board.id),
    }


def _list_samples(context: RequestContext) -> list[list[Any]]:
    """Return what boards emitted lately, there or not, the newest last."""
    count = context.body.get("count") or limits.REPLY_SAMPLES
    if not isinstance(count, int) or not 0 < count <= limits.REPLY_SAMPLES:
        raise ServerError(f"values are 1 to {limits.REPLY_SAMPLES} at once")
    names = parse_target(str(context.body.get("target") or "all")).matching_names(context.boards)
    kept = [
        (sample, name) for name in names for sample in context.boards[name].sample_buffer.samples
    ]
    context.audit_entry.boards = len(names)
    kept.sort()
    return [[name, *sample[:3], json.loads(sample.values)] for sample, name in kept[-count:]]


def _enrol_boards(context: RequestContext) -> list[dict[str, Any]]:
    """Give each name an identity and a fresh key; its old key opens nothing any more."""
    names, boards = context.body.get("names"), context.server.registry.by_name
    if not isinstance(names, list) or not 0 < len(names) <= limits.ENROL_NAMES:
        raise ServerError(f"1 to {limits.ENROL_NAMES} names are enrolled at once")
    for name in names:
        _check_new_name(context, name)
        if name in boards and boards[name].online:
            raise ServerError(f"a board called {name} is connected already; choose another name")
    names = list(dict.fromkeys(names))
    context.audit_entry.target, context.audit_entry.boards = fold_names(names), len(names)
    return context.server.enrolment.enrol(
        names, context.audit_entry, plain=bool(context.body.get("plain"))
    )


def _check_new_name(context: RequestContext, name: Any) -> None:
    if not isinstance(name, str):
        raise ServerError("names are text")
    check_name(name)
    if not access.may_enrol(context.token, name, context.server.registry.by_name):
        raise NotAllowed(f"admin on {name}")


def _create_enrol_token(context: RequestContext) -> dict[str, Any]:
    """Make a token that boards enrol themselves with; this reply is the only place with it."""
    asked: dict[str, Any] = {"target": access.ALL_BOARDS, "uses": 1, "expires": ENROL_TOKEN_SECONDS}
    asked.update({key: value for key, value in context.body.items() if value is not None})
    number = sum(row["role"] == BOARD_ROLE for row in context.server.tokens.describe()) + 1
    name = f"enrol-{number}"
    token = context.server.tokens.create(
        name, BOARD_ROLE, asked["target"], asked["expires"], context.audit_entry, uses=asked["uses"]
    )
    made = context.server.tokens.describe()[-1]
    return {**made, "token": token, "ca": context.server.enrolment.ca_base64}


def _revoke_boards(context: RequestContext) -> list[str]:
    """Take boards out of the fleet: from now on their keys open nothing."""
    boards = resolve_boards(context)
    context.server.enrolment.revoke(boards, context.audit_entry)
    return [board.name for board in boards]


def _rename_board(context: RequestContext) -> str:
    """Give one board another name; its jobs, labels and key go with it."""
    boards, name = resolve_boards(context), context.body.get("name")
    if len(boards) != 1:
        text, hint = str(context.body.get("target", "")), "Name one board, or select one."
        raise TargetError("One board is renamed at a time.", text, 0, hint)
    _check_new_name(context, name)
    context.audit_entry.detail = f"to {name}"
    context.server.enrolment.rename(boards[0], str(name), context.audit_entry)
    return boards[0].name


def _rotate_keys(context: RequestContext) -> dict[str, str]:
    """Give boards new keys; says of each whether it was asked now or is yet to be."""
    boards = resolve_boards(context)
    context.server.enrolment.rotate(boards, context.audit_entry)
    return {board.name: "asked" if board.state == "idle" else "waits" for board in boards}


def _create_token(context: RequestContext) -> dict[str, Any]:
    """Make a token; this reply is the only place where it ever stands."""
    asked: dict[str, Any] = {"role": "operator", "target": access.ALL_BOARDS}
    asked.update({key: value for key, value in context.body.items() if value is not None})
    token = context.server.tokens.create(
        asked.get("name"), asked["role"], asked["target"], asked.get("expires"), context.audit_entry
    )
    pin = context.server.certificates.pin
    return {**context.server.tokens.describe()[-1], "token": f"{token}.{pin}"}


def _list_tokens(context: RequestContext) -> list[dict[str, Any]]:
    return context.server.tokens.describe()


def _revoke_token(context: RequestContext) -> dict[str, Any]:
    """Let a token open nothing any more, and close its links; what runs goes on."""
    row = context.server.tokens.revoke(context.body.get("name"), context.audit_entry)
    return {"name": row.name, "closed": context.server.close_token_links(row)}


def _list_audit_rows(context: RequestContext) -> list[dict[str, Any]]:
    count = context.body.get("count") or limits.REPLY_AUDIT_ROWS
    if not isinstance(count, int) or not 0 < count <= limits.REPLY_AUDIT_ROWS:
        raise ServerError(f"rows are 1 to {limits.REPLY_AUDIT_ROWS} at once")
    return [row._asdict() for row in context.server.store.audit_rows(count)]


def _audit_target(body: dict[str, Any]) -> str:
    """Return what stands in the audit log for a request's target."""
    target = body.get("target")
    return target if isinstance(target, str) else ""


#: What is a message of its own, and the role that it needs.
MESSAGE_ROLES = {"submit": "operator", "watch": "viewer"}

VERBS = {
    "status": Verb("viewer", _server_status),
    "boards": Verb("viewer", _list_boards),
    "label": Verb("operator", _set_labels),
    "interrupt": Verb("operator", job_verbs.interrupt_jobs),
    "offer": Verb("operator", _start_upload),
    "stop": Verb("operator", _stop_programs),
    "plan": Verb("operator", _plan_install),
    "installed": Verb("viewer", _list_installed),
    "jobs": Verb("viewer", job_verbs.list_jobs),
    "job": Verb("viewer", job_verbs.show_job),
    "samples": Verb("viewer", _list_samples),
    "enrol": Verb("admin", _enrol_boards),
    "enrol-token": Verb("admin", _create_enrol_token, requires_all_boards=True),
    "revoke": Verb("admin", _revoke_boards),
    "rename": Verb("admin", _rename_board),
    "rotate": Verb("admin", _rotate_keys),
    "token-create": Verb("admin", _create_token, requires_all_boards=True),
    "token-list": Verb("admin", _list_tokens, requires_all_boards=True),
    "token-revoke": Verb("admin", _revoke_token, requires_all_boards=True),
    "audit": Verb("admin", _list_audit_rows, requires_all_boards=True),
}
