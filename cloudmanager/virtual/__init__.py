"""Virtual boards: real MicroPython processes on this machine."""
