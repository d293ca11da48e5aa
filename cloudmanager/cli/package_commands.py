"""The verbs of ``mbm`` for packages on boards: parse, call the fleet, print."""

from __future__ import annotations

import argparse

from cloudmanager.client.install_options import (
    PLANNING_TEXT,
    add_install_options,
    add_uninstall_options,
    add_upgrade_options,
    install_keywords,
    install_options_error,
)
from cloudmanager.client.run_arguments import (
    add_wait_options,
    wait_keywords,
    wait_options_error,
)
from cloudmanager.display.progress import ProgressBar

from .commands import AddVerb, open_fleet
from .file_commands import print_results, print_usage_error


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    add = add_verb("board-install", install, "install packages and their dependencies on boards")
    add.add_argument("target", metavar="TARGET")
    add_install_options(add)
    remove = add_verb("board-uninstall", uninstall, "uninstall packages from boards")
    remove.add_argument("target", metavar="TARGET")
    remove.add_argument("names", nargs="+", metavar="NAME", help="name of an installed package")
    add_uninstall_options(remove)
    add_wait_options(remove)
    show = add_verb("board-packages", packages, "list the packages installed on boards")
    show.add_argument("target", metavar="TARGET")
    newer = add_verb("board-upgrade", upgrade, "install the newest versions of packages on boards")
    newer.add_argument("target", metavar="TARGET")
    newer.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="packages (default: all)"
    )
    add_upgrade_options(newer)


def install(options: argparse.Namespace) -> int:
    """Install packages."""
    if error := install_options_error(options):
        return print_usage_error(error)
    arguments = install_keywords(options)
    with open_fleet(options) as fleet, ProgressBar(PLANNING_TEXT, quiet=options.json) as progress:
        results = fleet[options.target].install(*options.names, progress=progress, **arguments)
    return print_results(results, options)


def uninstall(options: argparse.Namespace) -> int:
    """Uninstall packages."""
    if error := wait_options_error(options):
        return print_usage_error(error)
    with open_fleet(options) as fleet, ProgressBar(quiet=options.json) as progress:
        results = fleet[options.target].uninstall(
            *options.names,
            force=options.force,
            dry_run=options.dry_run,
            progress=progress,
            **wait_keywords(options),
        )
    return print_results(results, options)


def packages(options: argparse.Namespace) -> int:
    """List the installed packages."""
    with open_fleet(options) as fleet, ProgressBar(quiet=options.json):
        results = fleet[options.target].packages()
    return print_results(results, options)


def upgrade(options: argparse.Namespace) -> int:
    """Install the newest versions of packages."""
    with open_fleet(options) as fleet, ProgressBar(PLANNING_TEXT, quiet=options.json) as progress:
        results = fleet[options.target].upgrade(
            *options.names, force=options.force, dry_run=options.dry_run, progress=progress
        )
    return print_results(results, options)
