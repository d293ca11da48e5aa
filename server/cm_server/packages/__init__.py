"""Packages: what people name, resolved, fetched, verified and compiled on the server."""
