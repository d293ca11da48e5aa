"""Shows keywords that a verb takes as ``**options`` in its signature and its docstring.

Type checkers read them from ``Unpack``; ``help()``, Shift-Tab and IPython's ``?`` read signatures.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from cloudmanager.protocol.option_info import option_infos
from cloudmanager.protocol.run_options import RunKeywords, RunOptions

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


def _docstring(function: F, keywords: type, options: type) -> str:
    infos = option_infos(options)
    lines = []
    for name in keywords.__annotations__:
        text = f"{name}: {infos[name].text}."
        lines += textwrap.wrap(text, 84, initial_indent=" " * 12, subsequent_indent=" " * 16)
    placeholder = f"            options: see ``{options.__name__}``.\n"
    assert function.__doc__ is not None
    assert placeholder in function.__doc__
    return function.__doc__.replace(placeholder, "\n".join(lines) + "\n")


#: Decorates a function that takes ``**options: Unpack[RunKeywords]``.
run_keywords = show_keywords(RunKeywords, RunOptions)
