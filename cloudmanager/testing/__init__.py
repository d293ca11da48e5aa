"""A pytest plugin that runs tests of board code on real MicroPython (docs/testing.md)."""
