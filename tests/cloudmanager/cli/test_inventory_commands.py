"""``mbm board-export`` and ``mbm board-import``."""

from __future__ import annotations

import io
import stat
import sys

import pytest

from cloudmanager.cli import main
from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet


@pytest.fixture
def shelf(server, fleet: Fleet):
    """Two boards that are enrolled and not connected."""
    fleet.enrol(["shelf-1", "shelf-2"])
    yield
    names = [board["name"] for board in fleet.boards() if board["name"].startswith("shelf-")]
    fleet.revoke(",".join(names))


def test_exported_file_is_changed_and_imported(shelf, fleet, mbm, tmp_path):
    path = tmp_path / "boards.csv"
    fleet["shelf-1"].label({"room": "lab"})
    done = mbm("board-export", str(path), "--target", "shelf-*")
    assert (done.status, done.out) == (0, f"Wrote 2 boards to {path}.\n")
    assert [file.name for file in tmp_path.iterdir()] == ["boards.csv"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    lines = path.read_text().splitlines()
    assert lines[0] == "id,name,serial,note,label:room"
    board_id = lines[1].split(",")[0]
    assert lines[1].split(",")[1:] == ["shelf-1", "", "", "lab"]
    path.write_text(f"{lines[0]}\n{board_id},shelf-9,A17,=1+1,\n{lines[2]}\n", encoding="utf-16")
    tried = mbm("board-import", str(path), "--dry-run")
    text = "line 2: shelf-1: renamed to shelf-9, serial 'A17', note '=1+1', room=\n"
    assert (tried.status, tried.out) == (0, f"{text}This would change 1 board.\n")
    done = mbm("board-import", str(path))
    assert (done.status, done.out) == (0, f"{text}Changed 1 board.\n")
    (board,) = fleet.boards("shelf-9")
    assert (board["serial"], board["note"], board["labels"]) == ("A17", "=1+1", {})
    rows = dict(
        line.split(maxsplit=1) for line in mbm("board-info", "shelf-9").out.splitlines()[1:]
    )
    assert rows["note"] == "=1+1"
    assert mbm("board-import", str(path)).out == "Nothing to change.\n"
    mbm("board-export", str(path))
    assert ",shelf-9,A17,'=1+1" in path.read_text()


def test_wrong_rows_are_reported_and_nothing_is_changed(shelf, fleet, mbm, tmp_path):
    path = tmp_path / "boards.csv"
    path.write_text("name,note\nshelf-1,right\nshelf-7,x\n")
    done = mbm("board-import", str(path))
    assert (done.status, done.err) == (1, "")
    assert done.out == (
        "line 2: shelf-1: note 'right'\n"
        "line 3: shelf-7: no board has this name\n"
        "Nothing was changed: 1 row is wrong.\n"
    )
    assert fleet.boards("shelf-1")[0]["note"] == ""
    assert [each["error"] for each in mbm("board-import", str(path), "--json").json] == [
        "",
        "no board has this name",
    ]
    path.write_text("name;notes\n")
    done = mbm("board-import", str(path))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"mbm: {path}: line 1: there is no column 'notes' (did you mean")
    assert mbm("board-import", str(tmp_path / "missing.csv")).status == 2


def test_standard_streams_are_used(shelf, monkeypatch, capsysbinary):
    stdin = io.TextIOWrapper(io.BytesIO(b"name,serial\nshelf-2,B2\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit):
        main(["board-import", "-"])
    with pytest.raises(SystemExit):
        main(["board-export", "-", "--target", "shelf-2"])
    assert b",shelf-2,B2,\n" in capsysbinary.readouterr().out


async def test_async_fleet_exports_and_imports(shelf, server):
    async with AsyncFleet(server.url) as fleet:
        data = await fleet.export_inventory("shelf-1")
        (outcome,) = await fleet.import_inventory(data.replace(b"shelf-1,,", b"shelf-1,S1,"))
        assert (outcome["line"], outcome["changes"]) == (2, {"serial": "S1"})
