"""Options that a dataclass declares once: for keywords, docstrings and command lines. No I/O."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class OptionInfo(NamedTuple):
    """How an option is written and explained.

    Attributes:
        text: what it does, for help texts and docstrings.
        flag: its command-line option; "" if it has none.
        metavar: the name of the option's value, in help texts; "" for a flag without a value.
    """

    text: str
    flag: str = ""
    metavar: str = ""


def option(default: Any, text: str, flag: str = "", metavar: str = "") -> Any:
    """Declare a field of a dataclass as an option; the arguments are those of ``OptionInfo``."""
    return dataclasses.field(default=default, metadata={"info": OptionInfo(text, flag, metavar)})


def option_infos(options: type) -> dict[str, OptionInfo]:
    """Return name -> description of each option that a dataclass declares."""
    return {field.name: field.metadata["info"] for field in dataclasses.fields(options)}
