"""The install plans of callers, kept until the caller executes them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import ServerError
from cm_server.packages.plan import InstallPlan

from .content_store import Content


class PreparedPlan(NamedTuple):
    """An install plan with its contents, ready to be executed on boards.

    Attributes:
        plan: the files for each kind of board.
        contents: the contents that the plan names, by their SHA-256.
        options: the options that a later upgrade must repeat.
    """

    plan: InstallPlan
    contents: Mapping[str, Content]
    options: Mapping[str, Any]


class PlanCache:
    """The newest plans of each caller's link, by number.

    Args:
        max_per_link: with more, the oldest ones of the link are discarded.
    """

    def __init__(self, max_per_link: int) -> None:
        self._max_per_link = max_per_link
        self._plans: dict[object, dict[int, PreparedPlan]] = {}
        self._numbers = itertools.count(1)

    def add(self, connection: object, planned: PreparedPlan) -> int:
        """Add a plan and return its number; the oldest plans of this link may be discarded."""
        plans = self._plans.setdefault(connection, {})
        while len(plans) >= self._max_per_link:
            del plans[min(plans)]
        number = next(self._numbers)
        plans[number] = planned
        return number

    def get(self, connection: object, number: object) -> PreparedPlan:
        """Return a plan of this link.

        Raises:
            ServerError: the link has no such plan, or it was discarded.
        """
        plans = self._plans.get(connection, {})
        if type(number) is not int or number not in plans:  # True is an int, too
            raise ServerError("the server has discarded this plan; install again")
        return plans[number]

    def discard_plans(self, connection: object) -> None:
        """Discard the plans of a link that was closed."""
        self._plans.pop(connection, None)
