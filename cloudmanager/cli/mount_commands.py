"""The verb of ``mbm`` that mounts a local folder on boards."""

from __future__ import annotations

import argparse
import json
import threading

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.mounts import MOUNT_PATH
from cloudmanager.display.progress import ProgressBar
from cloudmanager.display.terminal import print_error
from cloudmanager.protocol.text import fold_names, sanitize_text

from .commands import FAILED, OK, AddVerb


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    mount = add_verb("board-mount", board_mount, "mount a local folder on boards, read-only")
    mount.add_argument("target", metavar="TARGET", help="the boards")
    mount.add_argument("folder", metavar="FOLDER", help="the local folder")
    mount.add_argument(
        "path",
        nargs="?",
        default=MOUNT_PATH,
        metavar=":PATH",
        help=f"where it is mounted: one name in the root (default: {MOUNT_PATH})",
    )
    mount.epilog = (
        "Boards read files when they open them, and import changed modules again in the next cell. "
        "Ctrl-C unmounts the folder. At most 200 files; `board-sync --watch` copies any number."
    )


def board_mount(options: argparse.Namespace) -> int:
    """Mount a local folder on boards until Ctrl-C."""

    def print_note(text: str) -> None:
        if options.json:
            print(json.dumps({"note": text}), flush=True)
        else:
            print(sanitize_text(text), flush=True)

    with Fleet() as fleet:
        with ProgressBar("mounting", quiet=options.json):
            mounted = fleet[options.target].mount(options.folder, options.path, on_note=print_note)
        with mounted:
            failed = {name: each.error for name, each in mounted.results.items() if not each.ok}
            for name, error in failed.items():
                print_error(f"{name}: {error}")
            if not mounted.boards:
                print_error(f"{options.target}: no board is connected")
                return FAILED
            if options.json:
                print(json.dumps({"mounted": options.path, "boards": mounted.boards}), flush=True)
            else:
                boards = fold_names(mounted.boards)
                print(
                    f"{options.folder} is mounted at {options.path} on {boards}; Ctrl-C ends it.",
                    flush=True,
                )
            threading.Event().wait()  # until Ctrl-C
    return OK
