"""What callers may ask, and with which role: the table ``VERBS``. No sockets, no SQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol import errors
from cloudmanager.protocol.errors import CloudmanagerError, NotAllowed, ServerError, TargetError
from cloudmanager.protocol.targets import check_label, check_name, fold, parse
from cm_server import limits
from cm_server.auth import access
from cm_server.auth.audit import Note
from cm_server.auth.credentials import BOARD, ROLES
from cm_server.installs import plan_cache
from cm_server.jobs.registry import Board
from cm_server.store.rows import TokenRow

from . import job_verbs
from .request_context import Call, choose

if TYPE_CHECKING:
    from cm_server.app import Server


ENROL_SECONDS = 3600.0  # that a token for boards lasts, unless told


class Verb(NamedTuple):
    """One thing that callers may ask for; ``everywhere``: only with a token for all boards."""

    role: str
    act: Callable[[Call], Any]
    everywhere: bool = False


def check_role(caller: TokenRow, verb: str) -> None:
    """Refuse what the caller's role does not cover.

    Raises:
        NotAllowed: the role is too low, or the token reaches some boards only.
        ServerError: there is no such verb.
    """
    needed = VERBS[verb].role if verb in VERBS else MESSAGES.get(verb)
    if needed is None:
        raise ServerError(f"it knows no request called {verb[:64]!r}")
    if ROLES.index(caller.role) < ROLES.index(needed):
        raise NotAllowed(needed)
    if verb in VERBS and VERBS[verb].everywhere and not access.reaches_all(caller):
        raise NotAllowed(f"{needed} on all boards")


def answer(
    server: Server,
    caller: TokenRow,
    body: dict[str, Any],
    address: str = "",
    owner: object = None,
) -> Any:
    """Do what ``body`` asks and return the reply, which is JSON; the audit log gets its row.

    Raises:
        CloudmanagerError: it was refused.
    """
    name = str(body.get("verb"))
    boards = access.within(caller, server.registry.by_name)
    call = Call(
        server, caller, boards, body, Note(caller.name, address, name, _target(body)), owner
    )
    try:
        check_role(caller, name)
        if name not in VERBS:
            raise ServerError(f"{name!r} is a message of its own, and not requested")
        reply = VERBS[name].act(call)
    except CloudmanagerError as error:
        server.audit.refused(call.note, error)
        raise
    if VERBS[name].role == ROLES[0] or name in ("offer", "plan"):  # their rows are their jobs'
        server.audit.read(call.note)
    else:
        server.audit.done(call.note)
    return reply


def pack_error(error: CloudmanagerError) -> dict[str, Any]:
    """Return an error as it crosses to the caller, who raises the same one, or its base."""
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return {"error": known.__name__, "args": list(error.args)}


def _status(call: Call) -> dict[str, Any]:
    server, boards = call.server, call.boards.values()
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


def _boards(call: Call) -> list[dict[str, Any]]:
    return [board.describe() for board in choose(call)]


def _label(call: Call) -> list[str]:
    changes = call.body.get("labels")
    if not isinstance(changes, dict) or not changes:
        raise ServerError("labels are given as key=value")
    for key, value in changes.items():
        check_label(str(key), str(value or "x"))  # an empty one, or null, takes the label away
    boards = choose(call)
    call.note.detail = " ".join(f"{key}={value or ''}" for key, value in changes.items())
    for board in boards:
        merged = {**board.labels, **{str(key): str(value or "") for key, value in changes.items()}}
        board.labels = {key: value for key, value in merged.items() if value}
    labels = {board.id: dict(board.labels) for board in boards}
    call.server.store.set_labels(labels, call.note.row())
    call.note.written = True
    return [board.name for board in boards]


def _stop(call: Call) -> list[str]:
    """Ask boards to end their own programs; return the names of those that are there."""
    server = call.server
    stop = server.dispatch.stop_program if server.others is None else server.others.stop_program
    return [board.name for board in choose(call) if stop(board)]


def _offer(call: Call) -> int:
    """Take a file in that boards are to get; the reply is its upload's number, 0 if it is there."""
    call.note.detail = str(call.body.get("sha256"))
    return call.server.contents.offer(call.owner, call.body.get("sha256"), call.body.get("size"))


def _plan(call: Call) -> Any:
    """Make the plan of an install; the reply comes when it is made."""
    boards = choose(call)
    call.note.detail = " ".join(map(str, call.body.get("wanted") or ()))[: limits.AUDIT_CHARS]
    trusted = call.caller.role == ROLES[-1] and access.reaches_all(call.caller)
    return plan_cache.plan_for(call.server, call.owner, boards, call.body, trusted=trusted)


def _installed(call: Call) -> dict[str, Any]:
    """Return what boards have confirmed to have, there or not, and when."""
    names = parse(str(call.body.get("target") or "all")).matches(call.boards)
    call.note.boards = len(names)
    return {name: _recorded(call.server, call.boards[name]) for name in names}


def _recorded(server: Server, board: Board) -> dict[str, Any]:
    installed = server.store.installed
    return {
        "online": board.online,
        "absence": board.absence,
        "confirmed": installed.at(board.id),
        "packages": installed.of(board.id),
    }


def _samples(call: Call) -> list[list[Any]]:
    """Return what boards emitted lately, there or not, the newest last."""
    count = call.body.get("count") or limits.REPLY_SAMPLES
    if not isinstance(count, int) or not 0 < count <= limits.REPLY_SAMPLES:
        raise ServerError(f"values are 1 to {limits.REPLY_SAMPLES} at once")
    names = parse(str(call.body.get("target") or "all")).matches(call.boards)
    kept = [(sample, name) for name in names for sample in call.boards[name].samples.kept]
    call.note.boards = len(names)
    kept.sort()
    return [[name, *sample[:3], json.loads(sample.values)] for sample, name in kept[-count:]]


def _enrol(call: Call) -> list[dict[str, Any]]:
    """Give each name an identity and a fresh key; its old key opens nothing any more."""
    names, boards = call.body.get("names"), call.server.registry.by_name
    if not isinstance(names, list) or not 0 < len(names) <= limits.ENROL_NAMES:
        raise ServerError(f"1 to {limits.ENROL_NAMES} names are enrolled at once")
    for name in names:
        _check_new_name(call, name)
        if name in boards and boards[name].online:
            raise ServerError(f"a board called {name} is connected already; choose another name")
    names = list(dict.fromkeys(names))
    call.note.target, call.note.boards = fold(names), len(names)
    return call.server.enrolment.enrol(names, call.note, plain=bool(call.body.get("plain")))


def _check_new_name(call: Call, name: Any) -> None:
    if not isinstance(name, str):
        raise ServerError("names are text")
    check_name(name)
    if not access.may_enrol(call.caller, name, call.server.registry.by_name):
        raise NotAllowed(f"admin on {name}")


def _enrol_token(call: Call) -> dict[str, Any]:
    """Make a token that boards enrol themselves with; this reply is the only place with it."""
    asked: dict[str, Any] = {"target": access.EVERYWHERE, "uses": 1, "expires": ENROL_SECONDS}
    asked.update({key: value for key, value in call.body.items() if value is not None})
    number = sum(row["role"] == BOARD for row in call.server.tokens.describe()) + 1
    name = f"enrol-{number}"
    token = call.server.tokens.create(
        name, BOARD, asked["target"], asked["expires"], call.note, uses=asked["uses"]
    )
    made = call.server.tokens.describe()[-1]
    return {**made, "token": token, "ca": call.server.enrolment.authority}


def _revoke(call: Call) -> list[str]:
    """Take boards out of the fleet: from now on their keys open nothing."""
    boards = choose(call)
    call.server.enrolment.revoke(boards, call.note)
    return [board.name for board in boards]


def _rename(call: Call) -> str:
    """Give one board another name; its jobs, labels and key go with it."""
    boards, name = choose(call), call.body.get("name")
    if len(boards) != 1:
        text, hint = str(call.body.get("target", "")), "Name one board, or select one."
        raise TargetError("One board is renamed at a time.", text, 0, hint)
    _check_new_name(call, name)
    call.note.detail = f"to {name}"
    call.server.enrolment.rename(boards[0], str(name), call.note)
    return boards[0].name


def _rotate(call: Call) -> dict[str, str]:
    """Give boards new keys; says of each whether it was asked now or is yet to be."""
    boards = choose(call)
    call.server.enrolment.rotate(boards, call.note)
    return {board.name: "asked" if board.state == "idle" else "waits" for board in boards}


def _token_create(call: Call) -> dict[str, Any]:
    """Make a token; this reply is the only place where it ever stands."""
    asked: dict[str, Any] = {"role": "operator", "target": access.EVERYWHERE}
    asked.update({key: value for key, value in call.body.items() if value is not None})
    token = call.server.tokens.create(
        asked.get("name"), asked["role"], asked["target"], asked.get("expires"), call.note
    )
    pin = call.server.certificates.pin
    return {**call.server.tokens.describe()[-1], "token": f"{token}.{pin}"}


def _token_list(call: Call) -> list[dict[str, Any]]:
    return call.server.tokens.describe()


def _token_revoke(call: Call) -> dict[str, Any]:
    """Let a token open nothing any more, and close its links; what runs goes on."""
    row = call.server.tokens.revoke(call.body.get("name"), call.note)
    return {"name": row.name, "closed": call.server.shut_out(row)}


def _audit(call: Call) -> list[dict[str, Any]]:
    count = call.body.get("count") or limits.REPLY_AUDIT_ROWS
    if not isinstance(count, int) or not 0 < count <= limits.REPLY_AUDIT_ROWS:
        raise ServerError(f"rows are 1 to {limits.REPLY_AUDIT_ROWS} at once")
    return [row._asdict() for row in call.server.store.audit(count)]


def _target(body: dict[str, Any]) -> str:
    """Return what stands in the audit log for a request's target."""
    target = body.get("target")
    return target if isinstance(target, str) else ""


#: What is a message of its own, and the role that it needs.
MESSAGES = {"submit": "operator", "watch": "viewer"}

VERBS = {
    "status": Verb("viewer", _status),
    "boards": Verb("viewer", _boards),
    "label": Verb("operator", _label),
    "interrupt": Verb("operator", job_verbs.interrupt),
    "offer": Verb("operator", _offer),
    "stop": Verb("operator", _stop),
    "plan": Verb("operator", _plan),
    "installed": Verb("viewer", _installed),
    "jobs": Verb("viewer", job_verbs.show_jobs),
    "job": Verb("viewer", job_verbs.show_job),
    "samples": Verb("viewer", _samples),
    "enrol": Verb("admin", _enrol),
    "enrol-token": Verb("admin", _enrol_token, everywhere=True),
    "revoke": Verb("admin", _revoke),
    "rename": Verb("admin", _rename),
    "rotate": Verb("admin", _rotate),
    "token-create": Verb("admin", _token_create, everywhere=True),
    "token-list": Verb("admin", _token_list, everywhere=True),
    "token-revoke": Verb("admin", _token_revoke, everywhere=True),
    "audit": Verb("admin", _audit, everywhere=True),
}
