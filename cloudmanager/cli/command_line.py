"""The arguments of ``mbm``: the parser of all verbs, made of those of each family."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from cloudmanager import __version__
from cloudmanager.protocol.text import nearest_name

from . import (
    admin_commands,
    board_commands,
    cable_commands,
    commands,
    completion,
    dashboard_command,
    file_commands,
    fleet_commands,
    history_commands,
    inventory_commands,
    log_commands,
    mount_commands,
    network_commands,
    package_commands,
    repl_commands,
    reservation_commands,
    rollout_commands,
    sample_commands,
    secret_commands,
    server_start,
    watch_commands,
)
from .commands import USAGE

#: argparse's message for a verb that does not exist.
_NO_MACRO: Final = re.compile(r"arguments are required: (TARGET, )?MACRO")
_VERBS_OF_MAGICS: Final = {"boards": "board-list", "fleet": "dashboard"}  # magics of other names
_UNKNOWN_VERB: Final = re.compile(r"argument VERB: invalid choice: '([^']*)'")
#: What `mbm` without arguments prints.
_GUIDE: Final = """\
mbm controls a fleet of MicroPython boards.

  mbm demo                              a server, three virtual boards, JupyterLab: a first look
  mbm server-start                      start the server
  mbm flash                             add a board on a cable, with MicroPython
  mbm simulate 3                        add three virtual boards
  mbm board-list                        show the boards
  mbm board-execute 'lab-*' -c 'CODE'   run code on boards, all at the same time
  mbm board-upload 'lab-*' app.py :     copy files to boards

`mbm --help` lists all verbs, `mbm VERB --help` the arguments of a verb."""


class _ShowVersion(argparse.Action):
    """The option that prints the installed version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the version."""
        print(f"mbm {__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the most similar verb for one that does not exist."""

    verb_names: Iterable[str] = ()

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write a message; unlike argparse, do not ignore that it cannot be written."""
        if message:
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        if found := _UNKNOWN_VERB.match(message):
            nearest = _nearest_verb(found[1], self.verb_names)
            guess = f" Did you mean {nearest}?" if nearest else ""
            message = f"There is no verb {found[1]}.{guess} `mbm --help` lists all verbs."
        elif found := _NO_MACRO.search(message):
            what = "a TARGET and a macro" if found[1] else "a macro"
            names = ", ".join(board_commands.MACROS)
            message = f"give {what}: {names}. `mbm board --help` says what they do."
        super().error(message)


def _nearest_verb(word: str, verbs: Iterable[str]) -> str | None:
    """Return the verb that was probably meant: `board-list` by `list`, and by `boards`."""
    meant = _VERBS_OF_MAGICS.get(word, f"board-{word}")
    return meant if meant in verbs else nearest_name(word, verbs)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; FILE and NAMEs may follow options, which argparse does not support."""
    if not arguments:
        print(_GUIDE, file=sys.stderr)
        sys.exit(USAGE)
    parser = _make_parser()
    arguments, board_arguments = _split_arguments(arguments)
    options, rest = parser.parse_known_args(arguments)
    if board_arguments:
        options.arguments = board_arguments
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
        error = "give the cell with -c or in FILE, not both"
        if not Path(options.file).suffix:
            error += f"; several boards are one TARGET: {options.target},{options.file}"
        verb_parser.error(error)
    return options


def _split_arguments(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the arguments of mbm, and those after ``--`` of a program that runs on boards.

    argparse would take the first of the latter for the FILE if that is missing.
    """
    if arguments[0] != "board-execute" or "--" not in arguments:
        return arguments, ()
    at = list(arguments).index("--")
    return arguments[:at], arguments[at + 1 :]


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mbm",
        description="Control a fleet of MicroPython boards from the shell.",
        epilog=(
            "`mbm VERB --help` shows the arguments of a verb. TARGET selects boards by name, "
            "pattern or label: lab-1, 'lab-[1-3]', 'lab-*', room=lab, all. Quote it in a shell."
        ),
    )
    parser.add_argument(
        "-V", "--version", action=_ShowVersion, nargs=0, help="print the version and exit"
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

    server_start.add_verbs(add_verb)
    commands.add_server_verbs(add_verb)
    fleet_commands.add_verbs(add_verb)
    commands.add_board_verbs(add_verb)
    admin_commands.add_verbs(add_verb)
    cable_commands.add_verbs(add_verb)
    file_commands.add_verbs(add_verb)
    mount_commands.add_verbs(add_verb)
    package_commands.add_verbs(add_verb)
    log_commands.add_verbs(add_verb)
    history_commands.add_verbs(add_verb)
    repl_commands.add_verbs(add_verb)
    watch_commands.add_verbs(add_verb)
    sample_commands.add_verbs(add_verb)
    dashboard_command.add_verbs(add_verb)
    reservation_commands.add_verbs(add_verb)
    inventory_commands.add_verbs(add_verb)
    secret_commands.add_verbs(add_verb)
    rollout_commands.add_verbs(add_verb)
    network_commands.add_verbs(add_verb)
    commands.add_job_verbs(add_verb)
    commands.add_virtual_verbs(add_verb)
    completion.add_verbs(add_verb, parser)
    parser.verb_names = verbs.choices
    return parser
