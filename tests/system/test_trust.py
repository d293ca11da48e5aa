"""A server that others can reach, and real boards: by TLS, with MACs, by a token, with new keys."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloudmanager import config
from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServerError, ServerUnreachable
from cloudmanager.testing.board_fixtures import BoardUnderTest, wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_server.net import certificates
from tests.conftest import RunningServer, running_server

from .conftest import until

WAIT = 60.0  # seconds, even on a busy machine


class Site(NamedTuple):
    """A server that listens on all addresses, a caller, and boards that dial it."""

    server: RunningServer
    fleet: Fleet
    machine: VirtualBoards

    def add(self, name: str, **more: Any) -> None:
        """A board that is enrolled: ``more`` is what its configuration says besides."""
        (enrolment,) = self.fleet.enrol([name], plain=more.get("mac", False))
        identity = BoardIdentity(name, enrolment["id"], bytes.fromhex(enrolment["key"]), more)
        self.machine.add_board(identity)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    with running_server(home, "--listen", "0.0.0.0", "--lost-after", "2") as server:
        token = (home / "token").read_text().strip()
        with (
            Fleet(server.url, f"{token}.{certificates.load(home).pin}") as fleet,
            VirtualBoards([], ("127.0.0.1", server.tcp_port), home / "virtual") as machine,
        ):
            site = Site(server, fleet, machine)
            (enrolment,) = fleet.enrol(["tls-1"])
            site.machine.add_board(BoardIdentity.from_enrolment(enrolment, server.url))
            site.add("mac-1", mac=True)
            wait_online(fleet, ["tls-1", "mac-1"])
            yield site


@pytest.mark.parametrize("name", ["tls-1", "mac-1"])
def test_a_board_does_all_its_work(site: Site, name):
    board = site.fleet[name]
    assert board.run("6 * 7").value == 42
    long = "x" * 4_000
    assert board.run(f"print({long!r}); len({long!r})", timeout=10)[name].stdout == long + "\n"
    assert board.run("bytes(5000)", timeout=10).value == bytes(5000)
    r = board.run("for i in range(3000): print(i)", timeout=20)
    assert r[name].stdout.split() == [str(i) for i in range(3000)]
    assert board.run("while True: pass", timeout=0.3)[name].status == "timeout"
    job = board.submit("while True: print('y' * 80)")
    time.sleep(0.2)  # it floods meanwhile
    job.interrupt()
    assert job.results(WAIT)[name].status == "interrupted"
    assert "ZeroDivisionError" in str(board.run("1/0")[name].error)
    assert board.run("import sys; sys.platform", fresh=True, timeout=10).value == "linux"


@pytest.mark.parametrize("name", ["tls-1", "mac-1"])
def test_a_board_answers_input(site: Site, name):
    job = site.fleet[name].submit("input('who? ') * 2", listen=True, answers=True)
    for event in job.events():
        if event.kind == "input":
            job.answer(event.job, "you")
    assert job.results(WAIT)[name].value == "youyou"


@pytest.mark.parametrize("name", ["tls-1", "mac-1"])
def test_a_hundred_interrupts_leave_the_link_whole(site: Site, name):
    board, since = site.fleet[name], time.time()
    for number in range(100):
        job = board.submit("while True: pass" if number % 2 else "while True: print('z' * 50)")
        job.interrupt()
        assert job.results(WAIT)[name].status == "interrupted"
    (row,) = site.fleet.boards(name)
    assert row["connected_since"] < since


def refused(site: Site, name: str, sentence: str, **more: Any) -> None:
    """A board so configured never joins, and the log says why."""
    site.add(name, **more)
    log = site.server.home / "server.log"
    if sentence:
        until(lambda: sentence in log.read_text(), f"no {sentence!r}")
    else:
        time.sleep(1)
    (row,) = site.fleet.boards(name)
    assert row["connected_since"] is None
    site.machine.kill(name)


def test_a_board_in_the_clear_is_refused_by_both_sides(site: Site):
    refused(site, "clear-1", "clear-1 connected without TLS")


def test_a_fake_server_is_refused_by_its_certificate(site: Site, tmp_path: Path):
    """The board has another authority: it hangs up in the handshake, and says nothing at all."""
    other = certificates.load(tmp_path)
    refused(site, "wary-1", "", ca=base64.b64encode(other.ca).decode())
    assert "wary-1" not in (site.server.home / "server.log").read_text()


def test_a_board_enrols_itself_by_a_token_and_is_known_from_then_on(site: Site):
    made = site.fleet.enrol_token("kit-[1-3]", uses=2)
    for name in ("one", "two"):
        more = {"ca": made["ca"], "token": made["token"]}
        site.machine.add_board(BoardIdentity(name, "", b"", more))
    wait_online(site.fleet, ["kit-1", "kit-2"])
    assert site.fleet["kit-[1-2]"].run("1").ok
    config_of = "import json; c = json.load(open('/cm.json')); (c.get('token'), c['name'])"
    assert site.fleet["kit-1"].run(config_of).value == (None, "kit-1")
    site.machine.restart("one")
    since = time.time()
    names = ["kit-1", "kit-2"]
    until(
        lambda: any(
            board["connected_since"] and board["connected_since"] > since
            for board in site.fleet.boards(",".join(names))
        ),
        "it did not come back",
    )
    assert len(site.fleet.boards("kit-*")) == 2


@pytest.mark.parametrize("name", ["tls-1", "mac-1"])
def test_a_key_is_changed_on_the_board_and_on_the_server(site: Site, name):
    read_key = "import json; c = json.load(open('/cm.json')); (c['key'], c.get('gen', 0))"
    old = site.fleet[name].run(read_key).value
    assert site.fleet.rotate(name) == {name: "asked"}
    until(lambda: site.fleet[name].run(read_key).value[1] == old[1] + 1, "it kept its old key")
    assert site.fleet[name].run(read_key).value[0] != old[0]
    since = time.time()
    site.machine.restart(name)
    wait_online(site.fleet, [name], since=since)
    assert site.fleet[name].run(read_key).value[1] == old[1] + 1
    rows = [row for row in site.fleet.request("audit") if row["verb"] == "board-rotate"]
    assert any(row["target"] == name and row["detail"].startswith("key ") for row in rows)


def test_a_rotation_that_the_board_never_finished_locks_it_out_of_nothing(site: Site):
    """Its power is cut when it has been asked: whatever it kept, it comes back."""
    (enrolment,) = site.fleet.enrol(["cut-1"])
    site.machine.add_board(BoardIdentity.from_enrolment(enrolment, site.server.url))
    wait_online(site.fleet, ["cut-1"])
    for _ in range(5):
        since = time.time()
        site.fleet.rotate("cut-1")
        site.machine.restart("cut-1")
        wait_online(site.fleet, ["cut-1"], since=since)
        assert site.fleet["cut-1"].run("1", wait=WAIT).ok


def gen_of(site: Site, name: str) -> int | None:
    """The number of the key that a board keeps; None where its power went meanwhile."""
    code = "import json; json.load(open('/cm.json')).get('gen', 0)"
    result = site.fleet[name].run(code, wait=WAIT)[name]
    return result.value if result.status == "ok" else None


@pytest.mark.timeout(120)
def test_power_cut_at_every_write_of_a_rotation_locks_no_board_out(site: Site):
    (enrolment,) = site.fleet.enrol(["torn-1"])
    site.machine.add_board(BoardIdentity.from_enrolment(enrolment, site.server.url))
    wait_online(site.fleet, ["torn-1"])
    board = BoardUnderTest(site.fleet, site.machine, ("torn-1",), WAIT)

    def rotate() -> None:
        before = gen_of(site, "torn-1")
        assert before is not None
        site.fleet.rotate("torn-1")
        until(
            lambda: gen_of(site, "torn-1") == before + 1,
            "the key was not changed",
        )

    writes = 0
    while board.cut_power(writes, rotate):
        writes += 1
        assert gen_of(site, "torn-1") == writes
    assert writes > 2  # so that there was something to cut


def test_a_revoked_board_is_out_within_two_seconds(site: Site):
    (enrolment,) = site.fleet.enrol(["thief-1"])
    site.machine.add_board(BoardIdentity.from_enrolment(enrolment, site.server.url))
    wait_online(site.fleet, ["thief-1"])
    job = site.fleet["thief-1"].submit("while True: pass")
    began = time.monotonic()
    assert site.fleet.revoke("thief-1") == ["thief-1"]
    assert job.results(WAIT)["thief-1"].status == "lost"
    assert time.monotonic() - began < 2
    log = site.server.home / "server.log"
    until(lambda: "was refused as a board" in log.read_text(), "it did not dial again")
    assert "thief-1" not in [board["name"] for board in site.fleet.boards()]


# Callers


def test_a_caller_verifies_the_server_by_the_tokens_fingerprint(site: Site):
    made = site.fleet.request("token-create", name="ann", role="viewer")
    token, _, pin = made["token"].partition(".")
    with Fleet(site.server.url, made["token"]) as caller:
        assert caller.status()["online"] >= 2
    wrong = "A" * len(pin)
    with pytest.raises(ServerUnreachable, match="the token belongs to another server") as caught:
        Fleet(site.server.url, f"{token}.{wrong}").status()
    assert "Set CM_TOKEN to a token of this server" in str(caught.value)
    assert "mbm server-start" not in str(caught.value)


def test_a_caller_without_a_fingerprint_asks_this_machines_authorities(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    token = (site.server.home / "token").read_text().strip()
    with pytest.raises(ServerUnreachable, match="certificate cannot be trusted"):
        Fleet(site.server.url, token).status()


def test_the_local_user_has_no_ceremony(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CM_HOME", str(site.server.home))
    monkeypatch.delenv("CM_URL", raising=False)
    with Fleet() as fleet:
        assert fleet.address.url == site.server.url
        assert fleet.status()["address"].startswith("https://0.0.0.0:")
        assert fleet.address.ca == config.ca_file(site.server.home)


def test_a_token_never_crosses_the_network_in_the_clear():
    with pytest.raises(ServerUnreachable, match="without encryption; write https://"):
        Fleet("http://192.0.2.9:18266", "cm_x").status()


def test_caller_without_tls_gets_the_https_address(site: Site):
    token = (site.server.home / "token").read_text().strip()
    with pytest.raises(ServerError, match="requires TLS: use https://"):
        Fleet(site.server.url.replace("https", "http"), token).status()


def test_many_threads_share_one_link_over_tls(site: Site):
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(30):
                assert site.fleet["tls-1"].run(f"{number}").value == number
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    with contextlib.ExitStack() as stack:
        for thread in threads:
            stack.callback(thread.join)
    assert failed == []


def test_a_public_certificate_needs_no_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--cert`: whoever asks for another name than boards do gets it; boards go on with ours."""
    home, other = tmp_path / "home", tmp_path / "other"
    other.mkdir()
    certificates.load(other)
    with running_server(home, "--listen", "0.0.0.0", "--cert", str(other / "server.pem")) as server:
        token = (home / "token").read_text().strip()
        pinned = f"{token}.{certificates.load(home).pin}"
        monkeypatch.setenv("CM_HOME", str(tmp_path / "nothing"))
        with Fleet(server.url, pinned) as fleet:
            assert fleet.status()["boards"] == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(config.ca_file(other)))
        with pytest.raises(ServerUnreachable, match="certificate cannot be trusted .*IP address"):
            Fleet(server.url, token).status()  # it is for the name cloudmanager, not this address
