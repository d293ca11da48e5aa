"""``Fleet``: the verbs as blocking methods, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from cloudmanager import config
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import RunKeywords, RunOptions
from cloudmanager.protocol.spans import time_since
from cloudmanager.results.rows import BoardList

from .cell_verbs import CellVerbs, make_cell
from .exchange import Exchange
from .file_verbs import FileVerbs
from .fleet_verbs import FleetVerbs
from .jobs import Job, JobGroup
from .keywords import run_keywords
from .link import LinkHolder, ServerLink
from .log_lines import LogFollower, Logs, Since, join_lines, read_logs
from .mounts import MOUNT_PATH, MountedFolder, mounted_folder
from .package_verbs import PackageVerbs
from .runner import run_blocking
from .sources import PathLike
from .verb import Blocking
from .watch import Watch


class Fleet(Blocking, FleetVerbs):
    """All boards of one server.

    ``fleet["esp-[1-3]"]`` selects boards; nothing is sent until a verb is called. All methods are
    thread-safe.

    Args:
        url: the server, such as ``http://127.0.0.1:18266``; by default CM_URL, else the local
            server.
        token: authenticates the caller; by default CM_TOKEN, else the local user's token.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._holder = LinkHolder(self)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, target: str) -> Boards:
        return Boards(self, target)

    def __iter__(self) -> Iterator[Boards]:
        """Iterate over all boards, connected or not, one at a time."""
        return (self[str(board["name"])] for board in self.boards())

    def __len__(self) -> int:
        """Return the number of all boards, connected or not."""
        return len(self.boards())

    def __contains__(self, name: object) -> bool:
        """Return whether a board has this name."""
        return any(board["name"] == name for board in self.boards())

    def __bool__(self) -> bool:
        """Return True, without asking the server."""
        return True

    def __repr__(self) -> str:
        """Return the server's URL, without the token."""
        return f"Fleet({self.address.url!r})"

    def _repr_html_(self) -> str | None:
        """Return all boards as an HTML table; None, for the text, if the server does not answer."""
        return _boards_html(self.boards)

    @property
    def address(self) -> config.ServerAddress:
        """The address of the server that the next connection uses."""
        return config.find_server(self._url, self._token)

    def close(self) -> None:
        """Disconnect. Running jobs continue on the boards."""
        link = self._holder.release()
        if link is not None:
            link.close()

    def exchange(self) -> Exchange:
        """Return the exchange with the server; connect first if there is no link.

        Raises:
            ServerUnreachable, NotAllowed, VersionMismatch: the connection failed.
            CloudmanagerError: the connection belongs to the parent of this process.
        """
        with self._holder.lock:
            link = self._holder.usable()
            if link is None:
                link = ServerLink(self.address, self._holder.hold)
            return link.exchange

    def queued_jobs(self) -> list[Job]:
        """Return the jobs of this Fleet that wait for their board; does not ask the server."""
        link = self._holder.link
        return [] if link is None else link.exchange.queued_jobs()

    def watch(self, target: str = "all", *, samples: bool = True) -> Watch:
        """Subscribe to boards; iterate over the updates, and ``close()`` it at the end.

        It reconnects after a restart of the server, which ``Update.lost`` reports. Nothing is sent
        before the first update is requested.

        Args:
            target: the boards, connected or not; resolved again at each change.
            samples: whether to receive the samples that they emit.
        """
        return Watch(self.exchange, target, samples=samples)


def _boards_html(get_boards: Callable[[], BoardList]) -> str | None:
    """Return boards as an HTML table; None if there are none, or the server does not answer."""
    try:
        boards = get_boards()
    except CloudmanagerError:
        return None
    return boards._repr_html_() if boards else None


class Boards(Blocking, CellVerbs, FileVerbs, PackageVerbs):
    """The boards of a target; the server resolves it again at each call."""

    def __init__(self, fleet: Fleet, target: str) -> None:
        self._fleet = fleet
        self.target = target

    def __repr__(self) -> str:
        return f"Boards({self.target!r})"

    def _repr_html_(self) -> str | None:
        """Return these boards as an HTML table; None, for the text, if there are none."""
        return _boards_html(self.info)

    def __iter__(self) -> Iterator[Boards]:
        """Iterate over these boards, one at a time."""
        return (self._fleet[name] for name in self.names())

    def __len__(self) -> int:
        """Return the number of these boards."""
        return len(self.names())

    def __bool__(self) -> bool:
        """Return True, without asking the server."""
        return True

    @overload
    def logs(self, since: Since = None, *, follow: Literal[False] = False) -> Logs: ...

    @overload
    def logs(self, since: Since = None, *, follow: Literal[True]) -> LogFollower: ...

    def logs(self, since: Since = None, *, follow: bool = False) -> Logs | LogFollower:
        """Return what the boards printed outside of cells; requires the role operator.

        Args:
            since: only lines from then on: a span before now (``"10m"``), seconds since 1970, or a
                datetime; None: all that the server has, 16 KB of each board.
            follow: return an endless iterator over lines instead, with those since ``since``
                first, if it is given.

        Raises:
            TargetError, NoSuchBoard: the target selects no boards.
            ValueError: ``since`` is no time.
        """
        if follow:
            return LogFollower(self.exchange, self.target, since)
        return join_lines(run_blocking(read_logs(self.exchange(), self.target, time_since(since))))

    def mount(
        self,
        folder: PathLike,
        path: str = MOUNT_PATH,
        *,
        on_note: Callable[[str], None] | None = None,
    ) -> MountedFolder:
        """Mount a local folder on the boards, read-only: edit, run, and nothing is copied.

        On each board it is a file system at ``path``, first in ``sys.path`` and the working
        directory, as with mpremote. Files are sent when they are opened. A cell that follows a
        change imports the changed modules again: all modules of the folder are forgotten.

        Args:
            folder: the local folder: at most 200 files, whose list has at most 4 KB. Files that
                ``.mbmignore`` excludes, ``.env``, and links that lead out of it do not exist there.
            path: where it is mounted: one name in the root.
            on_note: called in another thread with remarks, each a sentence, such as about files
                that are left out.

        Returns:
            The mounted folder, for a ``with`` statement. Its ``results`` tell how each
            board did; it is unmounted at the end of the ``with`` statement.

        Raises:
            OSError, ValueError: the folder cannot be listed, or has too many files.
            CloudmanagerError: the server refuses it, or all boards do.
        """
        return mounted_folder(self.exchange, self.target, folder, path, on_note).open()

    def exchange(self) -> Exchange:
        """Return the exchange with the server; see ``Fleet.exchange``."""
        return self._fleet.exchange()

    @run_keywords
    def submit(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
        listen: bool = False,
        answers: bool = False,
        **options: Unpack[RunKeywords],
    ) -> JobGroup:
        """Start a cell on all of the boards; return when the server has accepted it.

        Args:
            code: Python; the value of a trailing expression is returned. It may ``await``.
            inputs: name -> value, assigned on the boards before the cell: Python literals, and
                objects with a ``tolist()``.
            argv: what ``sys.argv`` contains on the boards.
            listen: whether ``events()`` of the returned group will be read.
            answers: whether the reader of the events answers ``input()``.
            options: see ``RunOptions``.

        Raises:
            CellSyntaxError: it is not valid Python; nothing was sent.
            TypeError, ValueError: a value of ``inputs`` cannot be sent; nothing was sent.
            TargetError, NoSuchBoard: the target selects no boards; nothing ran.
            ServerUnreachable: no server answers.
        """
        run_options = RunOptions(answers=answers, **options)
        group = JobGroup(make_cell(code, inputs, argv), run_options, listen=listen)
        self._fleet.exchange().submit(group, self.target)
        with group.interrupted_on_error():
            group.accepted.result()
        return group
