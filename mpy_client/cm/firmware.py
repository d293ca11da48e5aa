# The firmware's modules, and functions that are often called, for the other parts.
# Boards: all; the first part that is loaded.
# Cost: 375 bytes of .mpy, 432 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# They are imported while no file can hide them: MicroPython looks for a /json.py first, but not
# while sys.path is empty (py/builtinimport.c).
import sys

path = sys.path[:]
sys.path[:] = ()
import binascii
import builtins
import gc
import hashlib
import io
import json
import micropython
import os
import select
import socket
import struct
import time

get_ident = bool
machine = network = tls = None
try:
    import tls

    import machine
    import network
    from _thread import get_ident
except ImportError:  # virtual boards, boards without a network, and ESP8266 lack some
    pass
sys.path[:] = path
pack_into = struct.pack_into
ticks_diff = time.ticks_diff
ticks_ms = time.ticks_ms
path = None  # boot.py sets it: what sys.path is for the user's code
