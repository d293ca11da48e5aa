"""How results look: folded blocks, tables, terminal output, progress. No sockets."""
