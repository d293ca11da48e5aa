"""Values that boards emitted: ``Sample``, and ``Samples``, convertible to a table; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from cloudmanager.protocol.text import fold_names, sanitize_text

if TYPE_CHECKING:
    import pandas


class Sample(NamedTuple):
    """The values of one call of ``cm.emit`` on a board.

    Attributes:
        board: the board's name.
        at: seconds since 1970, by the server's clock.
        ticks: ``time.ticks_ms()`` of the board, for exact differences.
        missed: how many samples before this one were left out because they came too fast.
        values: name -> number, text, bool, or None for a number that is not finite.
    """

    board: str
    at: float
    ticks: int
    missed: int
    values: dict[str, Any]


class Samples(Sequence[Sample]):
    """Values of one or more boards, the newest last."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

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
        return Samples(found) if isinstance(found, list) else found

    @property
    def names(self) -> list[str]:
        """The names of the values, in the order of their first sample."""
        return list(dict.fromkeys(name for sample in self for name in sample.values))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table: one row per sample, indexed by time (UTC), with board, ticks, values."""
        import pandas

        rows = [
            {"board": sample.board, "ticks": sample.ticks, **_rename_reserved(sample.values)}
            for sample in self
        ]
        times = pandas.to_datetime([sample.at for sample in self], unit="s", utc=True)
        names = dict.fromkeys(name for row in rows for name in row)
        columns = names or {"board": None, "ticks": None}
        return pandas.DataFrame(rows, index=times.rename("at"), columns=list(columns))

    def __repr__(self) -> str:
        """Return number, boards and names of the values, in one line."""
        boards = fold_names(sample.board for sample in self)
        if not boards:
            return "<no samples>"
        names = sanitize_text(", ".join(sorted(self.names)[:8])).replace("\n", " ")
        count = f"{len(self):,} sample{'' if len(self) == 1 else 's'}"
        return f"<{count} of {boards}: {names}>"


def _rename_reserved(values: dict[str, Any]) -> dict[str, Any]:
    """Append ``_`` to names that are those of other columns."""
    return {f"{name}_" if name in ("board", "ticks") else name: v for name, v in values.items()}
