"""The verb of ``mbm`` for a prompt on boards."""

from __future__ import annotations

import argparse
import sys

from cloudmanager.client.fleet import Fleet

from .commands import OK, AddVerb


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    repl = add_verb("board-repl", board_repl, "open a prompt on boards: each input is a cell")
    repl.add_argument("target", metavar="TARGET", help="the boards that run each input")
    repl.add_argument(
        "--logs", action="store_true", help="also show what the boards print outside of cells"
    )
    repl.epilog = (
        "Tab completes names that the boards have, Ctrl-C interrupts, Ctrl-D leaves. `%run FILE` "
        "runs a local file. An input that begins with a space is not kept in the history."
    )


def board_repl(options: argparse.Namespace) -> int:
    """Open a prompt on boards."""
    parser: argparse.ArgumentParser = options.verb_parser
    if options.json:
        parser.error("a prompt has no JSON; `mbm board-execute --json` runs cells for programs")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        parser.error("a prompt needs a terminal; `mbm board-execute` runs cells from files")
    from .repl import Repl  # it loads prompt_toolkit, which takes 0.2 s

    with Fleet() as fleet:
        Repl(fleet, options.target, with_logs=options.logs).run()
    return OK
