"""The command line ``mbm``: parse the arguments, run the verb, map errors to exit statuses.

Exit status: 0 all boards succeeded, 1 a board or the server failed, 2 usage, 3 no server.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from cloudmanager import server_options
from cloudmanager.client.run_arguments import add_run_options
from cloudmanager.protocol.errors import (
    CellSyntaxError,
    CloudmanagerError,
    NoSuchBoard,
    ServerUnreachable,
    TargetError,
)
from cloudmanager.protocol.text import nearest_name

from . import admin_commands, cable_commands, commands, file_commands, package_commands
from .commands import FAILED, NO_SERVER, USAGE, AddVerb
from .streams import prepare_streams, run_with_output

#: argparse's message for a verb that does not exist.
_UNKNOWN_VERB: Final = re.compile(r"argument VERB: invalid choice: '([^']*)'")
#: What `mbm` without arguments prints.
_GUIDE: Final = """\
mbm controls a fleet of MicroPython boards.

  mbm demo                              a server, three virtual boards, JupyterLab: a first look
  mbm server-start                      start the server
  mbm flash PORT                        add a board on a cable (mbm board-scan lists the ports)
  mbm simulate 3                        add three virtual boards
  mbm board-list                        show the boards
  mbm board-execute 'lab-*' -c 'CODE'   run code on boards, all at the same time
  mbm board-upload 'lab-*' main.py :    copy files to boards

`mbm --help` lists all verbs, `mbm VERB --help` the arguments of a verb."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm`` and exit."""
    prepare_streams()
    sys.exit(run_with_output(lambda: _run(arguments)))


def _run(arguments: Sequence[str] | None) -> int:
    """Run the verb; return the exit status."""
    try:
        options = _parse_arguments(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except ServerUnreachable as error:
        status = _print_error(error, NO_SERVER)
    except (TargetError, NoSuchBoard, CellSyntaxError) as error:
        status = _print_error(error, USAGE)
    except (CloudmanagerError, OSError) as error:
        status = _print_error(error, FAILED)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    return status


def flash_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm-flash``: the same as ``mbm flash``."""
    main(["flash", *(sys.argv[1:] if arguments is None else arguments)])


def _print_error(error: Exception, status: int) -> int:
    print(f"mbm: {error}", file=sys.stderr)
    return status


# The command line


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the most similar verb for one that does not exist."""

    verb_names: Iterable[str] = ()

    def error(self, message: str) -> NoReturn:
        if found := _UNKNOWN_VERB.match(message):
            nearest = nearest_name(found[1], self.verb_names)
            guess = f" Did you mean {nearest}?" if nearest else ""
            message = f"There is no verb {found[1]}.{guess} `mbm --help` lists all verbs."
        super().error(message)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; FILE and NAMEs may follow options, which argparse does not support."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(_GUIDE, file=sys.stderr)
        sys.exit(USAGE)
    parser = _make_parser()
    options, rest = parser.parse_known_args(arguments)
    no_options = all(text == "-" or not text.startswith("-") for text in rest)
    if no_options and isinstance(getattr(options, "names", None), list):
        options.names = [*options.names, *rest]
        rest = []
    elif no_options and len(rest) == 1 and getattr(options, "file", "") is None:
        options.file = rest[0]
        rest = []
    if hasattr(options, "macro"):  # options of macros, such as `rm -r`, are theirs
        options.words = [*options.words, *rest]
        rest = []
    verb_parser: argparse.ArgumentParser = options.verb_parser
    if rest:
        verb_parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if getattr(options, "token", None) is False and options.name is None:
        verb_parser.error("give the NAME of the board, or --token")
    if getattr(options, "file", None) is not None and getattr(options, "code", None) is not None:
        verb_parser.error("give the cell with -c or in FILE, not both")
    return options


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mbm",
        description="Control a fleet of MicroPython boards from the shell.",
        epilog=(
            "`mbm VERB --help` shows the arguments of a verb. TARGET selects boards by name, "
            "pattern or label: lab-1, 'lab-[1-3]', 'lab-*', room=lab, all. Quote it in a shell."
        ),
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add_verb(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        verb_parser = verbs.add_parser(name, help=text, description=description)
        verb_parser.set_defaults(run=run, verb_parser=verb_parser)
        verb_parser.add_argument("--json", action="store_true", help="print JSON instead of text")
        return verb_parser

    _add_server_verbs(add_verb)
    _add_board_verbs(add_verb)
    admin_commands.add_verbs(add_verb)
    cable_commands.add_verbs(add_verb)
    file_commands.add_verbs(add_verb)
    package_commands.add_verbs(add_verb)
    _add_job_verbs(add_verb)
    _add_virtual_verbs(add_verb)
    parser.verb_names = verbs.choices
    return parser


def _add_server_verbs(add_verb: AddVerb) -> None:
    start = add_verb(
        "server-start", commands.server_start, "start the local server in the background"
    )
    server_options.add_options(start)
    add_verb("server-stop", commands.server_stop, "stop the local server")
    backup = add_verb(
        "server-backup", commands.server_backup, "write a backup of the local server to a file"
    )
    backup.add_argument("file", metavar="FILE")
    restore = add_verb(
        "server-restore", commands.server_restore, "restore the local server from a backup"
    )
    restore.add_argument("file", metavar="FILE")
    add_verb(
        "server-status", commands.server_status, "show address, version and state of the server"
    )


def _add_board_verbs(add_verb: AddVerb) -> None:
    boards = add_verb("board-list", commands.board_list, "list boards with their state")
    boards.add_argument("target", nargs="?", metavar="TARGET", help="boards to list (default: all)")
    execute = add_verb(
        "board-execute", commands.board_execute, "run a cell on several boards in parallel"
    )
    execute.add_argument(
        "target", metavar="TARGET", help="boards to run it on, such as 'esp-[1-3]' (quote it)"
    )
    execute.add_argument(
        "file", nargs="?", metavar="FILE", help="file with the cell (default: standard input)"
    )
    execute.add_argument("-c", dest="code", metavar="CODE", help="the cell as text")
    add_run_options(execute)
    label = add_verb(
        "board-label",
        commands.board_label,
        "set labels of boards; an empty value removes a label",
    )
    label.add_argument("target", metavar="TARGET")
    label.add_argument("labels", nargs="+", metavar="KEY=VALUE")


def _add_job_verbs(add_verb: AddVerb) -> None:
    jobs = add_verb("job-list", commands.job_list, "list running jobs, then recently ended ones")
    jobs.add_argument(
        "target", nargs="?", metavar="TARGET", help="boards whose jobs are listed (default: all)"
    )
    show = add_verb("job-show", commands.job_show, "show how a job ended and the end of its output")
    show.add_argument("job", type=int, metavar="JOB", help="number of the job")
    stop = add_verb("job-interrupt", commands.job_interrupt, "interrupt jobs of any caller")
    stop.add_argument("jobs", type=int, nargs="+", metavar="JOB", help="number of a job")


def _add_virtual_verbs(add_verb: AddVerb) -> None:
    virtual = add_verb(
        "simulate", commands.simulate, "start virtual boards (real MicroPython processes)"
    )
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
        default="sim",
        metavar="PREFIX",
        help="the boards are named PREFIX-1, PREFIX-2 … (default: sim)",
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
    virtual.add_argument("--stop", action="store_true", help="stop all detached boards")
    demo = add_verb(
        "demo", commands.demo, "start three virtual boards, run cells on them, open JupyterLab"
    )
    demo.add_argument(
        "--no-lab", dest="lab", action="store_false", help="stop after the cells; no JupyterLab"
    )


def _absolute_path(text: str) -> str:
    return str(Path(text).absolute())  # the server runs in another working directory


def _parse_count(text: str) -> int:
    if text.isdecimal() and 0 < int(text[:5]) <= 1000:
        return int(text)
    raise argparse.ArgumentTypeError("give a number from 1 to 1000")


def _parse_tcp_port(text: str) -> int:
    if text.isdecimal() and int(text[:6]) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError("give a TCP port from 0 to 65535")


def _check_size(text: str) -> str:
    if re.fullmatch("[1-9][0-9]{0,8}[kKmM]?", text):
        return text
    raise argparse.ArgumentTypeError("give a number of bytes, such as 64k or 1M")
