"""The verbs of ``mbm`` for files on boards, and its macros: parse, call the fleet, print."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys

from cloudmanager.client.board_globs import has_pattern
from cloudmanager.client.file_jobs import as_file_results
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.run_arguments import (
    add_wait_options,
    wait_keywords,
    wait_options_error,
)
from cloudmanager.client.sources import expand_patterns, local_source
from cloudmanager.display.file_report import files_lines, partial_text, single_failure_text
from cloudmanager.display.progress import ProgressBar
from cloudmanager.display.terminal import colour_lines, print_error
from cloudmanager.display.waiting_view import all_wait, waiting_text
from cloudmanager.results.results import Results

from . import board_commands
from .commands import FAILED, OK, USAGE, AddVerb, open_fleet


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    up = add_verb("board-upload", upload, "copy files or folders to boards")
    up.add_argument("target", metavar="TARGET")
    up.add_argument(
        "sources",
        nargs="+",
        metavar="FILE",
        help="files or folders; the last may be their destination on the boards, such as :lib/ "
        "(default: their root); a folder is copied under its name, FOLDER/ without it",
    )
    add_wait_options(up)
    down = add_verb("board-download", download, "copy a file or folder from boards")
    down.add_argument("target", metavar="TARGET")
    down.add_argument("path", metavar=":PATH", help="file or folder on the boards")
    down.add_argument(
        "folder",
        nargs="?",
        default=".",
        metavar="DEST",
        help="local file, or folder if it exists or ends in /; several boards get a subfolder "
        "each (default: here)",
    )
    same = add_verb("board-sync", sync, "make a folder on boards equal to a local folder")
    same.add_argument("target", metavar="TARGET")
    same.add_argument(
        "folder", metavar="FOLDER", help="local folder; its .mbmignore lists files to leave out"
    )
    same.add_argument(
        "dest", nargs="?", default=":/", metavar=":DEST", help="folder on the boards (default: :/)"
    )
    same.add_argument(
        "--delete", action="store_true", help="delete files on the boards that are not in FOLDER"
    )
    same.add_argument(
        "--dry-run", action="store_true", help="show what would be done; change nothing"
    )
    same.add_argument(
        "--watch", action="store_true", help="sync again whenever a file in FOLDER is saved"
    )
    add_wait_options(same)
    board = add_verb(
        "board", run_board_macro, "run a macro on boards, such as ls, cat, df or reset"
    )
    board.formatter_class = argparse.RawDescriptionHelpFormatter
    board.epilog = _macro_list()
    board.add_argument("target", metavar="TARGET")
    board.add_argument("macro", metavar="MACRO", help="name of the macro, see below")
    board.add_argument(
        "words", nargs="*", default=[], metavar="ARGUMENT", help="arguments of the macro"
    )
    add_wait_options(board)


def _macro_list() -> str:
    """Return a line for each macro: its arguments and what it does."""
    lines = ["macros:"]
    for name, macro in board_commands.MACROS.items():
        lines.append(f"  {macro.usage(name):<27}  {macro.description}")
    return "\n".join(lines)


def upload(options: argparse.Namespace) -> int:
    """Copy files or folders to boards."""
    if error := wait_options_error(options):
        return print_usage_error(error)
    *sources, dest = options.sources
    if not _is_board_path(dest):
        sources, dest = options.sources, ":/"
    if not sources:
        return print_usage_error(f"nothing to copy to {dest}: name files or folders before it.")
    *_, last = sources
    if len(sources) > 1 and dest == ":/" and not is_here(last):
        return print_usage_error(
            f"{last}: {os.strerror(errno.ENOENT)}, and a place on the boards begins with a colon: "
            f":{last}. Nothing was copied."
        )
    found = expand_patterns(sources)
    one = sources[0] if found == sources[:1] else found
    with open_fleet(options) as fleet, ProgressBar(quiet=options.json) as progress:
        results = fleet[options.target].put(one, dest, progress=progress, **wait_keywords(options))
    return print_results(results, options)


def is_here(text: str) -> bool:
    """Whether a text names a local file, or is a pattern of local files."""
    return local_source(text).exists() or has_pattern(text)


def download(options: argparse.Namespace) -> int:
    """Copy a file or folder from boards."""
    path = _board_path(options.path)
    with open_fleet(options) as fleet, ProgressBar(quiet=options.json) as progress:
        results = fleet[options.target].get(path, options.folder, glob=True, progress=progress)
    return print_results(results, options)


def sync(options: argparse.Namespace) -> int:
    """Make a folder on boards equal to a local one; with ``--watch``, repeat until Ctrl-C."""
    if error := wait_options_error(options):
        return print_usage_error(error)
    if options.when_online and (options.delete or options.dry_run or options.watch):
        return print_usage_error(
            "--delete and --dry-run look at the boards, and --watch stays: none of them goes with "
            "--when-online."
        )
    folder = local_source(options.folder)
    if not folder.is_dir():
        number = errno.ENOTDIR if folder.exists() else errno.ENOENT
        return print_usage_error(f"{options.folder}: {os.strerror(number)}.")
    if not _is_board_path(options.dest):
        return print_usage_error(
            f"a place on the boards begins with a colon: :{options.dest}. Nothing was copied."
        )
    with open_fleet(options) as fleet:
        status = _sync_once(fleet, options)
        if options.watch:
            from watchfiles import watch  # importing it takes 30 ms

            for _ in watch(folder, raise_interrupt=True):
                status = _sync_once(fleet, options)
    return status


def _sync_once(fleet: Fleet, options: argparse.Namespace) -> int:
    with ProgressBar(quiet=options.json) as progress:
        results = fleet[options.target].sync(
            options.folder,
            options.dest,
            delete=options.delete,
            dry_run=options.dry_run,
            progress=progress,
            **wait_keywords(options),
        )
    return print_results(results, options)


def run_board_macro(options: argparse.Namespace) -> int:
    """Run a macro on boards."""
    if error := wait_options_error(options):
        return print_usage_error(error)
    if options.when_online and (error := board_commands.cannot_wait_reason(options.macro)):
        return print_usage_error(error)
    if options.macro == board_commands.EDIT:
        results = board_commands.run_edit(
            lambda: open_fleet(options), options.target, options.words
        )
        return print_results(results, options)
    unit = board_commands.find_macro(options.macro).progress_unit
    bar = ProgressBar(options.macro, unit=unit, quiet=options.json)
    with open_fleet(options) as fleet, bar as progress:
        boards = fleet[options.target]
        results = board_commands.run_macro(
            boards, options.macro, options.words, progress, **wait_keywords(options)
        )
    if all_wait(results):
        return print_results(results, options)
    if options.macro == "cat" and not options.json and write_content(results):
        return OK if results.ok else print_failure(results)
    return print_results(
        results if options.json else board_commands.in_words(results, options.macro), options
    )


def write_content(results: Results) -> bool:
    """Write the files of a single board to standard output, byte by byte; return whether it was.

    On a terminal, they are shown as text instead: their bytes could be commands to the terminal.
    """
    if len(results) != 1 or results.left_out or sys.stdout.isatty():
        return False
    (result,) = as_file_results(results).values()
    content = result.value if result.ok else result.partial
    if content is None:
        return False
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
    return True


def print_results(results: Results, options: argparse.Namespace) -> int:
    """Print the results of a verb; return the exit status."""
    if options.json:
        print(json.dumps({name: result.to_json() for name, result in results.items()}, indent=2))
    elif all_wait(results):
        print(waiting_text(results), flush=True)
    elif len(results) == 1 and not results.ok:
        (result,) = results.values()
        if text := partial_text(result):
            print(text, flush=True)
        return print_failure(results)
    elif lines := files_lines(results):
        print(colour_lines(lines, sys.stdout), flush=True)
    return OK if results.ok else FAILED


def print_failure(results: Results) -> int:
    """Print why a verb failed on its only board; return the exit status."""
    print_error(single_failure_text(results))
    return FAILED


def print_usage_error(reason: str) -> int:
    """Print what is wrong with the arguments; return the exit status."""
    print_error(reason)
    return USAGE


def _is_board_path(text: str) -> bool:
    return text.startswith(":")


def _board_path(text: str) -> str:
    """Return a path on boards, for an argument that always is one: add a missing colon."""
    return text if _is_board_path(text) or not text else f":{text}"
