"""Columns of numbers as an Arrow stream: how values of boards' history travel and are stored.

An Arrow stream (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format) has the
columns ``time`` (microseconds since 1970), ``series`` (an index in a list that travels beside it)
and ``value``. nanoarrow, which the extra ``history`` installs, is imported when it is needed.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

NO_NANOARROW: Final = (
    "values of days ago need nanoarrow here: `pip install 'cloudmanager[history]'`, "
    "with the same Python"
)
#: How several values of one span of time become one; the first is the default.
WAYS: Final = ("mean", "min", "max", "last")


class SampleColumns(NamedTuple):
    """Values, one column for each property; all of the same length.

    Attributes:
        times: microseconds since 1970.
        series: whose each value is, and what: an index in a list.
        values: the numbers.
    """

    times: Sequence[int]
    series: Sequence[int]
    values: Sequence[float]


def has_nanoarrow() -> bool:
    """Return whether nanoarrow is installed."""
    try:
        import nanoarrow.ipc  # noqa: F401 - whether it can be imported
    except ImportError:
        return False
    return True


def make_array(columns: SampleColumns) -> Any:
    """Return columns, each an ``array`` of q, i and d, as an Arrow array of structs."""
    import nanoarrow

    kinds = (nanoarrow.int64(), nanoarrow.int32(), nanoarrow.float64())
    children = [
        nanoarrow.c_array_from_buffers(kind, len(column), [None, column])
        for kind, column in zip(kinds, columns, strict=True)
    ]
    names = ("time", "series", "value")
    schema = nanoarrow.struct(dict(zip(names, kinds, strict=True)), nullable=False)
    return nanoarrow.c_array_from_buffers(schema, len(columns.times), [None], children=children)


def pack_stream(source: Any) -> bytes:
    """Return what can be read as an Arrow stream, or columns, in the bytes of one."""
    import nanoarrow
    from nanoarrow.ipc import StreamWriter

    if isinstance(source, SampleColumns):
        source = nanoarrow.ArrayStream(make_array(source))
    target = io.BytesIO()
    with StreamWriter.from_writable(target) as writer:
        writer.write_stream(source)
    return target.getvalue()


def unpack_stream(data: bytes) -> SampleColumns:
    """Return the columns of an Arrow stream.

    Raises:
        ValueError: it is none, or has other columns.
    """
    import nanoarrow
    from nanoarrow.ipc import InputStream

    times, series, values = array("q"), array("i"), array("d")
    columns: Sequence[Any] = (times, series, values)
    try:
        source = InputStream.from_readable(io.BytesIO(data))
        with source, nanoarrow.c_array_stream(source) as stream:
            for chunk in stream:
                for index, column in enumerate(columns):
                    child = nanoarrow.c_array(chunk.child(index)).view()
                    whole = memoryview(child.buffer(1))
                    first = child.offset
                    column.extend(whole[first : first + len(child)])
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"no Arrow stream of values: {error}") from error
    if not len(times) == len(series) == len(values):
        raise ValueError("no Arrow stream of values: its columns differ in length")
    return SampleColumns(times, series, values)
