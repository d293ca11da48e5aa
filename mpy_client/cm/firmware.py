# The firmware's modules: the other parts take them from here.
# Boards: all; the first part that is loaded.
# Cost: 324 bytes of .mpy, 480 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
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
path = None  # boot.py sets it: what sys.path is for the user's code
