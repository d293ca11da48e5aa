"""Several servers as one: pub/sub, peer messages, directory of boards, remote and hosted jobs."""
