"""A folder here and one on each board: what differs, and making it equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import OWN, STARTER, STARTER_BYTES, Act
from cloudmanager.protocol.text import fold
from cloudmanager.results.results import Result, Results

from . import board_paths, files, sources
from .file_jobs import Progress, act, alike, ask, results_of, together
from .files import Entry
from .uploads import Item, deliver
from .verbs import Targeted

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".mbmignore"
#: What nobody wants on a board, whatever ``.mbmignore`` says.
ALWAYS: Final = (
    IGNORE_FILE,
    ".git/",
    ".ipynb_checkpoints/",
    "__pycache__/",
    "*.pyc",
    "*.part",
)


class Plan(NamedTuple):
    """What makes a board's folder equal.

    Attributes:
        put: paths on the board that get a content.
        delete: paths on the board that go.
        same: how many files are equal already.
        size_bytes: how much is to be put there.
    """

    put: tuple[str, ...]
    delete: tuple[str, ...]
    same: int
    size_bytes: int


async def sync(
    boards: Targeted,
    folder: Path,
    dest: str,
    delete: bool,
    dry_run: bool,
    progress: Progress | None,
) -> Results:
    """Make a folder on the boards equal to one here: see ``FileVerbs.sync``."""
    base = board_paths.on_board(dest)
    ignored = ignore(folder)
    items = [
        Item(sources.of_file(path), board_paths.joined(base, str(inner)))
        for inner, path in sources.walk(folder)
        if not ignored.match_file(str(inner))
    ]
    asked: list[Act] = [["hash", item.path, item.source.size] for item in items]
    told = await ask(boards, asked or [["stat", "/"]])
    results = results_of(told)
    extra = await _extra(boards, told, base, items, ignored) if delete else {}
    plans = {
        name: _plan(items, result.value, extra.get(name, ()))
        for name, result in told.items()
        if result.ok
    }
    if not dry_run:
        results.update(results_of(await _apply(boards, plans, items, progress)))
    done = {
        name: result.with_value(plans[name]) if result.ok else result
        for name, result in results.items()
    }
    return Results(done, told.left_out)


def ignore(folder: Path) -> GitIgnoreSpec:
    """Return what says whether a path in the folder stays out.

    Raises:
        OSError: ``.mbmignore`` cannot be read.
    """
    from pathspec import GitIgnoreSpec  # takes 20 ms to import

    file = folder / IGNORE_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return GitIgnoreSpec.from_lines([*lines, *ALWAYS])


def _plan(items: Sequence[Item], hashes: Sequence[Any], extra: Sequence[str]) -> Plan:
    needed = [
        item for item, there in zip(items, hashes, strict=False) if there != item.source.digest
    ]
    return Plan(
        tuple(item.path for item in needed),
        tuple(extra),
        len(items) - len(needed),
        sum(item.source.size for item in needed),
    )


async def _extra(
    boards: Targeted, told: Results, base: str, items: Sequence[Item], ignored: GitIgnoreSpec
) -> dict[str, tuple[str, ...]]:
    """Return what each board has that is not here, each folder after all that is in it."""
    well = [name for name, result in told.items() if result.ok]
    lists = await act(boards, [["ls", base, True]], target=fold(well)) if well else Results({})
    wanted = {item.path for item in items}
    return {
        name: _not_wanted(files.entries(result.value[0]), base, wanted, ignored)
        for name, result in lists.items()
        if result.ok  # else there is no such folder yet
    }


def _not_wanted(
    there: Sequence[Entry], base: str, wanted: set[str], ignored: GitIgnoreSpec
) -> tuple[str, ...]:
    def stays(entry: Entry) -> bool:
        inner = entry.path.removeprefix(base).lstrip("/") + ("/" if entry.is_dir else "")
        own = any(entry.path == each or entry.path.startswith(each + "/") for each in OWN)
        starter = entry.path == STARTER and entry.size == STARTER_BYTES
        return own or starter or ignored.match_file(inner)

    kept = wanted | {entry.path for entry in there if stays(entry)}
    gone = [
        entry
        for entry in there
        if entry.path not in kept and not any(path.startswith(entry.path + "/") for path in kept)
    ]
    gone.sort(key=lambda entry: (entry.is_dir, -entry.path.count("/"), entry.path))
    return tuple(entry.path + "/" * entry.is_dir for entry in gone)


async def _apply(
    boards: Targeted, plans: Mapping[str, Plan], items: Sequence[Item], progress: Progress | None
) -> dict[str, Result]:
    """Do what the plans say; boards with the same plan do it together."""
    works = [
        _make_equal(boards, fold(names), plan, items, progress)
        for names, plan in alike(plans)
        if plan.put or plan.delete
    ]
    return {name: each for part in await together(*works) for name, each in part.items()}


async def _make_equal(
    boards: Targeted, target: str, plan: Plan, items: Sequence[Item], progress: Progress | None
) -> Results:
    results: Results | None = None
    if plan.put:
        needed = [item for item in items if item.path in plan.put]
        results = await deliver(boards, target, needed, progress)
        target = fold([name for name, result in results.items() if result.ok])
    if not plan.delete or not target:
        return results or Results({})
    acts: list[Act] = [
        ["rmdir", path.rstrip("/")] if path.endswith("/") else ["rm", path, False]
        for path in plan.delete
    ]
    return Results({**(results or {}), **await ask(boards, acts, target=target)})
