# The state that several parts of the client share: other parts set these names, and no others.
# Boards: all.
# Cost: 350 bytes of .mpy, 592 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).

console = None  # the module for the console: console.py or unix.py
# Bytes of C stack in use up to which the client may work: sending needs 2.5 KB of the 8 KB that RP2
# and ESP8266 have, and what is written below the stack damages the heap. console.py sets it.
deepest = 1 << 29

nic = None  # the network that net.py has connected
trial = 0  # ticks at which new settings (/cm.new.trial) have failed; 0: there are none

# The link. dial.py opens it, link.close() closes it.
socket = None  # for poll
io = None  # for read and write: the socket, or TLS over it
# restart.py sets `spare`: on a chip, memory for the next TLS link.
mac = None  # on a link without TLS: mac.py, which signs and verifies messages
timeout = 60000  # ms without a received frame until an idle board reconnects
spread = 2000  # ms over which reconnecting boards are spread; set by the server
tries = 0  # attempts to connect since the last link

# The job that runs, or the user's program while it keeps the board busy.
stop = 0  # why it must end: a status, or RESET, after which the board restarts
deadline = 0  # ticks of its timeout or, once it must end, of a reset; 0: none
link_timeout = 60000  # ms that it may run without a link
stop_timeout = 5000  # ms from its first interrupt to a reset of the board
output_lost = False  # whether output was lost: the stack or the heap was too full
answer = None  # for code that waits for a message: its length, once it was received

# Tasks that run between jobs.
tasks = None  # tasks.py, if the user's code that runs is that of tasks
ahead = 0  # length of a message that was read while a task did not let the client run
task_timeout = 2000  # ms that such a message waits for the task

calls = []  # functions that link.run_calls() calls about once a second until they return true
leaving = False  # the interpreter restarts: nothing may stop the exception that does it
log = None  # log.py, once it is loaded
clock = None  # what is known of the time: see now_ms.py
watchdog = ""  # what is armed, as the fleet shows it

# The user's program (app.py).
program = None  # a function for link.idle() to call once
task = None  # its task, if it runs beside cells
app_state = ""  # as the fleet shows it
