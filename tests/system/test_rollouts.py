"""Desired state on four boards: a canary, boards that go back, a server that is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServerError
from cloudmanager.results.fleet_plan import FleetPlan
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_server.rollouts.steps import RETRY_SECONDS
from tests.conftest import RunningServer, running_boards, running_server, wait_online

from .conftest import fleet_of, until

NAMES = [f"lab-{number}" for number in range(1, 5)]
WAIT = 60.0
APP = """
import json
with open("/settings.json") as file:
    settings = json.load(file)
VERSION = {version}
def ok():
    if settings.get("bad") == VERSION:
        raise OSError("no sensor")
async def main():
    import asyncio
    while True:
        await asyncio.sleep(1)
"""


class Field(NamedTuple):
    """A server, a link to it, and a folder with ``fleet.toml`` and a program."""

    server: RunningServer
    fleet: Fleet
    folder: Path
    boards: VirtualBoards

    @property
    def path(self) -> Path:
        return self.folder / "fleet.toml"

    def write(self, app: str, *, target: str = "lab-*", more: str = "", **rollout: Any) -> Path:
        """Write what the boards should be; return the path of the file."""
        (self.folder / "src").mkdir(exist_ok=True)
        (self.folder / "src/app.py").write_text(app)
        rollout = {"waves": [1, "100%"], "pause": "0s", "health_timeout": "20s", **rollout}
        lines = [f"{name} = {json.dumps(value)}" for name, value in rollout.items()]
        text = f'[lab]\ntarget = "{target}"\napp = "src"\nsettings = {{ a = 1 }}\n{more}\n'
        text += "[lab.rollout]\n"
        self.path.write_text(text + "\n".join(lines))
        return self.path

    def apply(self) -> dict[str, Any]:
        return self.fleet.apply(self.fleet.plan(self.path))

    def wait(self, done: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
        """Wait until the newest rollout has ended, or ``done``; return it."""
        deadline = time.monotonic() + WAIT
        while True:
            (rollout,) = self.fleet.rollouts()
            if done(rollout) if done else rollout["state"] != "running":
                return rollout
            assert time.monotonic() < deadline, repr(self.fleet.rollouts())
            time.sleep(0.1)

    def wait_back(self) -> None:
        """Wait until all boards are connected and run their programs: some went back."""
        until(lambda: set(self.fleet["lab-*"].run("import app")) >= set(NAMES), "it went back")

    def versions(self) -> dict[str, Any]:
        return self.fleet["lab-*"].run("import app; app.VERSION").to_dict()


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    home = tmp_path_factory.mktemp("field")
    with (
        running_server(home) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, NAMES) as boards,
    ):
        yield Field(server, fleet, tmp_path_factory.mktemp("file"), boards)


def states(rollout: dict[str, Any]) -> dict[str, str]:
    return {board["board"]: board["state"] for board in rollout["boards"]}


HEALTH = "import app; app.ok()"


@pytest.mark.timeout(180)
def test_failing_boards_go_back_and_the_others_have_the_new_generation(field: Field):
    (field.folder / "mine.py").write_text("async def check():\n    return 42\n")
    packages = 'packages = ["./mine.py"]\n'
    bad = '[lab.board."lab-4"]\nsettings = { bad = 2 }'
    health = "import mine\nassert await mine.check() == 42"
    field.write(APP.format(version=1), more=packages + bad, health=health)
    plan = field.fleet.plan(field.path)
    assert plan.changed == 4
    assert "waves of 1 and 3 boards" in repr(plan)
    assert "install mine" in repr(plan)
    first = field.fleet.apply(plan)
    assert first["rollouts"] == {"lab": 1}
    assert repr(first) == "lab: rollout 1 has begun; fleet.rollouts() shows it."
    assert field.wait()["state"] == "done"
    assert set(field.versions().values()) == {1}
    assert field.fleet["lab-2"].run("import mine; mine.__file__").value == "/lib/mine.mpy"

    jobs = field.fleet.jobs()[0]["job"]
    again = field.apply()
    assert (again["rollouts"], again["changed"]) == ({}, 0)
    assert field.fleet.jobs()[0]["job"] == jobs, "something was sent"

    field.fleet["lab-2"].put(b"changed", ":/app.py").raise_for_error()
    field.fleet["lab-3"].change_settings({"a": 7, "own": 1}).raise_for_error()
    drift = field.fleet.drift()
    assert drift == {
        **{name: [] for name in NAMES},
        "lab-2": ["/app.py was changed"],
        "lab-3": ["/settings.json: a was changed"],
    }
    plan = field.fleet.plan(field.path)
    changes = {str(change["boards"]): change for change in plan.reply["groups"][0]["changes"]}
    assert changes["['lab-2']"]["put"] == [
        ["/app.py", (field.folder / "src/app.py").stat().st_size]
    ]
    assert (changes["['lab-3']"]["put"], changes["['lab-3']"]["settings"]) == ([], ["a"])
    field.fleet.apply(plan)
    mended = field.wait()
    assert (mended["state"], mended["others"]["have"]) == ("done", ["lab-1", "lab-4"])
    assert field.fleet.drift() == {name: [] for name in NAMES}  # also those not mended
    assert field.fleet["lab-3"].settings()["lab-3"].value == {"a": 1, "own": 1}

    field.write(APP.format(version=2), more=bad, health=HEALTH, max_failures=1)
    field.apply()
    rollout = field.wait()
    assert rollout["state"] == "done"
    assert states(rollout) == {**dict.fromkeys(NAMES, "proven"), "lab-4": "failed"}
    (failed,) = [board for board in rollout["boards"] if board["state"] == "failed"]
    assert failed["why"] == "health: OSError: no sensor"
    field.wait_back()
    assert field.versions() == {**dict.fromkeys(NAMES, 2), "lab-4": 1}
    assert field.fleet["lab-4"].settings()["lab-4"].value == {"a": 1, "bad": 2}

    before = field.fleet.roll_back(dry_run=True)
    assert (before["rollout"], before["boards"]) == (None, NAMES[:3])
    # The health cell of the first generation is asked: the second one has no package to import.
    field.fleet.roll_back()
    assert field.wait()["state"] == "done"
    assert set(field.versions().values()) == {1}
    assert field.fleet.health().findings == (), "restarts of rollouts are no fault"
    restarts = [job for job in field.fleet.jobs() if job["what"].endswith(": restart")]
    assert {(job["kind"], job["status"]) for job in restarts} == {("rollout", "ok")}


@pytest.mark.timeout(180)
def test_failure_brings_all_boards_back_if_that_is_wanted(field: Field):
    field.wait_back()
    before = set(field.versions().values())
    bad = '[lab.board."lab-4"]\nsettings = { bad = 8 }'
    field.write(APP.format(version=8), more=bad, health=HEALTH, on_failure="all", parallel=1)
    field.apply()
    rollout = field.wait(lambda rollout: rollout["state"] == "done")
    failed = field.fleet.rollout_history()[1]
    why = "1 failed, and max_failures is 0; rolled back"
    assert (failed["state"], failed["why"]) == ("failed", why)
    assert states(rollout) == dict.fromkeys(NAMES[:3], "proven")
    assert set(field.versions().values()) == before


@pytest.mark.timeout(180)
def test_board_that_is_enrolled_later_gets_the_generation_of_its_group(field: Field):
    field.wait_back()
    before = set(field.versions().values())
    (row,) = field.fleet.enrol(["lab-9"])
    field.boards.add_board(BoardIdentity.from_enrolment(row, field.server.url))
    rollout = field.wait(lambda each: each["joined"] and each["state"] == "done")
    assert (rollout["joined"], states(rollout)) == (True, {"lab-9": "proven"})
    assert rollout["others"] == {"have": NAMES, "lack": []}
    assert field.fleet["lab-9"].run("import app; app.VERSION").value in before
    field.boards.kill("lab-9")
    field.fleet.revoke("lab-9")


@pytest.mark.timeout(180)
def test_rollout_that_replaces_one_on_trial_goes_on_soon_after_that(field: Field):
    more = '[lab.board."lab-2"]\nsettings = { number = -1 }'
    slow = "import time; time.sleep(4)"
    field.write(APP.format(version=1), target="lab-2", more=more, health=slow)
    field.apply()
    field.wait(lambda rollout: states(rollout) == {"lab-2": "trial"})
    field.write(APP.format(version=2), target="lab-2", more=more, health=HEALTH)
    begun = time.monotonic()
    field.apply()
    assert states(field.wait()) == {"lab-2": "proven"}
    assert time.monotonic() - begun < RETRY_SECONDS, "it waited as for a board without a link"


@pytest.mark.timeout(180)
def test_rollouts_of_settings_in_a_row_do_not_lead_to_safe_mode(field: Field):
    for number in range(5):
        more = f'[lab.board."lab-2"]\nsettings = {{ number = {number} }}'
        field.write(APP.format(version=1), target="lab-2", more=more, health=HEALTH)
        field.apply()
        rollout = field.wait()
        assert states(rollout) == {"lab-2": "proven"}, repr(rollout)
    assert field.fleet["lab-2"].settings()["lab-2"].value["number"] == 4


@pytest.mark.timeout(240)
def test_board_that_cannot_hold_both_gets_what_it_had_from_the_server(field: Field):
    (row,) = field.fleet.enrol(["tiny-1"])
    field.boards.add_board(BoardIdentity.from_enrolment(row, field.server.url), flash="400K")
    wait_online(field.fleet, ["tiny-1"])
    free = field.fleet["tiny-1"].run("import os; s = os.statvfs('/'); s[0] * s[3]").value
    size = int(free * 0.55)  # of a file: there is room for it once

    def roll_out(version: int, more: str = "", health: str = HEALTH) -> dict[str, Any]:
        data = field.folder / "src/data.bin"
        field.write(APP.format(version=version), target="tiny-1", more=more, health=health)
        data.write_bytes(os.urandom(size))
        field.apply()
        data.unlink()
        rollout = field.wait()
        (board,) = rollout["boards"]
        return dict(board)

    def has(version: int) -> bool:
        return bool(field.fleet["tiny-1"].run("import app; app.VERSION").value == version)

    check = "open('/data.bin', 'rb').read(64)"
    first = roll_out(1)
    assert first["state"] == "proven", first["why"]
    before = field.fleet["tiny-1"].run(check).value
    refused = roll_out(2)
    assert refused["state"] == "failed"
    assert "its flash has no room for the new generation beside what is there" in refused["why"]
    assert has(1)

    network = 'rollback = "network"'
    failed = roll_out(3, network, "raise OSError('no sensor')")
    assert (failed["state"], failed["why"]) == ("failed", "health: OSError: no sensor")
    assert has(1)
    assert field.fleet["tiny-1"].run(check).value == before
    assert roll_out(4, network)["state"] == "proven"
    assert has(4)
    assert field.fleet["tiny-1"].run(check).value != before
    field.boards.kill("tiny-1")
    field.fleet.revoke("tiny-1")


@pytest.mark.timeout(180)
def test_rollout_stops_at_the_canary(field: Field):
    field.write(APP.format(version=3) + "\nraise ValueError('broken')\n", health_timeout="5s")
    field.apply()
    rollout = field.wait()
    assert (rollout["state"], rollout["why"]) == ("failed", "1 failed, and max_failures is 0")
    found = states(rollout)
    assert found.pop("lab-1") == "failed"
    assert set(found.values()) == {"waiting"}
    field.wait_back()
    why = rollout["boards"][0]["why"]
    assert why == "it went back: app.py ended: ValueError: broken"
    assert set(field.versions().values()) == {1}


@pytest.mark.soak
def test_generation_whose_program_lets_no_health_cell_run_has_failed(field: Field):
    app = "import time\nwhile True:\n    time.sleep(0.1)\n"
    field.write(app, target="lab-1", waves=["100%"], health="1", health_timeout="2s")
    field.apply()
    rollout = field.wait()
    assert rollout["state"] == "failed"
    (board,) = rollout["boards"]
    assert board["why"] == "health: app.py keeps the board busy, so that no cell can run"
    until(lambda: field.fleet["lab-1"].run("6 * 7").value == 42, "it is back")
    assert field.fleet.boards("lab-1")[0]["queued"] == 0


@pytest.mark.timeout(180)
def test_program_proves_itself_and_a_killed_server_goes_on(field: Field):
    app = APP.format(version=4).replace(
        "import asyncio\n", "import asyncio, cm\n    await asyncio.sleep(1)\n    cm.healthy()\n"
    )
    field.write(app, health_timeout="60s")
    field.apply()
    begun = time.monotonic()
    field.wait(lambda rollout: "proven" in states(rollout).values())
    pid = field.fleet.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    with running_server(field.server.home, tcp_port=field.server.tcp_port):
        rollout = field.wait()
        assert rollout["state"] == "done"
        assert time.monotonic() - begun < 60, "they waited for the time instead of cm.healthy()"
        assert set(field.versions().values()) == {4}
        _test_revoked_token_pauses(field)
        _test_stale_plan_is_refused(field)


def _test_revoked_token_pauses(field: Field) -> None:
    made = field.fleet.request("token-create", name="ann")
    with Fleet(field.server.url, made["token"]) as ann:
        field.write(APP.format(version=5), health=HEALTH, pause="1h")
        ann.apply(ann.plan(field.path))
    field.wait(lambda rollout: "proven" in states(rollout).values())
    field.fleet.request("token-revoke", name="ann")
    field.fleet.pause_rollout()
    field.write(APP.format(version=5), health=HEALTH, pause="0s")
    rollout = field.fleet.resume_rollout()[0]
    assert rollout["state"] == "running"
    field.fleet.abort_rollout("lab")
    assert field.wait()["why"] == "by local"


def _test_stale_plan_is_refused(field: Field) -> None:
    field.write(APP.format(version=6), health=HEALTH)
    plan = FleetPlan.load(field.fleet.plan(field.path).dump())
    field.write(APP.format(version=7), health=HEALTH)
    with pytest.raises(ServerError, match="app.py has changed; plan again"):
        field.fleet.apply(plan)
    field.write(APP.format(version=6), health=HEALTH)
    field.fleet.apply(plan)
    field.wait(lambda rollout: "proven" in states(rollout).values())
    with pytest.raises(ServerError, match="the plan is stale"):
        field.fleet.apply(plan)
    field.fleet.abort_rollout()
