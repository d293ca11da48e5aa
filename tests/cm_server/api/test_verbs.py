"""The verbs: required roles, and replies."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import (
    BoardOffline,
    CloudmanagerError,
    NoSuchBoard,
    NotAllowed,
    ServerError,
    TargetError,
)
from cloudmanager.protocol.run_options import RunOptions
from cm_server.api import replies, verbs
from cm_server.api.request_context import Services
from cm_server.api.verbs import VERBS, check_role
from cm_server.auth.audit import AuditLog
from cm_server.auth.caller_links import CallerLinks
from cm_server.auth.credentials import ROLES
from cm_server.auth.enrolment import Enrolment, EnrolmentServices
from cm_server.auth.permission import Permission
from cm_server.auth.tokens import Tokens
from cm_server.board_health import BoardHealth
from cm_server.board_logs import BoardLogs
from cm_server.clock import CheckedClock
from cm_server.cluster.single_server import SingleServer
from cm_server.jobs.dispatch import Dispatch, Submission
from cm_server.jobs.job_services import JobServices
from cm_server.jobs.model import Cell, Job, Requester
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.logs import PeerLog
from cm_server.sample_history import SampleHistory
from cm_server.store.rows import TokenRow, new_board_row
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue
from tests.cm_server.waiting import finish

NEEDED = {**{verb: entry.role for verb, entry in VERBS.items()}, "submit": "operator"}
ADMIN = TokenRow("a" * 64, "ann", "admin")
UNKNOWN_VERBS = ("", "None", "__class__", "Submit", "status ", "x" * 9999, "\ud800")

LIMITS = Limits()


class Link:
    def __init__(self) -> None:
        self.ops: list[int] = []

    def send(self, message: bytes) -> None:
        self.ops.append(message[0])

    def close(self, code: int, reason: str = "") -> None:
        pass

    def abort(self) -> None:
        pass


class Timer:
    def cancel(self) -> None:
        pass


class NullObserver:
    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        pass


class FakeStatus:
    """What a server with a full disk reports."""

    version = "0.1"
    address = "http://127.0.0.1:1"
    uptime = 5
    pid = 4711

    def problems(self) -> list[str]:
        return ["the disk is full"]

    def warnings(self) -> list[str]:
        return ["the clock may be wrong"]


class FakeServer:
    """The parts of a server that the verbs use, without sockets."""

    def __init__(self, store: Store) -> None:
        def later(_seconds: float, _act: Any) -> Timer:
            return Timer()

        self.store = store
        self.store_queue = queue = StoreQueue(store)
        self.registry = registry = Registry(store.boards())
        self.dispatch = Dispatch(
            JobServices(queue, registry, later, LIMITS, lost_after=lambda: 10.0)
        )
        tokens, audit_log = Tokens(queue, LIMITS), AuditLog(queue, LIMITS)
        permission = Permission(tokens, registry, self.dispatch, later)
        self.services = Services(
            limits=LIMITS,
            status=FakeStatus(),  # type: ignore[arg-type]
            store_queue=queue,
            registry=registry,
            dispatch=self.dispatch,
            cluster=SingleServer(queue, self.dispatch),
            tokens=tokens,
            callers=CallerLinks(queue, tokens, permission),
            enrolment=Enrolment(
                EnrolmentServices(
                    store_queue=queue,
                    registry=registry,
                    dispatch=self.dispatch,
                    tokens=tokens,
                    audit_log=audit_log,
                    peer_log=PeerLog(LIMITS),
                    ca=b"DER",
                )
            ),
            audit_log=audit_log,
            installs=None,  # type: ignore[arg-type]
            pin="pin",
            board_logs=BoardLogs(queue, registry, later, LIMITS),
            sample_history=SampleHistory(None, LIMITS, later, CheckedClock(queue), "not kept"),
            board_health=BoardHealth(queue, registry, later, LIMITS),
            rollouts=None,  # type: ignore[arg-type]
            viewers_read_logs=False,
            keep_texts_seconds=30 * 86400.0,
        )

    def ask(self, verb: str, caller: TokenRow = ADMIN, **body: Any) -> Any:
        """Return the reply as a caller receives it: through JSON."""
        body = {"verb": verb, **body}
        reply = verbs.handle_request(self.services, caller, body, "here")
        if asyncio.iscoroutine(reply):
            reply = finish(self.store_queue, reply)
        reply = finish(self.store_queue, replies.collect(reply))
        assert self.store_queue.drain()
        return json.loads(json.dumps(reply))

    def run(self, name: str, cell: Cell, caller: str = "ann") -> Job:
        """Run a cell on one board, as net/caller_socket.py does it."""
        requester = Requester(caller, NullObserver())
        submission = Submission([self.registry.by_name[name]], cell, requester)
        numbers = self.dispatch.submit(submission).result()
        (job,) = self.dispatch.create_jobs(submission, numbers)
        self.dispatch.scheduler.launch([job])
        return job


@pytest.fixture
def server() -> FakeServer:
    store = Store(None)
    store.enrol_boards([new_board_row(f"id{n}", f"lab-{n}", bytes(32)) for n in (10, 2, 1)])
    store.add_token(ADMIN)
    server = FakeServer(store)
    for name in ("lab-1", "lab-2"):
        server.registry.by_name[name].connect(Link(), {"platform": "unix"}, 1500)
    return server


# Roles


@pytest.mark.parametrize(("role", "verb"), list(itertools.product(ROLES, sorted(NEEDED))))
def test_role_includes_all_lower_roles(role, verb):
    allowed = ROLES.index(role) >= ROLES.index(NEEDED[verb])
    if allowed:
        check_role(TokenRow("", "ann", role), verb)
    else:
        with pytest.raises(NotAllowed, match=NEEDED[verb]):
            check_role(TokenRow("", "ann", role), verb)


def test_viewer_may_use_reading_verbs_only():
    assert {verb for verb, role in NEEDED.items() if role == "viewer"} <= {
        "status",
        "boards",
        "jobs",
        "job",
        "samples",
        "sample-history",
        "installed",
        "health",
        "history",
        "fleet-status",
        "fleet-history",
    }
    assert NEEDED["enrol"] == "admin"


@pytest.mark.parametrize("verb", UNKNOWN_VERBS)
def test_unknown_verb_is_refused(verb):
    with pytest.raises(ServerError, match="no request called") as caught:
        check_role(ADMIN, verb)
    assert len(str(caught.value)) < 300


# Replies


def test_status_counts_boards_and_callers(server: FakeServer):
    status = server.ask("status")
    assert (status["boards"], status["online"], status["busy"], status["callers"]) == (3, 2, 0, 0)
    assert status["uptime"] == 5
    assert status["problems"] == ["the disk is full", "the clock may be wrong"]
    assert (status["version"], status["address"], status["pid"]) == (
        "0.1",
        "http://127.0.0.1:1",
        4711,
    )


def test_boards_are_listed_in_natural_order(server: FakeServer):
    assert [board["name"] for board in server.ask("boards")] == ["lab-1", "lab-2", "lab-10"]


def test_boards_of_a_target_are_listed(server: FakeServer):
    assert [board["name"] for board in server.ask("boards", target="lab-10,lab-1")] == [
        "lab-10",
        "lab-1",
    ]


@pytest.mark.parametrize("target", ["", "lab-[", "a[0-999999]", 7, [], {"lab": 1}, False])
def test_invalid_target_is_refused(server: FakeServer, target):
    with pytest.raises((TargetError, NoSuchBoard)):
        server.ask("boards", target=target)


def test_labels_are_set_changed_and_removed(server: FakeServer):
    assert server.ask("label", target="lab-[1-2]", labels={"room": "lab", "bay": "7"}) == [
        "lab-1",
        "lab-2",
    ]
    server.ask("label", target="lab-1", labels={"room": "attic", "bay": ""})
    assert server.registry.by_name["lab-1"].labels == {"room": "attic"}
    assert {row.name: row.labels for row in server.store.boards()} == {
        "lab-1": {"room": "attic"},
        "lab-2": {"room": "lab", "bay": "7"},
        "lab-10": {},
    }
    assert [board["name"] for board in server.ask("boards", target="room=lab")] == ["lab-2"]


def test_label_with_null_is_removed(server: FakeServer):
    server.ask("label", target="lab-1", labels={"room": "lab"})
    server.ask("label", target="lab-1", labels={"room": None})
    assert server.registry.by_name["lab-1"].labels == {}


def test_labels_of_a_board_are_bounded(server: FakeServer):
    many = {f"k{n}": "x" for n in range(LIMITS.labels)}
    server.ask("label", target="lab-1", labels=many)
    with pytest.raises(ServerError, match="lab-1 would have 65 labels: 64 are allowed"):
        server.ask("label", target="lab-1", labels={"one": "more"})
    with pytest.raises(ServerError, match="at most 64 labels"):
        server.ask("label", target="lab-2", labels={**many, "one": "more"})
    server.ask("label", target="lab-1", labels={"k0": "", "one": "more"})
    assert len(server.registry.by_name["lab-1"].labels) == LIMITS.labels


def test_label_without_a_target_is_refused(server: FakeServer):
    with pytest.raises(TargetError):
        server.ask("label", labels={"room": "lab"})


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {},
        [],
        "room=lab",
        {"room": "a,b"},
        {"room": "x" * 65},
        {"": "x"},
        {"state": "idle"},
        {"platform": "esp32"},
        {"ro om": "x"},
        {"room": "\x1b[2J"},
        {"room": {"a": "b"}},
    ],
    ids=str,
)
def test_invalid_labels_are_refused_and_change_nothing(server: FakeServer, labels):
    with pytest.raises((ServerError, TargetError)):
        server.ask("label", target="all", labels=labels)
    assert all(not board.labels for board in server.registry.by_name.values())


def test_interrupt_returns_how_many_jobs_it_found(server: FakeServer):
    board = server.registry.by_name["lab-1"]
    cell = Cell(b"1")
    job = server.run("lab-1", cell)
    assert server.ask("interrupt", jobs=[job.id, 999, -1, 10**30]) == 1
    link = board.link
    assert isinstance(link, Link)
    assert link.ops == [wire.EXEC, wire.INTERRUPT]


@pytest.mark.parametrize("jobs", [None, 7, "7", ["7"], [None], [1.5], {"1": 1}], ids=str)
def test_interrupt_of_invalid_numbers_is_refused(server: FakeServer, jobs):
    with pytest.raises(ServerError, match="list of numbers"):
        server.ask("interrupt", jobs=jobs)


def test_enrol_returns_an_identity_for_each_name(server: FakeServer):
    identities = server.ask("enrol", names=["new-1", "new-2", "new-1"])
    assert [board["name"] for board in identities] == ["new-1", "new-2"]
    assert all(len(bytes.fromhex(board["key"])) == 32 for board in identities)
    assert "new-2" in server.registry.by_name


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        "lab-9",
        {"lab-9": 1},
        ["lab-9"] * (LIMITS.enrol_names + 1),
        ["all"],
        ["lab 9"],
        ["../../etc/passwd"],
        ["a[1-3]"],
        ["<script>"],
        ["x" * 65],
        [""],
        [7],
        [None],
        [["lab-9"]],
        [{}],
    ],
    ids=lambda names: repr(names)[:24],
)
def test_invalid_names_are_refused_and_enrol_no_board(server: FakeServer, names):
    with pytest.raises((ServerError, TargetError)):
        server.ask("enrol", names=names)
    assert len(server.store.boards()) == 3


def test_enrol_of_a_connected_board_is_refused(server: FakeServer):
    before = server.registry.by_name["lab-1"].key
    with pytest.raises(ServerError, match="lab-1 is connected already"):
        server.ask("enrol", names=["new-1", "lab-1"])
    assert server.registry.by_name["lab-1"].key == before
    assert "new-1" not in server.registry.by_name


def test_revoke_removes_boards_and_ends_their_jobs(server: FakeServer):
    board = server.registry.by_name["lab-10"]
    cell = Cell(b"1", RunOptions(wait=60))
    server.run("lab-10", cell)
    assert server.ask("revoke", target="lab-10") == ["lab-10"]
    assert "lab-10" not in server.registry.by_name
    assert board.id not in server.registry.by_id
    assert [row.name for row in server.store.boards()] == ["lab-2", "lab-1"]
    assert not server.dispatch.jobs


@pytest.mark.parametrize("target", [{}, {"target": None}, {"target": ""}, {"target": "nobody"}])
def test_revoke_without_a_valid_target_is_refused(server: FakeServer, target):
    with pytest.raises((TargetError, NoSuchBoard)):
        server.ask("revoke", **target)
    assert len(server.store.boards()) == 3


def test_reused_name_inherits_nothing(server: FakeServer):
    server.ask("label", target="lab-10", labels={"room": "lab"})
    server.ask("revoke", target="lab-10")
    (identity,) = server.ask("enrol", names=["lab-10"])
    assert identity["id"] != "id10"
    (row,) = (row for row in server.store.boards() if row.name == "lab-10")
    assert (row.labels, row.facts, row.last_seen) == ({}, {}, None)


# Jobs


def ended_job(server: FakeServer, output: bytes = b"hi\n") -> int:
    board = server.registry.by_name["lab-1"]
    cell = Cell(b"1")
    job = server.run("lab-1", cell)
    payload = len(output).to_bytes(2, "big") + output + b"42"
    server.dispatch.board_messages.on_message(board, wire.pack(wire.RESULT, payload, job=job.id))
    return job.id


def test_jobs_lists_running_then_ended_jobs(server: FakeServer):
    first, second = ended_job(server), ended_job(server)
    cell = Cell(b"1")
    running = server.run("lab-2", cell, "bob")
    listed = server.ask("jobs")
    assert [(job["job"], job["state"]) for job in listed] == [
        (running.id, "running"),
        (second, "ended"),
        (first, "ended"),
    ]
    assert [job["job"] for job in server.ask("jobs", target="lab-2")] == [running.id]


def test_job_shows_the_end_of_its_output(server: FakeServer):
    shown = server.ask("job", job=ended_job(server))
    assert (shown["stdout"], shown["value"], shown["status"], shown["caller"]) == (
        "hi\n",
        "42",
        "ok",
        "ann",
    )


def test_old_job_is_shown_from_the_store(server: FakeServer):
    (number,) = server.store.insert_jobs(["id2"], "ann")
    (gone,) = server.store.insert_jobs(["id99"], "ann")
    server.store.end_job(number, "error", "ValueError: old")
    shown = server.ask("job", job=number)
    assert (
        shown["board"],
        shown["state"],
        shown["status"],
        shown["error"],
        shown["truncated"],
    ) == (
        "lab-2",
        "ended",
        "error",
        "ValueError: old",
        True,
    )
    shown = server.ask("job", job=gone)
    assert (shown["board"], shown["state"], shown["status"]) == ("id99", "running", None)
    assert shown["board_removed"]


@pytest.mark.parametrize("number", [None, 0, -1, "1", 1.0, 999, 2**63, 10**30, [1]], ids=str)
def test_unknown_job_is_refused(server: FakeServer, number):
    with pytest.raises(ServerError, match=r"named by its number|there is no job 999"):
        server.ask("job", job=number)


def test_every_verb_is_in_protocol_md():
    described = (Path(__file__).parents[3] / "docs/protocol.md").read_text()
    rows = {line.split("`")[1]: line for line in described.splitlines() if line.startswith("| `")}
    assert {verb: entry.role in rows.get(verb, "") for verb, entry in VERBS.items()} == (
        dict.fromkeys(VERBS, True)
    )


@pytest.mark.parametrize("count", [0, -1, "all", 1.5, Limits.reply_audit_rows + 1, [1]], ids=str)
def test_audit_returns_a_bounded_number_of_rows(server: FakeServer, count):
    if count != 0:
        with pytest.raises(ServerError, match="between 1 and"):
            server.ask("audit", count=count)
    server.ask("label", target="lab-1", labels={"a": "b"})
    server.ask("revoke", target="lab-10")
    rows = server.ask("audit", count=2)
    assert [(row["verb"], row["outcome"]) for row in rows] == [
        ("label", "done"),
        ("revoke", "done"),
    ]
    assert len(server.ask("audit")) >= 3


def test_token_has_default_role_target_and_expiry(server: FakeServer):
    made = server.ask("token-create", name="lab-notebook", role=None, target=None, expires=None)
    assert made.pop("token").startswith("cm_")
    _, listed = server.ask("token-list")
    assert made == listed
    assert (listed["role"], listed["target"], listed["expires"]) == ("operator", "all", None)


def test_audit_row_of_very_many_job_numbers_is_short(server: FakeServer):
    server.ask("interrupt", jobs=[10**400, -5, *range(1, 5000)])
    (row,) = server.ask("audit", count=1)
    assert row["detail"] == f"[1-{Limits.reply_jobs - 2}]"


def test_submit_is_not_a_request(server: FakeServer):
    with pytest.raises(ServerError, match="a message type of its own"):
        server.ask("submit")


@pytest.mark.parametrize(
    "error",
    [NotAllowed("admin"), NoSuchBoard("lab-9", "lab-1", ("lab-8",)), BoardOffline("lab-1")],
    ids=lambda error: type(error).__name__,
)
def test_error_is_sent_with_its_class_and_arguments(error: CloudmanagerError):
    packed = json.loads(json.dumps(verbs.pack_error(error)))
    assert packed["error"] == type(error).__name__
    assert str(type(error)(*packed["args"])) == str(error)
