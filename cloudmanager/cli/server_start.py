"""``mbm server-start``. People wait for it, so it imports the rest of ``mbm`` meanwhile."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cloudmanager import local_server, server_options

if TYPE_CHECKING:
    from .commands import AddVerb

VERB: Final = "server-start"
HELP: Final = "start the local server in the background"


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verb to the parser of ``mbm``."""
    server_options.add_options(add_verb(VERB, server_start, HELP))


def server_start(options: argparse.Namespace) -> int:
    """Start the local server."""
    # The server itself reads its environment variables: a URL in one may contain a password.
    given = server_options.read_options(options, environment={})
    for file in filter(None, (given.cert, given.key)):
        with file.open("rb"):  # a file that is missing is an error of usage, not of the server
            pass
    launched = local_server.launch(given)

    from cloudmanager.display.progress import ProgressBar  # here: the server starts meanwhile
    from cloudmanager.display.terminal import print_error

    from .commands import OK, print_json

    with ProgressBar("starting the server", quiet=options.json):
        started = launched.wait()
    for note in started.notes:
        print_error(note, role="warn")
    if options.json:
        url, already, listens, _ = started
        print_json({"url": url, "already": already, "listens": listens})
    elif started.already:
        print(f"The server is already running at {started.url}")
    else:
        print(f"The server is listening on {started.listens}")
    return OK


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse what follows the verb, as the parser of all verbs does, which takes much longer."""
    parser = argparse.ArgumentParser(prog=f"mbm {VERB}", description=f"{HELP.capitalize()}.")
    parser.set_defaults(run=server_start)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    server_options.add_options(parser)
    return parser.parse_args(arguments)
