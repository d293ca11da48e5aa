"""The Cloudmanager server, to which boards and callers of a fleet connect."""
