"""What a job on each board came to: `Result`, `Results` and `Repr`. No I/O."""
