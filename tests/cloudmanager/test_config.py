"""Which server, which token, and which folder are used."""

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading

import platformdirs
import pytest

from cloudmanager import config
from cloudmanager.config import ServerAddress
from cloudmanager.protocol.errors import ServiceError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A new CM_HOME, in which no server runs."""
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    monkeypatch.delenv("CM_URL", raising=False)
    monkeypatch.delenv("CM_TOKEN", raising=False)
    return tmp_path


@contextlib.contextmanager
def server_in(home, url="http://127.0.0.1:7", pid=None):
    """Write the files of a running server: state, token, and a lock that is held."""
    state = {"url": url, "pid": os.getpid() if pid is None else pid}
    config.write_private(config.server_state_file(home), json.dumps(state))
    config.write_private(config.token_file(home), "cm_local\n")
    with config.server_lock_file(home).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield state


@pytest.fixture
def running(home):
    with server_in(home):
        yield home


def ended_pid():
    """Return the pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# The folder


def test_home_is_cm_home(home):
    assert config.home_folder() == home


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o700, ""),
        (0o755, ""),
        (0o757, "can be written by all users"),
        (0o777, "can be written by all users"),
        (0o1777, "can be written by all users"),
    ],
)
def test_folder_that_others_can_write_is_refused(home, mode, why):
    home.chmod(mode)
    if not why:
        assert config.make_home_folder() == home
        return
    with pytest.raises(ServiceError, match=rf"{why}.*could replace.*`chmod 700 {home}`"):
        config.make_home_folder()


OWN, OTHER, ROOT = 1000, 1001, 0


@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [
        (0o600, OWN, ""),
        (0o644, ROOT, ""),
        (0o600, OTHER, "belongs to another user"),
        (0o602, OWN, "can be written by all users of this machine"),
        (0o620, OWN, "can be written by other users of its group"),
        (0o666, ROOT, "can be written by all users of this machine"),
    ],
)
def test_files_of_other_users_are_not_trusted(mode, owner, why):
    unknown_group = 2**31 - 2
    status = os.stat_result((mode, 0, 0, 1, owner, unknown_group, 0, 0, 0, 0))
    assert config._unsafe_reason(status, {OWN, ROOT}) == why


@pytest.mark.parametrize(
    ("mode", "token"), [(0o600, "cm_x"), (0o644, "cm_x"), (0o622, None), (0o666, None)]
)
def test_token_that_others_can_have_written_is_not_used(home, mode, token):
    path = config.token_file(home)
    config.write_private(path, "cm_x\n")
    path.chmod(mode)
    assert config.read_token(path) == token


def test_token_may_be_a_link(home):
    target = home / "secret"
    config.write_private(target, "cm_x\n")
    config.token_file(home).symlink_to(target)
    assert config.read_token(config.token_file(home)) == "cm_x"
    target.chmod(0o666)
    assert config.read_token(config.token_file(home)) is None


def test_umask_does_not_widen_what_is_private(home):
    before = os.umask(0)
    try:
        config.make_private_folder(home / "new" / "private")
        with config.open_private(home / "log") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE((home / name).stat().st_mode) for name in ("new", "new/private", "log")
    }
    assert modes == {"new": 0o755, "new/private": 0o700, "log": 0o600}


def test_file_of_an_earlier_version_becomes_private(home):
    (home / "log").write_text("before")
    (home / "log").chmod(0o666)
    with config.open_private(home / "log", append=True) as file:
        file.write(b" after")
    assert (home / "log").read_text() == "before after"
    assert stat.S_IMODE((home / "log").stat().st_mode) == 0o600


def test_home_can_have_a_tilde_or_be_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CM_HOME", "~/cm")
    assert config.home_folder() == tmp_path / "cm"
    monkeypatch.setenv("CM_HOME", "here")
    assert config.home_folder() == tmp_path / "here"


@pytest.mark.parametrize("named", [None, ""])
def test_home_defaults_to_the_platforms_folder(monkeypatch, tmp_path, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("CM_HOME", "") if named == "" else monkeypatch.delenv("CM_HOME", False)
    assert config.home_folder() == platformdirs.user_data_path("cloudmanager", appauthor=False)
    assert str(config.home_folder()).startswith(str(tmp_path))


def test_home_is_accessible_to_its_owner_only(monkeypatch, tmp_path):
    monkeypatch.setenv("CM_HOME", str(tmp_path / "a" / "b"))
    folder = config.make_home_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert config.make_home_folder() == folder


# Private files


def test_private_file_is_readable_by_its_owner_only(home):
    path = home / "token"
    path.write_text("old")
    path.chmod(0o644)
    config.write_private(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert [entry.name for entry in home.iterdir()] == ["token"]


def test_private_file_replaces_a_temporary_file_of_a_crash(home):
    (home / f"token.{os.getpid()}").write_text("half")
    config.write_private(home / "token", "whole")
    assert (home / "token").read_text() == "whole"


def test_private_file_does_not_follow_a_symlink(home):
    target = home / "theirs"
    (home / f"token.{os.getpid()}").symlink_to(target)
    config.write_private(home / "token", "secret")
    assert not target.exists()


def test_private_file_is_never_partial(home):
    """A reader always sees the complete old text or the complete new one."""
    path, texts = home / "token", ["a" * 100_000, "b" * 100_000]
    config.write_private(path, texts[0])
    over = threading.Event()
    seen = set()

    def read_repeatedly():
        while not over.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=read_repeatedly)
    thread.start()
    for number in range(200):
        config.write_private(path, texts[number % 2])
    over.set()
    thread.join(20)
    assert seen <= set(texts)


def test_token_is_read_without_its_newline(home):
    config.write_private(home / "token", "cm_x\n")
    assert config.read_token(home / "token") == "cm_x"


@pytest.mark.parametrize("text", ["", " \n"])
def test_token_of_an_empty_file_is_none(home, text):
    (home / "token").write_text(text)
    assert config.read_token(home / "token") is None


def test_token_file_that_is_not_text_is_named(home):
    (home / "token").write_bytes("\ufeffcm_x".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"token is not UTF-8 text"):
        config.read_token(home / "token")


def test_token_of_no_file_is_none(home):
    assert config.read_token(home / "token") is None


# The running server


def test_state_of_a_running_server_is_read(running):
    assert config.read_server_state(running) == {"url": "http://127.0.0.1:7", "pid": os.getpid()}


def test_state_of_another_users_server_is_read(home):
    """Process 1 is alive, even if this user may not send it signals."""
    with server_in(home, pid=1) as state:
        assert config.read_server_state(home) == state


def test_state_of_a_dead_process_is_stale(home):
    with server_in(home, pid=ended_pid()):
        assert config.read_server_state(home) is None


def test_state_without_the_servers_lock_is_stale(home):
    """Its pid may belong to another process, which `mbm server-stop` must not end."""
    with server_in(home):
        pass
    assert config.read_server_state(home) is None


def test_state_without_a_lock_file_is_stale(home):
    with server_in(home):
        config.server_lock_file(home).unlink()
        assert config.read_server_state(home) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "\x00\xff",
        '{"url": "http://127.0.0.1:7"}',
        '{"pid": 1}',
        '{"url": null, "pid": 1}',
        '{"url": "http://127.0.0.1:7", "pid": "1"}',
        '{"url": "http://127.0.0.1:7", "pid": 1.5}',
        '{"url": "http://127.0.0.1:7", "pid": true}',
        '{"url": "http://127.0.0.1:7", "pid": 0}',
        '{"url": "http://127.0.0.1:7", "pid": -1}',
        '{"url": "http://127.0.0.1:7", "pid": 1e99}',
        '{"url": "http://127.0.0.1:7", "pid": 99999999999999999999}',
    ],
)
def test_state_that_is_malformed_is_none(running, text):
    config.server_state_file(running).write_text(text, encoding="latin-1")
    assert config.read_server_state(running) is None


def test_no_state_is_none(home):
    assert config.read_server_state(home) is None


def test_no_process_is_asked_for_on_windows(running, monkeypatch):
    """No server runs there, and os.kill(pid, 0) would send Ctrl-C."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delattr(os, "kill")
    assert config.read_server_state(running) is None


# Which server


def test_server_defaults_to_loopback(home):
    assert config.find_server() == ServerAddress("http://127.0.0.1:18266", "", "the default")


def test_server_is_found_by_its_state(running):
    assert config.find_server() == ServerAddress(
        "http://127.0.0.1:7", "cm_local", "the local server"
    )


def test_environment_takes_precedence_over_the_local_server(running, monkeypatch):
    monkeypatch.setenv("CM_URL", "https://lab:443")
    monkeypatch.setenv("CM_TOKEN", "cm_lab")
    assert config.find_server() == ServerAddress("https://lab:443", "cm_lab", "CM_URL")


def test_arguments_take_precedence(running, monkeypatch):
    monkeypatch.setenv("CM_URL", "https://lab:443")
    monkeypatch.setenv("CM_TOKEN", "cm_lab")
    assert config.find_server("http://here:1", "cm_mine") == ServerAddress(
        "http://here:1", "cm_mine", "url="
    )


def test_cm_token_takes_precedence_over_the_file(running, monkeypatch):
    monkeypatch.setenv("CM_TOKEN", "cm_env")
    assert config.find_server().token == "cm_env"


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://127.0.0.1:9", "cm_local"),
        ("http://localhost", "cm_local"),
        ("localhost:9", "cm_local"),
        ("http://[::1]:9", "cm_local"),
        ("http://lab:9", ""),
        ("lab:9", ""),
        ("http://127.0.0.1.evil.example", ""),
        ("http://127.0.0.1@evil.example", ""),
        ("http://[bad", ""),
        ("", ""),
    ],
)
def test_local_token_is_sent_to_this_machine_only(running, url, token):
    assert config.find_server(url).token == token


def test_local_server_gets_its_token_at_any_address(home):
    with server_in(home, url="http://0.0.0.0:7"):
        assert config.find_server().token == "cm_local"


NETRC = """
machine pi.example login me password p@ss/w:rd
machine empty.example
default login anybody password anything
"""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://pi.example/v2", "https://me:p%40ss%2Fw%3Ard@pi.example/v2"),
        ("http://PI.example:8080/v2", "http://me:p%40ss%2Fw%3Ard@PI.example:8080/v2"),
        ("https://you@pi.example/v2", "https://you@pi.example/v2"),
        ("https://other.example/v2", "https://other.example/v2"),
        ("https://empty.example/v2", "https://empty.example/v2"),
        ("ftp://pi.example/v2", "ftp://pi.example/v2"),
        ("http://[::1/v2", "http://[::1/v2"),
        ("pi.example", "pi.example"),
        ("", ""),
    ],
)
def test_password_of_a_url_is_read_from_netrc(tmp_path, monkeypatch, url, expected):
    (tmp_path / "netrc").write_text(NETRC)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert config.with_netrc(url) == expected


@pytest.mark.parametrize("content", [None, b"machine", b"\xff\xfe", b"login x"])
def test_missing_or_malformed_netrc_has_no_password(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "netrc").write_bytes(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert config.with_netrc("https://pi.example/v2") == "https://pi.example/v2"


def test_address_does_not_show_its_token():
    assert repr(ServerAddress("http://lab", "cm_secret", "CM_URL")) == (
        "ServerAddress(url='http://lab', source='CM_URL')"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/pi", ("", "https://h/pi")),
        ("shop=https://h/pi?a=b", ("shop", "https://h/pi?a=b")),
        ("=https://h/pi", ("", "https://h/pi")),
        ("https://h/pi?a=b", ("", "https://h/pi?a=b")),
    ],
)
def test_index_has_an_optional_alias(text, expected):
    assert config.parse_index(text) == expected
