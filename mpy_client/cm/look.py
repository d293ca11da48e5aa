# Finds names for completion and inspection in notebooks, without calling the user's code.
# Boards: all; loaded when needed, then dropped. Without it notebooks complete from stubs only.
# Cost: 849 bytes of .mpy, no heap afterwards (mpy-cross 1.29, 32-bit, 2026-11-30).
import __main__
import builtins

import cm
from cm import link
from cm.firmware import sys

_SHOWN = (int, float, bool, type(None), str, bytes)
_SIZED = (list, tuple, dict, set, bytearray)
_CHARS = const(80)  # of a str or bytes that are shown


# Returns the object's own attributes.
def _attrs(obj):
    try:
        return obj.__dict__
    except Exception:
        return {}


def _class(obj):
    return obj if isinstance(obj, type) else type(obj)


# Returns an attribute without running code: a lookup in the class runs no property and no
# __getattr__.
def _get(obj, name):
    attrs = _attrs(obj)
    return attrs[name] if name in attrs else getattr(_class(obj), name)


def _resolve(path):
    first, *rest = path.split(".")
    names = __main__.__dict__
    obj = names[first] if first in names else builtins.__dict__[first]
    for name in rest:
        obj = _get(obj, name)
    return obj


def _kind(obj):
    if isinstance(obj, type):
        return "class"
    if isinstance(obj, type(link)):
        return "module"
    return "function" if callable(obj) else "instance"


# Drops this module, so that the user has its heap.
def _unload():
    sys.modules.pop("cm.look", None)
    cm.__dict__.pop("look", None)


# Returns (kind, name) for each name in the object at `path` that begins with `start`.
def names(path, start):
    _unload()
    obj = _resolve(path) if path else __main__
    found = set(_attrs(obj))
    found.update(dir(_class(obj)) if path else _attrs(builtins))
    result = []
    for name in sorted(found):
        if name.startswith(start) and (start or name[0] != "_"):
            try:
                result.append((_kind(_get(obj, name) if path else _resolve(name)), name))
            except Exception:
                result.append(("", name))
    return result


# Returns the kind and the type of the object at `path`, and its value if that is a plain one.
def about(path):
    _unload()
    obj = _resolve(path)
    value = ""
    if type(obj) in _SHOWN:
        value = repr(obj[:_CHARS] if isinstance(obj, (str, bytes)) else obj)
    elif type(obj) in _SIZED:
        value = "len " + str(len(obj))
    return _kind(obj), type(obj).__name__, value
