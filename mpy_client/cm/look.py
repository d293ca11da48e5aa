# Looks names up for a notebook that completes or inspects: nothing of the user's is called.
# Boards: all; loaded when asked and dropped again; without it a notebook has its stubs alone.
# Cost: 844 bytes of .mpy, no heap between two looks (mpy-cross 1.29, 32-bit, 2026-11-25).
import __main__
import builtins
import sys

import cm
from cm import link

_PLAIN = (int, float, bool, type(None), str, bytes)
_SIZED = (list, tuple, dict, set, bytearray)
_CHARS = const(80)  # of a text that are shown


# All that an object holds itself.
def _held(o):
    try:
        return o.__dict__
    except Exception:
        return {}


def _class(o):
    return o if isinstance(o, type) else type(o)


# What is behind a name, as it lies there: asking a class runs no property and no __getattr__.
def _find(o, name):
    held = _held(o)
    return held[name] if name in held else getattr(_class(o), name)


def _at(path):
    first, *rest = path.split(".")
    names = __main__.__dict__
    o = names[first] if first in names else builtins.__dict__[first]
    if o is sys:  # on the unix port cells have another one
        o = link.sys
    for name in rest:
        o = _find(o, name)
    return o


def _kind(o):
    if isinstance(o, type):
        return "class"
    if isinstance(o, type(link)):
        return "module"
    return "function" if callable(o) else "instance"


# The next time it is read from flash again: its heap is the user's.
def _drop():
    sys.modules.pop("cm.look", None)
    cm.__dict__.pop("look", None)


# Names in what is at a path that begin so, each behind its kind.
def names(path, start):
    _drop()
    o = _at(path) if path else __main__
    found = set(_held(o))
    found.update(dir(_class(o)) if path else _held(builtins))
    told = []
    for name in sorted(found):
        if name.startswith(start) and (start or name[0] != "_"):
            try:
                told.append((_kind(_find(o, name) if path else _at(name)), name))
            except Exception:
                told.append(("", name))
    return told


# What is at a path: its kind, its type, and the value where it is a plain one.
def about(path):
    _drop()
    o = _at(path)
    value = ""
    if type(o) in _PLAIN:
        value = repr(o[:_CHARS] if isinstance(o, (str, bytes)) else o)
    elif type(o) in _SIZED:
        value = "len " + str(len(o))
    return _kind(o), type(o).__name__, value
