"""``Health``: what is wrong in a fleet, each with what to do; no I/O.

The server says what it knows of boards, of their restarts and errors; here it is judged. Boards are
not trusted: all text from them passes ``sanitize_text``.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.facts import reset_text
from cloudmanager.protocol.spans import format_duration
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.rows import format_time, html_rows

#: Below these a board is close to failing. TLS alone needs 17 KB of heap in one piece for a moment;
#: an upgrade of the client needs 51 KB of flash beside the old one (client_upgrade.py).
WEAK_RSSI_DBM: Final = -80
LOW_HEAP_BYTES: Final = 8 * 1024
LOW_FLASH_BYTES: Final = 56 * 1024
MANY_RESTARTS: Final = 3  # in a day; fewer are somebody's work, or the power company's
_SAME_TIME_SECONDS: Final = 300.0  # boards that left within it are one finding
_MAX_SHOWN: Final = 20  # findings in text: one screen
_MAX_NAME_CHARS: Final = 60  # of folded names in a sentence
_MAX_ERROR_CHARS: Final = 120  # of the last line of a traceback in a sentence
_SAFE_MODE: Final = "safe mode"  # the beginning of a program's state, as clients report it
_LOCATION: Final = re.compile(r'^\s*File "([^"]*)", line ([0-9]+)', re.M)
#: machine.reset_cause() -> what to do about many restarts.
_RESET_ADVICE: Final = {
    "pwron": "Check the power supply and its cable.",
    "hard": "Check the power supply, and whether the program crashes the chip.",
    "wdt": "The program resets the board, or the watchdog does: see `mbm board-logs {board}`.",
    "soft": "Something restarts the board: see `mbm job-list {board}`, and its program.",
    "": "See `mbm board-logs {board}`, and check the power supply.",
}


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        kind: "server", "rollout", "absent", "overdue", "safe mode", "crashed", "restarting",
            "weak signal", "low heap", "low flash" or "old client".
        boards: which boards it concerns; empty for the server.
        text: what is wrong, as the part of a sentence that follows the boards.
        advice: what to do, in a sentence.
        since: when it began, in seconds since 1970; None if that is not known.
        detail: the whole traceback of an error, if the server has it; else "".
    """

    kind: str
    boards: tuple[str, ...]
    text: str
    advice: str
    since: float | None = None
    detail: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong, with the boards, and what to do."""
        lead = f"{_names_text(self.boards)}: " if self.boards else ""
        return " ".join(filter(None, (f"{lead}{self.text}.", self.advice)))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**self._asdict(), "boards": list(self.boards)}


@dataclass(frozen=True)
class Health:
    """The state of a fleet: what is wrong, the worst first.

    Attributes:
        findings: what is wrong; empty if nothing is.
        boards: the number of all boards.
        connected: the number of those that are connected.
    """

    findings: tuple[Finding, ...]
    boards: int
    connected: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """Return True; ``ok`` says whether nothing is wrong."""
        return True

    def of_board(self, name: str) -> list[Finding]:
        """Return the findings about one board."""
        return [finding for finding in self.findings if name in finding.boards]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        findings = [finding.to_json() for finding in self.findings]
        return {"boards": self.boards, "connected": self.connected, "findings": findings}

    @property
    def summary(self) -> str:
        """The number of boards and of findings, in a sentence."""
        boards = f"{self.boards} board{'' if self.boards == 1 else 's'}"
        if self.ok:
            return f"{boards}, {self.connected} connected: nothing is wrong."
        count = f"{len(self)} finding{'' if len(self) == 1 else 's'}"
        return f"{boards}, {self.connected} connected, {count}:"

    def __repr__(self) -> str:
        """Return the summary, and a line for each of the first findings."""
        shown = self.findings[:_MAX_SHOWN]
        width = max((len(finding.kind) for finding in shown), default=0)
        lines = [f"{finding.kind:<{width}}  {finding.sentence}" for finding in shown]
        left = len(self) - len(shown)
        note = [f"… and {left} more; `mbm fleet-health --json` shows all"] if left else []
        return "\n".join([self.summary, *lines, *note])

    def _repr_html_(self) -> str | None:
        if self.ok:
            return None  # the text says it
        rows = [
            (each.kind, _names_text(each.boards) or "-", each.text, each.advice)
            for each in self.findings[:_MAX_SHOWN]
        ]
        return html_rows(("finding", "boards", "what", "what to do"), rows, len(self))


def find_problems(
    boards: Sequence[Mapping[str, Any]],
    reported: Mapping[str, Any],
    own_parts: frozenset[str],
    server_problems: Iterable[str] = (),
    rollouts: Iterable[Mapping[str, Any]] = (),
) -> Health:
    """Judge the state of a fleet.

    Args:
        boards: as the verb ``boards`` describes them.
        reported: the reply of the verb ``health``.
        own_parts: the parts of the client that this version installs.
        server_problems: as the verb ``status`` lists them.
        rollouts: the newest of each group, as the verb ``fleet-status`` describes them.
    """
    now = time.time()
    online = [board for board in boards if board["connected_since"]]
    findings = [
        *(Finding("server", (), sanitize_text(text).rstrip("."), "") for text in server_problems),
        *_overdue(boards),
        *_absent(boards, now),
        *_stopped_rollouts(rollouts),
        *_safe_mode(boards, reported),
        *_crashed(boards, reported, now),
        *_restarting(reported),
        *_measured(online),
        *_old_clients(reported, own_parts),
    ]
    return Health(tuple(findings), len(boards), len(online))


def _overdue(boards: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield a finding for the boards that sleep for longer than they said."""
    late = sorted(
        (float(board["wakes_at"]), str(board["name"]))
        for board in boards
        if board["state"] == "overdue"
    )
    if late:
        advice = "Check battery and Wi-Fi of {board}; `mbm board-logs {board}` shows its log."
        text = f"did not wake at {format_time(late[0][0])}"
        yield _finding("overdue", [name for _, name in late], text, advice, late[0][0])


def _absent(boards: Sequence[Mapping[str, Any]], now: float) -> Iterator[Finding]:
    """Yield a finding for the boards that left at about the same time, the last ones first."""
    absent = [
        board
        for board in boards
        if not board["connected_since"] and board["state"] not in ("asleep", "overdue")
    ]
    never = [str(board["name"]) for board in absent if not board["last_seen"]]
    seen = [
        (float(board["last_seen"]), str(board["name"])) for board in absent if board["last_seen"]
    ]
    group: list[tuple[float, str]] = []
    for at, name in sorted(seen, reverse=True):
        if group and group[-1][0] - at > _SAME_TIME_SECONDS:
            yield _absent_finding(group, now)
            group = []
        group.append((at, name))
    if group:
        yield _absent_finding(group, now)
    if never:
        advice = (
            "Write the settings that `mbm board-enrol {board}` prints, with a new key, to /cm.json "
            "on {board}, or remove it: `mbm board-revoke {board}`."
        )
        yield _finding("absent", never, "never connected since enrolment", advice)


def _absent_finding(group: Sequence[tuple[float, str]], now: float) -> Finding:
    since = group[0][0]
    text = f"not connected since {format_time(since)} ({format_duration(now - since)})"
    advice = (
        "Check power and Wi-Fi of {board}; `mbm board-info {board}` shows what it last reported."
        if len(group) == 1
        else "Check what they share: power, access point, network."
    )
    return _finding("absent", [name for _, name in group], text, advice, since)


def _stopped_rollouts(rollouts: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield a finding for each rollout that failed or is paused, or in which boards failed."""
    for rollout in rollouts:
        state, group = rollout["state"], sanitize_text(str(rollout["group"]))
        failed = [each for each in rollout["boards"] if each["state"] == "failed"]
        names = [str(each["board"]) for each in failed]
        about = f"rollout {rollout['rollout']} of {group}"
        reason = _short(str(rollout["why"]))
        since = float(rollout["changed"])
        if state == "paused":
            why = f" ({reason})" if reason else ""
            advice = f"`mbm fleet-resume {shlex.quote(group)}` lets it go on."
            yield Finding("rollout", (), f"{about} is paused{why}", advice, since)
        elif state == "failed":
            text = f"{about} failed ({reason})"
            yield Finding("rollout", tuple(names), text, "`mbm fleet-status` says why.", since)
        elif names:
            text = f"failed in {about} ({_short(str(failed[0]['why']))})"
            advice = "Applying its file again tries it again; `mbm fleet-status` says more."
            yield Finding("rollout", tuple(names), text, advice, since)


def _safe_mode(
    boards: Sequence[Mapping[str, Any]], reported: Mapping[str, Any]
) -> Iterator[Finding]:
    states: dict[str, list[str]] = {}
    for board in boards:
        if board["connected_since"] and str(board["program"]).startswith(_SAFE_MODE):
            states.setdefault(str(board["program"]), []).append(str(board["name"]))
    for state, names in states.items():
        yield _finding(
            "safe mode",
            names,
            f"app.py is not started any more ({_short(state.partition(': ')[2])})",
            "Upload a corrected one: `mbm board-upload {board} app.py :`, "
            "then `mbm board {board} reset`.",
            _first_crash(names, reported),
        )


def _first_crash(names: Sequence[str], reported: Mapping[str, Any]) -> float | None:
    times = [each["first"] for each in reported["crashes"] if set(names) & set(each["boards"])]
    return min(times, default=None)


def _crashed(
    boards: Sequence[Mapping[str, Any]], reported: Mapping[str, Any], now: float
) -> Iterator[Finding]:
    """Yield a finding for each error, without boards that are in safe mode after it."""
    in_safe_mode = {
        str(board["name"]): str(board["program"])
        for board in boards
        if board["connected_since"] and str(board["program"]).startswith(_SAFE_MODE)
    }
    for crash in reported["crashes"]:
        text = crash["text"]
        error = "an error, which is in the log" if text is None else _error_text(str(text))
        end = "" if text is None else str(text).rpartition("\n")[2]
        names = [
            name for name in crash["boards"] if not (end and end in in_safe_mode.get(name, ""))
        ]
        if not names:
            continue
        first, last = float(crash["first"]), float(crash["last"])
        when = format_time(first)
        if last - first >= 1.0:
            when = f"first {when}, last {format_duration(now - last)} ago"
        detail = sanitize_text(str(text)) if text is not None and "\n" in str(text) else ""
        advice = "`mbm board-logs {board}` shows what was printed before it."
        yield _finding("crashed", names, f"{error} ({when})", advice, first)._replace(detail=detail)


def _error_text(text: str) -> str:
    """Return the last line of a traceback, with the place in the program, if that is known."""
    places = _LOCATION.findall(text)
    place = f" ({sanitize_text(places[-1][0])}, line {places[-1][1]})" if places else ""
    return _short(text.rpartition("\n")[2]) + place


def _restarting(reported: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding for the boards that restarted often, those with the same causes together."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name, counts in reported["restarts"].items():
        total = sum(counts.values())
        if total >= MANY_RESTARTS:
            cause = max(counts, key=lambda each: counts[each])
            groups.setdefault(cause, []).append((total, name))
    for cause, found in sorted(groups.items(), key=lambda item: -max(item[1])[0]):
        totals = [total for total, _ in found]
        times = _range_text(min(totals), max(totals))
        why = sanitize_text(reset_text(cause)) or "cause unknown"
        text = f"restarted {times} times in {reported['hours']} h, mostly: {why}"
        advice = _RESET_ADVICE.get(cause, _RESET_ADVICE[""])
        yield _finding("restarting", [name for _, name in found], text, advice)


class _Measure(NamedTuple):
    """A number that boards report, and what is too low.

    Attributes:
        kind: of the finding.
        fact: the name of the fact.
        limit: what is below it is too low.
        text: what is wrong, with ``{}`` for the values.
        show: returns a value as text.
        advice: what to do.
    """

    kind: str
    fact: str
    limit: int
    text: str
    show: Callable[[int], str]
    advice: str


_MEASURES: Final = (
    _Measure(
        "weak signal",
        "rssi",
        WEAK_RSSI_DBM,
        "weak Wi-Fi ({} dBm)",
        str,
        "Move board or access point, or use another antenna.",
    ),
    _Measure(
        "low heap",
        "heap",
        LOW_HEAP_BYTES,
        "little free heap ({} KB)",
        lambda size: f"{size / 1024:.1f}",
        "Restart it: `mbm board {board} reset`; if that does not last, its program keeps too much.",
    ),
    _Measure(
        "low flash",
        "flash",
        LOW_FLASH_BYTES,
        "little free flash ({} KB)",
        lambda size: f"{size / 1024:.1f}",
        "Remove files: `mbm board {board} ls -r`. An upgrade of the client needs 51 KB.",
    ),
)


def _measured(online: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for measure in _MEASURES:
        low = {
            str(board["name"]): int(board[measure.fact])
            for board in online
            if isinstance(board.get(measure.fact), int) and board[measure.fact] < measure.limit
        }
        if low:
            values = _range_text(*map(measure.show, (min(low.values()), max(low.values()))))
            yield _finding(measure.kind, list(low), measure.text.format(values), measure.advice)


def _old_clients(reported: Mapping[str, Any], own_parts: frozenset[str]) -> Iterator[Finding]:
    """Yield a finding for boards whose client lacks files of this version's client.

    A client that is frozen into firmware cannot name its files, and a bridged board has no client.
    """
    old = [
        name
        for parts, names in reported["parts"]
        if "link" in parts and not own_parts <= set(parts)
        for name in names
    ]
    if old:
        advice = "Upgrade it: `mbm board-upgrade-client {boards}`."
        yield _finding("old client", old, "its client is older than this version's", advice)


def _finding(
    kind: str, names: Sequence[str], text: str, advice: str, since: float | None = None
) -> Finding:
    """Return a finding; ``{board}`` and ``{boards}`` in the advice become names."""
    text_of_all = fold_names(names)
    filled = advice.format(board=names[0], boards=f"'{text_of_all}'")
    return Finding(kind, tuple(names), text, filled, since)


def _names_text(names: Sequence[str]) -> str:
    """Return names as a target; of a long one, the number of boards and the first of them."""
    text = fold_names(names)
    if len(text) <= _MAX_NAME_CHARS:
        return text
    cut = text[:_MAX_NAME_CHARS].rpartition(",")[0] or text[:_MAX_NAME_CHARS]
    return f"{len(names)} boards ({cut},…)"


def _short(text: str) -> str:
    line = sanitize_text(text).replace("\n", " ")
    return line if len(line) <= _MAX_ERROR_CHARS else line[: _MAX_ERROR_CHARS - 1] + "…"


def _range_text(low: object, high: object) -> str:
    return str(low) if low == high else f"{low} to {high}"
