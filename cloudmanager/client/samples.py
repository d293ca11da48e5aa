"""Values that boards emitted: ``Sample``, and ``Samples``, convertible to tables; no I/O."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.sample_columns import NO_NANOARROW, has_nanoarrow
from cloudmanager.protocol.text import fold_names, sanitize_text

if TYPE_CHECKING:
    import pandas
    import polars


class Sample(NamedTuple):
    """The values of one call of ``cm.emit`` on a board.

    Attributes:
        board: the board's name.
        at: when it was measured, in seconds since 1970, by the board's clock.
        ticks: the same in ms since 1970, as the board has sent it; milliseconds of its counter if
            it did not know the time; 0 in samples of days ago.
        missed: how many samples before this one were left out because they came too fast; 0 in
            samples of days ago.
        values: name -> number, text, bool, or None for a number that is not finite.
    """

    board: str
    at: float
    ticks: int
    missed: int
    values: dict[str, Any]


class Samples(Sequence[Sample]):
    """Values of one or more boards, the newest last.

    Args:
        samples: the values.
        has_ticks: whether the ticks of the boards are known.
    """

    def __init__(self, samples: Iterable[Sample], *, has_ticks: bool = True) -> None:
        self._samples = list(samples)
        self._has_ticks = has_ticks

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        found = self._samples[index]
        return Samples(found, has_ticks=self._has_ticks) if isinstance(found, list) else found

    @property
    def names(self) -> list[str]:
        """The names of the values, in the order of their first sample."""
        return list(dict.fromkeys(name for sample in self for name in sample.values))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table: one row per sample, indexed by time (UTC), with board, ticks, values.

        Samples of days ago have no ticks.
        """
        import pandas

        columns = self._columns()
        times = pandas.to_datetime(columns.pop("at"), unit="us", utc=True)
        return pandas.DataFrame(columns, index=times.rename("at"))

    def to_polars(self) -> polars.DataFrame:
        """Return a table as ``to_pandas`` does, with the column ``at`` (UTC)."""
        import polars

        columns = self._columns()
        times = polars.Series("at", columns.pop("at"), polars.Int64)
        rest = [polars.Series(name, each, strict=False) for name, each in columns.items()]
        at = times.cast(polars.Datetime("us")).dt.replace_time_zone("UTC")
        return polars.DataFrame([at, *rest])

    def to_arrow(self) -> Any:
        """Return a table as ``to_polars`` does, as a ``nanoarrow.Array`` of structs.

        Whatever knows Arrow's C interface takes it: pyarrow, polars, DuckDB. A column with text has
        all its values as text.

        Raises:
            CloudmanagerError: nanoarrow is not installed.
        """
        if not has_nanoarrow():
            raise CloudmanagerError(NO_NANOARROW)
        import nanoarrow

        columns = self._columns()
        at = columns.pop("at")
        kinds = {"at": nanoarrow.timestamp("us", "UTC")}
        children = [nanoarrow.c_array_from_buffers(kinds["at"], len(at), [None, array("q", at)])]
        for name, values in columns.items():
            kinds[name], shown = _arrow_column(values)
            children.append(nanoarrow.c_array(shown, kinds[name]))
        table = nanoarrow.struct(kinds, nullable=False)
        return nanoarrow.Array(
            nanoarrow.c_array_from_buffers(table, len(at), [None], children=children)
        )

    def _columns(self) -> dict[str, list[Any]]:
        """Return the columns of a table; times in microseconds since 1970."""
        columns: dict[str, list[Any]] = {
            "at": [round(sample.at * 1_000_000) for sample in self],
            "board": [sample.board for sample in self],
        }
        if self._has_ticks:
            columns["ticks"] = [sample.ticks for sample in self]
        taken = set(columns)
        for name in self.names:
            column = f"{name}_" if name in taken else name
            columns[column] = [sample.values.get(name) for sample in self]
        return columns

    def __repr__(self) -> str:
        """Return number, boards and names of the values, in one line."""
        boards = fold_names(sample.board for sample in self)
        if not boards:
            return "<no samples>"
        names = sanitize_text(", ".join(sorted(self.names)[:8])).replace("\n", " ")
        count = f"{len(self):,} sample{'' if len(self) == 1 else 's'}"
        return f"<{count} of {boards}: {names}>"


def _arrow_column(values: list[Any]) -> tuple[Any, list[Any]]:
    """Return the type of a column, and its values in that type."""
    import nanoarrow

    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) and known:
        return nanoarrow.bool_(), values
    if any(isinstance(value, str) for value in known):
        return nanoarrow.string(), [None if value is None else str(value) for value in values]
    if all(isinstance(value, int) for value in known) and known:
        return nanoarrow.int64(), values
    return nanoarrow.float64(), [None if value is None else float(value) for value in values]
