"""The verb of ``mbm`` that shows the values that boards emit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Final

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.client.watch import Update, Watch
from cloudmanager.display.terminal import LiveTable, print_error
from cloudmanager.display.values_view import NewestValues, sample_row, select_values
from cloudmanager.protocol.text import one_line

from .commands import OK, AddVerb

_EARLIER_SAMPLES: Final = 1000  # that the server has, for the first table
_MAX_NAMES: Final = 12  # that a note lists
_IDLE_SECONDS: Final = 1.0  # until the table is drawn again without new values


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    watch = add_verb("board-watch", board_watch, "show the values that boards emit, live")
    watch.add_argument("target", metavar="TARGET", help="boards, connected or not")
    watch.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="only these values (default: all)"
    )
    watch.epilog = (
        "In a terminal it is a table of the newest values, in a pipe a line for each sample, and "
        "with --json an object on each line. Ctrl-C ends it."
    )


def board_watch(options: argparse.Namespace) -> int:
    """Show the values that boards emit until Ctrl-C."""
    with Fleet() as fleet, Watch(fleet.exchange, options.target, idle=_IDLE_SECONDS) as watch:
        fleet.boards(options.target)  # an unknown board, or a wrong target, is an error
        earlier = fleet.samples(options.target, _EARLIER_SAMPLES)
        if note := _unknown_names_text(options.names, earlier):
            print_error(note, role="warn")
        if options.json or not sys.stdout.isatty():
            _print_samples(watch, options)
        else:
            _show_table(earlier, watch, options)
    return OK


def _unknown_names_text(names: Sequence[str], samples: Iterable[Sample]) -> str:
    """Return which of these names no board has emitted, and which there are; "" if all are known.

    Args:
        names: as the user gave them.
        samples: those that the server has.
    """
    known = list(dict.fromkeys(name for sample in samples for name in sample.values))
    unknown = [name for name in names if name not in known]
    if not unknown:
        return ""
    text = f"no board has emitted {' or '.join(map(one_line, unknown))} yet; waiting for it."
    if not known:
        return f"{text} Boards have emitted no values: `cm.emit(temp=21.5)` sends one."
    shown = ", ".join(map(one_line, known[:_MAX_NAMES]))
    return f"{text} Names that boards have emitted: {shown}{', …' * (len(known) > _MAX_NAMES)}."


def _print_samples(watch: Watch, options: argparse.Namespace) -> None:
    for update in watch:
        if update.lost:
            print_error(update.lost)
        for sample in _selected(update.samples, options.names):
            text = json.dumps(sample._asdict()) if options.json else sample_row(sample)
            print(text, flush=True)


def _show_table(earlier: Iterable[Sample], watch: Watch, options: argparse.Namespace) -> None:
    newest = NewestValues()
    newest.add(_selected(earlier, options.names))
    newest.missed = 0  # before this command began
    server_time = since = 0.0
    with LiveTable() as live:
        for update in watch:
            if update.time:
                server_time, since = update.time, time.monotonic()
            _add_update(newest, update, options.names)
            now = server_time + time.monotonic() - since
            live.draw(newest.table(now, options.names, update.lost))


def _add_update(newest: NewestValues, update: Update, names: list[str]) -> None:
    for board in update.gone:
        newest.forget(board)
    newest.add(_selected(update.samples, names))
    newest.missed += update.left_out


def _selected(samples: Iterable[Sample], names: list[str]) -> list[Sample]:
    """Return the samples that have any of these values, without their other ones."""
    found = (select_values(sample, names) for sample in samples)
    return [sample for sample in found if sample is not None]
