"""The verbs: who may ask what, and what is answered."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any, NamedTuple

import pytest

from cloudmanager import wire
from cloudmanager.errors import (
    BoardOffline,
    CloudmanagerError,
    NoSuchBoard,
    NotAllowed,
    ServerError,
    TargetError,
)
from cm_server import auth, verbs
from cm_server.auth import Caller
from cm_server.dispatch import Cell, Dispatch
from cm_server.registry import Registry
from cm_server.store import Store
from cm_server.verbs import MAX_ENROL, ROLES, VERBS, check_role

NEEDED = {**{verb: entry.role for verb, entry in VERBS.items()}, "submit": "operator"}
NO_WORDS = ("", "None", "__class__", "Submit", "status ", "x" * 9999, "\ud800")


class Link:
    def __init__(self) -> None:
        self.ops: list[int] = []

    def send(self, message: bytes) -> None:
        self.ops.append(message[0])

    def close(self, code: int, reason: str = "") -> None:
        pass


class Nobody:
    answers = False

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        pass


class FakeServer(NamedTuple):
    """As much of app.Server as the verbs touch."""

    store: Store
    registry: Registry
    dispatch: Dispatch
    version: str = "0.1"
    address: str = "http://127.0.0.1:1"
    started: float = 0.0
    pid: int = 4711
    callers: tuple[()] = ()

    def enrol(self, names: list[str]) -> list[dict[str, str]]:
        rows = self.store.enrol([(auth.new_board_id(), name, auth.new_key()) for name in names])
        for row in rows:
            self.registry.add(row)
        return [{"name": row.name, "id": row.id, "key": row.key.hex()} for row in rows]

    def ask(self, verb: str, **body: Any) -> Any:
        """What a caller gets, by way of JSON."""
        reply = verbs.answer(self, {"verb": verb, **body})  # type: ignore[arg-type]
        return json.loads(json.dumps(reply))


@pytest.fixture
def server() -> FakeServer:
    store = Store(None)
    store.enrol([(f"id{n}", f"lab-{n}", bytes(32)) for n in (10, 2, 1)])
    registry = Registry(store.boards())
    dispatch = Dispatch(store, registry, lambda _seconds, _act: Link())  # type: ignore[arg-type,return-value]
    server = FakeServer(store, registry, dispatch, started=time.time() - 5)
    for name in ("lab-1", "lab-2"):
        registry.by_name[name].connect(Link(), {"platform": "unix"}, 1500)
    return server


# Roles


@pytest.mark.parametrize(("role", "verb"), list(itertools.product(ROLES, sorted(NEEDED))))
def test_each_role_may_do_what_is_its_own_and_what_is_below(role, verb):
    allowed = ROLES.index(role) >= ROLES.index(NEEDED[verb])
    if allowed:
        check_role(Caller("ann", role), verb)
    else:
        with pytest.raises(NotAllowed, match=NEEDED[verb]):
            check_role(Caller("ann", role), verb)


def test_what_changes_something_is_no_viewers():
    assert {verb for verb, role in NEEDED.items() if role == "viewer"} <= {
        "status",
        "boards",
        "jobs",
        "job",
    }
    assert NEEDED["enrol"] == "admin"


@pytest.mark.parametrize("verb", NO_WORDS)
def test_an_unknown_verb_is_refused_for_all(verb):
    with pytest.raises(ServerError, match="no request called") as caught:
        check_role(Caller("ann", "admin"), verb)
    assert len(str(caught.value)) < 300


# What is answered


def test_status_counts(server: FakeServer):
    told = server.ask("status")
    assert (told["boards"], told["online"], told["busy"], told["callers"]) == (3, 2, 0, 0)
    assert told["uptime"] == pytest.approx(5, abs=2)
    assert (told["version"], told["address"], told["pid"]) == ("0.1", "http://127.0.0.1:1", 4711)


def test_boards_are_all_of_them_in_the_order_that_people_count(server: FakeServer):
    assert [board["name"] for board in server.ask("boards")] == ["lab-1", "lab-2", "lab-10"]


def test_boards_of_a_target(server: FakeServer):
    assert [board["name"] for board in server.ask("boards", target="lab-10,lab-1")] == [
        "lab-10",
        "lab-1",
    ]


@pytest.mark.parametrize("target", ["", "lab-[", "a[0-999999]", 7, [], {"lab": 1}, False])
def test_a_target_that_means_nothing_is_refused(server: FakeServer, target):
    with pytest.raises((TargetError, NoSuchBoard)):
        server.ask("boards", target=target)


def test_labels_are_set_changed_and_taken_away(server: FakeServer):
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


def test_a_label_of_null_is_taken_away(server: FakeServer):
    server.ask("label", target="lab-1", labels={"room": "lab"})
    server.ask("label", target="lab-1", labels={"room": None})
    assert server.registry.by_name["lab-1"].labels == {}


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
def test_labels_that_make_no_sense_are_refused_and_change_nothing(server: FakeServer, labels):
    with pytest.raises((ServerError, TargetError)):
        server.ask("label", target="all", labels=labels)
    assert all(not board.labels for board in server.registry.by_name.values())


def test_interrupt_says_how_many_it_found(server: FakeServer):
    board = server.registry.by_name["lab-1"]
    cell = Cell(b"1", None, awaits=False)
    jobs = server.dispatch.submit([board], cell, "ann", Nobody())
    server.dispatch.launch(jobs)
    assert server.ask("interrupt", jobs=[jobs[0].id, 999, -1, 10**30]) == 1
    link = board.link
    assert isinstance(link, Link)
    assert link.ops == [wire.EXEC, wire.INTERRUPT]


@pytest.mark.parametrize("jobs", [None, 7, "7", ["7"], [None], [1.5], {"1": 1}], ids=str)
def test_interrupt_of_nonsense_is_refused(server: FakeServer, jobs):
    with pytest.raises(ServerError, match="list of numbers"):
        server.ask("interrupt", jobs=jobs)


def test_enrol_gives_each_name_an_identity(server: FakeServer):
    told = server.ask("enrol", names=["new-1", "new-2", "new-1"])
    assert [board["name"] for board in told] == ["new-1", "new-2"]
    assert all(len(bytes.fromhex(board["key"])) == 32 for board in told)
    assert "new-2" in server.registry.by_name


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        "lab-9",
        {"lab-9": 1},
        ["lab-9"] * (MAX_ENROL + 1),
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
def test_names_that_are_none_are_refused_and_enrol_nobody(server: FakeServer, names):
    with pytest.raises((ServerError, TargetError)):
        server.ask("enrol", names=names)
    assert len(server.store.boards()) == 3


def test_a_board_that_is_connected_keeps_its_key(server: FakeServer):
    before = server.registry.by_name["lab-1"].key
    with pytest.raises(ServerError, match="lab-1 is connected already"):
        server.ask("enrol", names=["new-1", "lab-1"])
    assert server.registry.by_name["lab-1"].key == before
    assert "new-1" not in server.registry.by_name


@pytest.mark.parametrize(
    "error",
    [NotAllowed("admin"), NoSuchBoard("lab-9", "lab-1", ("lab-8",)), BoardOffline("lab-1")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_with_what_makes_it(error: CloudmanagerError):
    told = json.loads(json.dumps(verbs.pack_error(error)))
    assert told["error"] == type(error).__name__
    assert str(type(error)(*told["args"])) == str(error)
