"""Which server, which token, and where things are kept."""

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


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A CM_HOME of this test's own, in which no server runs."""
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    monkeypatch.delenv("CM_URL", raising=False)
    monkeypatch.delenv("CM_TOKEN", raising=False)
    return tmp_path


@contextlib.contextmanager
def server_in(home, url="http://127.0.0.1:7", pid=None):
    """What a running server leaves in its folder: a state, a token, a lock that it holds."""
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
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# The folder


def test_home_is_cm_home(home):
    assert config.home_folder() == home


def test_home_may_start_with_a_tilde_or_be_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CM_HOME", "~/cm")
    assert config.home_folder() == tmp_path / "cm"
    monkeypatch.setenv("CM_HOME", "here")
    assert config.home_folder() == tmp_path / "here"


@pytest.mark.parametrize("named", [None, ""])
def test_home_is_else_the_platforms_own_folder(monkeypatch, tmp_path, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("CM_HOME", "") if named == "" else monkeypatch.delenv("CM_HOME", False)
    assert config.home_folder() == platformdirs.user_data_path("cloudmanager", appauthor=False)
    assert str(config.home_folder()).startswith(str(tmp_path))


def test_home_is_made_for_its_owner_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("CM_HOME", str(tmp_path / "a" / "b"))
    folder = config.make_home_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert config.make_home_folder() == folder


# Private files


def test_private_file_is_its_owners_alone_and_nothing_is_left_beside_it(home):
    path = home / "token"
    path.write_text("old")
    path.chmod(0o644)
    config.write_private(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert [entry.name for entry in home.iterdir()] == ["token"]


def test_private_file_is_written_over_what_a_crash_left_beside_it(home):
    (home / f"token.{os.getpid()}").write_text("half")
    config.write_private(home / "token", "whole")
    assert (home / "token").read_text() == "whole"


def test_private_file_does_not_follow_a_link_that_was_laid_for_it(home):
    target = home / "theirs"
    (home / f"token.{os.getpid()}").symlink_to(target)
    config.write_private(home / "token", "secret")
    assert not target.exists()


def test_private_file_is_never_seen_half_written(home):
    """A reader sees the old text or the new one, whenever it looks."""
    path, texts = home / "token", ["a" * 100_000, "b" * 100_000]
    config.write_private(path, texts[0])
    over = threading.Event()
    seen = set()

    def look():
        while not over.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=look)
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


def test_token_of_no_file_is_none(home):
    assert config.read_token(home / "token") is None


# The running server


def test_state_of_a_running_server_is_read(running):
    assert config.read_server_state(running) == {"url": "http://127.0.0.1:7", "pid": os.getpid()}


def test_state_of_another_users_server_is_read(home):
    """Process 1 is alive, whether or not we may send it signals."""
    with server_in(home, pid=1) as state:
        assert config.read_server_state(home) == state


def test_state_of_a_dead_process_is_stale(home):
    with server_in(home, pid=ended_pid()):
        assert config.read_server_state(home) is None


def test_state_without_the_servers_lock_is_stale(home):
    """Its number was given to somebody else, whom `mbm server-stop` must not end."""
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


def test_state_can_be_read_where_there_are_no_locks(running, monkeypatch):
    """As on Windows, where the process has to do."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert config.read_server_state(running) is not None


# Which server


def test_server_is_else_the_default(home):
    assert config.find_server() == ServerAddress("http://127.0.0.1:18266", "", "the default")


def test_server_is_found_by_its_state(running):
    assert config.find_server() == ServerAddress(
        "http://127.0.0.1:7", "cm_local", "the local server"
    )


def test_cm_url_and_cm_token_go_before_the_local_server(running, monkeypatch):
    monkeypatch.setenv("CM_URL", "https://lab:443")
    monkeypatch.setenv("CM_TOKEN", "cm_lab")
    assert config.find_server() == ServerAddress("https://lab:443", "cm_lab", "CM_URL")


def test_what_is_given_goes_before_everything(running, monkeypatch):
    monkeypatch.setenv("CM_URL", "https://lab:443")
    monkeypatch.setenv("CM_TOKEN", "cm_lab")
    assert config.find_server("http://here:1", "cm_mine") == ServerAddress(
        "http://here:1", "cm_mine", "url="
    )


def test_cm_token_goes_before_the_file(running, monkeypatch):
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
def test_local_token_is_sent_to_this_machine_alone(running, url, token):
    assert config.find_server(url).token == token


def test_local_server_gets_its_token_whatever_it_listens_on(home):
    with server_in(home, url="http://0.0.0.0:7"):
        assert config.find_server().token == "cm_local"


def test_address_does_not_show_its_token():
    assert repr(ServerAddress("http://lab", "cm_secret", "CM_URL")) == (
        "ServerAddress(url='http://lab', source='CM_URL')"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://h/pi", ("", "https://h/pi")),
        ("shop=https://h/pi?a=b", ("shop", "https://h/pi?a=b")),
        ("=https://h/pi", ("", "https://h/pi")),
        ("https://h/pi?a=b", ("", "https://h/pi?a=b")),
    ],
)
def test_an_index_is_named_with_or_without_an_alias(text, told):
    assert config.parse_index(text) == told
