"""Packages: resolve requirements, fetch and verify files, compile them for boards."""
