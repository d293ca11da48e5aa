"""Starting, finding and stopping the local server's process."""

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
from cloudmanager.protocol.errors import NotAllowed, ServiceError
from cloudmanager.server_options import ServerOptions

WAIT = 60.0  # seconds that anything here may take on a busy machine


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A new CM_HOME; a server that runs in it is stopped after the test."""
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    yield tmp_path
    local_server.stop()


def started():
    return local_server.start(ServerOptions(port=0))


def pid_of(home):
    return json.loads(config.server_state_file(home).read_text())["pid"]


def test_started_server_answers_and_is_found(home):
    begun = started()
    assert not begun.already
    with Fleet() as fleet:
        status = fleet.status()
    assert (status["address"], status["pid"]) == (begun.url, pid_of(home))
    assert status["callers"] == 1


def test_server_files_are_private_with_any_umask(home, monkeypatch):
    folder = home / "new" / "folder"
    monkeypatch.setenv("CM_HOME", str(folder))
    before = os.umask(0)
    try:
        started()
    finally:
        os.umask(before)
    wide = [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]
    assert wide == []
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o755


def test_server_does_not_start_in_a_folder_that_others_can_write(home):
    home.chmod(0o777)
    with pytest.raises(ServiceError, match=f"can be written by all users.*chmod 700 {home}"):
        started()
    assert list(home.iterdir()) == []
    environment = {**os.environ, "CM_HOME": str(home)}
    command = [sys.executable, "-m", "cm_server", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "can be written by all users" in json.loads(done.stdout)["error"]
    assert (done.returncode, list(home.iterdir())) == (1, [])


def test_server_replaces_a_token_that_others_can_have_written(home):
    path = config.token_file(home)
    path.write_text("cm_" + "e" * 43)
    path.chmod(0o666)
    started()
    assert config.read_token(path) not in (None, "cm_" + "e" * 43)
    assert "is replaced" in (home / "server.log").read_text()
    with Fleet(token="cm_" + "e" * 43) as stranger, pytest.raises(NotAllowed):
        stranger.status()


def test_server_files_are_accessible_to_their_owner_only(home):
    started()
    for name in ("token", "server.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_second_start_finds_the_running_server(home):
    begun = started()
    assert local_server.start(ServerOptions(port=1)) == local_server.StartOutcome(
        begun.url, already=True
    )


def test_stop_returns_the_url_and_leaves_no_process(home):
    begun = started()
    pid = pid_of(home)
    assert local_server.stop() == begun.url
    assert not config.server_state_file(home).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stop_without_a_server_returns_none(home):
    assert local_server.stop() is None


def test_server_of_another_process_is_stopped(home):
    """It is not a child of this process, so that waitpid() fails."""
    program = (
        "from cloudmanager import local_server; "
        "from cloudmanager.server_options import ServerOptions; "
        "local_server.start(ServerOptions(port=0))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    pid = pid_of(home)
    assert local_server.stop() is not None
    deadline = time.monotonic() + WAIT
    while os.path.exists(f"/proc/{pid}"):  # noqa: PTH110  # its new parent reaps it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_server_can_be_started_again_after_it_was_killed(home):
    """The state is stale, and the token is still valid at the new server."""
    started()
    pid = pid_of(home)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert local_server.stop() is None
    assert not started().already
    with Fleet() as fleet:
        assert fleet.status()["pid"] == pid_of(home)


def test_stale_state_does_not_kill_another_process(home):
    """The pid of a killed server may be reused: here, by this process."""
    state = {"url": "http://127.0.0.1:7", "pid": os.getpid()}
    config.write_private(config.server_state_file(home), json.dumps(state))
    assert local_server.stop() is None


def test_server_listens_on_the_given_port(home):
    begun = local_server.start(ServerOptions(listen="localhost", port=0))
    assert begun.url.startswith("http://localhost:")


def test_server_listens_on_ipv6(home):
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    begun = local_server.start(ServerOptions(listen="::1", port=0))
    assert begun.url.startswith("http://[::1]:")
    with Fleet() as fleet:
        assert fleet.status()["address"] == begun.url


def test_home_can_be_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM_HOME", "here")
    try:
        started()
        assert (tmp_path / "here" / "server.json").exists()
    finally:
        assert local_server.stop() is not None


def refused(host: str = "127.0.0.1", port: int = 0) -> str:
    with pytest.raises(ServiceError) as caught:
        local_server.start(ServerOptions(listen=host, port=port))
    assert caught.value.hint == f"The server's own log is {local_server.log_file()}."
    return str(caught.value).removesuffix(" " + caught.value.hint)


def test_tcp_port_in_use_is_an_error(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tcp_port = taken.getsockname()[1]
        assert refused("127.0.0.1", tcp_port) == (
            f"TCP port {tcp_port} of 127.0.0.1 is taken by another program; "
            "choose another with `mbm server-start --port N`."
        )


def test_address_of_another_machine_is_an_error(home):
    assert "cannot listen on 192.0.2.1:0: Cannot assign requested address" in refused(
        "192.0.2.1", 0
    )


def test_server_without_a_state_file_is_an_error(home):
    """A server runs, but its state file was deleted."""
    begun = started()
    state = config.server_state_file(home).read_text()
    config.server_state_file(home).unlink()
    assert refused("127.0.0.1", 0).startswith(f"A server runs in {home} already;")
    config.write_private(config.server_state_file(home), state)
    assert local_server.start() == local_server.StartOutcome(begun.url, already=True)


def test_server_that_exits_immediately_reports_its_last_line(home, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    (home / "python").write_text("#!/bin/sh\necho one >&2\necho 'no module named cm_server' >&2\n")
    (home / "python").chmod(0o755)
    assert refused() == "The server did not start: no module named cm_server."


@pytest.mark.parametrize("said", ["nonsense", "[]", "{}", ""])
def test_server_with_malformed_output_has_not_started(home, monkeypatch, said):
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    (home / "python").write_text(f"#!/bin/sh\necho '{said}'\n")
    (home / "python").chmod(0o755)
    assert refused() == "The server ended before it listened."


def test_silent_server_is_killed(home, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    monkeypatch.setattr(local_server, "START_SECONDS", 0.2)
    (home / "python").write_text("#!/bin/sh\necho $$ >$CM_HOME/pid\nexec sleep 60\n")
    (home / "python").chmod(0o755)
    assert refused() == "The server did not answer within 0.2 s."
    with pytest.raises(ProcessLookupError):
        os.kill(int((home / "pid").read_text()), 0)


def test_server_that_does_not_stop_is_an_error(home, monkeypatch):
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


def test_backup_without_output_is_an_error(home, monkeypatch):
    (home / "python").write_text("#!/bin/sh\necho 'no module named cm_server' >&2\n")
    (home / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    with pytest.raises(ServiceError, match="It failed: no module named cm_server"):
        local_server.back_up(home / "backup.tar")
