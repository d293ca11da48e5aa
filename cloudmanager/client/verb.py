"""``verb``: makes a coroutine function a method of both faces, blocking and asynchronous.

A verb is written once, in a class such as ``FileVerbs``, from which ``Boards`` and ``AsyncBoards``
inherit::

    class FileVerbs(HasTarget):
        @verb
        async def rmdir(self, path: str) -> Results: ...

    fleet["lab-1"].rmdir(":old")                  # a method of Boards: blocks
    await async_fleet["lab-1"].rmdir(":old")      # a method of AsyncBoards: a coroutine

A verb awaits only ``Future``, and other coroutines that do. With the argument ``progress``, it may
call that from any thread: the caller's function is called in the thread that runs the verb.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .exchange import Exchange
from .progress import ProgressRelay
from .runner import run_blocking, run_in_loop

P = ParamSpec("P")
T = TypeVar("T")


class HasExchange:
    """Base class of the verbs of a fleet: they need a connection to the server."""

    def exchange(self) -> Exchange:
        """Return the exchange with the server."""
        raise NotImplementedError


class HasTarget(HasExchange):
    """Base class of the verbs of boards: they also need a target."""

    target: str


class Blocking:
    """Base class of ``Fleet`` and ``Boards``: each verb blocks until it has ended."""


class Asynchronous:
    """Base class of ``AsyncFleet`` and ``AsyncBoards``: each verb is a coroutine for asyncio."""

    async def connect(self) -> None:
        """Connect to the server, unless connected; each verb does so first."""
        raise NotImplementedError


class Verb(Generic[P, T]):
    """A descriptor that is a blocking method of one face, and a coroutine method of the other."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        @functools.wraps(function)
        def blocking(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            if "progress" not in kwargs:  # without the call of _start, for short cells
                return run_blocking(function(self, *args, **kwargs))
            return run_blocking(_start(function, self, args, kwargs))

        @functools.wraps(function)
        async def asynchronous(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> T:
            await self.connect()
            return await run_in_loop(_start(function, self, args, kwargs))

        self._function, self._blocking, self._asynchronous = function, blocking, asynchronous
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, face: None, owner: type) -> Callable[..., Any]: ...

    @overload
    def __get__(self, face: Blocking, owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, face: Asynchronous, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, face: object, owner: type) -> Callable[..., Any]:
        function: Callable[..., Any] = self._function
        if issubclass(owner, Blocking):
            function = self._blocking
        elif issubclass(owner, Asynchronous):
            function = self._asynchronous
        return function if face is None else MethodType(function, face)


def verb(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Verb[P, T]:
    """Decorate a coroutine function as a verb."""
    return Verb(function)


def _start(
    function: Callable[..., Coroutine[Any, Any, T]],
    face: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Coroutine[Any, Any, T]:
    """Return the coroutine of a verb; if progress is wanted, one that reports it."""
    if kwargs.get("progress") is None:
        return function(face, *args, **kwargs)
    relay = ProgressRelay(kwargs["progress"])
    return relay.run(function(face, *args, **{**kwargs, "progress": relay.update}))
