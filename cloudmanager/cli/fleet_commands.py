"""The verbs of ``mbm`` that say how fleet and boards are: ``fleet-health``, ``board-info``."""

from __future__ import annotations

import argparse
from typing import Any

from cloudmanager.client.fleet import Fleet
from cloudmanager.display.text_tables import boards_text

from .commands import FAILED, OK, AddVerb, print_outcome


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    add_verb("fleet-health", fleet_health, "show what is wrong in the fleet, and what to do")
    info = add_verb("board-info", board_info, "show all that is known of a board")
    info.add_argument("target", metavar="TARGET", help="a board, or several; connected or not")


def fleet_health(options: argparse.Namespace) -> int:
    """Show what is wrong; the exit status is 1 if something is."""
    with Fleet() as fleet:
        health = fleet.health()
    print_outcome(options, health.to_json(), repr(health))
    return OK if health.ok else FAILED


def board_info(options: argparse.Namespace) -> int:
    """Show all that is known of boards: facts, inventory, packages, and what is wrong."""
    with Fleet() as fleet:
        boards = fleet[options.target].info()
        installed = fleet.request("installed", target=options.target)
        health = fleet.health()
    described = [
        {
            **board,
            "packages": _versions(installed.get(board["name"], {})),
            "findings": [finding.to_json() for finding in health.of_board(board["name"])],
        }
        for board in boards
    ]
    one = len(described) == 1 and described[0]["name"] == options.target
    return print_outcome(options, described[0] if one else described, boards_text(described))


def _versions(installed: dict[str, Any]) -> dict[str, str]:
    """Return the versions of a board's packages by name."""
    packages = installed.get("packages") or {}
    return {name: str(package.get("version", "")) for name, package in packages.items()}
