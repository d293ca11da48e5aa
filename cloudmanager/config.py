"""Finds the server, the token and the folder of Cloudmanager; files and environment only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import SplitResult, quote, urlsplit

from cloudmanager.protocol.errors import CloudmanagerError, ServiceError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_TCP_PORT = 18266
#: The name in a server's own certificate: not an address, because addresses change.
TLS_NAME = "cloudmanager"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_PRIVATE_MODE = 0o600  # read and written by the owner only
_PARENT_MODE = 0o755  # of missing folders above the folder of Cloudmanager


class ServerAddress(NamedTuple):
    """How to connect to a server.

    Attributes:
        url: its address.
        token: authenticates the caller.
        source: where the URL comes from, for error messages, such as "CM_URL".
        ca: the file with the certificate of its authority, or None.
        pin: the fingerprint of that certificate, from the token; "" if it has none.
    """

    url: str
    token: str
    source: str
    ca: Path | None = None
    pin: str = ""

    def __repr__(self) -> str:
        """Return URL and source, without the token."""
        return f"ServerAddress(url={self.url!r}, source={self.source!r})"


def has_posix() -> bool:
    """Whether this system has the POSIX calls that the server and virtual boards need."""
    return find_spec("fcntl") is not None


def require_posix(subject: str) -> None:
    """Check that the server and virtual boards can run on this system.

    Args:
        subject: what needs it, with the verb, such as "The server needs".

    Raises:
        CloudmanagerError: they cannot.
    """
    if not has_posix():
        error = CloudmanagerError(f"{subject} Linux or macOS")
        error.hint = (
            "On Windows, run it in WSL; Windows' own programs, such as `mbm` and notebooks, "
            "connect to it with CM_URL and CM_TOKEN."
        )
        raise error


def home_folder() -> Path:
    """Return the folder in which Cloudmanager stores all its files."""
    named = os.environ.get("CM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_data_path  # imported here: it takes long

    return user_data_path("cloudmanager", appauthor=False)


def make_home_folder() -> Path:
    """Return the folder; make it if missing, accessible to its owner only.

    Raises:
        ServiceError: it belongs to another user, or others may write to it.
    """
    folder = home_folder()
    make_private_folder(folder)
    status = folder.stat()
    if why := _unsafe_reason(status, _trusted_owners(status)):
        raise ServiceError(
            f"The folder {folder} {why}, who could replace the server's keys and token",
            hint=f"Run `chmod 700 {folder}` as its owner, or name another folder in CM_HOME.",
        )
    return folder


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can use, if it is missing, whatever the umask."""
    for parent in reversed(folder.parents):
        if not parent.exists():
            parent.mkdir(mode=_PARENT_MODE, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path, *, append: bool = False) -> BinaryIO:
    """Open a file for writing that only this user can read, whatever the umask; unbuffered."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    handle = os.open(path, flags, _PRIVATE_MODE)
    if has_posix():
        with contextlib.suppress(PermissionError):
            os.fchmod(handle, _PRIVATE_MODE)  # of a file that an earlier version made
    return cast("BinaryIO", os.fdopen(handle, "wb", buffering=0))


def _trusted_owners(folder: os.stat_result) -> set[int]:
    """Return who may own the folder and what is in it: this user, and root.

    Root may use the folder of another user, such as one that is mounted into a container.
    """
    if not has_posix():
        return set()
    return {os.geteuid(), 0} | ({folder.st_uid} if os.geteuid() == 0 else set())


def _unsafe_reason(status: os.stat_result, owners: set[int]) -> str:
    """Return why a file or folder cannot be trusted; "" if only its trusted owners can change it.

    The group of a user's own name (as Debian makes them) is this user, too.
    """
    if not has_posix():
        return ""  # Windows' own permissions are inherited from the user's folder
    if status.st_uid not in owners:
        return "belongs to another user"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by all users of this machine"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid):
        return "can be written by other users of its group"
    return ""


def _is_own_group(gid: int) -> bool:
    """Whether a group consists of this user."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def token_file(folder: Path) -> Path:
    """Return the path of the local user's token."""
    return folder / "token"


def ca_file(folder: Path) -> Path:
    """Return the path of the certificate of the local server's authority."""
    return folder / "ca.pem"


def server_state_file(folder: Path) -> Path:
    """Return the path of the file in which the running server writes its URL and pid."""
    return folder / "server.json"


def completion_file(folder: Path) -> Path:
    """Return the path of the words that a shell completes: names and labels of boards."""
    return folder / "completion.txt"


def repl_history_file(folder: Path) -> Path:
    """Return the path of the inputs of `mbm board-repl`."""
    return folder / "repl_history"


def read_token(path: Path) -> str | None:
    """Return the token in a file; None if there is none, or another user can have written it.

    Raises:
        ValueError: the file is not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            owners = _trusted_owners(path.parent.stat())
            for status in (os.fstat(file.fileno()), _link_status(path)):
                if _unsafe_reason(status, owners):
                    return None
            return file.read().strip() or None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except OSError:
        return None


def _link_status(path: Path) -> os.stat_result:
    """Return the status of a file; that of the link itself, if it is one, without its mode."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return os.stat_result((0, *status[1:]))  # everybody may "write" each link
    return status


def server_lock_file(folder: Path) -> Path:
    """Return the path of the file that the running server holds locked."""
    return folder / "server.lock"


def read_server_state(folder: Path) -> dict[str, Any] | None:
    """Return what the running server wrote (``url``, ``pid``); None if none runs."""
    if not has_posix():
        return None  # it runs on no other system, where os.kill(pid, 0) would send Ctrl-C
    try:
        state = json.loads(server_state_file(folder).read_text(encoding="utf-8"))
        is_valid = isinstance(state["url"], str) and type(state["pid"]) is int
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if is_valid and _is_alive(state["pid"]) and _is_locked(server_lock_file(folder)):
        return state  # type: ignore[no-any-return]
    return None


def find_server(url: str | None = None, token: str | None = None) -> ServerAddress:
    """Return the server to connect to: the arguments, else CM_URL and CM_TOKEN, else the local."""
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
    """Whether the host of a server's URL is a loopback address."""
    try:
        host = split_url(url).hostname or ""
    except ValueError:
        return False
    return host in LOOPBACK_HOSTS or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def split_url(url: str) -> SplitResult:
    """Return the parts of a server's URL.

    The default scheme is ``https``; for a loopback address, ``http``.

    Raises:
        ValueError: it is not a URL.
    """
    parts = urlsplit(url if "//" in url else "//" + url)
    if parts.scheme:
        return parts
    return parts._replace(scheme="http" if parts.hostname in LOOPBACK_HOSTS else "https")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, atomically and durably."""
    write_whole(path, text, _PRIVATE_MODE)


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file atomically; it is on the disk when this returns.

    Args:
        path: the file; an existing one is replaced when the new one is complete.
        text: its content.
        mode: its permissions, before the umask is applied.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Write a folder's entries to the disk, so that a rename in it survives a power cut."""
    with contextlib.suppress(OSError):  # not supported by every file system, nor by Windows
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
    """Whether a server holds the lock; its pid alone may belong to another process by now."""
    import fcntl  # not on Windows, see read_server_state

    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def with_netrc(url: str) -> str:
    """Return a URL with the user name and password that this user's ``.netrc`` has for its host.

    A URL with a user name is returned unchanged. The file is that of curl and pip: ``NETRC``, or
    ``.netrc`` or ``_netrc`` in the home folder; its entry ``default`` is not used.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return url
    entry = _netrc_entry(parts.hostname)
    if entry is None:
        return url
    user, password = (quote(each, safe="") for each in entry)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc}").geturl()


def _netrc_entry(host: str) -> tuple[str, str] | None:
    """Return user name and password for a host; None if there is no entry, or no valid file."""
    import netrc  # few installs need it

    named = os.environ.get("NETRC")
    for candidate in [named] if named else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
            path = os.path.expanduser(candidate)  # noqa: PTH111  # never raises
            user, _, password = netrc.netrc(path).hosts.get(host, ("", "", ""))
            return (user, password) if user or password else None
    return None


def parse_index(text: str) -> tuple[str, str]:
    """Return alias and URL of ``[ALIAS=]URL``, a mip index; the alias "" is the default index."""
    alias, equals, url = text.partition("=")
    return (alias, url) if equals and "/" not in alias else ("", text)
