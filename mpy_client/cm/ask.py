# input(): asks the notebook, and waits for its answer; beats and interrupts are served meanwhile.
# Boards: all; loaded at the first input(), without it input() raises EOFError.
# Cost: 280 bytes of .mpy, 400 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-23).
from micropython import const

_IN = const(8)  # as in link.py
_OUT = const(16)
_INPUT = const(0x23)


# The line that somebody gives, or EOFError. Called while no code of the user's runs.
def ask(board, prompt):
    board.flush()
    board.put(prompt.encode(), True)
    board.tell(_INPUT, _OUT, board.mark)
    board.pos = board.mark = _OUT
    board.answer = None
    board.asking = True
    try:
        while board.answer is None:
            if not board.sock:
                raise EOFError
            if board.tick(_IN):
                raise KeyboardInterrupt
            if board.answer is None and board.sock:
                board.wait(50)  # how late a timeout may be
    finally:
        board.asking = False
    if board.answer[1] & 1:
        raise EOFError
    return board.answer[6:].decode()
