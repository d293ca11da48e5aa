"""The verbs of ``mbm`` about boards' files, and its macros: parse, call the fleet, print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cloudmanager.client.file_verbs import FileVerbs
from cloudmanager.client.fleet import Fleet
from cloudmanager.display import progress
from cloudmanager.display.file_report import files_text
from cloudmanager.results.results import Results

from . import board_commands
from .commands import FAILED, OK, USAGE, AddVerb


def add_verbs(add_verb: AddVerb) -> None:
    """Add these verbs to the parser of ``mbm``."""
    up = add_verb("board-upload", upload, "copy files or folders to boards")
    up.add_argument("target", metavar="TARGET")
    up.add_argument("sources", nargs="+", metavar="FILE", help="and, last, where to, such as :lib/")
    down = add_verb("board-download", download, "copy a file or folder from boards")
    down.add_argument("target", metavar="TARGET")
    down.add_argument("path", metavar=":PATH")
    down.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="with a folder for each of several"
    )
    same = add_verb("board-sync", sync, "make a folder on boards equal to one here")
    same.add_argument("target", metavar="TARGET")
    same.add_argument("folder", metavar="FOLDER", help=".mbmignore in it names what stays out")
    same.add_argument("dest", nargs="?", default=":/", metavar="DEST", help="else :/")
    same.add_argument("--delete", action="store_true", help="files that are not here go there")
    same.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    same.add_argument("--watch", action="store_true", help="again, whenever a file is saved")
    names = "; ".join(
        f"{name}: {macro.description}" for name, macro in board_commands.MACROS.items()
    )
    board = add_verb("board", run_board_macro, f"a macro on boards ({names})".replace("%", "%%"))
    board.add_argument("target", metavar="TARGET")
    board.add_argument("macro", metavar="MACRO", help=", ".join(board_commands.MACROS))
    board.add_argument("words", nargs="*", metavar="WORD")


def upload(options: argparse.Namespace) -> int:
    """Copy to boards."""
    *sources, dest = options.sources
    if not sources or not (_is_board_path(dest) or not Path(dest).exists()):
        sources, dest = options.sources, ":/"
    one = Path(sources[0]) if len(sources) == 1 else [Path(each) for each in sources]
    with Fleet() as fleet, progress.ProgressBar() as bar:
        boards = fleet[options.target]
        results = progress.run_with_progress(
            lambda moved: FileVerbs.put(boards, one, _board_path(dest), progress=moved), bar
        )
    return print_results(results, options)


def download(options: argparse.Namespace) -> int:
    """Copy from boards."""
    with Fleet() as fleet, progress.ProgressBar() as bar:
        boards = fleet[options.target]
        results = progress.run_with_progress(
            lambda moved: FileVerbs.get(
                boards, _board_path(options.path), options.folder, progress=moved
            ),
            bar,
        )
    return print_results(results, options)


def sync(options: argparse.Namespace) -> int:
    """Make a folder equal; with --watch, until Ctrl-C."""
    if not Path(options.folder).is_dir():
        return print_usage_error(f"{options.folder} is no folder.")
    with Fleet() as fleet:
        status = _sync_once(fleet, options)
        if options.watch:
            from watchfiles import watch  # takes 30 ms to import

            for _ in watch(options.folder, raise_interrupt=True):
                status = _sync_once(fleet, options)
    return status


def _sync_once(fleet: Fleet, options: argparse.Namespace) -> int:
    boards = fleet[options.target]
    with progress.ProgressBar() as bar:
        results = progress.run_with_progress(
            lambda moved: FileVerbs.sync(
                boards,
                options.folder,
                _board_path(options.dest),
                delete=options.delete,
                dry_run=options.dry_run,
                progress=moved,
            ),
            bar,
        )
    return print_results(results, options)


def run_board_macro(options: argparse.Namespace) -> int:
    """Run a macro."""
    with Fleet() as fleet:
        try:
            results = board_commands.run_macro(fleet[options.target], options.macro, options.words)
        except ValueError as error:
            return print_usage_error(str(error))
    return print_results(results, options)


def print_results(results: Results, options: argparse.Namespace) -> int:
    """Print what came of a verb; return the exit status."""
    if options.json:
        print(json.dumps({name: result.to_json() for name, result in results.items()}, indent=2))
    elif text := files_text(results):
        print(text, flush=True)
    return OK if results.ok else FAILED


def print_usage_error(reason: str) -> int:
    """Say what makes no sense; return the exit status."""
    print(f"mbm: {reason}", file=sys.stderr)
    return USAGE


def _is_board_path(text: str) -> bool:
    return text.startswith(":")


def _board_path(text: str) -> str:
    """Return a path on boards, where one must stand: the colon may be left out."""
    return text if _is_board_path(text) else f":{text}"
