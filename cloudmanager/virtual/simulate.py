"""Start virtual boards and connect them to a server; the demo."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from cloudmanager import config, local_server
from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError, NoSuchBoard, TargetError
from cloudmanager.protocol.text import fold_names
from cloudmanager.server_options import ServerOptions

from .virtual_boards import VirtualBoards

JOIN_SECONDS = 30.0  # for the first board; more boards get more time
JOIN_SECONDS_EACH = 0.3
_UNIX_PLATFORMS = ("linux", "darwin")  # sys.platform of MicroPython's unix port


def numbered_names(prefix: str, count: int) -> list[str]:
    """Return the names of ``count`` boards: PREFIX-1 and so on."""
    return [f"{prefix}-{number}" for number in range(1, count + 1)]


def simulate(
    fleet: Fleet,
    names: Sequence[str],
    *,
    folder: Path | None = None,
    detach: bool = False,
    allow_remote: bool = False,
    **sizes: str,
) -> VirtualBoards:
    """Start virtual boards and return once all of them are connected.

    Each is a real MicroPython process, which keeps its flash in a file. It is not a sandbox:
    everybody who may run cells on it can act as you on this machine. If they do not all connect,
    they are stopped, and those that this call has enrolled are revoked.

    Args:
        fleet: the fleet that they join.
        names: their names.
        folder: where they keep their flash; by default, ``boards_folder()``.
        detach: keep them running when this process ends.
        allow_remote: allow a server that other machines can reach.
        sizes: ``heap`` and ``flash``, as for ``VirtualBoards``.

    Raises:
        CloudmanagerError: a board of that name is connected already, or is not a virtual one; a
            board did not join; others can reach the server; heap or flash are too small, or
            MicroPython's unix port is missing.
        ServerUnreachable: no server.
    """
    folder = folder or boards_folder()
    if not allow_remote:
        _check_local(fleet)
    url = config.split_url(fleet.address.url)
    address = (url.hostname or config.DEFAULT_HOST, url.port or config.DEFAULT_TCP_PORT)
    boards = VirtualBoards([], address, folder, detach=detach, **sizes)  # it checks the sizes
    known = _check_virtual(fleet, names, folder)
    rows = fleet.enrol(list(names))
    boards.identities = [BoardIdentity.from_enrolment(row, fleet.address.url) for row in rows]
    try:
        boards.start()
        _await_boards(fleet, names, boards)
    except BaseException:
        boards.stop()
        with contextlib.suppress(CloudmanagerError):
            _revoke_boards(fleet, [name for name in names if name not in known])
        raise
    return boards


class Demo:
    """Demo boards: what ``start_demo`` returns.

    Attributes:
        url: the server's URL.
        names: the boards, including those that were running before.
        boards: the boards that ``start_demo`` has started; None if it started none, or after
            ``stop``.
    """

    def __init__(self, url: str, names: Sequence[str], boards: VirtualBoards | None) -> None:
        self.url = url
        self.names = list(names)
        self.boards = boards
        if boards is not None:
            _running_demos.append(self)
            # Without their enrolments: an interpreter that exits starts no thread for a link.
            atexit.register(boards.stop)

    def __repr__(self) -> str:
        """Return the boards and their server."""
        return f"<{fold_names(self.names)} at {self.url}>"

    def power_off(self, name: str) -> None:
        """Cut the power of a board that was started for the demo."""
        self._own_boards(name).kill(name)

    def power_on(self, name: str) -> None:
        """Switch the power of a board on; if it was on, switch it off first."""
        self._own_boards(name).restart(name)

    def _own_boards(self, name: str) -> VirtualBoards:
        """Return the boards that were started here.

        Raises:
            CloudmanagerError: the board is not one of them.
        """
        if self.boards is None or name not in [board.name for board in self.boards.identities]:
            error = CloudmanagerError(f"{name} was not started by this demo")
            error.hint = "Only the program that started a virtual board can switch its power."
            raise error
        return self.boards

    def stop(self) -> None:
        """End the boards that were started for the demo, and erase them; further calls do nothing.

        Erased are their files, enrolments, labels and samples.
        """
        boards, self.boards = self.boards, None
        if boards is None:
            return
        _running_demos.remove(self)
        atexit.unregister(boards.stop)
        boards.stop()
        with Fleet(self.url) as fleet, contextlib.suppress(CloudmanagerError):
            _erase_boards(fleet, [board.name for board in boards.identities])


_running_demos: list[Demo] = []  # those whose boards this process has started


def start_demo(count: int = 3, name: str = "demo") -> Demo:
    """Start a server and virtual boards NAME-1, NAME-2 and so on, unless they are running.

    Boards that are started here are new: without files, labels and samples of an earlier demo. They
    end with this program; the server runs until ``mbm server-stop``. If this program has started
    boards of these names before, they are stopped first, so that a notebook can run from top to
    bottom again.

    Args:
        count: how many boards.
        name: the prefix of their names.

    Raises:
        ServiceError: the server did not start.
        CloudmanagerError: a board did not join, or MicroPython's unix port is missing.
    """
    names = numbered_names(name, count)
    for earlier in list(_running_demos):
        if not set(names).isdisjoint(earlier.names):
            earlier.stop()
    if not os.environ.get("CM_URL"):
        local_server.start(ServerOptions(port=free_tcp_port(config.DEFAULT_TCP_PORT)))
    with Fleet() as fleet:
        online = {board["name"] for board in fleet.boards() if board["connected_since"]}
        missing = [name for name in names if name not in online]
        boards = start_new_boards(fleet, missing) if missing else None
        return Demo(fleet.address.url, names, boards)


def start_new_boards(fleet: Fleet, names: Sequence[str]) -> VirtualBoards:
    """Start virtual boards without what demo boards of these names left behind.

    They keep their flash apart from the boards of ``mbm simulate``, whose files are not touched.

    Raises:
        CloudmanagerError: as for ``simulate``.
    """
    _erase_boards(fleet, [name for name in names if (_demo_folder() / name).exists()])
    return simulate(fleet, names, folder=_demo_folder())


def _erase_boards(fleet: Fleet, names: Sequence[str]) -> None:
    """Revoke demo boards, with their labels and samples, and delete their flash."""
    _revoke_boards(fleet, names)
    for name in names:
        shutil.rmtree(_demo_folder() / name, ignore_errors=True)


def _revoke_boards(fleet: Fleet, names: Sequence[str]) -> None:
    for name in names:
        # It is not enrolled; or it was removed or renamed, or has replaced another board.
        with contextlib.suppress(TargetError, NoSuchBoard):
            fleet.revoke(name)


def _demo_folder() -> Path:
    """Return the folder in which demo boards keep their flash."""
    return config.make_home_folder() / "demo"


def free_tcp_port(first: int) -> int:
    """Return the first free TCP port from ``first`` on; 0 if none of fifty is free."""
    for tcp_port in range(first, first + 50):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", tcp_port)):
            return tcp_port
    return 0


def _check_local(fleet: Fleet) -> None:
    """Refuse a server that others can reach: their cells would act as this user.

    Raises:
        CloudmanagerError: others can reach the server.
    """
    listens = str(fleet.status()["address"])
    if not (config.is_local(listens) and config.is_local(fleet.address.url)):
        why = f"Others can reach the server at {listens}, and virtual boards are not a sandbox"
        error = CloudmanagerError(why)
        error.hint = (
            "With --allow-remote, everybody who may run cells there can act as you on this machine."
        )
        raise error


def _check_virtual(fleet: Fleet, names: Sequence[str], folder: Path) -> set[str]:
    """Refuse names of boards that run, or are not virtual: a new key would lock those boards out.

    Returns:
        The names of all boards that are enrolled.

    Raises:
        CloudmanagerError: a board of such a name is connected, or is enrolled and did not connect
            from a computer.
    """
    real, running = [], []
    known = fleet.boards()
    for board in known:
        # A virtual board that never connected has a flash, but has not reported its platform.
        has_flash = not board["platform"] and (folder / board["name"]).exists()
        is_virtual = has_flash or board["platform"] in _UNIX_PLATFORMS
        if board["name"] in names and not is_virtual:
            real.append(board["name"])
        elif board["name"] in names and board["connected_since"]:
            running.append(board["name"])
    if real:
        is_one = len(real) == 1
        error = CloudmanagerError(
            f"{fold_names(real)} {'is a board' if is_one else 'are boards'} of your own: a virtual "
            f"board of the same name would lock {'it' if is_one else 'them'} out of the fleet"
        )
        error.hint = f"Choose another name, or remove it first: `mbm board-revoke '{real[0]}'`."
        raise error
    if running:
        error = CloudmanagerError(
            f"{fold_names(running)} {'is' if len(running) == 1 else 'are'} running already"
        )
        them = "it" if len(running) == 1 else "them"
        error.hint = f"`mbm board-list` shows {them}. `--name PREFIX` starts boards of other names."
        raise error
    return {str(board["name"]) for board in known}


def boards_folder() -> Path:
    """Return the folder in which virtual boards keep their flash."""
    return config.make_home_folder() / "virtual"


def _await_boards(fleet: Fleet, names: Sequence[str], boards: VirtualBoards) -> None:
    """Wait until all boards are connected.

    Raises:
        CloudmanagerError: a board has ended, or did not connect in time.
    """
    deadline = time.monotonic() + JOIN_SECONDS + JOIN_SECONDS_EACH * len(names)
    missing = set(names)
    while missing:
        online = {board["name"] for board in fleet.boards() if board["connected_since"]}
        missing -= online
        ended = missing.intersection(boards.crashes)
        if ended or missing and time.monotonic() > deadline:
            who = min(ended or missing)
            what = f"{fold_names(missing)} did not join the server"
            if ended:
                what = f"The process of {who} ended before it joined the server"
            error = CloudmanagerError(what)
            error.hint = f"The board's own log is {boards.folder / who / 'board.log'}."
            raise error
        time.sleep(0.02)
