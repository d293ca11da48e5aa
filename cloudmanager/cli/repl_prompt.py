"""The input line of the prompt on boards: history, several lines, and Tab."""

from __future__ import annotations

import ast
import asyncio
import codeop
import keyword
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style
from pygments.lexers.python import PythonLexer

from cloudmanager import config
from cloudmanager.client.board_names import Connect, list_names, token_before
from cloudmanager.display.terminal import wants_colours
from cloudmanager.protocol.text import fold_names

_RUN: Final = "%run "
_MAX_HISTORY_BYTES: Final = 1024 * 1024  # of the history's file, which is then cut to a quarter
_STYLE: Final = Style.from_dict({"boards": "bold"})


class Prompt:
    """Reads inputs.

    Args:
        label: the boards, as the prompt names them.
        history: the file that keeps earlier inputs.
        connect: connects to the server, for Tab.
        target: the boards whose names Tab completes.
    """

    def __init__(self, label: str, history: Path, connect: Connect, target: str) -> None:
        has_colours = wants_colours(sys.stdout)
        self._session: PromptSession[str] = PromptSession(
            [("class:boards", label), ("", " >>> ")],
            multiline=True,
            prompt_continuation=lambda width, _number, _wrapped: "... ".rjust(width),
            history=PrivateHistory(history),
            completer=BoardCompleter(connect, target),
            complete_in_thread=True,
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            lexer=PygmentsLexer(PythonLexer) if has_colours else None,
            color_depth=None if has_colours else ColorDepth.DEPTH_1_BIT,
            style=_STYLE,
        )

    def above(self) -> AbstractContextManager[None]:
        """Return a context manager in which prints of other threads appear above the prompt."""
        return patch_stdout()

    def read(self) -> str:
        """Return the next input.

        Raises:
            EOFError: Ctrl-D was pressed, or the terminal was closed.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        return self._session.prompt()


class PrivateHistory(FileHistory):
    """Earlier inputs, in a file that only this user can read.

    An input that begins with a space is not kept.
    """

    def __init__(self, path: Path) -> None:
        config.open_private(path, append=True).close()
        _limit_size(path)
        super().__init__(os.fspath(path))

    def append_string(self, string: str) -> None:
        """Add an input, without the empty line that ends a block."""
        if not string.startswith(" "):
            super().append_string(string.rstrip())


def _limit_size(path: Path) -> None:
    """Forget the oldest inputs if there are very many; an input begins with a line `# TIME`."""
    if path.stat().st_size > _MAX_HISTORY_BYTES:
        text = path.read_text(encoding="utf-8", errors="replace")[-_MAX_HISTORY_BYTES // 4 :]
        config.write_private(path, text[text.find("\n# ") + 1 :])


class BoardCompleter(Completer):
    """Completes names that the boards have, keywords, and the file of `%run`."""

    def __init__(self, connect: Connect, target: str) -> None:
        self._connect = connect
        self._target = target
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what may replace the text before the cursor; called in a thread."""
        text = document.text_before_cursor
        if text.startswith(_RUN):
            path = Document(text.removeprefix(_RUN))
            yield from self._paths.get_completions(path, complete_event)
            return
        token = token_before(text, len(text))
        if token.importing or not (token.path or token.prefix):
            return
        names = list_names(self._connect, self._target, token.path, token.prefix)
        found, answered = asyncio.run(names)
        at = -len(token.prefix)
        for name, where in sorted(found.items(), key=lambda each: (-len(each[1].boards), each[0])):
            is_everywhere = len(where.boards) == len(answered)
            only = "" if is_everywhere else f"only on {fold_names(where.boards)}"
            yield Completion(name, at, display_meta=" ".join(filter(None, (where.kind, only))))
        if not token.path:
            for word in keyword.kwlist:
                if word.startswith(token.prefix) and word not in found:
                    yield Completion(word, at, display_meta="keyword")


def is_complete(text: str) -> bool:
    """Whether an input can be run: its statements are complete, or wrong.

    A block of several lines ends with an empty line; so does what is not closed, except for a
    string.
    """
    if text.lstrip().startswith("%"):
        return True
    *_, last = text.split("\n")
    if "\n" in text and last[:1].isspace() and last.strip():
        return False
    if "\n" in text and not last.strip():
        return not _is_in_string(text)
    compile_command = codeop.CommandCompiler()
    compile_command.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        return compile_command(text.strip(" "), "<input>", "exec") is not None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return True  # the cell's own error says what is wrong


def _is_in_string(text: str) -> bool:
    """Whether a text ends in a string of several lines."""
    try:
        compile(text, "<input>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        return "unterminated triple-quoted" in error.msg
    except (ValueError, OverflowError, RecursionError, MemoryError):
        pass
    return False


def next_indentation(line: str) -> str:
    """Return the spaces with which the line after this one begins."""
    spaces = line[: len(line) - len(line.lstrip())]
    return spaces + "    " if line.rstrip().endswith(":") else spaces


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None:  # the chosen completion is in the text already
            buffer.complete_state = None
            return
        document = buffer.document
        is_at_end = not document.text_after_cursor.strip()
        is_line = "\n" not in document.text
        if (is_at_end or is_line) and is_complete(document.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n" + next_indentation(document.current_line_before_cursor))

    def is_before_text() -> bool:
        return not get_app().current_buffer.document.current_line_before_cursor.strip()

    @bindings.add("tab", filter=Condition(is_before_text))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("    ")

    return bindings
