"""Write files to a board, as one job of several steps, for boards whose caller is not there.

A caller that is there sends as many lists of file operations as it needs, and looks at the results
of each (``cloudmanager/client/uploads.py``). What waits for its board is carried out by the server
alone: it writes what is not on the board yet, and a file that the board refuses does not keep the
others from it. No sockets, no SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol import file_ops
from cloudmanager.protocol.errors import ServerError
from cm_server.store.store_queue import completed

from .content_store import Content
from .job_steps import FileOp, OpGenerator, SteppedJobSpec
from .services import InstallServices
from .transfers import ack_bytes_for

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.store_queue import Operation

_FIRST_OPS: Final[tuple[FileOp, ...]] = (["stat", "/"],)
_BATCH_OPS: Final = 16  # that are sent together; after an error, each of them is sent alone
_MAX_LISTED_ERRORS: Final = 3  # of the files of one board
_NEW_CLIENT_FOLDER: Final = "/lib/cm.new"

#: Returns a content by its SHA-256; None if it is not there.
FindContent = Callable[[str], Content | None]


def read_upload_job(
    services: InstallServices, find_content: FindContent, request: Any, boards: int
) -> tuple[SteppedJobSpec, list[Content]]:
    """Return the job that a caller's ``upload`` request describes, and its contents.

    Args:
        services: what transfers need.
        find_content: where the contents are.
        request: the JSON of the request: docs/protocol.md.
        boards: the number of boards that get the job.

    Raises:
        ServerError: the request is malformed, or a content was not uploaded.
    """
    if not isinstance(request, dict):
        raise ServerError("an upload must be a JSON object")
    if "client" in request:
        return _read_client_job(services, find_content, request["client"], boards)
    limits = services.limits
    ops = file_ops.check_file_ops(
        request.get("acts"), max_ops=limits.upload_ops, path_bytes=limits.path_bytes
    )
    if any(op[0] not in ("makedirs", "put") for op in ops):
        raise ServerError("an upload makes folders and puts files, and nothing else")
    contents = _find_contents(ops, find_content)
    board_ops = [_with_content(op, contents) for op in ops]
    replaces_starter = any(map(file_ops.touches_starter, ops))
    spec = _make_spec(services, boards, lambda: write_files(board_ops))
    spec.replaces_starter = replaces_starter
    return spec, list(contents.values())


def _read_client_job(
    services: InstallServices, find_content: FindContent, request: Any, boards: int
) -> tuple[SteppedJobSpec, list[Content]]:
    """Return the job that puts a new client beside the one that a board has."""
    is_object = isinstance(request, dict) and 0 < len(request) <= services.limits.file_ops
    if not is_object or not all(_is_plain_name(name) for name in request):
        raise ServerError("a client is an object: names of its files -> SHA-256")
    ops = [["put", f"{_NEW_CLIENT_FOLDER}/{name}", digest] for name, digest in request.items()]
    file_ops.check_file_ops(
        ops, max_ops=services.limits.file_ops, path_bytes=services.limits.path_bytes
    )
    contents = _find_contents(ops, find_content)
    board_ops = [_with_content(op, contents) for op in ops]
    return _make_spec(services, boards, lambda: stage_client(board_ops)), list(contents.values())


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _find_contents(ops: Sequence[FileOp], find_content: FindContent) -> dict[str, Content]:
    """Return the contents of puts, by SHA-256.

    Raises:
        ServerError: one was not uploaded.
    """
    found: dict[str, Content] = {}
    for op in ops:
        if op[0] == "put":
            content = find_content(op[2])
            if content is None:
                raise ServerError(f"the content for {op[1]} was not uploaded")
            found[op[2]] = content
    return found


def _with_content(op: FileOp, contents: dict[str, Content]) -> FileOp:
    """Return an operation as a generator yields it."""
    return ["put", op[1], contents[op[2]]] if op[0] == "put" else op


def _make_spec(
    services: InstallServices, boards: int, generate: Callable[[], OpGenerator]
) -> SteppedJobSpec:
    def read_store(_board: Board) -> Operation[None]:
        return completed(None)

    def make_generator(_board: Board, _stored: None) -> OpGenerator:
        return generate()

    return SteppedJobSpec(
        _FIRST_OPS, make_generator, read_store, ack_bytes_for(boards, services.limits), 0
    )


# On one board


def write_files(ops: Sequence[FileOp]) -> OpGenerator:
    """Make folders and write files; return how many files were written, and their bytes.

    Raises:
        OSError: the board refused some of them, after the others were written.
    """
    yield _FIRST_OPS
    errors: list[OSError] = []
    sizes: list[int] = []
    for start in range(0, len(ops), _BATCH_OPS):
        sizes += yield from _write_batch(ops[start : start + _BATCH_OPS], errors)
    if errors:
        first, *others = errors
        more = ", ".join(str(error.filename) for error in others[:_MAX_LISTED_ERRORS])
        left = len(others) - _MAX_LISTED_ERRORS
        also = f" (also {more}{f' and {left} more' if left > 0 else ''})" if more else ""
        raise OSError(first.errno, first.strerror, f"{first.filename}{also}")
    return {"files": sum(1 for size in sizes if size), "bytes": sum(sizes)}


def _write_batch(
    ops: Sequence[FileOp], errors: list[OSError]
) -> Generator[Sequence[FileOp], list[Any], list[int]]:
    """Carry out operations; where one fails, each alone. Return the bytes of each put."""
    try:
        results = yield ops
    except OSError as error:
        if len(ops) == 1:
            errors.append(error)
            return []
    else:
        return [int(size) for op, size in zip(ops, results, strict=True) if op[0] == "put"]
    sizes: list[int] = []
    for op in ops:
        sizes += yield from _write_batch([op], errors)
    return sizes


def stage_client(ops: Sequence[FileOp]) -> OpGenerator:
    """Write a new client into a folder that a cell has made, after it had looked at the board.

    Another cell restarts the board then.

    Raises:
        OSError: the folder does not exist, or the flash is too full.
    """
    yield _FIRST_OPS
    yield [["stat", _NEW_CLIENT_FOLDER]]  # raises FileNotFoundError where there is none
    sizes = yield ops
    return {"files": len(ops), "bytes": sum(map(int, sizes))}
