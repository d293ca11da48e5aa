"""Finds the end of code in the output of a raw REPL, whatever the code prints. No I/O.

The raw REPL ends output and traceback with the byte 4, which user code may print, too. So our code
ends with a call that writes a random marker before and after the cell's value:

```
OUTPUT 4 MARKER VALUE 4 MARKER 4 4 >         it has ended
OUTPUT 4 TRACEBACK 4 >                       it has raised an exception
OUTPUT … soft reboot … raw REPL … >          it has restarted the board
```

User code can imitate the last two. Where they seem to be, the REPL is asked to print another random
number: only a REPL that has ended the code does that.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

#: Defines, on the board: what saves a cell's value; what writes the markers and the value; input(),
#: which fails; and the built-in functions that our code uses, since user code may replace them. A
#: value is written in one piece, if there is memory for that: MicroPython writes each character of
#: a long text alone.
PRELUDE: Final = """
def __cm__(v):
 global __cm_v__
 __cm_v__=v
def __cm_z__(m,p=print,r=repr):
 global __cm_v__
 v=__cm_v__
 __cm_v__=None
 p('\\x04',m,sep='',end='')
 if v is not None:
  try:p('(',r(v),',)',sep='',end='')
  except MemoryError:p((v,),end='')
 p('\\x04',m,sep='',end='')
def input(p=''):
 raise EOFError
__cm_v__=None
__cm_p__=print
__cm_r__=repr
__cm_o__=open
__cm_i__=__import__
__cm_a__=bytearray
"""
EOT: Final = b"\x04"
RAW_BANNER: Final = b"raw REPL; CTRL-B to exit\r\n>"
MAX_HELD_BYTES: Final = 4096  # that may be a traceback, before they are passed on as output
MAX_HELD_SECONDS: Final = 1.0
_PROMPT: Final = b"\x04>"
_PROMPTS: Final = (_PROMPT, RAW_BANNER, b"\n>>> ")
_QUESTIONS: Final = 3  # that are sent; a Ctrl-C may remove what the REPL has not read
_QUESTION_SECONDS: Final = 1.0  # between two of them
_TRACEBACK_START: Final = EOT + b"Traceback (most recent call last):"
_ANSWER_BYTES: Final = 128  # more than an answer to `make_question` has, with what surrounds it


@dataclass(frozen=True)
class Outcome:
    """How code ended.

    Attributes:
        value: the value as the only element of a tuple; empty if it is None.
        traceback: empty if the code ended without an error.
        restarted: whether the board has restarted, so that its names are gone.
    """

    value: bytes = b""
    traceback: bytes = b""
    restarted: bool = False


class OutputParser:
    """Separates output, value and traceback.

    Args:
        marker: what the code writes after byte 4, before and after its value.

    Attributes:
        outcome: how the code ended; None while it runs. The last prompt is not read then.
    """

    def __init__(self, marker: str) -> None:
        self.outcome: Outcome | None = None
        self._marker = EOT + marker.encode()
        self._output = bytearray()
        self._held = bytearray()  # from a byte 4 on: output or the end, which is not known yet
        self._held_since = 0.0
        self._value: bytearray | None = None  # after the first marker
        self._has_value = False  # after the second
        self._recent = bytearray()  # the last bytes
        self._question = b""  # the number that the REPL must print; empty: it was not asked
        self._questions, self._asked_at = 0, 0.0

    def feed(self, byte: bytes) -> None:
        """Add the next byte."""
        self._recent += byte
        if len(self._recent) > 2 * _ANSWER_BYTES:
            del self._recent[:_ANSWER_BYTES]
        if not self._held and byte != EOT and not self._question:
            self._known.extend(byte)
            return
        if not self._held:
            self._held_since = time.monotonic()
        self._held += byte
        if self._held.endswith(self._marker):
            self._known.extend(self._held[: -len(self._marker)])
            self._held.clear()
            self._has_value = self._value is not None
            self._value = bytearray() if self._value is None else self._value
        elif byte == EOT:
            self._find_end()

    @property
    def _known(self) -> bytearray:
        """What bytes belong to that are no part of the protocol: output, or the value."""
        return self._output if self._value is None or self._has_value else self._value

    def take_output(self) -> bytes:
        """Return output that has not been returned yet."""
        if not self.outcome and self._held:
            self._release_held()
        output = bytes(self._output)
        self._output.clear()
        return output

    def _release_held(self) -> None:
        """Give up holding bytes that are no end: too many, or for too long."""
        old = time.monotonic() - self._held_since > MAX_HELD_SECONDS
        if len(self._held) <= MAX_HELD_BYTES and not old:
            return
        keep = self._held.rfind(EOT)  # a traceback may begin there
        if keep <= 0:
            keep = len(self._held)
        if self._question:
            keep = max(0, len(self._held) - _ANSWER_BYTES)
        self._known.extend(self._held[:keep])
        del self._held[:keep]
        self._held_since = time.monotonic()

    def may_have_ended(self) -> bool:
        """Return whether the REPL seems to wait for code, and should be asked."""
        due = not self._questions or time.monotonic() - self._asked_at > _QUESTION_SECONDS
        return due and self._questions < _QUESTIONS and self._recent.endswith(_PROMPTS)

    def make_question(self, number: str) -> bytes:
        """Return what to send to a REPL that seems to wait for code.

        Args:
            number: random; the answer contains it. Only that of the first question is used.
        """
        self._question = self._question or number.encode()
        self._questions += 1
        self._asked_at = time.monotonic()
        # Ctrl-A also leaves the friendly REPL. The prelude is gone after a restart.
        code = b"\x01try:__cm_p__('%s True')\nexcept NameError:print('%s False')\x04"
        return code % (self._question, self._question)

    def _find_end(self) -> None:
        held = self._held
        if not self._question:
            if self._has_value and held == EOT + EOT:
                self.outcome = Outcome(value=bytes(self._value or b""))
            return
        answer = re.search(rb"OK%s (True|False)\r?\n\x04\x04$" % self._question, held)
        if answer:
            before = held[: answer.start()]
            while before.endswith(RAW_BANNER):  # of the question, and of probes before it
                before = before.removesuffix(RAW_BANNER)
            self.outcome = self._read_end(before, restarted=answer[1] == b"False")

    def _read_end(self, end: bytearray, *, restarted: bool) -> Outcome:
        """Return the outcome from what precedes the answer of the REPL."""
        if self._has_value and end[:2] == EOT + EOT:
            return Outcome(value=bytes(self._value or b""))
        if restarted:
            return Outcome(restarted=True)
        end = end.removesuffix(_PROMPT)
        at = end.rfind(_TRACEBACK_START)
        at = end.rfind(EOT) if at < 0 else at
        if at > 0:
            self._known.extend(end[:at])
        return Outcome(traceback=bytes(end[at + 1 :]) or b"SystemExit\r\n")
