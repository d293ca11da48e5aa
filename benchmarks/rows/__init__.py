"""The benchmarks: each module here has `rows()`, which measures and returns its rows."""
