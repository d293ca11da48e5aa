"""`mbm fleet-plan` to `fleet-rollback`, of boards that are not connected."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from tests.conftest import RunningServer, running_server

WAIT = 60.0  # seconds, even on a busy machine


class Desired:
    """A file about boards, and their program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "src").mkdir()
        self.path = folder / "fleet.toml"

    def write(self, app: str = "pass\n", *, settings: str = "{ a = 1 }", more: str = "") -> str:
        (self.folder / "src/app.py").write_text(app)
        self.path.write_text(
            f'[lab]\ntarget = "lab-*"\napp = "src"\nsettings = {settings}\n'
            f'[lab.rollout]\nwaves = [1, "100%"]\n{more}\n'
        )
        return str(self.path)


class Lab(Desired):
    """The same, and a server with boards that are not connected."""

    def __init__(self, server: RunningServer, fleet: Fleet, folder: Path) -> None:
        super().__init__(folder)
        self.server, self.fleet = server, fleet

    def end(self, number: int) -> None:
        """Let a rollout be done, as if its boards had been there."""
        with contextlib.closing(sqlite3.connect(self.server.home / "server.db")) as file:
            file.execute("UPDATE rollouts SET state = 'done' WHERE number = ?", (number,))
            file.commit()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with running_server(tmp_path / "server") as server:
        token = (server.home / "token").read_text().strip()
        monkeypatch.setenv("CM_URL", server.url)
        monkeypatch.setenv("CM_TOKEN", token)
        with Fleet(server.url, token) as fleet:
            fleet.enrol(["lab-1", "lab-2"])
            yield Lab(server, fleet, tmp_path)


def test_plan_and_apply_say_what_is_in_progress(lab: Lab, mbm: Any) -> None:
    path = lab.write()
    asked = mbm("fleet-apply", path)
    assert asked.status == 2
    assert "  waves of 1 and 1 boards, at least 12 min" in asked.out.splitlines()
    assert "Nothing was changed: give --yes where nobody can be asked." in asked.err
    begun = mbm("fleet-apply", path, "--yes")
    assert begun.out.splitlines()[-1] == ("lab: rollout 1 has begun; `mbm fleet-status` shows it.")
    plan = mbm("fleet-plan", path)
    assert plan.out.splitlines()[-1] == "  rollout 1 of this generation is running"
    again = mbm("fleet-apply", path, "--yes")
    assert again.out.splitlines()[-1] == (
        "lab: rollout 1 does this already; `mbm fleet-status` shows it."
    )
    other = mbm("fleet-plan", lab.write("1\n"))
    assert other.out.splitlines()[-1].endswith("is running; applying this replaces it")


def test_watch_ends_with_a_sentence_if_somebody_pauses_the_rollout(lab: Lab, mbm: Any) -> None:
    path = lab.write()

    def pause() -> None:
        deadline = time.monotonic() + WAIT
        while not lab.fleet.rollouts() and time.monotonic() < deadline:
            time.sleep(0.05)
        lab.fleet.pause_rollout()

    thread = threading.Thread(target=pause)
    thread.start()
    watched = mbm("fleet-apply", path, "--yes", "--watch")
    thread.join()
    assert watched.status == 1
    assert "rollout 1  paused by local" in watched.out
    assert "It has not ended: `mbm fleet-resume lab` lets it go on." in watched.err
    resumed = mbm("fleet-resume")
    assert resumed.out.rstrip().endswith("rollout 1  running, wave 1 of 2")
    aborted = mbm("fleet-abort")
    assert aborted.out.rstrip().endswith("rollout 1  aborted by local")
    status = mbm("fleet-status")
    assert status.out.splitlines()[1:] == ["      2  not begun  lab-[1-2]"]


def test_rollback_shows_what_changes_and_asks(lab: Lab, mbm: Any) -> None:
    for number, app in ((1, "1\n"), (2, "2\n")):
        mbm("fleet-apply", lab.write(app), "--yes")
        lab.end(number)
    first, second = (each["generation"] for each in reversed(lab.fleet.rollout_history()))
    asked = mbm("fleet-rollback")
    assert asked.status == 2
    assert asked.out.splitlines() == [
        f"lab  {first[:12]}  2 boards to change",
        "  lab-[1-2]",
        "  waves of 1 and 1 boards",
    ]
    assert "give --yes where nobody can be asked" in asked.err
    begun = mbm("fleet-rollback", "--yes", "--json")
    assert (begun.json["rollout"], begun.json["generation"]) == (3, first)
    lab.end(3)
    assert mbm("fleet-rollback", "--yes", "--json").json["generation"] == second
    history = lab.fleet.rollout_history()
    assert [each["previous"] for each in history] == [first, second, first, None]
    for app in ("3\n", "4\n"):  # the fifth rollout is replaced by the sixth
        mbm("fleet-apply", lab.write(app), "--yes")
    assert lab.fleet.rollout_history()[0]["previous"] == first


@pytest.mark.parametrize(
    ("files", "more", "why"),
    [
        ({"app.py": "a = 1\nb = = 2\n"}, "", "app.py, line 2: invalid syntax"),
        ({"lib/x.py": "def f(:\n"}, "", "x.py, line 1: "),
        ({"settings.json": "{}"}, "", "its keys belong into `settings`"),
        ({}, 'health = "import app; app.ok("', "lab.rollout.health: is not Python: "),
        ({}, "pause = 3x", "fleet.toml: this is not valid TOML: "),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_cannot_work_is_said_by_the_plan(
    tmp_path: Path, mbm: Any, files: dict[str, str], more: str, why: str
) -> None:
    desired = Desired(tmp_path)
    path = desired.write(more=more)
    for name, text in files.items():
        (desired.folder / "src" / name).parent.mkdir(exist_ok=True)
        (desired.folder / "src" / name).write_text(text)
    planned = mbm("fleet-plan", path)
    assert planned.status != 0
    assert why in planned.err


def test_missing_secret_is_said_by_the_plan_and_nothing_is_begun(lab: Lab, mbm: Any) -> None:
    # What only MicroPython understands is no error.
    app = "import micropython\n@micropython.viper\ndef f(p: ptr8) -> int:\n    return p[0]\n"
    path = lab.write(app, settings='{ mqtt = { secret = "mqtt" } }')
    why = "there is no secret 'mqtt' for it: run `mbm secret-set mqtt`"
    assert f"    cannot be changed: {why}" in mbm("fleet-plan", path).out.splitlines()
    applied = mbm("fleet-apply", path, "--yes")
    assert applied.status == 1
    assert why in applied.err
    assert not lab.fleet.rollouts()
