"""``mbm``: parse, call the fleet, print; no logic of its own.

Exit status: 0 all boards fine, 1 a board (or the server) failed, 2 usage, 3 no server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import config, service
from .errors import (
    CellSyntaxError,
    CloudmanagerError,
    NoSuchBoard,
    ServerUnreachable,
    TargetError,
)
from .fleet import Fleet
from .tables import duration, fleet_table, job_table, job_text
from .text import fold

OK, FAILED, USAGE, NO_SERVER = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm`` and exit."""
    options = _parse(arguments)
    act: Callable[[argparse.Namespace], int] = options.act
    try:
        status = act(options)
        sys.stdout.flush()
    except ServerUnreachable as error:
        status = _complain(error, NO_SERVER)
    except (TargetError, NoSuchBoard, CellSyntaxError) as error:
        status = _complain(error, USAGE)
    except CloudmanagerError as error:
        status = _complain(error, FAILED)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # `mbm … | head`: what is left to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status)


def _complain(error: Exception, status: int) -> int:
    print(f"mbm: {error}", file=sys.stderr)
    return status


# The server


def _server_start(options: argparse.Namespace) -> int:
    started = service.start(options.listen, options.port)
    if options.json:
        _print_json(started._asdict())
    elif started.already:
        print(f"The server runs already, at {started.url}")
    else:
        print(f"The server listens on {started.url}")
    return OK


def _server_stop(options: argparse.Namespace) -> int:
    url = service.stop()
    if options.json:
        _print_json({"url": url})
    elif url is None:
        print("No local server runs.")
    else:
        print(f"The server at {url} has stopped.")
    return OK if url else NO_SERVER


def _server_status(options: argparse.Namespace) -> int:
    with Fleet() as fleet:
        status = fleet.status()
    if options.json:
        _print_json(status)
        return OK
    print(f"address  {status['address']}")
    print(f"version  {status['version']}")
    print(f"uptime   {duration(status['uptime'])}")
    print(
        f"boards   {status['boards']} enrolled, {status['online']} connected, {status['busy']} busy"
    )
    print(f"process  {status['pid']}")
    return OK


# Boards


def _board_list(options: argparse.Namespace) -> int:
    with Fleet() as fleet:
        boards = fleet.boards(options.target)
    if options.json:
        _print_json(boards)
    else:
        print(fleet_table(boards))
    return OK


def _board_execute(options: argparse.Namespace) -> int:
    from .terminal import follow

    code = _code(options)
    with Fleet() as fleet:
        boards = fleet[options.target]
        given = {"timeout": options.timeout, "fresh": options.fresh, "wait": options.wait}
        if options.json:
            results = boards.run(code, **given)
            _print_json({name: result.to_json() for name, result in results.items()})
        else:
            group = boards.submit(code, **given, listen=True, answers=_has_person())
            results = follow(group)
    return OK if results.ok else FAILED


def _board_label(options: argparse.Namespace) -> int:
    labels = dict(pair.partition("=")[::2] for pair in options.labels)
    if not all("=" in pair for pair in options.labels):
        raise TargetError(
            "a label is given as key=value", " ".join(options.labels), 0, "`key=` takes one away."
        )
    with Fleet() as fleet:
        names = fleet[options.target].label(labels)
    if options.json:
        _print_json(names)
    else:
        print(f"{fold(names)}: {', '.join(options.labels)}")
    return OK


def _code(options: argparse.Namespace) -> str:
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


def _has_person() -> bool:
    return sys.stdin.isatty()


# Jobs


def _job_list(options: argparse.Namespace) -> int:
    with Fleet() as fleet:
        jobs = fleet.jobs(options.target)
    if options.json:
        _print_json(jobs)
    else:
        print(job_table(jobs))
    return OK


def _job_show(options: argparse.Namespace) -> int:
    with Fleet() as fleet:
        job = fleet.job(options.job)
    if options.json:
        _print_json(job)
    else:
        print(job_text(job))
    return OK


def _job_interrupt(options: argparse.Namespace) -> int:
    with Fleet() as fleet:
        count = fleet.interrupt(options.jobs)
    if options.json:
        _print_json({"interrupted": count})
    else:
        print(f"{count} of {len(options.jobs)} had not ended and were interrupted.")
    return OK


# Virtual boards


def _simulate(options: argparse.Namespace) -> int:
    from . import simulate, virtual

    if options.stop:
        stopped = virtual.stop_detached(simulate.folder())
        print(
            "The detached virtual boards stopped." if stopped else "No detached virtual boards run."
        )
        return OK
    names = simulate.names_of(options.name, options.count)
    sizes = {"heap": options.heap, "flash": options.flash}
    given = {name: size for name, size in sizes.items() if size}
    with Fleet() as fleet:
        if not config.is_local(fleet.address.url):
            print(
                "mbm: virtual boards are no sandbox: cells there act as you here.", file=sys.stderr
            )
        boards = simulate.simulate(fleet, names, detach=options.detach, **given)
        if options.json:
            _print_json(boards.pids)
        else:
            print(f"{fold(names)} joined {fleet.address.url}", flush=True)
    if options.detach:
        print("They run until `mbm simulate --stop`.", file=sys.stderr)
        return OK
    print("Ctrl-C ends them.", file=sys.stderr)
    try:
        signal.pause()
    finally:
        boards.stop()
    return OK


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends all that it began, too
        signal.signal(number, signal.default_int_handler)
    return demo(_say, lab=options.lab)


def _say(paragraph: str) -> None:
    print(paragraph, end="\n\n", flush=True)


# The command line


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; FILE may come after options too, which argparse learned in Python 3.13 only."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    late = len(rest) == 1 and (rest[0] == "-" or not rest[0].startswith("-"))
    if late and getattr(options, "file", "") is None:
        options.file, rest = rest[0], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if getattr(options, "file", None) is not None and options.code is not None:
        parser.error("the cell is given with -c or in FILE, not both")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mbm", description="A fleet of MicroPython boards, from the shell."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(
        name: str, act: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        return made

    start = verb("server-start", _server_start, "start the local server in the background")
    start.add_argument("--listen", default=config.DEFAULT_HOST, metavar="ADDRESS")
    start.add_argument("--port", type=_tcp_port, default=config.DEFAULT_TCP_PORT, metavar="N")
    verb("server-stop", _server_stop, "stop the local server")
    verb("server-status", _server_status, "tell how the server is")

    boards = verb("board-list", _board_list, "list the boards")
    boards.add_argument("target", nargs="?", metavar="TARGET", help="which ones; else all")
    execute = verb("board-execute", _board_execute, "run a cell on boards, all at once")
    execute.add_argument("target", metavar="TARGET", help="such as 'esp-[1-3]' (quote it)")
    execute.add_argument("file", nargs="?", metavar="FILE", help="else standard input")
    execute.add_argument("-c", dest="code", metavar="CODE", help="the cell itself")
    execute.add_argument(
        "--timeout", type=_seconds, metavar="S", help="interrupt it after S seconds"
    )
    execute.add_argument("--fresh", action="store_true", help="after a soft reset")
    execute.add_argument("--wait", type=_seconds, default=0, metavar="S", help="for absent boards")
    label = verb("board-label", _board_label, "set labels; an empty value takes one away")
    label.add_argument("target", metavar="TARGET")
    label.add_argument("labels", nargs="+", metavar="KEY=VALUE")

    jobs = verb("job-list", _job_list, "list jobs: those that run, then those that ended lately")
    jobs.add_argument("target", nargs="?", metavar="TARGET", help="of which boards; else all")
    show = verb("job-show", _job_show, "show a job: how it ended and the end of its output")
    show.add_argument("job", type=int, metavar="JOB")
    stop = verb("job-interrupt", _job_interrupt, "interrupt jobs, anybody's")
    stop.add_argument("jobs", type=int, nargs="+", metavar="JOB")

    virtual = verb("simulate", _simulate, "start virtual boards (real MicroPython processes)")
    virtual.add_argument("count", type=_count, nargs="?", default=1, metavar="N")
    virtual.add_argument(
        "--name", default="sim", metavar="PREFIX", help="names are PREFIX-1 and so on"
    )
    virtual.add_argument("--heap", type=_size, metavar="SIZE", help="such as 64k")
    virtual.add_argument("--flash", type=_size, metavar="SIZE", help="such as 1M")
    virtual.add_argument("--detach", action="store_true", help="go on in the background")
    virtual.add_argument("--stop", action="store_true", help="end those that --detach left")
    demo = verb("demo", _demo, "three virtual boards, a cell on all of them, and JupyterLab")
    demo.add_argument("--no-lab", dest="lab", action="store_false", help="stop after the cell")
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError("seconds are a number above 0")


def _count(text: str) -> int:
    if text.isdecimal() and 0 < int(text[:5]) <= 1000:
        return int(text)
    raise argparse.ArgumentTypeError("how many is a number from 1 to 1000")


def _tcp_port(text: str) -> int:
    if text.isdecimal() and int(text[:6]) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError("a TCP port is a number from 0 to 65535")


def _size(text: str) -> str:
    if re.fullmatch("[1-9][0-9]{0,8}[kKmM]?", text):
        return text
    raise argparse.ArgumentTypeError("a size is a number of bytes, such as 64k or 1M")


def _print_json(body: Any) -> None:
    print(json.dumps(body, indent=2))
