"""The entry of ``mbm``: run the verb that the arguments name, map errors to exit statuses.

Exit status: 0 all boards succeeded, 1 a board or the server failed, 2 usage, 3 no server. A local
file that cannot be read or written is named by an argument: 2.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cloudmanager.protocol.errors import (
    CellSyntaxError,
    CloudmanagerError,
    NoSuchBoard,
    ServerUnreachable,
    TargetError,
)
from cloudmanager.protocol.text import os_error_text

from . import server_start
from .streams import OUTPUT_NAME, prepare_streams, run_with_output


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm`` and exit."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    prepare_streams()
    sys.exit(run_with_output(lambda: _run(given)))


def flash_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mbm-flash``: the same as ``mbm flash``."""
    main(["flash", *(sys.argv[1:] if arguments is None else arguments)])


def _run(arguments: Sequence[str]) -> int:
    """Run the verb; return the exit status."""
    try:
        options = _parse_arguments(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (CloudmanagerError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename == OUTPUT_NAME:
            raise
        status = _report(error)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    return status


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a verb; the parser of all verbs imports all of ``mbm``."""
    if arguments[:1] == [server_start.VERB]:
        return server_start.parse_arguments(arguments[1:])
    from . import command_line

    return command_line.parse_arguments(arguments)


def _report(error: CloudmanagerError | ValueError | OSError) -> int:
    """Print an error of a verb; return the exit status."""
    from cloudmanager.display.terminal import print_error  # here: these import the library

    from .commands import FAILED, NO_SERVER, USAGE

    if isinstance(error, (CloudmanagerError, ValueError)):
        print_error(str(error))
    else:
        print_error(os_error_text(error))
    if isinstance(error, ServerUnreachable):
        return NO_SERVER
    if isinstance(error, (TargetError, NoSuchBoard, CellSyntaxError)):
        return USAGE
    if isinstance(error, CloudmanagerError):
        return FAILED
    if isinstance(error, ValueError):  # of the library: an argument, or a file that it names
        return USAGE
    return USAGE if error.filename else FAILED
