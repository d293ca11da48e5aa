"""The local server's process: started once, found by everybody, stopped without a trace."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from cloudmanager import config, local_server
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServiceError

WAIT = 20.0  # seconds that anything here may take on a busy machine


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A CM_HOME of this test's own; no server is left in it."""
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    yield tmp_path
    local_server.stop()


def started():
    return local_server.start(tcp_port=0)


def pid_of(home):
    return json.loads(config.server_state_file(home).read_text())["pid"]


def test_started_server_answers_and_is_found(home):
    begun = started()
    assert not begun.already
    with Fleet() as fleet:
        status = fleet.status()
    assert (status["address"], status["pid"]) == (begun.url, pid_of(home))
    assert status["callers"] == 1


def test_what_it_leaves_is_its_owners_alone(home):
    started()
    for name in ("token", "server.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_second_start_finds_the_first(home):
    begun = started()
    assert local_server.start(tcp_port=1) == local_server.StartOutcome(begun.url, already=True)


def test_stop_says_what_it_stopped_and_leaves_no_process(home):
    begun = started()
    pid = pid_of(home)
    assert local_server.stop() == begun.url
    assert not config.server_state_file(home).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stop_without_a_server_says_so(home):
    assert local_server.stop() is None


def test_server_that_somebody_else_started_is_stopped(home):
    """Then it is not our child, and not ours to wait for."""
    program = "from cloudmanager import local_server; local_server.start(tcp_port=0)"
    subprocess.run([sys.executable, "-c", program], check=True)
    pid = pid_of(home)
    assert local_server.stop() is not None
    deadline = time.monotonic() + WAIT
    while os.path.exists(f"/proc/{pid}"):  # noqa: PTH110  # its new parent reaps it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_server_can_be_started_again_after_it_was_killed(home):
    """Its state is stale then, and its token still opens the new one."""
    started()
    pid = pid_of(home)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert local_server.stop() is None
    assert not started().already
    with Fleet() as fleet:
        assert fleet.status()["pid"] == pid_of(home)


def test_state_left_behind_does_not_end_a_stranger(home):
    """The number of a server that was killed may be anybody's by now: here, our own."""
    state = {"url": "http://127.0.0.1:7", "pid": os.getpid()}
    config.write_private(config.server_state_file(home), json.dumps(state))
    assert local_server.stop() is None


def test_server_serves_where_it_was_told_to(home):
    begun = local_server.start("localhost", 0)
    assert begun.url.startswith("http://localhost:")


def test_server_may_listen_on_ipv6(home):
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    begun = local_server.start("::1", 0)
    assert begun.url.startswith("http://[::1]:")
    with Fleet() as fleet:
        assert fleet.status()["address"] == begun.url


def test_home_may_be_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM_HOME", "here")
    try:
        started()
        assert (tmp_path / "here" / "server.json").exists()
    finally:
        assert local_server.stop() is not None


def refused(*address):
    with pytest.raises(ServiceError) as caught:
        local_server.start(*address)
    assert caught.value.hint == f"The server's own log is {local_server.log_file()}."
    return str(caught.value).removesuffix(" " + caught.value.hint)


def test_tcp_port_that_is_taken_is_told(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tcp_port = taken.getsockname()[1]
        assert refused("127.0.0.1", tcp_port) == (
            f"TCP port {tcp_port} of 127.0.0.1 is taken by another program; "
            "choose another with `mbm server-start --port N`."
        )


def test_address_that_is_not_this_machines_is_told(home):
    assert "cannot listen on 192.0.2.1:0: Cannot assign requested address" in refused(
        "192.0.2.1", 0
    )


def test_server_that_lost_its_state_is_told(home):
    """A server runs, but nothing says where: such as after somebody tidied up."""
    begun = started()
    state = config.server_state_file(home).read_text()
    config.server_state_file(home).unlink()
    assert refused("127.0.0.1", 0).startswith(f"A server runs in {home} already;")
    config.write_private(config.server_state_file(home), state)
    assert local_server.start() == local_server.StartOutcome(begun.url, already=True)


def test_server_that_dies_at_once_says_its_last_words(home, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    (home / "python").write_text("#!/bin/sh\necho one >&2\necho 'no module named cm_server' >&2\n")
    (home / "python").chmod(0o755)
    assert refused() == "The server did not start: no module named cm_server."


@pytest.mark.parametrize("said", ["nonsense", "[]", "{}", ""])
def test_server_that_says_nonsense_has_not_started(home, monkeypatch, said):
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    (home / "python").write_text(f"#!/bin/sh\necho '{said}'\n")
    (home / "python").chmod(0o755)
    assert refused() == "The server ended before it listened."


def test_server_that_says_nothing_is_ended(home, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    monkeypatch.setattr(local_server, "START_SECONDS", 0.2)
    (home / "python").write_text("#!/bin/sh\necho $$ >$CM_HOME/pid\nexec sleep 60\n")
    (home / "python").chmod(0o755)
    assert refused() == "The server did not answer within 0.2 s."
    with pytest.raises(ProcessLookupError):
        os.kill(int((home / "pid").read_text()), 0)


def test_server_that_does_not_stop_is_told_and_how_to_end_it(home, monkeypatch):
    started()
    pid = pid_of(home)
    os.kill(pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(local_server, "STOP_SECONDS", 0.1)
        with pytest.raises(
            ServiceError, match=rf"\(process {pid}\) does not stop; end it with `kill -9 {pid}`"
        ):
            local_server.stop()
    finally:
        os.kill(pid, signal.SIGCONT)
        monkeypatch.undo()
    monkeypatch.setenv("CM_HOME", str(home))


def test_a_backup_that_fails_without_a_word_is_told(home, monkeypatch):
    (home / "python").write_text("#!/bin/sh\necho 'no module named cm_server' >&2\n")
    (home / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    with pytest.raises(ServiceError, match="It failed: no module named cm_server"):
        local_server.back_up(home / "backup.tar")
