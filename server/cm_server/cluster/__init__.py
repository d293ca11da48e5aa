"""Several servers: pub/sub, peer messages, board directory, remote and hosted jobs."""
