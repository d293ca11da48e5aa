"""Which server, which token, and where things are kept; files and environment only."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

DEFAULT_HOST = "127.0.0.1"
DEFAULT_TCP_PORT = 18266
#: The one name in a server's own certificate: addresses change, and boards know no others.
TLS_NAME = "cloudmanager"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_PRIVATE_MODE = 0o600  # read and written by the owner only


class ServerAddress(NamedTuple):
    """A server: where it is, what opens it, who said so, and what it is verified by."""

    url: str
    token: str
    source: str
    ca: Path | None = None  # the file with its certificate authority
    pin: str = ""  # else that authority's fingerprint

    def __repr__(self) -> str:
        """Leave the token out."""
        return f"Address(url={self.url!r}, source={self.source!r})"


def home_folder() -> Path:
    """Return the folder of everything that a user's Cloudmanager keeps."""
    named = os.environ.get("CM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_data_path  # only here: its import takes a while

    return user_data_path("cloudmanager", appauthor=False)


def make_home_folder() -> Path:
    """Return the folder, made if missing, open to its owner alone."""
    folder = home_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def token_file(folder: Path) -> Path:
    """Return where the local user's token is."""
    return folder / "token"


def ca_file(folder: Path) -> Path:
    """Return where the certificate is that the local server is verified by."""
    return folder / "ca.pem"


def server_state_file(folder: Path) -> Path:
    """Return where the running server says its address and its process."""
    return folder / "server.json"


def read_token(path: Path) -> str | None:
    """Return the token in ``path``; None where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def server_lock_file(folder: Path) -> Path:
    """Return the file that the running server holds locked."""
    return folder / "server.lock"


def read_server_state(folder: Path) -> dict[str, Any] | None:
    """Return what the running server wrote (``url``, ``pid``); None when none runs."""
    try:
        state = json.loads(server_state_file(folder).read_text(encoding="utf-8"))
        written = isinstance(state["url"], str) and type(state["pid"]) is int
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        state
        if written and _is_alive(state["pid"]) and _is_locked(server_lock_file(folder))
        else None
    )


def find_server(url: str | None = None, token: str | None = None) -> ServerAddress:
    """Return the server to talk to: as given, else CM_URL and CM_TOKEN, else the local one."""
    folder = home_folder()
    is_own_server = False
    if url is not None:
        source = "url="
    elif named := os.environ.get("CM_URL"):
        url, source = named, "CM_URL"
    elif state := read_server_state(folder):
        is_own_server = True
        url, source = str(state["url"]), "the local server"
    else:
        url, source = f"http://{DEFAULT_HOST}:{DEFAULT_TCP_PORT}", "the default"
    token = token or os.environ.get("CM_TOKEN")
    if token is None and (is_own_server or _may_receive_local_token(url)):
        token = read_token(token_file(folder))
    token, _, pin = (token or "").partition(".")
    ca = ca_file(folder)
    known = not pin and is_local(url) and ca.exists()
    return ServerAddress(url, token, source, ca if known else None, pin)


def _may_receive_local_token(url: str) -> bool:
    """Whether the local user's token may be sent there: to this machine only."""
    return is_local(url)


def is_local(url: str) -> bool:
    """Whether a server's address is this machine's own loopback."""
    try:
        host = split_url(url).hostname or ""
    except ValueError:
        return False
    return host in LOOPBACK_HOSTS or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def split_url(url: str) -> SplitResult:
    """Return the parts of a server's address.

    Without a scheme it means ``https://``; on this machine's own loopback, ``http://``.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(url if "//" in url else "//" + url)
    if parts.scheme:
        return parts
    return parts._replace(scheme="http" if parts.hostname in LOOPBACK_HOSTS else "https")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, all of it or nothing, even if the power fails."""
    write_whole(path, text, _PRIVATE_MODE)


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file, all of it or nothing; it is on the disk when this returns.

    Args:
        path: the file; one that is there is replaced once the new one is whole.
        text: what is in it.
        mode: who may read and write it, less what the umask takes away.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have a folder's names on the disk: after a power cut, a rename in it is still done."""
    with contextlib.suppress(OSError):  # not every file system can, nor Windows
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0


def _is_locked(path: Path) -> bool:
    """Whether a server holds the lock: pids are used again, and a stale one may be anybody's."""
    try:
        import fcntl  # not on Windows, where the pid has to do

        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, BlockingIOError):
        return True
    except OSError:
        return False
    return False


def parse_index(text: str) -> tuple[str, str]:
    """Return alias and URL of a mip index, as ``[ALIAS=]URL`` names it; "" is the default one."""
    alias, equals, url = text.partition("=")
    return (alias, url) if equals and "/" not in alias else ("", text)
