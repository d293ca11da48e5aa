"""``mbm board-install``, ``-uninstall``, ``-packages``, ``-upgrade``: output and exit status."""

from __future__ import annotations

import re
import signal
import time

import pytest

from benchmarks.package_index import running_package_index
from tests.cloudmanager.conftest import WAIT, background


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "qqq.py"
    path.write_text("A = 1")
    return str(path)


@pytest.fixture
def clean(boards, fleet):
    yield
    for path in (":/lib/qqq.mpy", ":/.cm/packages.json"):
        fleet["demo-[2-3]"].rm(path)


def test_install_lists_files_and_packages_lists_versions(clean, mbm, source):
    done = mbm("board-install", "demo-2", source)
    assert (done.status, done.err) == (0, "")
    assert "  /lib/qqq.mpy\n1 file, " in done.out
    assert "nothing to send" in mbm("board-install", "demo-2", source).out
    listed = mbm("board-packages", "demo-2", "--json").json["demo-2"]
    assert (listed["status"], list(listed["value"])) == ("ok", ["qqq"])
    assert re.fullmatch(r"qqq [0-9a-f]{12}\n", mbm("board-packages", "demo-2").out)
    removed = mbm("board-uninstall", "demo-2", "qqq")
    assert (removed.status, "/lib/qqq.mpy (removed)" in removed.out) == (0, True)


@pytest.mark.parametrize(
    "words",
    [[], ["--locked"], ["qqq", "--locked"]],
    ids=["no names", "no lock", "names without lock"],
)
def test_wrong_usage_of_install_is_status_2(boards, mbm, words):
    done = mbm("board-install", "demo-2", *words)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("mbm: ")


def test_unavailable_package_is_status_1(boards, mbm):
    done = mbm("board-install", "demo-2", "a@b@c")
    assert done.status == 1
    assert done.err.startswith("mbm: ")
    assert "Traceback" not in done.err
    assert mbm("board-uninstall", "demo-2", "nope").status == 1


def test_dry_run_shows_the_plan_once_and_changes_nothing(clean, mbm):
    with running_package_index() as index:
        index.publish("qqq", "1.2", {"qqq.py": "A = 1"})
        done = mbm("board-install", "demo-[2-3]", "--dry-run", "--index", index.url, "qqq")
    lines = done.out.splitlines()
    assert (done.status, done.err, len(lines)) == (0, "", 5)
    assert "demo-[2-3]" in lines[0]
    assert lines[1:3] == [f"qqq 1.2  from {index.url}", "  /lib/qqq.mpy"]
    assert re.fullmatch(r"1 file, [\d,]+ bytes", lines[3])
    assert re.fullmatch(r"[\d,]+( to [\d,]+)? bytes free; dry run, nothing was changed", lines[4])
    assert "no packages" in mbm("board-packages", "demo-[2-3]").out


def test_notes_of_an_install_are_shown(clean, mbm, tmp_path):
    invalid = tmp_path / "qqq.py"
    invalid.write_text("def f(:\n")
    done = mbm("board-install", "demo-2", str(invalid))
    assert done.status == 0
    assert re.search(r"^note: /lib/qqq.py .*its source is installed$", done.out, re.MULTILINE)
    mbm("board-uninstall", "demo-2", "qqq")


def test_upgrade_uses_the_index_of_the_install(clean, mbm):
    with running_package_index() as index:
        index.publish("qqq", "1.2", {"qqq.py": "A = 1"})
        assert mbm("board-install", "demo-2", "qqq", "--index", index.url).status == 0
        assert "nothing to send" in mbm("board-upgrade", "demo-2").out
        index.publish("qqq", "1.3", {"qqq.py": "A = 2"})
        assert "qqq 1.3" in mbm("board-upgrade", "demo-2", "qqq").out
    assert mbm("board-packages", "demo-2").out == "qqq 1.3\n"
    assert mbm("board-uninstall", "demo-2", "qqq").status == 0


def test_ctrl_c_removes_a_queued_install(clean, mbm, fleet, source):
    busy = fleet["demo-2"].submit("while True: pass")
    with background("board-install", "demo-2", source) as waiting:
        deadline = time.monotonic() + WAIT
        while not any(job["state"] == "queued" for job in fleet.jobs("demo-2")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        waiting.send_signal(signal.SIGINT)
        assert (waiting.wait(WAIT), waiting.stderr.read()) == (130, "")
    assert fleet.jobs("demo-2")[0]["job"] == busy.jobs["demo-2"].number
    busy.interrupt()
    busy.results(WAIT)
    assert not fleet["demo-2"].stat(":/lib/qqq.mpy").ok
