# Starts the client (mbm flash). No file can hide what it imports; a client that does not load is
# tried again after a minute.
import sys

path = sys.path[:]
sys.path[:] = (".frozen", "/lib")
try:
    import cm_start as start

    start.path = path
    start.returns = True
    start = start.start()  # the client, in the place of the module, which is freed
    start()
except Exception as e:
    sys.path[:] = ()
    import machine
    import time

    sys.print_exception(e)
    time.sleep(60)
    machine.reset()
