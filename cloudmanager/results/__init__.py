"""The outcome of a cell on each board: `Result`, `Results` and `Repr`. No I/O."""
