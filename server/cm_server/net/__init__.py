"""Sockets: the listener, WebSockets of boards and callers, HTTP pages, certificates."""
