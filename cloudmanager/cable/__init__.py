"""Boards on a serial port: flashing, firmware, settings, the raw REPL, the bridge."""
