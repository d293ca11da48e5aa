# A read-only file system: the files of a caller's folder, which are read over the link.
# Boards: all; loaded while a folder is mounted.
# Cost: 1,600 bytes of .mpy, 1,952 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# The object that MicroPython mounts is this module: a class would take 150 bytes more.
from cm import link, run, state
from cm.firmware import io, os, struct, sys

# Numbers: written by `python -m tests.board.client_numbers`.
_BUF = const(1024)
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_READ = const(0x2C)
_BLOCK = const(0x1A)
_STATUS_RUNNING = const(4)

_PATH = const(28)  # where READ's path begins in the buffer: after number, offset and bytes
_READ_MS = const(5000)  # ms that a read waits

# A line for each file: path and size, separated by a tab; sorted, so that the files of each folder
# are together. A line feed is before the first.
files = b""
path = ""  # where it is mounted
cwd = "/"  # the working directory in it
count = 0  # the number of the last READ


# Returns bytes of a file, from `start` on, in the link's buffer. It waits as input() does.
def read(path, start):
    global count
    if link.micropython.stack_use() > state.deepest:
        raise RuntimeError
    state.console.set_input(True)
    try:
        run.flush()
        # While tasks run between cells, a message of the server may be unread; while a traceback is
        # printed, its beginning is in the buffer.
        if state.tasks or run.end > _OUT:
            raise EOFError
        count += 1
        since = run.ticks_ms()
        run.pack_into(">III", link.buf, _OUT, count, start, _BUF)
        end = _PATH + len(path)
        link.mv[_PATH:end] = path
        link.send(_READ, 0, _OUT, end)
        while state.socket and run.ticks_diff(run.ticks_ms(), since) < _READ_MS:
            state.answer = None
            if run.poll(_IN):
                raise KeyboardInterrupt
            n = state.answer
            if not n:
                link.wait(50)  # ms: resolution of the cell's timeout
            # Another number is that of a read that was given up.
            elif struct.unpack_from(">B5xI", link.buf, _IN) == (_BLOCK, count):
                return link.mv[_IN + _HEADER + 4 : _IN + n]
        raise OSError(110)
    finally:
        state.console.set_input(False)


# Returns path and size of a file; of a folder, the size is -1.
def look(path):
    if path[:1] != "/":
        path = cwd + path
    path = path.strip("/").encode()
    at = files.find(b"\n%s\t" % path)
    if at >= 0:
        return path, int(files[at + len(path) + 2 :].split(b"\n", 1)[0])
    if path and files.find(b"\n%s/" % path) < 0:
        raise OSError(2)
    return path, -1


# What MicroPython calls (extmod/vfs.c)


mount = umount = lambda *_: None


def stat(path):
    size = look(path)[1]
    return 0x4000 if size < 0 else 0x8000, 0, 0, 0, 0, 0, size, 0, 0, 0


def chdir(path):
    global cwd
    cwd = "/%s/" % look(path)[0].decode()


def getcwd():
    return cwd.rstrip("/") or "/"


# It allocates little: what is kept of each entry would be spread over the heap.
def ilistdir(path):
    start = look(path)[0]
    start = b"\n%s/" % start if start else b"\n"
    last = None
    at = files.find(start)
    while 0 <= at < len(files) - 1:
        at += len(start)
        tab = files.find(b"\t", at)
        end = files.find(b"/", at, tab)
        name = files[at : tab if end < 0 else end].decode()
        at = files.find(b"\n", tab)
        if name != last:
            last = name
            yield name, 0x8000 if end < 0 else 0x4000, 0, int(files[tab:at]) if end < 0 else 0
        at = files.find(start, at)


# Reads the whole file; MicroPython's own streams do the rest.
def open(path, mode):
    if mode.strip("rbt"):
        raise OSError(30)
    path, size = look(path)
    if size < 0:
        raise OSError(21)
    file = (io.BytesIO if "b" in mode else io.StringIO)(size)
    n = 0
    while n < size:
        try:
            data = read(path, n)
        except EOFError:  # a thread, a task between cells, or a file operation reads
            raise OSError(11)
        if not data:
            raise OSError(5)
        n += file.write(data)
    file.seek(0)
    return file


# Unmounts the folder if the link is lost; the server mounts it again if its caller is still there.
# Called by link.run_calls(), also before the board connects.
def check():
    if path and not state.socket and run.status != _STATUS_RUNNING:
        update("", "")
    return not path


# Mounts a folder; replaces the list of the mounted one; with an empty list unmounts it. Modules
# that came from it are forgotten, so that the next import reads them again.
def update(where, text):
    global files, path
    files = text.encode()
    if path:
        for name in list(sys.modules):
            # In __dict__, since modules may have a __getattr__ that raises anything, as cm has.
            names = getattr(sys.modules[name], "__dict__", {})
            if str(names.get("__file__")).startswith(path + "/"):
                del sys.modules[name]
        if not text:
            where = path
            path = ""
            link.drop("mount")
            if where in sys.path:
                sys.path.remove(where)
            os.umount(where)
    elif text:
        os.mount(sys.modules["cm.mount"], where)
        path = where
        state.calls.append(check)
        sys.path.insert(0, path)
        os.chdir(path)  # as mpremote does
