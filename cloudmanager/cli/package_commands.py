"""The verbs of ``mbm`` about boards' packages: parse, call the fleet, print."""

from __future__ import annotations

import argparse

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.install_options import (
    PLANNING_TEXT,
    add_change_options,
    add_install_options,
    install_arguments,
    install_options_error,
)
from cloudmanager.client.package_verbs import PackageVerbs
from cloudmanager.display import progress

from .commands import AddVerb
from .file_commands import print_results, print_usage_error


def add_verbs(add_verb: AddVerb) -> None:
    """Add these verbs to the parser of ``mbm``."""
    made = add_verb("board-install", install, "install packages, and what they need, on boards")
    made.add_argument("target", metavar="TARGET")
    add_install_options(made)
    gone = add_verb("board-uninstall", uninstall, "take packages off boards")
    gone.add_argument("target", metavar="TARGET")
    gone.add_argument("names", nargs="+", metavar="NAME")
    add_change_options(gone)
    have = add_verb("board-packages", packages, "tell which packages boards have")
    have.add_argument("target", metavar="TARGET")
    newer = add_verb("board-upgrade", upgrade, "install the newest of what boards have")
    newer.add_argument("target", metavar="TARGET")
    newer.add_argument("names", nargs="*", metavar="NAME", help="else all")
    add_change_options(newer)


def install(options: argparse.Namespace) -> int:
    """Install."""
    if why := install_options_error(options):
        return print_usage_error(why)
    given = install_arguments(options)
    with Fleet() as fleet, progress.ProgressBar() as bar:
        boards = fleet[options.target]
        results = progress.run_with_progress(
            lambda moved: PackageVerbs.install(boards, *options.names, progress=moved, **given),
            bar,
            PLANNING_TEXT,
        )
    return print_results(results, options)


def uninstall(options: argparse.Namespace) -> int:
    """Take off."""
    with Fleet() as fleet:
        results = fleet[options.target].uninstall(
            *options.names, force=options.force, dry_run=options.dry_run
        )
    return print_results(results, options)


def packages(options: argparse.Namespace) -> int:
    """Tell what there is."""
    with Fleet() as fleet:
        return print_results(fleet[options.target].packages(), options)


def upgrade(options: argparse.Namespace) -> int:
    """Install the newest."""
    with Fleet() as fleet, progress.ProgressBar() as bar:
        boards = fleet[options.target]
        results = progress.run_with_progress(
            lambda moved: PackageVerbs.upgrade(
                boards,
                *options.names,
                force=options.force,
                dry_run=options.dry_run,
                progress=moved,
            ),
            bar,
            PLANNING_TEXT,
        )
    return print_results(results, options)
