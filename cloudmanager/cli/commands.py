"""The verbs of ``mbm`` for the server, boards, jobs and virtual boards.

Each verb's function receives the parsed options, calls the fleet, prints, and returns the exit
status. It has no other logic.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cloudmanager import config, local_server
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS
from cloudmanager.client.run_arguments import (
    add_run_options,
    run_keywords,
    wait_options_error,
)
from cloudmanager.display.progress import ProgressBar
from cloudmanager.display.terminal import print_error, print_text
from cloudmanager.display.text_tables import fleet_table, job_table, job_text
from cloudmanager.display.wait_notice import WaitNotice
from cloudmanager.display.waiting_view import waiting_table, waiting_text
from cloudmanager.protocol.errors import ServerError, TargetError
from cloudmanager.protocol.spans import format_duration
from cloudmanager.protocol.text import fold_names, os_error_text
from cloudmanager.protocol.text_encodings import decode_text

OK, FAILED, USAGE, NO_SERVER = 0, 1, 2, 3
#: Adds a verb to the parser of `mbm`: its name, its function and its help text.
AddVerb = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
#: A backup holds the private key of the server's certificate and the keys of the boards.
_BACKUP_WARNING = "Whoever has this file can act as the server: keep it secret."


def add_server_verbs(add_verb: AddVerb) -> None:
    """Add the verbs for the server to the parser of ``mbm``."""
    add_verb("server-stop", server_stop, "stop the local server")
    backup = add_verb(
        "server-backup", server_backup, "write a backup of the local server to a file"
    )
    backup.add_argument("file", metavar="FILE", help="file to write, such as fleet.tar")
    backup.add_argument(
        "--without-samples",
        action="store_true",
        help="leave out the samples that are kept for days, which may be gigabytes",
    )
    restore = add_verb("server-restore", server_restore, "restore the local server from a backup")
    restore.add_argument("file", metavar="FILE", help="file that server-backup wrote")
    add_verb("server-status", server_status, "show address, version and state of the server")


def add_board_verbs(add_verb: AddVerb) -> None:
    """Add the verbs for boards to the parser of ``mbm``."""
    boards = add_verb("board-list", board_list, "list boards with their state")
    boards.add_argument("target", nargs="?", metavar="TARGET", help="boards to list (default: all)")
    execute = add_verb("board-execute", board_execute, "run a cell on several boards in parallel")
    execute.add_argument(
        "target", metavar="TARGET", help="boards to run it on, such as 'esp-[1-3]' (quote it)"
    )
    execute.add_argument(
        "file", nargs="?", metavar="FILE", help="file with the cell (default: standard input)"
    )
    execute.add_argument("-c", dest="code", metavar="CODE", help="the cell as text")
    add_run_options(execute)
    execute.set_defaults(arguments=[])
    execute.epilog = "What follows -- is in sys.argv on the boards, after FILE: FILE -- -v 5"
    label = add_verb(
        "board-label",
        board_label,
        "set labels of boards; an empty value removes a label",
    )
    label.add_argument("target", metavar="TARGET")
    label.add_argument("labels", nargs="+", metavar="KEY=VALUE", help="such as room=lab, or room=")


def add_job_verbs(add_verb: AddVerb) -> None:
    """Add the verbs for jobs to the parser of ``mbm``."""
    jobs = add_verb("job-list", job_list, "list running jobs, then recently ended ones")
    jobs.add_argument(
        "target", nargs="?", metavar="TARGET", help="boards whose jobs are listed (default: all)"
    )
    jobs.add_argument(
        "--waiting",
        action="store_true",
        help="list the jobs that wait for their boards (--when-online)",
    )
    show = add_verb("job-show", job_show, "show how a job ended and the end of its output")
    show.add_argument("job", type=_job_number, metavar="JOB", help="number of the job")
    stop = add_verb("job-interrupt", job_interrupt, "interrupt jobs of any caller")
    stop.add_argument("jobs", type=_job_number, nargs="+", metavar="JOB", help="number of a job")


def _job_number(text: str) -> int:
    """Read the number of a job from the command line."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the number of a job; `mbm job-list` shows them"
        ) from None


def add_virtual_verbs(add_verb: AddVerb) -> None:
    """Add the verbs for virtual boards to the parser of ``mbm``."""
    virtual = add_verb("simulate", simulate, "start virtual boards (real MicroPython processes)")
    virtual.add_argument(
        "count",
        type=_parse_count,
        nargs="?",
        default=1,
        metavar="N",
        help="number of boards (default: 1)",
    )
    virtual.add_argument(
        "--name",
        metavar="PREFIX",
        help="the boards are named PREFIX-1, PREFIX-2 … (default: sim); "
        "with --stop, only those are stopped",
    )
    virtual.add_argument(
        "--heap", type=_check_size, metavar="SIZE", help="heap of each board (default: 128k)"
    )
    virtual.add_argument(
        "--flash", type=_check_size, metavar="SIZE", help="file system of each board (default: 1M)"
    )
    virtual.add_argument(
        "--detach", action="store_true", help="keep the boards running in the background"
    )
    virtual.add_argument(
        "--allow-remote",
        action="store_true",
        help="allow a server that other machines can reach",
    )
    virtual.add_argument(
        "--stop", action="store_true", help="stop detached boards: all, or those of --name"
    )
    show = add_verb("demo", demo, "start three virtual boards, run cells on them, open JupyterLab")
    show.add_argument(
        "--no-lab", dest="lab", action="store_false", help="stop after the cells; no JupyterLab"
    )


# The server


def server_stop(options: argparse.Namespace) -> int:
    """Stop the local server."""
    with ProgressBar("stopping the server", quiet=options.json):
        url = local_server.stop()
    if options.json:
        print_json({"url": url})
    elif url is None:
        print("No local server is running.")
    else:
        print(f"The server at {url} has stopped.")
    return OK if url else NO_SERVER


def server_status(options: argparse.Namespace) -> int:
    """Show the state of the server."""
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
    if len(status["servers"]) > 1 or status["bus"] != "none":
        print(f"store    {status['store']}")
        print(f"bus      {status['bus']}")
        print(f"servers  {', '.join(status['servers'])}")
    print(f"process  {status['pid']}")
    for problem in status.get("problems", []):
        print(f"problem  {problem}")
    return OK


def server_backup(options: argparse.Namespace) -> int:
    """Save the local server's data and keys to a file."""
    with ProgressBar("saving", quiet=options.json):
        saved = local_server.back_up(Path(options.file), with_samples=not options.without_samples)
    _print_notes(saved.notes)
    text = f"Saved {', '.join(saved.files)} to {options.file}."
    return print_outcome(options, saved.files, f"{text} {_BACKUP_WARNING}")


def server_restore(options: argparse.Namespace) -> int:
    """Replace the local server's data and keys by those of a backup."""
    with ProgressBar("restoring", quiet=options.json):
        saved = local_server.restore(Path(options.file))
    _print_notes(saved.notes)
    text = f"Restored {', '.join(saved.files)} from {options.file}."
    return print_outcome(options, saved.files, f"{text} {_BACKUP_WARNING}")


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print_error(note, role="warn")


# Boards


def board_list(options: argparse.Namespace) -> int:
    """List boards."""
    with Fleet() as fleet:
        boards = fleet.boards(options.target)
    return print_outcome(options, boards, fleet_table(boards))


def board_execute(options: argparse.Namespace) -> int:
    """Run a cell on boards."""
    from cloudmanager.display.terminal import follow_cell

    if error := wait_options_error(options):
        options.verb_parser.error(error)
    code = _read_code(options)
    given = run_keywords(options)
    argv = _board_argv(options)
    with Fleet() as fleet:
        boards = fleet[options.target]
        if options.json:
            results = boards.run(code, argv=argv, **given)
            print_json({name: result.to_json() for name, result in results.items()})
        elif options.when_online:
            results = boards.run(code, argv=argv, **given)
            print_text(waiting_text(results))
        else:
            answers = _is_interactive()
            group = boards.submit(code, argv=argv, **given, listen=True, answers=answers)
            shows_waits = len(group.jobs) > 1 and sys.stdout.isatty()  # in its live display
            with WaitNotice(fleet.queued_jobs, quiet=shows_waits):
                results = follow_cell(group)
    return OK if results.ok else FAILED


def _board_argv(options: argparse.Namespace) -> list[str] | None:
    """Return what ``sys.argv`` contains, as for python; None for a cell that is no program."""
    is_file = options.file is not None and options.file != "-"
    if not is_file and not options.arguments:
        return None
    name = "-c" if options.code is not None else options.file or "-"
    return [name, *options.arguments]


def board_label(options: argparse.Namespace) -> int:
    """Set labels on boards."""
    labels = dict(pair.partition("=")[::2] for pair in options.labels)
    if not all("=" in pair for pair in options.labels):
        raise TargetError(
            "A label is written key=value.", " ".join(options.labels), 0, "`key=` removes a label."
        )
    with Fleet() as fleet:
        names = fleet[options.target].label(labels)
    return print_outcome(options, names, f"{fold_names(names)}: {', '.join(options.labels)}")


def _read_code(options: argparse.Namespace) -> str:
    """Return the cell from ``-c``, a file or standard input; exit with a message if unreadable."""
    if options.code is not None:
        # UTF-8 also if the locale of this process has another encoding.
        return os.fsencode(options.code).decode("utf-8", "surrogateescape")
    from_stdin = options.file is None or options.file == "-"
    try:
        if from_stdin:
            if sys.stdin.isatty():
                print("Reading the cell from standard input; Ctrl-D ends it.", file=sys.stderr)
            return decode_text(sys.stdin.buffer.read())
        return decode_text(Path(options.file).read_bytes())
    except OSError as error:
        error.filename = "standard input" if from_stdin else options.file
        is_missing = isinstance(error, FileNotFoundError) and not from_stdin
        hint = " Give code with -c." if is_missing and not options.file.endswith(".py") else ""
        print_error(os_error_text(error) + hint)
    except UnicodeDecodeError:
        name = "standard input" if from_stdin else options.file
        print_error(f"{name} is not UTF-8 text.")
    sys.exit(USAGE)


def _is_interactive() -> bool:
    return sys.stdin.isatty()


# Jobs


def job_list(options: argparse.Namespace) -> int:
    """List jobs."""
    with Fleet() as fleet:
        jobs = fleet.jobs(options.target, waiting=options.waiting)
    text = waiting_table(jobs) if options.waiting else job_table(jobs)
    return print_outcome(options, jobs, text)


def job_show(options: argparse.Namespace) -> int:
    """Show one job."""
    with Fleet() as fleet:
        job = fleet.job(options.job)
    return print_outcome(options, job, job_text(job))


def job_interrupt(options: argparse.Namespace) -> int:
    """Interrupt jobs."""
    with Fleet() as fleet:
        with ProgressBar("waiting for the boards", quiet=options.json):
            count = fleet.interrupt(options.jobs)
            left = fleet.unfinished_jobs(options.jobs) if count else []
        unknown = _count_unknown(fleet, count, options.jobs)
    text = _interrupt_text(count, unknown, len(set(options.jobs)), options.jobs[0])
    if not left:
        print_outcome(options, {"interrupted": count}, text)
        return FAILED if unknown else OK
    numbers = ", ".join(map(str, left))
    text += (
        f" Still running after {INTERRUPT_GRACE_SECONDS:g} s: {numbers}. "
        "The code there ignores interrupts."
    )
    print_outcome(options, {"interrupted": count - len(left), "open": left}, text)
    return FAILED


def _count_unknown(fleet: Fleet, interrupted: int, numbers: Sequence[int]) -> int:
    """Return how many jobs do not exist, of those with these numbers."""
    if interrupted == len(set(numbers)):
        return 0
    known = {job["job"] for job in fleet.jobs()}
    return sum(not (number in known or _exists(fleet, number)) for number in set(numbers))


def _interrupt_text(interrupted: int, unknown: int, count: int, first: int) -> str:
    """Return how many jobs were interrupted, and why the others were not."""
    if interrupted == count:
        return f"Interrupted job {first}." if count == 1 else f"Interrupted {count} jobs."
    ended = count - interrupted - unknown
    parts = [f"{ended} had already ended"] if ended else []
    if unknown:
        parts.append(f"{unknown} {'does' if unknown == 1 else 'do'} not exist")
    return f"Interrupted {interrupted} of {count} jobs; {', '.join(parts)}."


def _exists(fleet: Fleet, number: int) -> bool:
    """Whether there is a job with this number."""
    try:
        fleet.job(number)
    except ServerError:
        return False
    return True


# Virtual boards


def simulate(options: argparse.Namespace) -> int:
    """Start virtual boards, or stop those that were detached."""
    from cloudmanager.virtual import simulate as virtual_boards

    config.require_posix("Virtual boards need")
    if options.stop:
        return _stop_virtual_boards(options)
    names = virtual_boards.numbered_names(options.name or "sim", options.count)
    sizes = {"heap": options.heap, "flash": options.flash}
    given = {name: size for name, size in sizes.items() if size}
    with Fleet() as fleet:
        with ProgressBar("starting the boards", quiet=options.json):
            boards = virtual_boards.simulate(
                fleet, names, detach=options.detach, allow_remote=options.allow_remote, **given
            )
        if options.json:
            print_json(boards.pids)
        else:
            print(f"{fold_names(names)} joined {fleet.address.url}", flush=True)
    if options.detach:
        name = f" --name {options.name}" if options.name else ""
        print(f"Stop them with `mbm simulate --stop{name}`.", file=sys.stderr)
        return OK
    try:
        print("Press Ctrl-C to stop them.", file=sys.stderr)
        signal.pause()
    finally:
        boards.stop()
        print(f"\n{_stopped_text(names)}", file=sys.stderr)
    return OK


def _stopped_text(names: Sequence[str]) -> str:
    """Return what remains of virtual boards that were stopped."""
    stay = "It stays" if len(names) == 1 else "They stay"
    them = "it" if len(names) == 1 else "them"
    target = fold_names(names)
    quoted = target if len(names) == 1 else f"'{target}'"
    return (
        f"Stopped {target}. {stay} in the fleet as offline; "
        f"`mbm board-revoke {quoted}` removes {them}."
    )


def _stop_virtual_boards(options: argparse.Namespace) -> int:
    from cloudmanager.virtual.simulate import boards_folder
    from cloudmanager.virtual.virtual_boards import detached_boards, stop_detached

    with ProgressBar("stopping the boards", quiet=options.json):
        stopped = stop_detached(boards_folder(), options.name or "")
    if stopped:
        return print_outcome(options, {"stopped": stopped}, _stopped_text(stopped))
    text = "No detached virtual boards are running."
    others = detached_boards(boards_folder())
    if others:
        text = f"No detached virtual board is called {options.name}-1; "
        text += f"{fold_names(others)} {'is' if len(others) == 1 else 'are'} running."
    print_outcome(options, {"stopped": []}, text)
    return FAILED if others else OK


def demo(options: argparse.Namespace) -> int:
    """Run the demo."""
    from .demo import demo as show

    config.require_posix("The demo needs")
    # When its terminal is closed, the demo also stops everything that it started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return show(_print_paragraph, lab=options.lab)


def _print_paragraph(paragraph: str) -> None:
    print(paragraph, end="\n\n", flush=True)


@contextlib.contextmanager
def open_fleet(options: argparse.Namespace) -> Iterator[Fleet]:
    """Open the fleet for a verb whose jobs may have to wait: say so, unless with ``--json``."""
    with Fleet() as fleet, WaitNotice(fleet.queued_jobs, quiet=options.json):
        yield fleet


def print_outcome(options: argparse.Namespace, data: Any, text: str) -> int:
    """Print the outcome of a verb, as JSON with ``--json``, else as text; return status 0."""
    if options.json:
        print_json(data)
    else:
        print_text(text)
    return OK


def print_json(body: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(body, indent=2))


# Arguments


def check_writable(path: Path) -> None:
    """Check that a file can be written, before something is made that could not be kept.

    Raises:
        OSError: it cannot.
    """
    folder = path.absolute().parent
    number = 0
    if not folder.is_dir():
        number = errno.ENOENT
    elif path.is_dir():
        number = errno.EISDIR
    elif not os.access(folder, os.W_OK):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(path))


def _parse_count(text: str) -> int:
    if text.isdecimal() and 0 < int(text[:5]) <= 1000:
        return int(text)
    raise argparse.ArgumentTypeError("give a number from 1 to 1000")


def _check_size(text: str) -> str:
    if re.fullmatch("[1-9][0-9]{0,8}[kKmM]?", text):
        return text
    raise argparse.ArgumentTypeError("give a number of bytes, such as 64k or 1M")
