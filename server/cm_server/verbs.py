"""What callers may ask, and with which role: the table ``VERBS``. No sockets, no SQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.errors import CloudmanagerError, NotAllowed, ServerError
from cloudmanager.targets import check_label, check_name, natural_key, parse

from .auth import Caller
from .registry import Board

if TYPE_CHECKING:
    from .app import Server

#: Roles, each with the rights of those before it.
ROLES = ("viewer", "operator", "admin")
MAX_JOBS = 1000  # jobs in one reply
MAX_ENROL = 10_000  # boards enrolled by one request


class Verb(NamedTuple):
    """One thing that callers may ask for."""

    role: str
    act: Callable[[Server, dict[str, Any]], Any]


def check_role(caller: Caller, verb: str) -> None:
    """Refuse what the caller's role does not cover.

    Raises:
        NotAllowed: the role is too low.
        ServerError: there is no such verb.
    """
    needed = "operator" if verb == "submit" else VERBS[verb].role if verb in VERBS else None
    if needed is None:
        raise ServerError(f"it knows no request called {verb[:64]!r}")
    if ROLES.index(caller.role) < ROLES.index(needed):
        raise NotAllowed(needed)


def answer(server: Server, body: dict[str, Any]) -> Any:
    """Do what ``body`` asks and return the reply, which is JSON."""
    verb = VERBS.get(str(body.get("verb")))
    if verb is None:
        raise ServerError("a cell is submitted, not requested")
    return verb.act(server, body)


def pack_error(error: CloudmanagerError) -> dict[str, Any]:
    """Return an error as it crosses to the caller, who raises the same one."""
    return {"error": type(error).__name__, "args": list(error.args)}


def _status(server: Server, _: dict[str, Any]) -> dict[str, Any]:
    boards = server.registry.by_name.values()
    return {
        "version": server.version,
        "address": server.address,
        "uptime": time.time() - server.started,
        "boards": len(boards),
        "online": sum(board.online for board in boards),
        "busy": sum(board.state == "busy" for board in boards),
        "callers": len(server.callers),
        "pid": server.pid,
    }


def _boards(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [board.describe() for board in _choose(server, body)]


def _label(server: Server, body: dict[str, Any]) -> list[str]:
    changes = body.get("labels")
    if not isinstance(changes, dict) or not changes:
        raise ServerError("labels are given as key=value")
    for key, value in changes.items():
        check_label(str(key), str(value or "x"))  # an empty one, or null, takes the label away
    boards = _choose(server, body)
    for board in boards:
        merged = {**board.labels, **{str(key): str(value or "") for key, value in changes.items()}}
        board.labels = {key: value for key, value in merged.items() if value}
    server.store.set_labels({board.id: dict(board.labels) for board in boards})
    return [board.name for board in boards]


def _interrupt(server: Server, body: dict[str, Any]) -> int:
    jobs = server.dispatch.jobs
    found = [jobs[number] for number in _numbers(body) if number in jobs]
    for job in found:
        server.dispatch.interrupt(job)
    return len(found)


def _jobs(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the jobs that have not ended, then those that ended lately, newest first."""
    running = sorted(server.dispatch.jobs.values(), key=lambda job: -job.id)
    jobs = [*running, *server.dispatch.recent.newest()]
    if body.get("target") is not None:
        chosen = set(_choose(server, body))
        jobs = [job for job in jobs if job.board in chosen]
    return [job.describe() for job in jobs[:MAX_JOBS]]


def _job(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """Return one job with its output's tail; of an older one, its line in the store."""
    number = body.get("job")
    if not isinstance(number, int) or not 0 < number < 2**63:
        raise ServerError("a job is named by its number")
    job = server.dispatch.jobs.get(number) or server.dispatch.recent.get(number)
    if job is not None:
        return job.show()
    row = server.store.job(number)
    if row is None:
        raise ServerError(f"there is no job {number}")
    board = server.registry.by_id.get(row.board)
    return {
        "job": row.id,
        "board": board.name if board else row.board,
        "caller": row.caller,
        "state": "ended" if row.status else "running",
        "status": row.status,
        "started": row.created,
        "elapsed": row.ended - row.created if row.ended else None,
        "stdout": "",
        "truncated": True,  # output is kept in memory only
        "value": "",
        "error": row.error or "",
    }


def _enrol(server: Server, body: dict[str, Any]) -> list[dict[str, str]]:
    """Give each name an identity and a fresh key; its old key opens nothing any more."""
    names = body.get("names")
    if not isinstance(names, list) or not 0 < len(names) <= MAX_ENROL:
        raise ServerError(f"1 to {MAX_ENROL} names are enrolled at once")
    for name in names:
        if not isinstance(name, str):
            raise ServerError("names are text")
        check_name(name)
        board = server.registry.by_name.get(name)
        if board is not None and board.online:
            raise ServerError(f"a board called {name} is connected already; choose another name")
    return server.enrol(list(dict.fromkeys(names)))


def _forget(server: Server, body: dict[str, Any]) -> list[str]:
    """Unenrol boards that are not connected: their keys open nothing any more."""
    boards = _choose(server, body)
    for board in boards:
        if board.online:
            raise ServerError(f"{board.name} is connected; end it first")
    for board in boards:
        server.dispatch.abandon(board)
        server.registry.remove(board)
    server.store.forget([board.id for board in boards])
    return [board.name for board in boards]


def _choose(server: Server, body: dict[str, Any]) -> list[Board]:
    """Return the boards of a request's target; to look at, without one, every enrolled board."""
    boards = server.registry.by_name
    if body.get("target") is None and body["verb"] in ("boards", "jobs"):
        return sorted(boards.values(), key=lambda board: natural_key(board.name))
    return [boards[name] for name in parse(str(body.get("target") or "")).resolve(boards).names]


def _numbers(body: dict[str, Any]) -> list[int]:
    numbers = body.get("jobs")
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ServerError("jobs are given as a list of numbers")
    return numbers


VERBS = {
    "status": Verb("viewer", _status),
    "boards": Verb("viewer", _boards),
    "label": Verb("operator", _label),
    "interrupt": Verb("operator", _interrupt),
    "jobs": Verb("viewer", _jobs),
    "job": Verb("viewer", _job),
    "enrol": Verb("admin", _enrol),
    "forget": Verb("admin", _forget),
}
