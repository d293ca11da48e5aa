"""Words that do not come back: `make check` fails if code, docs or notebooks contain one.

    python -m tests.plain_words          # the whole project
    python -m tests.plain_words FILE…    # some files

Each was used in a sense that readers had to guess at, or in a sentence that sounded translated. A
line that needs one of them all the same carries the marker `plain-words: ok` (in a comment). This
is no proof of good English; it only keeps old habits from returning.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
MARKER: Final = "plain-words: ok"
SUFFIXES: Final = (".py", ".md", ".ipynb", ".js", ".cfg", ".toml")
#: Files that quote the words: this one, and pictures and data that are no prose.
LEFT_OUT: Final = ("tests/plain_words.py", "tests/test_plain_words.py")

#: Pattern -> what to write instead. An underscore counts as a word boundary, so that identifiers
#: are found too.
WORDS: Final = {
    r"told": "reported, notified, received, facts",
    r"tells? of": "reports, describes",
    r"whence": "from where, the source of",
    r"in company": "batched, together with",
    r"opens? nothing": "is not valid, is refused",
    r"is to be": "must be, will be",
    r"has (its|no|a) say": "decides, is ignored",
    r"who dials": "a board that connects",
    r"dials? out": "connect to the server",
    r"goes out": "is sent",
    r"knows? nothing": "has no information about, does not depend on",
    r"anew": "again, new",
    r"nobody's": "not owned by anybody",
    r"whatever his": "its",
    r"he (is|has|was|wants|asks|gets|does|may|can|must)": "it, the caller, the user",
    r"without a word": "silently, without a message",
    r"of ours": "our, internal",
    r"in his (own )?": "in its",
    r"knocks?": "connect",
    r"at the door": "unauthenticated",
    r"gone wild": "faulty",
    r"disturbs? nobody": "does not affect others",
    r"turn(ed)? round": "reversed",
    r"the (other )?half of it": "the rest",
    r"as it pleases": "at any time",
    r"it is said": "it is documented, reported",
    r"is no such": "does not exist",
    r"under way": "in progress, pending",
    r"by and by": "gradually",
    r"so to speak": "",
}
_PATTERN: Final = re.compile(
    "|".join(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])" for word in WORDS), re.IGNORECASE
)


class Finding(NamedTuple):
    """One word in one line."""

    path: Path
    line: int
    word: str
    text: str

    def __str__(self) -> str:
        """Show it as compilers do, with what to write instead."""
        instead = next(new for old, new in WORDS.items() if re.fullmatch(old, self.word, re.I))
        advice = f" (write: {instead})" if instead else ""
        return f"{self.path}:{self.line}: {self.word!r}{advice}: {self.text.strip()[:80]}"


def find(path: Path, text: str) -> Iterator[Finding]:
    """Yield the words of the list that a text contains."""
    for number, line in enumerate(text.splitlines(), 1):
        if MARKER not in line:
            for match in _PATTERN.finditer(line.replace("_", " ")):
                yield Finding(path, number, match.group(), line)


def tracked() -> Iterator[Path]:
    """Yield the files that git tracks and that hold prose or code."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if name.endswith(SUFFIXES) and name not in LEFT_OUT and (ROOT / name).is_file():
            yield ROOT / name


def main() -> None:
    """Check the files; exit status 1 if a word was found."""
    paths = [Path(name) for name in sys.argv[1:]] or tracked()
    findings = [each for path in paths for each in find(path, path.read_text(encoding="utf-8"))]
    for finding in findings:
        print(finding)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
