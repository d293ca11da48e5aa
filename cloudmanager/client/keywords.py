"""Shows keywords that a verb takes as ``**options`` in its signature and its docstring.

Type checkers read them from ``Unpack``; ``help()``, Shift-Tab and IPython's ``?`` read signatures.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cloudmanager.protocol.option_info import option_infos
from cloudmanager.protocol.run_options import RunKeywords, RunOptions, WaitKeywords

_TEXT_WIDTH: Final = 72  # of a line of a docstring, without its indentation

F = TypeVar("F", bound=Callable[..., Any])


def show_keywords(keywords: type, options: type) -> Callable[[F], F]:
    """Return a decorator for a function that takes ``**options: Unpack[keywords]``.

    The line ``options: see ``NAME``.`` of its docstring is replaced by a line for each keyword.

    Args:
        keywords: a ``TypedDict``.
        options: a dataclass with the same fields, which declares them as options.
    """

    def decorate(function: F) -> F:
        function.__signature__ = _signature(function, keywords, options)  # type: ignore[attr-defined]
        function.__doc__ = _docstring(function, keywords, options)
        return function

    return decorate


def _signature(function: F, keywords: type, options: type) -> inspect.Signature:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[:-1]
    for name, annotation in keywords.__annotations__.items():
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(options, name),
                annotation=annotation.__forward_arg__,
            )
        )
    return signature.replace(parameters=parameters)


def _docstring(function: F, keywords: type, options: type) -> str | None:
    """Return the docstring with the keywords; None if Python removes docstrings (``-OO``)."""
    docstring = function.__doc__
    if docstring is None:
        return None
    # Python removes the indentation of docstrings from 3.13 on.
    line = re.search(rf"^( *)options: see ``{options.__name__}``\.$", docstring, re.MULTILINE)
    assert line is not None
    indent = line[1]
    infos = option_infos(options)
    lines = []
    for name in keywords.__annotations__:
        lines += textwrap.wrap(
            f"{name}: {infos[name].text}.",
            len(indent) + _TEXT_WIDTH,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
        )
    return docstring[: line.start()] + "\n".join(lines) + docstring[line.end() :]


#: Decorates a function that takes ``**options: Unpack[RunKeywords]``.
run_keywords = show_keywords(RunKeywords, RunOptions)
#: Decorates a function that takes ``**options: Unpack[WaitKeywords]``.
wait_keywords = show_keywords(WaitKeywords, RunOptions)
