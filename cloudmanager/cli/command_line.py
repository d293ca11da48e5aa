"""``mbm``: the command line. What its verbs do stands in commands.py.

Exit status: 0 all boards fine, 1 a board (or the server) failed, 2 usage, 3 no server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from cloudmanager import config
from cloudmanager.protocol.errors import (
    CellSyntaxError,
    CloudmanagerError,
    NoSuchBoard,
    ServerUnreachable,
    TargetError,
)

from . import admin_commands, cable_commands, commands, file_commands, package_commands
from .commands import FAILED, NO_SERVER, USAGE, AddVerb


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm`` and exit."""
    options = _parse_arguments(arguments)
    act: Callable[[argparse.Namespace], int] = options.act
    try:
        status = act(options)
        sys.stdout.flush()
    except ServerUnreachable as error:
        status = _print_error(error, NO_SERVER)
    except (TargetError, NoSuchBoard, CellSyntaxError) as error:
        status = _print_error(error, USAGE)
    except BrokenPipeError:  # `mbm … | head`: what is left to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    except (CloudmanagerError, OSError) as error:
        status = _print_error(error, FAILED)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)


def flash_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm-flash``: the same as ``mbm flash``."""
    main(["flash", *(sys.argv[1:] if arguments is None else arguments)])


def _print_error(error: Exception, status: int) -> int:
    print(f"mbm: {error}", file=sys.stderr)
    return status


# The command line


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; FILE and NAMEs may come after options too, as argparse alone does not have it."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(arguments)
    plain = all(text == "-" or not text.startswith("-") for text in rest)
    if plain and isinstance(getattr(options, "names", None), list):
        options.names, rest = [*options.names, *rest], []
    elif plain and len(rest) == 1 and getattr(options, "file", "") is None:
        options.file, rest = rest[0], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if getattr(options, "token", None) is False and options.name is None:
        parser.error("a board is enrolled by its NAME, or with --token")
    if getattr(options, "file", None) is not None and getattr(options, "code", None) is not None:
        parser.error("the cell is given with -c or in FILE, not both")
    return options


def _make_parser() -> argparse.ArgumentParser:
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

    _add_server_verbs(verb)
    _add_board_verbs(verb)
    admin_commands.add_verbs(verb)
    cable_commands.add_verbs(verb)
    file_commands.add_verbs(verb)
    package_commands.add_verbs(verb)
    _add_job_verbs(verb)
    _add_virtual_verbs(verb)
    return parser


def _add_server_verbs(add_verb: AddVerb) -> None:
    start = add_verb(
        "server-start", commands.server_start, "start the local server in the background"
    )
    start.add_argument("--listen", default=config.DEFAULT_HOST, metavar="ADDRESS")
    start.add_argument("--port", type=_parse_tcp_port, default=config.DEFAULT_TCP_PORT, metavar="N")
    start.add_argument(
        "--cert", type=_absolute_path, metavar="FILE", help="for browsers and monitors, PEM"
    )
    start.add_argument("--key", type=_absolute_path, metavar="FILE", help="its key, PEM")
    start.add_argument("--behind-proxy", dest="proxy", metavar="CIDR", help="proxies that end TLS")
    start.add_argument(
        "--index",
        type=config.parse_index,
        action="append",
        default=[],
        metavar="[ALIAS=]URL",
        help="a mip index; without ALIAS in place of the default one",
    )
    start.add_argument("--samples", metavar="N", help="values kept of each board; else 1,000")
    start.add_argument("--log-json", action="store_true", help="server.log for programs")
    start.add_argument("--keep-jobs", type=int, metavar="DAYS", help="else 90")
    start.add_argument("--keep-audit", type=int, metavar="DAYS", help="31 or more; else 400")
    add_verb("server-stop", commands.server_stop, "stop the local server")
    backup = add_verb("server-backup", commands.server_backup, "save the local server into a file")
    backup.add_argument("file", metavar="FILE")
    restore = add_verb("server-restore", commands.server_restore, "make it what it was at a backup")
    restore.add_argument("file", metavar="FILE")
    add_verb("server-status", commands.server_status, "tell how the server is")


def _add_board_verbs(add_verb: AddVerb) -> None:
    boards = add_verb("board-list", commands.board_list, "list the boards")
    boards.add_argument("target", nargs="?", metavar="TARGET", help="which ones; else all")
    execute = add_verb("board-execute", commands.board_execute, "run a cell on boards, all at once")
    execute.add_argument("target", metavar="TARGET", help="such as 'esp-[1-3]' (quote it)")
    execute.add_argument("file", nargs="?", metavar="FILE", help="else standard input")
    execute.add_argument("-c", dest="code", metavar="CODE", help="the cell itself")
    execute.add_argument(
        "--timeout", type=_parse_seconds, metavar="S", help="interrupt it after S seconds"
    )
    execute.add_argument("--fresh", action="store_true", help="after a soft reset")
    execute.add_argument(
        "--wait", type=_parse_seconds, default=0, metavar="S", help="for absent boards"
    )
    label = add_verb(
        "board-label", commands.board_label, "set labels; an empty value takes one away"
    )
    label.add_argument("target", metavar="TARGET")
    label.add_argument("labels", nargs="+", metavar="KEY=VALUE")


def _add_job_verbs(add_verb: AddVerb) -> None:
    jobs = add_verb(
        "job-list", commands.job_list, "list jobs: those that run, then those that ended lately"
    )
    jobs.add_argument("target", nargs="?", metavar="TARGET", help="of which boards; else all")
    show = add_verb(
        "job-show", commands.job_show, "show a job: how it ended and the end of its output"
    )
    show.add_argument("job", type=int, metavar="JOB")
    stop = add_verb("job-interrupt", commands.job_interrupt, "interrupt jobs, anybody's")
    stop.add_argument("jobs", type=int, nargs="+", metavar="JOB")


def _add_virtual_verbs(add_verb: AddVerb) -> None:
    virtual = add_verb(
        "simulate", commands.simulate, "start virtual boards (real MicroPython processes)"
    )
    virtual.add_argument("count", type=_parse_count, nargs="?", default=1, metavar="N")
    virtual.add_argument(
        "--name", default="sim", metavar="PREFIX", help="names are PREFIX-1 and so on"
    )
    virtual.add_argument("--heap", type=_check_size, metavar="SIZE", help="such as 64k")
    virtual.add_argument("--flash", type=_check_size, metavar="SIZE", help="such as 1M")
    virtual.add_argument("--detach", action="store_true", help="go on in the background")
    virtual.add_argument(
        "--allow-remote", action="store_true", help="join a server that others can reach"
    )
    virtual.add_argument("--stop", action="store_true", help="end those that --detach left")
    demo = add_verb(
        "demo", commands.demo, "three virtual boards, a cell on all of them, and JupyterLab"
    )
    demo.add_argument("--no-lab", dest="lab", action="store_false", help="stop after the cell")


def _absolute_path(text: str) -> str:
    return str(Path(text).absolute())  # the server works in another folder


def _parse_seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError("seconds are a number above 0")


def _parse_count(text: str) -> int:
    if text.isdecimal() and 0 < int(text[:5]) <= 1000:
        return int(text)
    raise argparse.ArgumentTypeError("how many is a number from 1 to 1000")


def _parse_tcp_port(text: str) -> int:
    if text.isdecimal() and int(text[:6]) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError("a TCP port is a number from 0 to 65535")


def _check_size(text: str) -> str:
    if re.fullmatch("[1-9][0-9]{0,8}[kKmM]?", text):
        return text
    raise argparse.ArgumentTypeError("a size is a number of bytes, such as 64k or 1M")
