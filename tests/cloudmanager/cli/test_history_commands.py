"""``mbm board-history``, the notebook that it exports, and ``mbm history-forget``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from cloudmanager.client.fleet import Boards, Fleet
from cloudmanager.results.history import History, HistoryEntry
from tests.conftest import running_boards

FAILED = "1 / 0  # ``` it failed, <b>"


@pytest.fixture(scope="module")
def past(server: Any, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    """A board on which a few things ran."""
    file = tmp_path_factory.mktemp("files") / "a.py"
    file.write_text("1")
    with running_boards(server, fleet, ["past-1"]):
        board = fleet["past-1"]
        board.run("x = 20\nprint('twice')").raise_for_error()
        board.run("x + pins[0]", inputs={"pins": [22, "hunter2"]}).raise_for_error()
        assert not board.run(FAILED).ok
        assert board.run("while True: pass", timeout=0.2)["past-1"].status == "timeout"
        board.put(file, ":/a.py").raise_for_error()
        board.reset().raise_for_error()
        board.run("y = 42\ny").raise_for_error()
        yield board


def test_history_is_shown_in_order_with_outcomes(past, mbm):
    entries = [each for each in mbm("board-history", "past-1", "--json").json if each["kind"]]
    assert [(each["kind"], each["status"]) for each in entries] == [
        ("cell", "ok"),
        ("cell", "ok"),
        ("cell", "error"),
        ("cell", "timeout"),
        ("files", "ok"),
        ("reset", "ok"),
        ("cell", "ok"),
    ]
    assert entries[0]["text"] == "x = 20\nprint('twice')"
    assert (entries[1]["text"], entries[1]["inputs"]) == ("x + pins[0]", ["pins"])
    assert "hunter2" not in json.dumps(entries)
    lines = mbm("board-history", "past-1", "--since", "1h").out.splitlines()
    headings = ["job", "board", "when", "took", "outcome", "caller", "from", "what"]
    assert lines[0].split() == headings
    assert lines[-1].endswith("y = 42")
    assert any(line.endswith("put /a.py") for line in lines)
    done = mbm("board-history", "past-1", "--since", "soon")
    assert (done.status, done.out) == (2, "")


def test_exported_notebook_runs(past: Boards, mbm, home: Path, tmp_path: Path):
    path = tmp_path / "past.ipynb"
    done = mbm("board-history", "past-1", "--export", str(path))
    assert done.out == f"Wrote {len(past.history())} jobs to {path}.\n"
    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    sources = [cell.source for cell in document.cells if cell.cell_type == "code"]
    assert sources == [
        "%load_ext cm_magics",
        "%%board past-1\nx = 20\nprint('twice')",
        "%%board -i pins past-1\nx + pins[0]",
        f"%%board past-1\n{FAILED}",
        "%board_reset past-1",
        "%%board past-1\ny = 42\ny",
    ]
    text = "".join(cell.source for cell in document.cells if cell.cell_type == "markdown")
    assert "while True: pass" in text
    assert "put /a\\.py" in text
    past.run("x = y = 0").raise_for_error()
    jupyter = Path(sys.executable).with_name("jupyter")
    environment = {**os.environ, "CM_HOME": str(home), "PATH": str(jupyter.parent)}
    command = [str(jupyter), "execute", "--inplace", path.name]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    cells = nbformat.read(path, as_version=4).cells
    outputs = [cell.outputs for cell in cells if cell.cell_type == "code"]
    assert "twice" in str(outputs[1])
    assert "NameError" in str(outputs[2]) or "pins" in str(outputs[2])
    assert "ZeroDivisionError" in str(outputs[3])
    assert past.run("y").value == 42
    assert not past.run("x").ok  # after the reset


def test_empty_history_is_a_notebook_too(tmp_path: Path):
    nbformat.validate(nbformat.reads(History([]).to_notebook(), as_version=4))
    assert repr(History([])) == "<no jobs>"


def test_history_is_forgotten(past: Boards, fleet: Fleet, mbm):
    fleet["past-1"].run("z = 1  # forget me").raise_for_error()
    assert mbm("history-forget").status == 2
    done = mbm("history-forget", "past-1", "--older-than", "30d")
    assert (done.status, done.out[:26]) == (0, "Forgot what 0 jobs ran, an")
    assert mbm("history-forget", "past-1", "--json").json["jobs"] > 1
    history = past.history()
    assert [entry.text for entry in history if entry.kind] == []
    assert "forget me" not in str(mbm("board-history", "past-1").out)
    done = mbm("history-forget", "nowhere-1")
    assert done.status == 2


def notebook_cells(*entries: HistoryEntry) -> list[tuple[str, str]]:
    """Return kind and source of the cells of an exported notebook, after the first two."""
    document = nbformat.reads(History(entries).to_notebook(), as_version=4)
    nbformat.validate(document)
    return [(cell.cell_type, cell.source) for cell in document.cells[2:]]


STEP = HistoryEntry(1, "lab-1", "local", 1.0, 0.1, "ok", kind="rollout", text="3: switch")


def test_rollout_is_one_cell_of_a_notebook():
    other = STEP._replace(job=2, board="lab-2", at=60.0)
    failed = STEP._replace(job=3, at=61.0, status="error", error="oops", text="3: health")
    ((kind, source),) = notebook_cells(STEP, other, failed)
    head, _, note = source.partition("\n\n")
    assert kind == "markdown"
    assert head.startswith("**lab\\-\\[1\\-2\\]**")
    assert head.endswith(", the local user: lab\\-\\[1\\-2\\]: ok; lab\\-1: health error: oops")
    assert note == "Not repeated: rollout 3: switch, health"


def test_what_is_not_repeated_is_one_cell_until_something_is():
    put = STEP._replace(job=4, at=70.0, kind="files", text="put /a")
    listing = STEP._replace(job=5, at=71.0, kind="packages", text=None)
    unknown = STEP._replace(job=6, at=72.0, kind="cell", text=None)
    cell = STEP._replace(job=7, at=73.0, kind="cell", text="1 + 1")
    cells = notebook_cells(STEP, put, listing, unknown, cell, put._replace(at=74.0, job=8))
    assert [kind for kind, _ in cells] == ["markdown", "markdown", "code", "markdown"]
    lines = cells[0][1].split("\n\n")
    assert lines[1::2] == [
        "Not repeated: rollout 3: switch",
        "Not repeated: put /a",
        "Not repeated: a cell",
    ]
    assert all(line.startswith("**lab\\-1** ") for line in lines[::2])
