"""The command line `mbm`: one module per family of verbs."""

from .entry import flash_main, main

__all__ = ["flash_main", "main"]
