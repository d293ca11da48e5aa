import os

from cm import console, link

try:
    os.stat("/.cm/journal")  # an install lost its power: it comes to its end before all else
    from cm import switch

    switch.finish()
except Exception:  # whatever happens, the board dials in, so that it can be mended
    pass
link.start(console)
