# input(): sends the prompt to the caller and waits for the answer, while it serves the link.
# Boards: all; loaded at the first input(). Without this file input() raises EOFError.
# Cost: 415 bytes of .mpy, 384 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_INPUT = const(0x23)
_INPUT_EOF = const(0x01)


# Returns the line that the user enters. Raises EOFError if there is none or the link is lost.
def ask(console, prompt):
    run = console.run
    link = run.link
    state = run.state
    if link.micropython.stack_use() > state.deepest:
        raise RuntimeError
    prompt = str(prompt).encode()
    console.set_input(True)
    try:
        run.flush()
        run.append(prompt, True)
        link.send(_INPUT, 0, _OUT, run.mark)
        run.clear()
        state.answer = None
        while state.answer is None:
            # Without pings, the server stands still: the board is needed elsewhere.
            if not state.socket or run.ticks_diff(run.ticks_ms(), link.heard) > state.timeout:
                raise EOFError
            if run.poll(_IN):
                raise KeyboardInterrupt
            if state.answer is None and state.socket:
                link.wait(50)  # ms: resolution of the cell's timeout
    finally:
        console.set_input(False)
    if link.buf[_IN + 1] & _INPUT_EOF:
        raise EOFError
    return bytes(link.mv[_IN + _HEADER : _IN + state.answer]).decode()
