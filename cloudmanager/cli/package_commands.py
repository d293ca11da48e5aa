"""The verbs of ``mbm`` about boards' packages: parse, call the fleet, print."""

from __future__ import annotations

import argparse

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.install_options import (
    PLANNING,
    add_change_options,
    add_install_options,
    install_options,
    what_lacks,
)
from cloudmanager.client.package_verbs import PackageVerbs
from cloudmanager.display import progress

from .commands import Verb
from .file_commands import refuse, tell


def add_to(verb: Verb) -> None:
    """Add these verbs to the parser of ``mbm``."""
    made = verb("board-install", install, "install packages, and what they need, on boards")
    made.add_argument("target", metavar="TARGET")
    add_install_options(made)
    gone = verb("board-uninstall", uninstall, "take packages off boards")
    gone.add_argument("target", metavar="TARGET")
    gone.add_argument("names", nargs="+", metavar="NAME")
    add_change_options(gone)
    have = verb("board-packages", packages, "tell which packages boards have")
    have.add_argument("target", metavar="TARGET")
    newer = verb("board-upgrade", upgrade, "install the newest of what boards have")
    newer.add_argument("target", metavar="TARGET")
    newer.add_argument("names", nargs="*", metavar="NAME", help="else all")
    add_change_options(newer)


def install(options: argparse.Namespace) -> int:
    """Install."""
    if why := what_lacks(options):
        return refuse(why)
    given = install_options(options)
    with Fleet() as fleet, progress.Bar() as bar:
        boards = fleet[options.target]
        results = progress.follow(
            lambda moved: PackageVerbs.install(boards, *options.names, progress=moved, **given),
            bar,
            PLANNING,
        )
    return tell(results, options)


def uninstall(options: argparse.Namespace) -> int:
    """Take off."""
    with Fleet() as fleet:
        results = fleet[options.target].uninstall(
            *options.names, force=options.force, dry_run=options.dry_run
        )
    return tell(results, options)


def packages(options: argparse.Namespace) -> int:
    """Tell what there is."""
    with Fleet() as fleet:
        return tell(fleet[options.target].packages(), options)


def upgrade(options: argparse.Namespace) -> int:
    """Install the newest."""
    with Fleet() as fleet, progress.Bar() as bar:
        boards = fleet[options.target]
        results = progress.follow(
            lambda moved: PackageVerbs.upgrade(
                boards,
                *options.names,
                force=options.force,
                dry_run=options.dry_run,
                progress=moved,
            ),
            bar,
            PLANNING,
        )
    return tell(results, options)
