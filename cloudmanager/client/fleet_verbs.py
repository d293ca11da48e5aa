"""The verbs of a fleet: boards, jobs, enrolment and the server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, TypedDict, Unpack

from cloudmanager.board_client import client_parts
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.waves import Wave
from cloudmanager.results.fleet_plan import FleetPlan, RolloutList, StartedRollouts
from cloudmanager.results.rows import BoardList, JobList

from .fleet_desired import apply_plan, make_plan
from .fleet_drift import find_drift
from .future import sleep
from .health import Health, find_problems
from .inventory import InventoryCheck, parse_csv, to_csv
from .jobs import INTERRUPT_GRACE_SECONDS
from .sample_history import HistoryKeywords, history_request, read_history
from .samples import Sample, Samples
from .sources import PathLike
from .verb import HasExchange, verb

_POLL_SECONDS: Final = 0.12  # between two looks at the jobs that are awaited


class RolloutKeywords(TypedDict, total=False):
    """How a rollout of network settings proceeds.

    Attributes:
        waves: cumulative numbers or percentages of boards; by default ``(1, "10%", "100%")``.
        pause: seconds between two waves; by default 600.
        parallel: how many boards change at the same time; 0: all of a wave.
        max_failures: with more failed boards, no further one begins; by default 0.
        deadline: seconds from the start of its wave in which a board has to be done; a day.
        health_timeout: seconds that a board has to be away until it counts as moved to another
            server; by default 180.
        dry_run: whether nothing is begun; the reply says what would be.
    """

    waves: Sequence[Wave]
    pause: float
    parallel: int
    max_failures: int
    deadline: float
    health_timeout: float
    dry_run: bool


class FleetVerbs(HasExchange):
    """Verbs that concern the whole fleet."""

    @verb
    async def request(self, verb: str, /, **body: Any) -> Any:
        """Call a verb of the server (docs/protocol.md) and return the reply.

        Raises:
            CloudmanagerError: the server cannot be reached, or refused the request.
        """
        return await self.exchange().request(verb, body)

    @verb
    async def boards(self, target: str | None = None) -> BoardList:
        """Return the server's information about each board, a list of dicts sorted by name.

        Raises:
            TargetError, NoSuchBoard: ``target`` selects no boards.
        """
        return BoardList(await self.exchange().request("boards", {"target": target}))

    @verb
    async def status(self) -> dict[str, Any]:
        """Return the server's state: version, address, uptime (seconds), boards, online, busy."""
        return dict(await self.exchange().request("status", {}))

    @verb
    async def health(self) -> Health:
        """Return what is wrong in the fleet, each with what to do.

        That is: boards that are absent, restart often, or are in safe mode; equal errors of
        programs; rollouts that stopped; weak Wi-Fi, little heap or flash; old clients; and problems
        of the server.
        """
        exchange = self.exchange()
        boards = await exchange.request("boards", {"target": None})
        reported = await exchange.request("health", {})
        status = await exchange.request("status", {})
        rollouts = await exchange.request("fleet-status", {})
        return find_problems(boards, reported, client_parts(), status["problems"], rollouts)

    @verb
    async def enrol(self, names: Sequence[str], *, plain: bool = False) -> list[dict[str, Any]]:
        """Enrol boards; requires the role admin.

        Args:
            names: of new boards, or of boards that get another key.
            plain: whether they cannot verify a certificate (ESP8266): each of their messages has
                a MAC instead, so it is authenticated but not encrypted.

        Returns:
            For each board: ``name``, ``id``, ``key`` (hex), and ``ca`` (base64) or ``mac``. All
            but the name must be written to the board's ``/cm.json``.
        """
        body = {"names": list(names), "plain": plain}
        return list(await self.exchange().request("enrol", body))

    @verb
    async def enrol_token(
        self, target: str, *, uses: int = 1, expires: float | None = None
    ) -> dict[str, Any]:
        """Make a token with which boards enrol themselves; requires the role admin.

        Args:
            target: the names that they may get: a name, a range, a pattern.
            uses: for how many boards.
            expires: seconds until the token is no longer valid; by default an hour.
        """
        body = {"target": target, "uses": uses, "expires": expires}
        return dict(await self.exchange().request("enrol-token", body))

    @verb
    async def revoke(self, target: str) -> list[str]:
        """Remove boards from the fleet; return their names; requires the role admin.

        Their keys are no longer valid, their links are closed, and their queued jobs end.
        """
        return list(await self.exchange().request("revoke", {"target": target}))

    @verb
    async def rename(self, board: str, name: str) -> str:
        """Rename a board and return its new name; requires the role admin."""
        return str(await self.exchange().request("rename", {"target": board, "name": name}))

    @verb
    async def replace(self, old: str, new: str) -> dict[str, Any]:
        """Let a board become what a dead one was; requires the role admin.

        The new board gets the old one's name, labels, note, reservation and waiting jobs, and its
        generation of files, packages and settings, by a rollout. The old board is removed from the
        fleet, and refused if it comes back.

        Args:
            old: the name of the dead board, which must not be connected.
            new: the name of the board that replaces it, connected or not.

        Returns:
            ``name``, the new board's from now on; ``was``, its name before; ``id`` and
            ``replaced``, the ids of both; ``waiting_jobs``, how many wait for it now; ``group``,
            whose generation it gets, ``rollout``, the number of the rollout that brings it there,
            or None, and ``note``, why there is none, or "".

        Raises:
            ServerError: the old board is connected, or a rollout is just switching the new one.
        """
        return dict(await self.exchange().request("replace", {"target": old, "new": new}))

    @verb
    async def export_inventory(self, target: str = "all") -> bytes:
        """Return the inventory as a CSV file: names, serial numbers, notes, labels.

        Args:
            target: the boards, connected or not.
        """
        return to_csv(await self.exchange().request("boards", {"target": target}))

    @verb
    async def import_inventory(self, data: bytes, *, dry_run: bool = False) -> list[dict[str, Any]]:
        """Change boards as a CSV file says: all rows, or none; requires the role admin.

        A row is about the board with its ``id`` or, without one, with its ``name``. Columns that
        the file does not have stay as they are; an empty cell removes a label, a serial number or
        a note.

        Args:
            data: the file; see ``export_inventory``.
            dry_run: change nothing, only check.

        Returns:
            For each row ``line``, ``board`` (its name until now), ``changes``, and ``error``: why
            it is wrong, or "". If one is wrong, nothing was changed.

        Raises:
            ValueError: the file is no CSV file, or a column is wrong; nothing was changed.
            ServerError: it changes more than one request may; nothing was changed.
        """
        rows = parse_csv(data)
        check = InventoryCheck(rows, await self.exchange().request("boards", {"target": None}))
        body = {"rows": [row.to_request() for row in check.changed], "dry_run": dry_run}
        reported = await self.exchange().request("import", body) if check.changed else []
        return check.outcomes(reported)

    @verb
    async def rotate(self, target: str) -> dict[str, str]:
        """Give boards new keys; requires the role admin.

        Returns:
            For each board, ``asked``, or ``waits`` if it is busy or not connected. The old key is
            valid until the board has used the new one.
        """
        return dict(await self.exchange().request("rotate", {"target": target}))

    @verb
    async def set_secret(self, name: str, value: str, target: str = "all") -> dict[str, Any]:
        """Store a secret for boards' settings; requires the role admin on all boards.

        A setting ``{"secret": name}`` gets its value; see ``Boards.change_settings``. Boards that
        have an earlier value keep it until their settings are changed.

        Args:
            name: its name.
            value: 4 characters to 4 KB of text; no reply contains it.
            target: the boards that may get it.
        """
        body = {"name": name, "value": value, "target": target}
        return dict(await self.exchange().request("secret-set", body))

    @verb
    async def secrets(self) -> list[dict[str, Any]]:
        """Return ``name``, ``target`` and ``changed`` (seconds since 1970) of each secret."""
        return list(await self.exchange().request("secret-list", {}))

    @verb
    async def remove_secret(self, name: str) -> str:
        """Delete a secret; boards that have its value keep it."""
        return str(await self.exchange().request("secret-remove", {"name": name}))

    @verb
    async def plan(self, path: PathLike) -> FleetPlan:
        """Return what applying a ``fleet.toml`` would change; nothing is changed on boards.

        Packages are resolved, and ``fleet.lock`` beside the file says which were chosen.

        Args:
            path: of the file.

        Raises:
            FleetFileError: the file is wrong; the text names the line or the key.
            OSError: it, or a file that it names, cannot be read.
            ServerError: two of its groups have the same board, for example.
        """
        return await make_plan(self.exchange(), path)

    @verb
    async def apply(self, plan: FleetPlan) -> StartedRollouts:
        """Begin what a plan says; the server carries it out, also when this program ends.

        Args:
            plan: of the method ``plan``.

        Returns:
            The plan, ``rollouts``: the number of the rollout of each group that has begun, and
            ``in_progress``: of each that was begun before and does the same.

        Raises:
            ServerError: the plan is stale: boards or files have changed since.
        """
        return await apply_plan(self.exchange(), plan)

    @verb
    async def rollouts(self) -> RolloutList:
        """Return the newest rollout of each group, with the states of its boards."""
        return RolloutList(await self.exchange().request("fleet-status", {}))

    @verb
    async def rollout_history(self, count: int | None = None) -> list[dict[str, Any]]:
        """Return the newest rollouts, the newest first; at most ``count``."""
        return list(await self.exchange().request("fleet-history", {"count": count}))

    @verb
    async def drift(self) -> dict[str, list[str]]:
        """Return what differs on boards from the newest proven generation of their group.

        Nothing is changed; applying the file again mends it.

        Returns:
            The name of each board that a rollout has proven, with a list of phrases: empty if it
            is as it should be.
        """
        return await find_drift(self.exchange())

    @verb
    async def pause_rollout(self, group: str | None = None) -> list[dict[str, Any]]:
        """Pause the rollout of a group, or all: boards that are being switched finish.

        Returns:
            The rollouts that were paused.
        """
        return list(await self.exchange().request("fleet-pause", {"group": group}))

    @verb
    async def resume_rollout(self, group: str | None = None) -> list[dict[str, Any]]:
        """Let the paused rollout of a group go on, or all; return them."""
        return list(await self.exchange().request("fleet-resume", {"group": group}))

    @verb
    async def abort_rollout(self, group: str | None = None) -> list[dict[str, Any]]:
        """End the rollout of a group, or all: boards that are being switched finish.

        Returns:
            The rollouts that were ended.
        """
        return list(await self.exchange().request("fleet-abort", {"group": group}))

    @verb
    async def roll_back(
        self, generation: str | None = None, *, group: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        """Bring a group back to an earlier generation, as a rollout.

        Args:
            generation: 4 or more digits of its id; by default, the one before.
            group: the name of the group; needed if there are several.
            dry_run: change nothing, but return which boards would change.

        Returns:
            ``group``, ``generation``, ``boards`` (the names of those that change), ``waves`` (how
            many have been reached after each), and ``rollout``: its number, or None.
        """
        body = {"generation": generation, "group": group, "dry_run": dry_run}
        return dict(await self.exchange().request("fleet-rollback", body))

    @verb
    async def change_wifi(
        self,
        ssid: str,
        password: str,
        target: str = "all",
        *,
        keep: bool = False,
        **rollout: Unpack[RolloutKeywords],
    ) -> dict[str, Any]:
        """Give boards another Wi-Fi network, in waves; requires the role admin.

        The server carries it out, also when this program ends. A board keeps its old settings until
        the new ones have worked. The password is in no reply, log or plan.

        Args:
            ssid: the name of the network.
            password: its password; "" for a network without one.
            target: the boards, connected or not.
            keep: whether boards try this network first, and then those that they had before.
            rollout: how it proceeds; see ``RolloutKeywords``.

        Returns:
            ``rollout``: its number; ``group``: "@wifi"; ``what``, ``boards``, ``away`` (names), and
            ``waves``: how many boards are reached by each.
        """
        body = {"target": target, "ssid": ssid, "password": password, "keep": keep}
        return await self._change_network("fleet-wifi", body, rollout)

    @verb
    async def change_server(
        self, host: str, tcp_port: int, target: str = "all", **rollout: Unpack[RolloutKeywords]
    ) -> dict[str, Any]:
        """Let boards connect to another address of the server, in waves; requires the role admin.

        Behind it is this server, another one of the same fleet, or one that has a backup of this
        one. A board keeps the old address until it has connected to the new one. A server with a
        store of its own does not report to this one: a board has moved when it has left and did not
        come back here for three minutes.

        Args:
            host: name or address of the server, as boards reach it.
            tcp_port: its TCP port.
            target: the boards, connected or not.
            rollout: how it proceeds; see ``RolloutKeywords``.

        Returns:
            As ``change_wifi`` does, with ``group``: "@server".
        """
        body = {"target": target, "host": host, "tcp_port": tcp_port}
        return await self._change_network("fleet-server", body, rollout)

    async def _change_network(
        self, verb: str, body: dict[str, Any], rollout: RolloutKeywords
    ) -> dict[str, Any]:
        if unknown := rollout.keys() - RolloutKeywords.__annotations__.keys():
            raise TypeError(f"there is no keyword {min(unknown)!r}")
        options = {
            name: value for name, value in rollout.items() if name not in ("waves", "dry_run")
        }
        waves, dry_run = rollout.get("waves"), rollout.get("dry_run", False)
        body = {**body, "waves": waves and list(waves), "dry_run": dry_run, "options": options}
        return dict(await self.exchange().request(verb, body))

    @verb
    async def jobs(self, target: str | None = None, *, waiting: bool = False) -> JobList:
        """Return running and queued jobs of all users, then jobs that ended recently.

        Args:
            target: the boards; None for all.
            waiting: return the jobs that wait for their boards instead, the oldest first; each has
                ``expires``, when it ends if it has not run.
        """
        body = {"target": target, "waiting": waiting} if waiting else {"target": target}
        return JobList(await self.exchange().request("jobs", body))

    @verb
    async def job(self, number: int) -> dict[str, Any]:
        """Return a job: its record, its outcome, and the last 64 KiB of its output.

        Raises:
            ServerError: the job does not exist.
        """
        return dict(await self.exchange().request("job", {"job": number}))

    @verb
    async def forget_history(
        self,
        target: str | None = None,
        *,
        caller: str | None = None,
        older_than: str | float | None = None,
    ) -> dict[str, Any]:
        """Let the server forget what ran: texts of cells, files, packages, notebooks.

        That jobs ran, for whom, and how they ended, stays. Without the role admin, only what this
        token ran is forgotten.

        Args:
            target: only of these boards; None: of all.
            caller: only of the token with this name.
            older_than: only what ran before: a span such as ``"7d"``, or seconds.

        Returns:
            ``jobs`` and ``texts``: how many; ``erased``: whether the database's files have nothing
            of them any more (docs/security.md).

        Raises:
            ValueError: ``older_than`` is no span.
            ServerError: none of the three is given.
        """
        seconds = parse_span(older_than) if isinstance(older_than, str) else older_than
        body = {"target": target, "caller": caller, "older_than": seconds}
        return dict(await self.exchange().request("history-forget", body))

    @verb
    async def samples(
        self, target: str = "all", count: int | None = None, **when: Unpack[HistoryKeywords]
    ) -> Samples:
        """Return samples of boards (emitted with ``cm.emit``), the newest last.

        Without keywords these are the recent ones, which the server has in memory. With ``since``
        it reads what it has kept: numbers, of days and months ago.

        Args:
            target: the boards, connected or not.
            count: the greatest number of recent samples in total; None for all in memory.
            when: ``since="7d"``, ``until``, ``every="5m"``, ``how="mean"`` (or min, max, last) and
                ``names=["temp"]``; see ``HistoryKeywords``.

        Raises:
            TargetError, NoSuchBoard: ``target`` selects no boards.
            ServerError: the server keeps no samples.
            ValueError: a keyword is wrong, or needs ``since``.
        """
        if when.get("since") is None:
            if any(value is not None for value in when.values()):
                raise ValueError("until, every, how and names need since")
            body = {"target": target, "count": count}
            return Samples(Sample(*row) for row in await self.exchange().request("samples", body))
        if count is not None:
            raise ValueError("count is for recent samples, and has no place beside since")
        return await read_history(self.exchange(), history_request(target, when))

    @verb
    async def interrupt(self, numbers: Sequence[int]) -> int:
        """Interrupt jobs of any user; return how many of them had not ended."""
        return int(await self.exchange().request("interrupt", {"jobs": list(numbers)}))

    @verb
    async def unfinished_jobs(
        self, numbers: Sequence[int], seconds: float = INTERRUPT_GRACE_SECONDS
    ) -> list[int]:
        """Wait until jobs have ended, at most ``seconds``; return those that have not."""
        deadline = time.monotonic() + seconds
        while True:
            jobs = await self.exchange().request("jobs", {"target": None})
            unfinished = {job["job"] for job in jobs if job["status"] is None} & set(numbers)
            if not unfinished or time.monotonic() > deadline:
                return sorted(unfinished)
            await sleep(_POLL_SECONDS)
