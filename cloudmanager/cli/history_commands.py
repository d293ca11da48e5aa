"""The verbs of ``mbm`` for what ran on boards: ``board-history`` and ``history-forget``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cloudmanager.client.fleet import Fleet
from cloudmanager.display.text_tables import history_table
from cloudmanager.protocol.spans import parse_span

from .commands import OK, AddVerb, check_writable, print_outcome


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    history = add_verb(
        "board-history", board_history, "show what ran on boards: cells, files, installs, resets"
    )
    history.add_argument("target", metavar="TARGET", help="boards, connected or not")
    history.add_argument(
        "--since",
        type=span_seconds,
        metavar="SPAN",
        help="only what ran in the last SPAN, such as 2h or 7d (default: all that the server has)",
    )
    history.add_argument(
        "--export", metavar="FILE.ipynb", help="write a notebook that runs the cells again"
    )
    forget = add_verb(
        "history-forget", history_forget, "forget what ran: texts of cells, files, notebooks"
    )
    forget.add_argument(
        "target", nargs="?", metavar="TARGET", help="of these boards (default: of all)"
    )
    forget.add_argument("--token", metavar="NAME", help="only what the token NAME ran")
    forget.add_argument(
        "--older-than", type=span_seconds, metavar="SPAN", help="only what ran before, such as 7d"
    )


def span_seconds(text: str) -> float:
    """Return a span such as 7d in seconds; the type of an option."""
    try:
        return float(parse_span(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def board_history(options: argparse.Namespace) -> int:
    """Show what ran on boards, or write it to a notebook."""
    if options.export is not None:
        check_writable(Path(options.export))
    since = None if options.since is None else f"{options.since:.0f}s"
    with Fleet() as fleet:
        history = fleet[options.target].history(since)
    if options.export is not None:
        Path(options.export).write_text(history.to_notebook(), encoding="utf-8")
        jobs = "1 job" if len(history) == 1 else f"{len(history):,} jobs"
        text = f"Wrote {jobs} to {options.export}."
        return print_outcome(options, {"jobs": len(history), "file": options.export}, text)
    print_outcome(options, [entry._asdict() for entry in history], history_table(history))
    return OK


def history_forget(options: argparse.Namespace) -> int:
    """Forget what ran."""
    if options.target is None and options.token is None and options.older_than is None:
        options.verb_parser.error("give a TARGET, --token or --older-than; `all` is all boards")
    with Fleet() as fleet:
        forgotten = fleet.forget_history(
            options.target, caller=options.token, older_than=options.older_than
        )
    jobs, texts = forgotten["jobs"], forgotten["texts"]
    text = f"Forgot what {jobs:,} jobs ran, and {texts:,} texts that no other job ran."
    if not forgotten["erased"]:
        text += " The database's files may have parts of them for a while: see docs/security.md."
    return print_outcome(options, forgotten, text)
