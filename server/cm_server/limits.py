"""Every limit of the service, by name; docs/security.md says what happens beyond each.

A limit is what keeps one peer from costing the others their service: there is none that
grows with what a peer says. Sizes are in bytes, times in seconds. The modules read them
here at each use, so that a test can lower one.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Who has not proven itself yet: no token, no board's key.
HEAD_BYTES = 8 * KIB  # of an HTTP request, and of a body, of which none is needed
HEAD_SECONDS = 10.0  # for a whole request
AUTHENTICATION_SECONDS = 10.0  # for a board's proof, once its link is upgraded
#: Connections that have not proven themselves: of all addresses, and of one. The oldest is
#: cut, not the newest refused: a peer that can prove itself takes milliseconds for it.
UNAUTHENTICATED = 1536
UNAUTHENTICATED_PER_ADDRESS = (
    1280  # a building is one address, too: 600 chips a second, 2 s each for TLS
)
#: Taken from the kernel in one turn of the loop. A busy loop turns slowly: so a crowd that comes
#: at once waits in the kernel, where it costs nothing, instead of being cut half-way.
ACCEPTED_AT_ONCE = 16
#: A TLS handshake or an HTTP request costs up to a millisecond; what hangs up before costs a tenth.
ACCEPTED_PER_SECOND = 500
ACCEPTED_AHEAD_SECONDS = 0.25  # of such work may wait here; then the others wait in the kernel
UNAUTHENTICATED_MESSAGES = 8  # of a board until its proof: one of each kind; pings are none of them
#: Pieces in which a TLS handshake, a request, or a board's proof may come. The first are read at
#: once; the others share a rate, so that bytes which come one by one are gathered.
UNAUTHENTICATED_READS = 64
UNAUTHENTICATED_READS_AT_ONCE = 2
UNAUTHENTICATED_READS_PER_SECOND = 500  # of all such connections, from the third piece of each on
ACCEPT_RETRY_SECONDS = 1.0  # until the next try, where there are no more files
BAD_LOGINS_PER_MINUTE = 20  # of one address; then a wrong token gets 429, a right one still opens
RATE_LIMIT_KEYS = 1024  # whose bad logins are counted at once
TOKEN_CHARS = 256  # of a token that is looked at; ours have 46

# Work. The cost of small messages is by their number: a limit on bytes does not bound it.
#: That one link may keep the loop busy; then others are served. One message is never divided.
SLICE_SECONDS = 0.00025
MESSAGES_PER_SECOND = 10_000  # of one link; four times what one cell after another needs
MESSAGES_AT_ONCE = 10_000  # of one link, after a pause
RARE_MESSAGES = 20  # as so many a message counts that nobody sends often: pings, facts, samples
STRAYS_PER_MINUTE = 100  # messages of a board about jobs that are not its own

# Callers.
CALLERS = 1000  # links at once
CALLERS_PER_TOKEN = 250
CALLER_MESSAGE_BYTES = 16 * MIB  # a cell and its target
OUTBOX_BYTES = MIB  # output that waits for a caller that does not read; endings always wait
FRAME_BYTES = MIB  # after which one frame takes no more messages
UNSENT_BYTES = 8 * MIB  # that wait in a link of any kind; with more it is cut
CLOSE_SECONDS = 1.0  # that a peer has to read why its link is closed
CELL_SECONDS = 7 * 86400.0  # of `timeout` and of `wait`
REPLY_JOBS = 1000  # in one reply
REPLY_AUDIT_ROWS = 10_000
ENROL_NAMES = 10_000  # in one request
TOKENS = 1000  # that open something; of those that did once, the newest so many are named
TOKEN_SECONDS = 10 * 366 * 86400.0  # until a token that expires has expired

# Files.
CONTENT_BYTES = 64 * MIB  # of one file for boards
CONTENT_STORE_BYTES = 256 * MIB  # of files that are kept, on disk, in case they are wanted again
CONTENT_STORE_FILES = 1000  # such files
UPLOADS = 250  # that callers have begun and not ended
FILE_READ_BYTES = 64 * KIB  # of a file that is read at once
FILE_OPS = 500  # on files, in one job
FILE_OPS_BYTES = 64 * KIB  # of their names and paths
PATH_BYTES = KIB  # of one path
#: On their way to or from one board, unconfirmed; and to all boards of a job, as far as each has
#: the least.
WINDOW_BYTES = 64 * KIB
MIN_WINDOW_BYTES = 4 * KIB
TOTAL_WINDOW_BYTES = 16 * MIB

# Boards.
BOARD_MESSAGE_BYTES = 64 * KIB
BOARD_BUFFER_BYTES = 64 * KIB  # that a board may claim to have
READ_BURST_BYTES = 64 * KIB  # of a flood that is read at once
READ_PAUSE_SECONDS = 0.01  # then, in which others are served: 6 MB a second
TAKEOVER_SPREAD_SECONDS = 120.0  # over which boards come back that push each other out by one key
QUEUED_JOBS = 1000  # that wait for one board
QUEUED_BYTES = 32 * MIB  # of their cells
TAIL_BYTES = 64 * KIB  # of each job's output, and of its value, that the server keeps
RECENT_JOBS = 1000  # ended jobs that are kept in memory, with their tails
RECENT_BYTES = 16 * MIB  # of their tails together

# Packages: what a source, an archive or a compiler may cost. One plan's add up.
FETCHES = 8  # at once
FETCH_SECONDS = 60.0  # for one, with all its redirects
FETCH_REDIRECTS = 5
PACKAGES = 200  # in one plan, dependencies included
PACKAGE_FILES = 1000  # in a package, an archive, or a plan
PACKAGE_DOCUMENT_BYTES = 8 * MIB  # an index's page, a repository's refs
PACKAGE_FILE_BYTES = 4 * MIB
PACKAGE_ARCHIVE_BYTES = 16 * MIB
PACKAGE_UNPACKED_BYTES = 32 * MIB  # of an archive, or of a plan
PACKAGE_CACHE_BYTES = 512 * MIB  # the oldest go
PLAN_SECONDS = 300.0
PLANS_PER_LINK = 16  # that wait to be made good; the oldest go
RESOLVE_ROUNDS = 10_000  # steps of the resolver
COMPILE_SECONDS = 10.0  # of one file; of the processor's time and of the clock's
COMPILE_BYTES = 256 * MIB  # of memory
COMPILED_BYTES = 4 * MIB  # that may come out
# What boards emit, and who watches.
SAMPLE_BYTES = KIB  # of what is emitted at once; a board's own limit is 512 bytes of JSON
SAMPLES_PER_SECOND = 100  # of one board, and as many at once after a pause; a board's own is 50
SAMPLES_PER_BOARD = 1000  # that are kept of one board, at most; `--samples` says how many
TOTAL_SAMPLES = 100_000  # that are kept of all boards, shared by those that emit
REPLY_SAMPLES = 100_000  # in one reply
SUBSCRIPTION_UPDATE_SECONDS = 0.25  # between two updates for who watches
SUBSCRIPTIONS = 200  # of all callers
SUBSCRIPTIONS_PER_LINK = 16
SUBSCRIPTION_UPDATE_BOARDS = 2000  # in one update; the others are in the next
SUBSCRIPTION_PENDING_SAMPLES = 10_000  # that wait for one who watches and does not read

# What is written down.
LOG_BYTES = 8 * MIB  # of server.log; one older file is kept
PEER_LINES_PER_MINUTE = 10  # in server.log, for one board, or one address of strangers
LIBRARY_LINES_PER_MINUTE = 30  # in server.log, for one library: HTTP that is malformed
FAILURE_LINES_PER_MINUTE = 1  # in server.log, for each kind of failure that nobody foresaw
STRANGER_ROWS_PER_ADDRESS_PER_MINUTE = 10  # in the audit log and in server.log, for one address
STRANGER_ROWS_TOTAL_PER_MINUTE = 30  # for all addresses: 6 MB a day at the worst
REFUSAL_ROWS_PER_MINUTE = 60  # in the audit log, for one token
READ_ROWS_PER_MINUTE = 1  # in the audit log, for one token and each verb that only reads
PROGRAM_CHARS = 128  # of what a board says of its own program
AUDIT_CHARS = 500  # of a target and of a detail
KEEP_JOBS_DAYS = 90  # that a job's line is kept once it has ended (`--keep-jobs`)
KEEP_AUDIT_DAYS = 400  # that a row of the audit log is kept (`--keep-audit`)
MIN_KEEP_AUDIT_DAYS = 31  # the database itself refuses to let go of what is younger than 30
PRUNE_DAYS = 7  # of the oldest rows, that are deleted in one day at most
PRUNE_ROWS = 500  # that are taken out at once: a few milliseconds
