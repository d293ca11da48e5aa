"""Command-line options of cells, shared by `mbm` and the magics; made from ``RunOptions``."""

from __future__ import annotations

import argparse
from typing import cast

from cloudmanager.protocol.option_info import option_infos
from cloudmanager.protocol.run_options import (
    DEFAULT_OPTIONS,
    RunKeywords,
    RunOptions,
    parse_seconds,
)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of cells to a parser."""
    for name, info in option_infos(RunOptions).items():
        if not info.flag:
            continue
        if info.metavar:
            parser.add_argument(
                info.flag,
                dest=name,
                type=seconds_argument,
                default=getattr(DEFAULT_OPTIONS, name),
                metavar=info.metavar,
                help=info.text,
            )
        else:
            parser.add_argument(info.flag, dest=name, action="store_true", help=info.text)


def run_keywords(options: argparse.Namespace) -> RunKeywords:
    """Return parsed options as keywords of ``run`` and ``submit``."""
    names = [name for name, info in option_infos(RunOptions).items() if info.flag]
    return cast(RunKeywords, {name: getattr(options, name) for name in names})


def seconds_argument(text: str) -> float:
    """Parse a positive, finite number of seconds; an argparse type."""
    try:
        return parse_seconds(text)
    except ValueError:
        message = f"{text!r} is not a positive number of seconds."
        raise argparse.ArgumentTypeError(message) from None
