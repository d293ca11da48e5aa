"""A compromised board: its text stays plain text in the notebook, the shell and the logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.files import FileResult
from cloudmanager.client.fleet import Boards, Fleet
from cloudmanager.client.jobs import Job, JobGroup
from cloudmanager.client.packages import BoardPackages, InstallResult
from cloudmanager.client.wait import Wait
from cloudmanager.display.file_report import files_html
from cloudmanager.display.html_text import lines_html
from cloudmanager.protocol import wire
from cloudmanager.results.html_table import results_html
from cloudmanager.results.results import Result, Results
from cloudmanager.results.rows import BoardList, JobList
from cm_magics import cell_display, rich_values
from tests.cm_server.peers import FakeBoard, Service

#: Text that could do harm where it is shown, by kind.
HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)></pre><svg onload=alert(1)>",
    "markdown": "[click](javascript:alert(1)) $\\href{javascript:alert(1)}{x}$ `x`",
    "mime": '{"text/html": "<b>", "application/javascript": "alert(1)"}',
    "colours": "\x1b[31mred\x1b[0m\x1b[2J\x1b[H",
    "title": "\x1b]0;title\x07\x1b]2;title\x1b\\",
    "clipboard": "\x1b]52;c;bWFsaWNl\x07",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "paste": "\x1b[201~rm -rf /\r",
    "overwrite": "all is bad\rall is well",
    "bidi": "\u202eok\u2066 \u2069 \u200f",
    "nul": "a\0b\x7f\x9b31m\x85",
    "forged line": "x\n2026-01-01 00:00:00,000 INFO safe-1 is connected, from 10.0.0.1:1",
    "separators": "a\u2028b\u2029c",
    "surrogate": "\ud800",
    "formula": "=cmd|'/c calc'!A1",
    "long": "x" * 5_000,
}
FACTS = ("platform", "version", "machine", "client")


class HostileBoards(NamedTuple):
    """A server, and boards that each send one hostile text wherever a board can send text."""

    service: Service
    boards: list[FakeBoard]

    async def mbm(self, *words: str, script: bytes = b"") -> tuple[int, str, str]:
        """Run `mbm` with arguments; the first board answers its cell with ``script``, if given."""
        token = self.service.token
        environment = {
            **os.environ,
            "CM_URL": self.service.server.status.address,
            "CM_TOKEN": token,
        }
        mbm = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cloudmanager", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**environment, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
        )
        if script:
            board = self.boards[0]
            cell = await board.next()
            assert cell.op == wire.EXEC
            await board.send(wire.OUTPUT, script, job=cell.job)
            await board.send(wire.RESULT, struct.pack(">H", 0) + script, job=cell.job, flags=1)
        out, err = await asyncio.wait_for(mbm.communicate(), 20)
        return mbm.returncode or 0, out.decode(), err.decode()


def hostile_facts(text: str) -> dict[str, Any]:
    """Return the body of a PROOF that contains a text in all places."""
    facts = dict.fromkeys(FACTS, text)
    last = {"job": "00000001", "status": 1, "error": text}
    return {"facts": {**facts, "mpy": text, "heap": text}, "last": last, "boot": text}


@pytest.fixture
async def hostile(service: Service) -> AsyncIterator[HostileBoards]:
    names = [f"taken-{number}" for number, _ in enumerate(HOSTILE, start=1)]
    async with contextlib.AsyncExitStack() as stack:
        boards = [
            await stack.enter_async_context(
                await FakeBoard.join(service, identity, **hostile_facts(text))
            )
            for identity, text in zip(service.enrol(*names), HOSTILE.values(), strict=True)
        ]
        yield HostileBoards(service, boards)


def is_text(shown: str) -> bool:
    """Return whether a text contains printable characters, newlines and tabs only."""
    return all(char.isprintable() or char in "\n\t" for char in shown)


async def test_hostile_facts_are_plain_text_in_the_shell(hostile: HostileBoards):
    status, out, err = await hostile.mbm("board-list")
    assert status == 0
    assert is_text(out + err), repr(out)
    rows = [line for line in out.splitlines() if line.strip().startswith("taken-")]
    assert len(rows) == len(HOSTILE)
    status, out, _ = await hostile.mbm("board-list", "--json")
    assert out.isascii()
    boards = json.loads(out)
    assert len(boards) == len(HOSTILE)
    assert all(len(board[name]) <= 128 for name in FACTS for board in boards)
    assert {(board["heap"], board["mpy"]) for board in boards} == {(None, "")}


async def test_hostile_output_is_plain_text_in_the_shell(hostile: HostileBoards):
    script = "\n".join(HOSTILE.values()).encode("utf-8", "surrogatepass") + b"\xff\n"
    words = ("board-execute", "taken-1", "-c", "1")
    status, out, err = await hostile.mbm(*words, script=script)
    assert status == 1
    assert is_text(out + err), repr(out + err)
    for more in (("job-list",), ("job-show", "1")):
        status, out, err = await hostile.mbm(*more)
        assert is_text(out + err), repr(out)
    status, out, _ = await hostile.mbm(*words, "--json", script=script)
    assert out.isascii()
    assert json.loads(out)["taken-1"]["status"] == "error"


async def test_hostile_text_cannot_add_log_lines(
    hostile: HostileBoards, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    names = range(len(HOSTILE))
    for text, identity in zip(
        HOSTILE.values(), hostile.service.enrol(*map(str, names)), strict=True
    ):
        async with await FakeBoard.join(hostile.service, identity, **hostile_facts(text)) as board:
            await board.send(0x7F, text.encode("utf-8", "replace"))
            await board.closed()
    async with await FakeBoard.dial(hostile.service, "/board") as unauthenticated:
        hello = {"v": 7, "id": "x\n" * 9, "nonce": "00" * 16}
        await unauthenticated.send(wire.HELLO, json.dumps(hello).encode())
        await unauthenticated.closed()
    assert len(caplog.messages) > len(hostile.boards)
    for message in caplog.messages:
        assert is_text(message), repr(message)
        assert "\n" not in message
        assert len(message) < 500


# In the notebook


@pytest.mark.parametrize("kind", [Result, Results, Job, JobGroup, Boards, Fleet])
def test_results_have_tables_and_no_other_rich_representation(kind: type):
    """IPython would show such a representation, also in a saved notebook."""
    rich = [name for name in dir(kind) if name.startswith("_repr_") or "mimebundle" in name]
    assert rich == ["_repr_html_"]


def hostile_tables(text: str) -> list[str | None]:
    """Return all tables that a notebook shows, with a text in all places."""
    fields = {"stdout": text, "text": repr(text), "traceback": text, "why": text}
    job = Job(1, text, prepare_cell("1"), 0.0)
    queued = Job(2, text, prepare_cell("1"), 0.0)
    queued.mark_queued(Wait(1, (text,), None, text))
    board: dict[str, Any] = dict.fromkeys(("name", "state", "program", *FACTS), text)
    board |= {"labels": {text: text}, "connected_since": None, "last_seen": None, "queued": 1}
    row = {"job": text, "board": text, "status": text, "state": text, "caller": text}
    packages = BoardPackages({text: text}, drift=[text])
    installed = InstallResult({text: text}, (text,), (text,), 1, 1, {text: text}, (text,))
    value = FileResult(text, 1, "ok", text="[]", make_value=lambda _: packages)
    return [
        Result(text, 1, "ok", **fields)._repr_html_(),
        Results({text: Result(text, 1, "error", **fields)}, (text,))._repr_html_(),
        Results({text: value}, (text,))._repr_html_(),
        files_html(Results({text: value}, (text,))),
        job._repr_html_(),
        queued._repr_html_(),
        BoardList([board])._repr_html_(),
        JobList([{**row, "started": None, "elapsed": None}])._repr_html_(),
        packages._repr_html_(),
        installed._repr_html_(),
        lines_html([[(text, ""), (text, "bad name")]]),
        rich_values.mime_bundle(Result("a", 1, "ok", text=repr([{text: text}] * 2)))["text/html"],
    ]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_tables_contain_no_hostile_tags(text: str):
    for made in hostile_tables(text):
        assert made is not None
        shown = Tags()
        shown.feed(made)
        assert {tag.split()[0] for tag in shown.seen} <= TABLE_TAGS
        assert not [tag for tag in shown.seen if " " in tag and not tag.endswith(" style")]
        assert is_text(made), repr(made)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_plain_text_in_the_notebook(text: str, monkeypatch):
    shown: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(cell_display, "display", lambda bundle, **how: shown.append((bundle, how)))
    cell_display.display_text(text)
    assert shown == [({"text/plain": text}, {"raw": True})]


TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "div", "pre", "span"}


class Tags(HTMLParser):
    """Collects the tags and attributes that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"{tag} {name}" for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_table_of_values_contains_no_hostile_tags(text: str):
    values = {"lab-1": {text[:50]: text[:50]}, text: [text[:50]]}
    results = {name: Result(name, 1, "ok", text=repr(value)) for name, value in values.items()}
    made = results_html(results, (text,))
    assert made is not None
    shown = Tags()
    shown.feed(made)
    assert not [tag for tag in shown.seen if tag.split()[0] in ("script", "img", "svg", "a", "pre")]
    assert not [tag for tag in shown.seen if " on" in tag or " href" in tag or " src" in tag]


def test_html_is_produced_in_few_modules():
    """The dashboard and plots build their pages from text, and have their own tests."""
    folder = Path(cell_display.__file__).parent
    makes = set()
    for path in [*folder.glob("*.py"), *(folder.parent / "cloudmanager").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        makes |= {path.name} if "text/html" in source else set()
        for kind in ("application/javascript", "text/markdown", "text/latex"):
            assert kind not in source, path
    saved = {"dashboard_widget.py", "plot.py", "saved_output.py"}
    fixed = {"web_page.py"}  # a page without a text of boards, which its JavaScript adds
    assert makes == {"cell_display.py", "rich_values.py"} | saved | fixed
