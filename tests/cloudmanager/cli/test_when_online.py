"""``--when-online``: work for boards that are not there, with real boards that come later."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import NoSuchBoard, NotAllowed, ServerError
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.cloudmanager.conftest import WAIT

_NUMBERS = itertools.count(1)


class Sleeper:
    """A board that is enrolled and not there, until it wakes."""

    def __init__(self, server, fleet: Fleet, folder: Path) -> None:
        self._server, self._fleet, self._folder = server, fleet, folder
        self.name = f"sleeper-{next(_NUMBERS)}"
        (row,) = fleet.enrol([self.name])
        self._identity = BoardIdentity.from_enrolment(row, server.url)
        self._machine: VirtualBoards | None = None

    def wake(self) -> None:
        address = ("127.0.0.1", self._server.tcp_port)
        self._machine = VirtualBoards([self._identity], address, self._folder).__enter__()
        wait_online(self._fleet, [self.name])

    def stop(self) -> None:
        if self._machine is not None:
            self._machine.__exit__(None, None, None)
            self._machine = None

    def end(self) -> None:
        self.stop()
        self._fleet.revoke(self.name)

    def outcome(self, job: int) -> dict[str, object]:
        """Return a job once it has ended."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            found = self._fleet.job(job)
            if found["status"] is not None:
                return found
            time.sleep(0.02)
        raise AssertionError(f"job {job} has not ended: {found}")


@pytest.fixture
def sleeper(server, fleet: Fleet, tmp_path: Path) -> Iterator[Sleeper]:
    board = Sleeper(server, fleet, tmp_path / "virtual")
    yield board
    board.end()


def waiting_jobs(fleet: Fleet, name: str) -> list[int]:
    return [job["job"] for job in fleet.jobs(name, waiting=True)]


def test_cell_waits_is_listed_and_runs_when_the_board_is_there(sleeper, fleet, mbm):
    done = mbm("board-execute", sleeper.name, "--when-online", "-c", "print('hello')\n6 * 7")
    assert (done.status, done.err) == (0, "")
    (number,) = waiting_jobs(fleet, sleeper.name)
    assert f"{sleeper.name}: waits for the board until 20" in done.out
    assert f"as job {number}" in done.out
    listed = mbm("job-list", "--waiting", sleeper.name).out
    assert f"{number}" in listed
    assert "waits until" in listed
    assert mbm("job-show", str(number)).out.startswith(f"job {number} on {sleeper.name}: waiting")
    assert number not in [job["job"] for job in fleet.jobs(sleeper.name)]
    sleeper.wake()
    ended = sleeper.outcome(number)
    assert (ended["status"], ended["stdout"], ended["value"]) == ("ok", "hello\n", "42")
    assert waiting_jobs(fleet, sleeper.name) == []


def test_every_verb_waits_and_they_run_in_order(sleeper, fleet, mbm, tmp_path: Path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("A = 1\n")
    (tmp_path / "src" / "lib").mkdir()
    (tmp_path / "src" / "lib" / "b.py").write_text("B = 2\n")
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "pkg.py").write_text("P = 3\n")
    name = sleeper.name
    commands = [
        ("board-upload", name, str(tmp_path / "one.txt"), ":/data/", "--when-online"),
        ("board-sync", name, str(tmp_path / "src"), "--when-online", "--expires", "2h"),
        ("board-install", name, str(tmp_path / "pkg.py"), "--when-online"),
        ("board", name, "reset", "--when-online"),
        ("board", name, "set", "interval", "30", "--when-online"),
    ]
    for command in commands:
        done = mbm(*command)
        assert (done.status, done.err) == (0, ""), command
    code = "import os, a, b, pkg, json; settings = json.load(open('/settings.json'))\n"
    code += "(a.A, b.B, pkg.P, open('/data/one.txt').read(), settings)"
    mbm("board-execute", name, "--when-online", "-c", code)
    numbers = waiting_jobs(fleet, name)
    assert len(numbers) == 6
    listed = mbm("job-list", "--waiting", name).out.splitlines()[2:]
    whats = ["makedirs /data; put /data/one.txt", "makedirs /lib", "install", "reset", "settings"]
    for line, what in zip(listed, [*whats, "import os, a, b"], strict=True):
        assert what in line, listed
    sleeper.wake()
    outcomes = [sleeper.outcome(number) for number in numbers]
    assert [each["status"] for each in outcomes] == ["ok"] * 6, outcomes
    assert outcomes[-1]["value"] == "(1, 2, 3, 'one', {'interval': 30})"
    assert outcomes[0]["value"] == "[{'files': 1, 'bytes': 3}]"


def test_interrupted_job_never_runs(sleeper, fleet, mbm):
    first = fleet[sleeper.name].run("open('/ran', 'w').close()", when_online=True)
    fleet[sleeper.name].run("1", when_online=True)
    number = first[sleeper.name].job
    assert mbm("job-interrupt", str(number)).out == f"Interrupted job {number}.\n"
    assert fleet.job(number)["status"] == "interrupted"
    sleeper.wake()
    files = fleet[sleeper.name].run("import os; os.listdir('/')").value
    assert "ran" not in files


def test_results_say_that_a_job_waits(sleeper, fleet):
    results = fleet[sleeper.name].run("1", when_online=True, expires=3600)
    (result,) = results.values()
    assert (results.ok, result.status, result.value, result.error) == (True, "waiting", None, None)
    assert result.job in waiting_jobs(fleet, sleeper.name)
    assert "waits for the board until" in repr(results)
    group = fleet[sleeper.name].submit("1", when_online=True)
    assert group.wait(WAIT)
    assert group.results().raise_for_error()[sleeper.name].status == "waiting"


async def test_asynchronous_face_waits_too(sleeper, server, fleet):
    async with AsyncFleet(server.url) as other:
        group = await other[sleeper.name].submit("1", when_online=True, expires=60)
        put = await other[sleeper.name].put(b"x", ":/x.txt", when_online=True)
        assert put[sleeper.name].status == "waiting"
        assert len(waiting_jobs(fleet, sleeper.name)) == len(group.jobs) + 1


def test_target_means_enrolled_boards_there_or_not(sleeper, fleet, boards):
    fleet["demo-1"].label({"rack": "9"})
    fleet[sleeper.name].label({"rack": "9"})
    try:
        results = fleet["rack=9"].run("1", when_online=True)
    finally:
        fleet["demo-1"].label({"rack": ""})
    assert (set(results), results.left_out) == ({"demo-1", sleeper.name}, ())
    assert sleeper.outcome(results["demo-1"].job)["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--when-online", "--wait", "5"], "--wait keeps this command waiting"),
        (["--expires", "7d"], "--expires needs --when-online"),
        (["--late", "run"], "--late needs --at: it says what a board does"),
        (["--when-online", "--expires", "31d"], "waits for its boards for 30 days at most"),
        (["--when-online", "--expires", "0s"], "is not a span such as"),
        (["--when-online", "--expires", "-5"], "is not a span such as"),
    ],
)
def test_bad_options_are_usage_errors(arguments, sentence, mbm, boards):
    done = mbm("board-execute", "demo-1", "-c", "1", *arguments)
    assert (done.status, done.out) == (2, "")
    assert sentence in done.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"expires": 60.0}, "expires is for work that waits"),
        ({"when_online": True, "expires": 0}, "expires is a number of seconds above 0, at most 30"),
        ({"when_online": True, "expires": -1}, "expires is a number of seconds above 0"),
        ({"when_online": True, "expires": 31 * 86400}, "at most 30 days"),
        ({"when_online": True, "wait": 5}, "wait keeps the caller waiting"),
    ],
)
def test_server_refuses_bad_options(options, sentence, fleet, boards):
    with pytest.raises(ServerError, match=sentence):
        fleet["demo-1"].submit("1", **options)


def test_unknown_board_is_refused(fleet, boards):
    with pytest.raises(NoSuchBoard):
        fleet["nobody-77"].run("1", when_online=True)


def test_too_much_is_refused(sleeper, fleet, tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * (17 * 1024 * 1024))
    with pytest.raises(ServerError, match="may have at most 32 MiB; nothing waits"):
        fleet[sleeper.name].put([tmp_path / "a", tmp_path / "b"], ":/", when_online=True)
    assert waiting_jobs(fleet, sleeper.name) == []


def test_files_of_a_board_cannot_be_downloaded_by_work_that_waits(sleeper, fleet):
    head = {"acts": [["get", "/boot.py"]], "when_online": True}
    with pytest.raises(ServerError, match="cannot be read by work that waits"):
        submit_raw(fleet, sleeper.name, head)


def submit_raw(fleet: Fleet, target: str, head: dict[str, object]) -> None:
    """Send a SUBMIT with this head."""
    from cloudmanager.client.cells import prepare_cell
    from cloudmanager.client.jobs import JobGroup

    group = JobGroup(prepare_cell(""))
    group.submit_head = lambda: head  # type: ignore[method-assign]
    fleet.exchange().submit(group, target)
    assert group.finished.wait(WAIT)
    group.results()


def test_secret_is_the_one_of_the_time_when_the_job_starts(sleeper, fleet):
    fleet.set_secret("mqtt", "before")
    number = (
        fleet[sleeper.name]
        .change_settings({"mqtt": {"secret": "mqtt"}}, when_online=True, expires=60)[sleeper.name]
        .job
    )
    fleet.set_secret("mqtt", "after")
    sleeper.wake()
    assert sleeper.outcome(number)["status"] == "ok"
    assert (
        fleet[sleeper.name].run("open('/settings.json').read()").value == '{\n "mqtt": "after"\n}'
    )
    fleet.remove_secret("mqtt")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ls", "--when-online"], "of the macros, only `reset` and `set` can wait for boards"),
        (["edit", ":a", "--when-online"], "of the macros, only `reset` and `set` can wait"),
        (["set", "a", "1", "--expires", "5h"], "--expires needs --when-online"),
    ],
)
def test_other_macros_cannot_wait(words, sentence, mbm, boards):
    done = mbm("board", "demo-1", *words)
    assert (done.status, done.out) == (2, "")
    assert sentence in done.err


def test_code_that_waits_is_shown_to_its_author_and_administrators(server, fleet, sleeper, mbm):
    number = fleet[sleeper.name].run("# first\npassword = 5\n", when_online=True)[sleeper.name].job
    assert mbm("job-show", str(number)).out.endswith("\nwhat: password = 5\n")
    for role in ("operator", "viewer"):
        token = fleet.request("token-create", name=role, role=role)["token"]
        with Fleet(server.url, token) as other:
            (listed,) = other.jobs(sleeper.name, waiting=True)
            assert (listed["kind"], listed["what"]) == ("cell", "")
            assert other.job(number)["what"] == ""
        fleet.request("token-revoke", name=role)
    (listed,) = fleet.jobs(sleeper.name, waiting=True)
    assert (listed["kind"], listed["what"]) == ("cell", "password = 5")


def test_viewer_may_not_leave_work(server, fleet, sleeper):
    token = fleet.request("token-create", name="eve", role="viewer")["token"]
    with Fleet(server.url, token) as viewer:
        with pytest.raises(NotAllowed):
            viewer[sleeper.name].run("1", when_online=True)
        assert viewer.jobs(sleeper.name, waiting=True) == []
    fleet.request("token-revoke", name="eve")


def test_revoked_token_ends_its_work_when_the_board_comes(server, fleet, sleeper):
    token = fleet.request("token-create", name="tom", role="operator")["token"]
    with Fleet(server.url, token) as tom:
        number = (
            tom[sleeper.name].run("open('/ran', 'w').close()", when_online=True)[sleeper.name].job
        )
    fleet.request("token-revoke", name="tom")
    sleeper.wake()
    ended = sleeper.outcome(number)
    assert ended["status"] == "error"
    assert "the token 'tom' was revoked" in str(ended["error"])


def test_others_do_not_see_jobs_of_boards_beyond_their_reach(server, fleet, sleeper):
    number = fleet[sleeper.name].run("1", when_online=True)[sleeper.name].job
    token = fleet.request("token-create", name="zoe", role="operator", target="demo-*")["token"]
    with Fleet(server.url, token) as zoe:
        assert zoe.jobs(waiting=True) == []
        assert zoe.interrupt([number]) == 0
        with pytest.raises(ServerError, match="there is no job"):
            zoe.job(number)
    fleet.request("token-revoke", name="zoe")
    assert waiting_jobs(fleet, sleeper.name) == [number]


def test_output_and_result_stay_after_the_server_was_restarted(start_server, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    with start_server(home) as server:
        token = (home / "token").read_text().strip()
        with Fleet(server.url, token) as fleet:
            board = Sleeper(server, fleet, tmp_path / "boards")
            number = fleet[board.name].run("print('kept')\n5", when_online=True)[board.name].job
    with start_server(home) as server, Fleet(server.url, token) as fleet:
        board._server, board._fleet = server, fleet
        assert waiting_jobs(fleet, board.name) == [number]
        board.wake()
        assert board.outcome(number)["stdout"] == "kept\n"
        board.stop()
    with start_server(home) as server, Fleet(server.url, token) as fleet:
        found = fleet.job(number)
        assert (found["status"], found["stdout"], found["value"]) == ("ok", "kept\n", "5")
