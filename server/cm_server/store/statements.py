"""What both databases have in common: compiled statements, and rows of their drivers. SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

SQLALCHEMY_ERRORS = (sa.exc.DBAPIError, sa.exc.ResourceClosedError)


class PreparedStatement(NamedTuple):
    """A compiled statement, for the driver.

    Attributes:
        text: of the statement.
        names: of its parameters, in their order.
    """

    text: str
    names: Sequence[str]

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the values of its parameters in their order."""
        return [parameters[name] for name in self.names]


class RowsStatement(NamedTuple):
    """A compiled statement that is executed for several rows of values.

    Attributes:
        single: the statement for one row; its parameters are the row's values in their order.
        many: the statement for any number of rows; each parameter is an array, one for each
            column. "" where the driver repeats the other one.
    """

    single: str
    many: str = ""


#: Returns a statement, given the SQL expressions of its values by their names.
BuildStatement = Callable[[Mapping[str, Any]], Any]


class NotExecuted(Exception):
    """Nothing was done, and it may be tried again.

    Another program holds a lock on SQLite's file, or PostgreSQL ended the transaction.
    """


class StatementCompiler:
    """The base class of both databases: compiles statements for the driver."""

    _engine: sa.Engine

    def compile(self, statement: Any) -> str:
        """Return a statement as the driver accepts it, with positional parameters."""
        return str(statement.compile(self._engine))

    def prepare(self, statement: Any) -> PreparedStatement:
        """Return a statement as the driver accepts it, with the order of its parameters."""
        compiled = statement.compile(self._engine)
        return PreparedStatement(str(compiled), compiled.positiontup)

    def row_reader(self, columns: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
        """Return a function that converts a row of the driver as SQLAlchemy does.

        Args:
            columns: of the row.
        """
        return _row_reader(self._engine.dialect, columns)


def _row_reader(
    dialect: sa.Dialect, columns: Sequence[Any]
) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that converts a row of the driver as SQLAlchemy does."""
    convert = [
        # The drivers return floats as they are; SQLAlchemy asks for PostgreSQL's type of them.
        None
        if isinstance(column.type, sa.Float)
        else column.type.dialect_impl(dialect).result_processor(dialect, None)
        for column in columns
    ]

    def read(row: Sequence[Any]) -> list[Any]:
        pairs = zip(convert, row, strict=True)
        return [value if act is None else act(value) for act, value in pairs]

    return read


def compile_row(statement: PreparedStatement, columns: Mapping[str, Any]) -> str:
    """Return a statement for one row, whose parameters are in the order of the row's values."""
    assert list(statement.names) == list(columns), statement
    return statement.text


def parameters(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter for each value of a row, by its name."""
    return {name: sa.bindparam(name, type_=type_) for name, type_ in columns.items()}
