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
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[:-1]
    for name in RunKeywords.__annotations__:
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(RunOptions, name),
                annotation=RunKeywords.__annotations__[name].__forward_arg__,
            )
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
