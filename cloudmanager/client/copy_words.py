"""``cp`` as in mpremote: colons say whether files are copied to boards, from them or on them."""

from __future__ import annotations

from typing import Unpack

from cloudmanager.protocol.run_options import WaitKeywords
from cloudmanager.results.results import Results

from .fleet import Boards
from .progress import ProgressCallback
from .sources import expand_patterns


def copy_words(
    boards: Boards,
    *words: str,
    progress: ProgressCallback | None = None,
    **options: Unpack[WaitKeywords],
) -> Results:
    """Copy files and folders; the verb is ``put``, ``get`` or ``cp``.

    Args:
        boards: the boards.
        words: what to copy, and to where; a path on the boards begins with a colon. Patterns are
            expanded on both sides.
        progress: see ``FileVerbs.put``.
        options: see ``FileVerbs.put``; only what is copied to boards can wait for them.

    Raises:
        ValueError: nothing is on boards, or only a part of what is copied.
        FileNotFoundError: a local file does not exist; nothing was sent.
    """
    *sources, dest = words
    on_boards = [source.startswith(":") for source in sources]
    if dest.startswith(":") and not any(on_boards):
        found = expand_patterns(sources)
        source = sources[0] if found == sources[:1] else found
        return boards.put(source, dest, progress=progress, **options)
    if options.get("when_online"):
        raise ValueError("Only what is copied from this computer to boards can wait for them.")
    if not all(on_boards):
        raise ValueError(
            "Copy to the boards, from them or on them: either TO or all of FROM, or both, begin "
            "with a colon, such as `:lib/`."
        )
    one_or_all = sources[0] if len(sources) == 1 else sources
    if dest.startswith(":"):
        return boards.cp(one_or_all, dest, progress=progress)
    return boards.get(one_or_all, dest, glob=True, progress=progress)
