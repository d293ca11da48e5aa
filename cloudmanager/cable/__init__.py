"""What flash.py and bridge.py stand on: ports, chips, firmware, and the REPL behind a port."""
