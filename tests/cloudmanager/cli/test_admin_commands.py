"""The verbs of ``mbm`` for administrators: boards' identities, tokens, the audit log."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import stat
import subprocess
import sys

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import NotAllowed, ServerError
from tests.cloudmanager.conftest import MBM, WAIT

# Boards


@pytest.fixture
def enrolled(fleet: Fleet):
    """A list for the names of boards that a test enrols; they are revoked afterwards."""
    names: list[str] = []
    yield names
    known = {board["name"] for board in fleet.boards()}
    if remaining := [name for name in names if name in known]:
        fleet.revoke(",".join(remaining))


def test_board_enrol_prints_the_settings_of_the_board(server, enrolled, mbm):
    enrolled.append("desk-1")
    done = mbm("board-enrol", "desk-1")
    settings = json.loads(done.out)
    assert sorted(settings) == ["ca", "host", "id", "key", "name", "tcp_port"]
    assert (settings["name"], settings["host"], settings["tcp_port"]) == (
        "desk-1",
        "127.0.0.1",
        server.tcp_port,
    )
    assert re.fullmatch("[0-9a-f]{64}", settings["key"])
    assert done.err == (
        "The settings contain the key of desk-1: keep them secret.\n"
        "Only this machine can reach the server. To connect boards over the network, start it with "
        "`mbm server-start --listen 0.0.0.0`.\n"
    )


def test_board_enrol_writes_a_private_file(server, enrolled, mbm, tmp_path):
    enrolled.append("desk-2")
    path = tmp_path / "cm.json"
    done = mbm("board-enrol", "desk-2", "--plain", "-o", str(path), "--server", "lab.example:99")
    assert done.out == f"Wrote {path}: copy it to desk-2 as /cm.json.\n"
    settings = json.loads(path.read_text())
    assert sorted(settings) == ["host", "id", "key", "mac", "name", "tcp_port"]
    assert (settings["host"], settings["tcp_port"], settings["mac"]) == ("lab.example", 99, True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_enrolment_token_is_created_listed_and_revoked(server, mbm):
    done = mbm("board-enrol", "--token", "--match", "kit-[1-5]", "--uses", "3", "--expires", "2h")
    settings = json.loads(done.out)
    assert sorted(settings) == ["ca", "host", "tcp_port", "token"]
    assert done.err.startswith("The token enrols 3 boards that match kit-[1-5], until 20")
    listed = mbm("token-list").out
    (line,) = [line for line in listed.splitlines() if "kit-[1-5]" in line]
    assert re.match(r"enrol-\d+ +board +kit-\[1-5\] +valid", line)
    assert settings["token"] not in listed
    assert mbm("token-revoke", line.split()[0]).status == 0


@pytest.mark.parametrize(
    "arguments", [[], ["--uses", "2"], ["--token", "--uses", "0"], ["--token", "--expires", "soon"]]
)
def test_board_enrol_refuses_wrong_arguments(mbm, arguments):
    assert mbm("board-enrol", *arguments).status == 2


def test_board_rename_and_board_revoke_report_the_change(server, enrolled, mbm):
    enrolled += ["desk-3", "desk-4"]
    mbm("board-enrol", "desk-3")
    assert mbm("board-rename", "desk-3", "desk-4").out == "Renamed desk-3 to desk-4.\n"
    assert "Did you mean desk-4?" in mbm("board-rename", "desk-3", "x").err
    done = mbm("board-revoke", "desk-4")
    assert done.out == "desk-4: removed from the fleet; its key is no longer valid.\n"
    assert mbm("board-revoke", "desk-4").status == 2


def test_answer_no_removes_nothing_and_is_no_failure(boards, mbm, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    done = mbm("board-revoke", "demo-[1-2]")
    assert (done.status, done.out, done.err) == (0, "", "Nothing was removed.\n")
    assert mbm("board-list", "demo-[1-2]").status == 0


def test_board_replace_says_what_the_new_board_is_now(server, enrolled, mbm):
    enrolled += ["desk-6", "desk-7"]
    mbm("board-enrol", "desk-6")
    mbm("board-enrol", "desk-7")
    mbm("board-execute", "desk-6", "-c", "1", "--when-online")
    done = mbm("board-replace", "desk-6", "desk-7")
    assert done.out == (
        "desk-7 is desk-6 now; the old desk-6 is no longer valid.\n1 job waits for it.\n"
    )
    assert "desk-7" not in mbm("board-list").out
    enrolled.append("desk-8")
    mbm("board-enrol", "desk-8")
    replaced = mbm("board-replace", "desk-6", "desk-8", "--json").json
    assert (replaced["name"], replaced["was"], replaced["rollout"]) == ("desk-6", "desk-8", None)


def test_board_replace_refuses_a_connected_board_and_asks_in_a_terminal(boards, mbm, monkeypatch):
    refused = mbm("board-replace", "demo-1", "demo-2", "--yes")
    assert refused.status == 1
    assert "demo-1 is connected, so it is not dead" in refused.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "n"

    monkeypatch.setattr("builtins.input", answer)
    done = mbm("board-replace", "demo-1", "demo-2")
    assert (done.status, done.out, done.err) == (0, "", "Nothing was changed.\n")
    assert asked == ["Remove demo-1 for good, and let demo-2 take its place? [y/N] "]


def test_board_rotate_reports_who_gets_the_new_key_now_and_later(boards, enrolled, mbm):
    enrolled.append("desk-5")
    mbm("board-enrol", "desk-5")
    done = mbm("board-rotate", "demo-1,desk-5")
    assert done.out == (
        "demo-1: the board has its new key, and the old one is no longer valid.\n"
        "desk-5: the new key will be sent when the board is connected and idle.\n"
    )
    assert mbm("board-rotate", "desk-5", "--json").json == {"desk-5": "waits"}
    assert "a new one is waiting for the board" in mbm("board-info", "desk-5").out
    assert mbm("board-rotate", "demo-2", "--json").json == {"demo-2": "done"}


# Tokens and the audit log


@pytest.fixture
def token(server, fleet: Fleet, mbm):
    """The outcome of creating a viewer's token for demo-1; it is revoked afterwards."""
    arguments = ["--role", "viewer", "--target", "demo-1", "--expires", "30d"]
    yield mbm("token-create", "cli-viewer", *arguments)
    with contextlib.suppress(ServerError):
        fleet.request("token-revoke", name="cli-viewer")


def test_token_is_shown_once_and_grants_its_role_on_its_target(boards, token, mbm, monkeypatch):
    assert (token.status, token.out.count("\n")) == (0, 1)
    assert re.fullmatch(r"cm_[\w-]{43}\.[\w-]{22}", token.out.strip())
    assert token.err.startswith("cli-viewer: viewer on demo-1, until 20")
    assert token.err.endswith("The token is shown only once: set CM_TOKEN to it.\n")
    listed = mbm("token-list")
    assert re.search(r"^cli-viewer +viewer +demo-1 +valid ", listed.out, flags=re.MULTILINE)
    assert token.out.strip() not in listed.out + repr(mbm("token-list", "--json").json)
    monkeypatch.setenv("CM_TOKEN", token.out.strip())
    assert [board["name"] for board in mbm("board-list", "--json").json] == ["demo-1"]
    refused = mbm("board-execute", "demo-1", "-c", "1")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("mbm: Not allowed: this needs the right 'operator'. ")
    unknown = mbm("board-list", "demo-2")
    assert (unknown.status, "No board is called demo-2." in unknown.err) == (2, True)


def test_revoked_token_is_refused_with_its_name(token, mbm, monkeypatch):
    done = mbm("token-revoke", "cli-viewer")
    assert done.out == "Revoked the token 'cli-viewer'; 0 links were closed.\n"
    monkeypatch.setenv("CM_TOKEN", token.out.strip())
    refused = mbm("board-list")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("mbm: Not allowed: the token 'cli-viewer' was revoked on 20")


def test_token_revoke_reports_the_number_of_closed_links(server, token, mbm):
    with Fleet(server.url, token.out.strip()) as other:
        other.status()
        done = mbm("token-revoke", "cli-viewer", "--json")
        assert done.json == {"name": "cli-viewer", "closed": 1}
        with pytest.raises(NotAllowed, match="'cli-viewer' was revoked"):
            other.status()
    again = mbm("token-revoke", "cli-viewer")
    assert (again.status, again.out) == (1, "")
    assert "there is no token called 'cli-viewer'" in again.err


def test_token_revoke_uses_the_singular_for_one_link(server, token, mbm):
    with Fleet(server.url, token.out.strip()) as other:
        other.status()
        assert "; 1 link was closed." in mbm("token-revoke", "cli-viewer").out


def test_token_without_expiry_is_shown_as_text_and_as_json(server, mbm):
    made = mbm("token-create", "cli-operator")
    assert "operator on all boards, until it is revoked." in made.err
    mbm("token-revoke", "cli-operator")
    made = mbm("token-create", "cli-operator", "--json").json
    mbm("token-revoke", "cli-operator")
    assert made["token"].startswith("cm_")
    assert (made["name"], made["state"], made["expires"]) == ("cli-operator", "valid", None)


def test_audit_shows_the_last_requests_newest_last(boards, token, mbm):
    mbm("board-label", "demo-1", "cli=x")
    mbm("board-label", "demo-1", "cli=")
    rows = mbm("audit", "--json", "-n", "2").json
    assert [(row["who"], row["verb"], row["target"], row["detail"]) for row in rows] == [
        ("local", "label", "demo-1", "cli=x"),
        ("local", "label", "demo-1", "cli="),
    ]
    shown = mbm("audit", "-n", "3").out.splitlines()
    headings = "when who from verb target boards jobs outcome detail"
    assert shown[0].split() == headings.split()
    assert [line.split()[4] for line in shown[2:]] == ["label", "label", "audit"]
    assert token.out.strip() not in mbm("audit", "-n", "10000").out


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 2), (b"\n", 2), (b"y\n", 0)])
def test_several_boards_are_removed_after_a_question(own_home, mbm, answer, left):
    master, slave = pty.openpty()
    try:
        assert mbm("server-start", "--port", "0").status == 0
        for name in ("lab-1", "lab-2"):
            assert mbm("board-enrol", name).status == 0
        os.write(master, answer)
        command = [MBM, "board-revoke", "lab-[1-2]"]
        done = subprocess.run(command, stdin=slave, capture_output=True, text=True, timeout=WAIT)
        assert "Remove 2 boards from the fleet for good: lab-[1-2]? [y/N]" in done.stdout
        assert len(mbm("board-list", "--json").json) == left
        if left:
            assert mbm("board-revoke", "lab-[1-2]", "--yes").status == 0
    finally:
        mbm("server-stop")
        os.close(master)
        os.close(slave)
