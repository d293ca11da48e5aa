"""Boards and their jobs: registry, scheduler, results, counters. No sockets, no SQL."""
