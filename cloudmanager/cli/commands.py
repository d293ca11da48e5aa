"""What each verb of ``mbm`` does: call the fleet, print; no logic of its own.

Each takes the options that cli.py parsed, and returns the exit status.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cloudmanager import local_server
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS
from cloudmanager.client.verbs import still_open
from cloudmanager.display.tables import fleet_table, format_duration, job_table, job_text
from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.text import fold_names

OK, FAILED, USAGE, NO_SERVER = 0, 1, 2, 3
#: Adds a verb to `mbm`: its name, what it does, and its help.
AddVerb = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


# The server


def server_start(options: argparse.Namespace) -> int:
    """Start the local server."""
    given = {
        "--cert": options.cert,
        "--key": options.key,
        "--behind-proxy": options.proxy,
        "--samples": options.samples,
    }
    more = [text for name, value in given.items() if value for text in (name, value)]
    more += [text for alias, url in options.index for text in ("--index", f"{alias}={url}")]
    more += ["--log-json"] if options.log_json else []
    more += ["--keep-jobs", str(options.keep_jobs)] if options.keep_jobs else []
    more += ["--keep-audit", str(options.keep_audit)] if options.keep_audit else []
    started = local_server.start(options.listen, options.port, more)
    _say_notes(started.notes)
    if options.json:
        url, already, listens, _ = started
        print_json({"url": url, "already": already, "listens": listens})
    elif started.already:
        print(f"The server runs already, at {started.url}")
    else:
        print(f"The server listens on {started.listens}")
    return OK


def server_stop(options: argparse.Namespace) -> int:
    """Stop the local server."""
    url = local_server.stop()
    if options.json:
        print_json({"url": url})
    elif url is None:
        print("No local server runs.")
    else:
        print(f"The server at {url} has stopped.")
    return OK if url else NO_SERVER


def server_status(options: argparse.Namespace) -> int:
    """Tell how the server is."""
    with Fleet() as fleet:
        status = fleet.status()
    if options.json:
        print_json(status)
        return OK
    print(f"address  {status['address']}")
    print(f"version  {status['version']}")
    print(f"uptime   {format_duration(status['uptime'])}")
    print(
        f"boards   {status['boards']} enrolled, {status['online']} connected, {status['busy']} busy"
    )
    print(f"process  {status['pid']}")
    for problem in status.get("problems", []):
        print(f"problem  {problem}")
    return OK


def server_backup(options: argparse.Namespace) -> int:
    """Save the local server into a file."""
    return _print_backup(options, local_server.back_up(Path(options.file)), "holds")


def server_restore(options: argparse.Namespace) -> int:
    """Make the local server what it was at a backup."""
    return _print_backup(options, local_server.restore(Path(options.file)), "gave back")


def _print_backup(options: argparse.Namespace, saved: local_server.Saved, verb: str) -> int:
    _say_notes(saved.notes)
    held = f"{options.file} {verb} {', '.join(saved.files)}"
    return print_outcome(options, saved.files, f"{held}. Who has it is the server: keep it secret.")


def _say_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"mbm: {note}", file=sys.stderr)


# Boards


def board_list(options: argparse.Namespace) -> int:
    """List boards."""
    with Fleet() as fleet:
        boards = fleet.boards(options.target)
    return print_outcome(options, boards, fleet_table(boards))


def board_execute(options: argparse.Namespace) -> int:
    """Run a cell on boards."""
    from cloudmanager.display.terminal import follow_cell

    code = _read_code(options)
    with Fleet() as fleet:
        boards = fleet[options.target]
        given = {"timeout": options.timeout, "fresh": options.fresh, "wait": options.wait}
        if options.json:
            results = boards.run(code, **given)
            print_json({name: result.to_json() for name, result in results.items()})
        else:
            group = boards.submit(code, **given, listen=True, answers=_is_interactive())
            results = follow_cell(group)
    return OK if results.ok else FAILED


def board_label(options: argparse.Namespace) -> int:
    """Set labels on boards."""
    labels = dict(pair.partition("=")[::2] for pair in options.labels)
    if not all("=" in pair for pair in options.labels):
        raise TargetError(
            "a label is given as key=value", " ".join(options.labels), 0, "`key=` takes one away."
        )
    with Fleet() as fleet:
        names = fleet[options.target].label(labels)
    return print_outcome(options, names, f"{fold_names(names)}: {', '.join(options.labels)}")


def _read_code(options: argparse.Namespace) -> str:
    if options.code is not None:
        return str(options.code)
    from_stdin = options.file is None or options.file == "-"
    try:
        if from_stdin:
            return sys.stdin.buffer.read().decode()
        return Path(options.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        name = "standard input" if from_stdin else options.file
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        print(f"mbm: {name} cannot be read: {why}.", file=sys.stderr)
        sys.exit(USAGE)


def _is_interactive() -> bool:
    return sys.stdin.isatty()


# Jobs


def job_list(options: argparse.Namespace) -> int:
    """List jobs."""
    with Fleet() as fleet:
        jobs = fleet.jobs(options.target)
    return print_outcome(options, jobs, job_table(jobs))


def job_show(options: argparse.Namespace) -> int:
    """Show one job."""
    with Fleet() as fleet:
        job = fleet.job(options.job)
    return print_outcome(options, job, job_text(job))


def job_interrupt(options: argparse.Namespace) -> int:
    """Interrupt jobs."""
    with Fleet() as fleet:
        count = fleet.interrupt(options.jobs)
        left = still_open(fleet, options.jobs) if count else []
    text = f"{count} of {len(options.jobs)} had not ended and were interrupted."
    if not left:
        return print_outcome(options, {"interrupted": count}, text)
    numbers = ", ".join(map(str, left))
    text += (
        f" Not ended within {INTERRUPT_GRACE_SECONDS:g} s: {numbers}. What runs there ignores it."
    )
    print_outcome(options, {"interrupted": count - len(left), "open": left}, text)
    return FAILED


# Virtual boards


def simulate(options: argparse.Namespace) -> int:
    """Have virtual boards, or end those that were detached."""
    from cloudmanager.virtual import simulate as virtual_boards
    from cloudmanager.virtual.virtual_boards import stop_detached

    if options.stop:
        stopped = stop_detached(virtual_boards.boards_folder())
        print(
            "The detached virtual boards stopped." if stopped else "No detached virtual boards run."
        )
        return OK
    names = virtual_boards.numbered_names(options.name, options.count)
    sizes = {"heap": options.heap, "flash": options.flash}
    given = {name: size for name, size in sizes.items() if size}
    with Fleet() as fleet:
        boards = virtual_boards.simulate(
            fleet, names, detach=options.detach, allow_remote=options.allow_remote, **given
        )
        if options.json:
            print_json(boards.pids)
        else:
            print(f"{fold_names(names)} joined {fleet.address.url}", flush=True)
    if options.detach:
        print("They run until `mbm simulate --stop`.", file=sys.stderr)
        return OK
    try:
        print("Ctrl-C ends them.", file=sys.stderr)
        signal.pause()
    finally:
        boards.stop()
    return OK


def demo(options: argparse.Namespace) -> int:
    """Show it all."""
    from .demo import demo as show

    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends all that it began, too
        signal.signal(number, signal.default_int_handler)
    return show(_print_paragraph, lab=options.lab)


def _print_paragraph(paragraph: str) -> None:
    print(paragraph, end="\n\n", flush=True)


def print_outcome(options: argparse.Namespace, data: Any, text: str) -> int:
    """Print what came of a verb, as JSON for programs or as text; return the exit status."""
    if options.json:
        print_json(data)
    else:
        print(text)
    return OK


def print_json(body: Any) -> None:
    """Print what `--json` asks for."""
    print(json.dumps(body, indent=2))
