"""Shows keywords that a verb takes as ``**options`` in its signature and its docstring.

Type checkers read them from ``Unpack``; ``help()``, Shift-Tab and IPython's ``?`` read signatures.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from cloudmanager.protocol.run_options import RunKeywords, RunOptions, option_infos

F = TypeVar("F", bound=Callable[..., Any])
_PLACEHOLDER = "            options: see ``RunOptions``.\n"


def show_keywords(keywords: type, defaults: type) -> Callable[[F], F]:
    """Return a decorator for a function that takes ``**options: Unpack[keywords]``.

    Args:
        keywords: a ``TypedDict``.
        defaults: a dataclass with the same fields, and their defaults.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[:-1]
        for name, annotation in keywords.__annotations__.items():
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=getattr(defaults, name),
                    annotation=annotation.__forward_arg__,
                )
            )
        shown = signature.replace(parameters=parameters)
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return decorate


def run_keywords(function: F) -> F:
    """Decorate a function that takes ``**options: Unpack[RunKeywords]``."""
    infos = option_infos()
    lines = []
    for name in RunKeywords.__annotations__:
        text = f"{name}: {infos[name].text}."
        lines += textwrap.wrap(text, 84, initial_indent=" " * 12, subsequent_indent=" " * 16)
    assert function.__doc__ is not None
    assert _PLACEHOLDER in function.__doc__
    function.__doc__ = function.__doc__.replace(_PLACEHOLDER, "\n".join(lines) + "\n")
    return show_keywords(RunKeywords, RunOptions)(function)
