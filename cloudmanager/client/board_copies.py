"""Copies files from one place on a board to another, on each of several boards.

The files pass through this computer: a board has no operation that copies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence

from cloudmanager.results.results import Results

from . import board_globs, board_paths, downloads, files, uploads
from .downloads import DownloadRequest
from .file_jobs import add_errors, is_refusal, join_errors, run_file_ops
from .moves import kind_op
from .progress import ProgressCallback
from .runner import gather
from .several_paths import BoardPaths, SomeBoards
from .verb import HasTarget


async def copy(
    boards: HasTarget, sources: BoardPaths, dest: str, progress: ProgressCallback | None
) -> Results:
    """Copy files and folders on the boards themselves: see ``FileVerbs.cp``."""
    is_single = isinstance(sources, str)
    paths = [sources] if isinstance(sources, str) else list(sources)
    for path in (*paths, dest):
        board_paths.parse_board_path(path)
    looked = await run_file_ops(boards, [kind_op(board_paths.parse_board_path(dest))])
    results = dict(looked)
    copied = await gather(
        *(
            _copy_on_board(SomeBoards(boards, [name]), paths, (dest, is_single), progress)
            for name, result in looked.items()
            if result.ok
        )
    )
    for part in copied:
        results.update(part)
    return Results(results, looked.left_out)


async def _copy_on_board(
    board: HasTarget,
    paths: Sequence[str],
    dest: tuple[str, bool],
    progress: ProgressCallback | None,
) -> Results:
    """Copy files and folders on one board, by the rules for places of an upload.

    Args:
        board: the board.
        paths: what to copy.
        dest: the place, and whether a single file is to have it as its name.
        progress: see ``FileVerbs.put``.
    """
    place, is_single = dest
    errors: list[OSError] = []
    origins: list[str] = []
    places: dict[str, str] = {}  # local folder -> the folder on the board that its content is from
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            found = [path]
            if board_globs.has_pattern(path):
                (match,) = (await board_globs.find(board, path)).values()
                if match.ok:
                    found = [f":{entry.path}" for entry in match.value]
                    is_single = is_single and found == [f":{board_paths.parse_board_path(path)}"]
            for each in found:
                local = f"{folder}/{len(origins) + len(errors)}/"
                request = DownloadRequest(each, local, folder_per_board=False)
                (result,) = (await downloads.download_from(board, request, progress)).values()
                if isinstance(result.error, OSError) and is_refusal(result.error):
                    errors.append(result.error)
                elif result.ok:
                    top, _, name = board_paths.parse_board_path(each).rpartition("/")
                    places[local] = f"{top}/{name}/" if each.endswith("/") else f"{top}/"
                    is_content = each.endswith("/") or not name
                    origins.append(local if is_content else local + board_paths.escape_name(name))
                else:
                    return Results({result.board: result})
        if not origins:
            return Results({board.target: files.failed_result(board.target, join_errors(errors))})
        origin = origins[0] if is_single else origins
        try:
            results = add_errors(await uploads.upload(board, origin, place, progress), errors)
        except OSError as failure:
            results = Results({board.target: files.failed_result(board.target, failure)})
        except ValueError as wrong:  # two files for one place
            raise ValueError(_with_board_names(str(wrong), places, "")) from None
    named = dict(results)
    for name, result in results.items():
        error = result.error
        if isinstance(error, OSError):
            why = _with_board_names(str(error.strerror or ""), places, name)
            path = _with_board_names(str(error.filename or ""), places, name)
            named[name] = files.failed_result(name, OSError(error.errno, why, path))
    return Results(named, results.left_out)


def _with_board_names(text: str, places: Mapping[str, str], board: str) -> str:
    """Return a message that names files on a board instead of their local copies."""
    for local, top in places.items():
        text = text.replace(local, f"{board}:{top}")
    return text
