"""``mbm board-install`` and its kin: what they print, and how they exit."""

import pytest


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "qqq.py"
    path.write_text("A = 1")
    return str(path)


@pytest.fixture
def clean(boards, fleet):
    yield
    for path in (":/lib/qqq.mpy", ":/.cm/packages.json"):
        fleet["demo-2"].rm(path)


def test_install_tells_what_it_sent_and_packages_what_there_is(clean, mbm, source):
    done = mbm("board-install", "demo-2", source)
    assert (done.status, done.err) == (0, "")
    assert "  /lib/qqq.mpy\n1 file, " in done.out
    assert "nothing to send" in mbm("board-install", "demo-2", source).out
    told = mbm("board-packages", "demo-2", "--json").json["demo-2"]
    assert (told["status"], len(told["value"])) == ("ok", 1)
    gone = mbm("board-uninstall", "demo-2", source)
    assert (gone.status, "/lib/qqq.mpy goes" in gone.out) == (0, True)


def test_what_cannot_be_had_is_one_sentence_and_status_1_or_2(boards, mbm):
    done = mbm("board-install", "demo-2", "a@b@c")
    assert done.status in (1, 2)
    assert done.err.startswith("mbm: ")
    assert "Traceback" not in done.err
    assert mbm("board-install", "demo-2").status in (1, 2)
    assert mbm("board-uninstall", "demo-2", "nope").status == 1


def test_dry_run_is_a_plan(clean, mbm, source):
    done = mbm("board-install", "demo-2", source, "--dry-run")
    assert (done.status, "/lib/qqq.mpy" in done.out) == (0, True)
    assert mbm("board-packages", "demo-2").out.strip() == "no packages"
