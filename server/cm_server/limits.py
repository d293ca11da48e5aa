"""All limits of the server; docs/security.md says what happens when one is exceeded.

Limits keep one peer from making the server unusable for others: none of them grows with what a
peer sends. Sizes are in bytes, times in seconds. Modules read a limit at each use, so that tests
can change it.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Unauthenticated connections: without a valid token or a board's proof.
HEAD_BYTES = 8 * KIB  # of an HTTP request's head, and of its body (no request needs one)
HEAD_SECONDS = 10.0  # for a whole request
AUTHENTICATION_SECONDS = 10.0  # for a board's proof, after its link was upgraded to WebSocket
#: Unauthenticated connections of all addresses, and of one. Beyond it, the oldest is closed instead
#: of refusing the newest: a peer that can authenticate does it within milliseconds.
UNAUTHENTICATED = 1536
#: Boards of one building may share an address: 600 ESP32s connect in a second, TLS takes 2 s each.
UNAUTHENTICATED_PER_ADDRESS = 1280
#: Connections accepted in one iteration of the event loop. The others wait in the kernel, where
#: they cost nothing, instead of being closed during their handshake because the loop is busy.
ACCEPTED_AT_ONCE = 16
#: A TLS handshake or an HTTP request takes up to a millisecond; an aborted one a tenth of it.
ACCEPTED_PER_SECOND = 500
ACCEPTED_AHEAD_SECONDS = 0.25  # of such work may be queued; the other connections wait
UNAUTHENTICATED_MESSAGES = 8  # of a board before its proof: one of each kind; pings are not allowed
#: Reads for a TLS handshake, a request, or a board's proof. The first ones are immediate; the
#: others share a rate, so that bytes that arrive one by one are read together.
UNAUTHENTICATED_READS = 64
UNAUTHENTICATED_READS_AT_ONCE = 2
UNAUTHENTICATED_READS_PER_SECOND = 500  # of all such connections, from the third read of each on
ACCEPT_RETRY_SECONDS = 1.0  # until the next attempt when no file descriptors are left
BAD_LOGINS_PER_MINUTE = 20  # of one address; then wrong tokens get 429; valid ones are accepted
RATE_LIMIT_KEYS = 1024  # whose events are counted at the same time
TOKEN_CHARS = 256  # of a token that is compared; the server's own tokens have 46

# Work. Small messages cost by their number, which a limit on bytes does not bound.
#: For this time one link may occupy the event loop; then others are served. A message is never
#: divided.
SLICE_SECONDS = 0.00025
MESSAGES_PER_SECOND = 10_000  # of one link; cells without a pause need a quarter
MESSAGES_AT_ONCE = 10_000  # of one link, after a pause
RARE_MESSAGES = 20  # a message that is rarely sent (ping, facts, sample) counts as this many
STRAYS_PER_MINUTE = 100  # messages of a board about jobs that are not its own

# Callers.
CALLERS = 1000  # links at the same time
CALLERS_PER_TOKEN = 250
CALLER_MESSAGE_BYTES = 16 * MIB  # a cell and its target
OUTBOX_BYTES = MIB  # of output queued for a caller that does not read; results are always queued
FRAME_BYTES = MIB  # at this size no more messages are added to a frame
UNSENT_BYTES = 8 * MIB  # queued for any link; with more it is closed
CLOSE_SECONDS = 1.0  # in which a peer can read why its link is closed
CELL_SECONDS = 7 * 86400.0  # of `timeout` and of `wait`
REPLY_JOBS = 1000  # in one reply
REPLY_AUDIT_ROWS = 10_000
ENROL_NAMES = 10_000  # in one request
TOKENS = 1000  # valid ones; of the others, only the newest ones are listed, as many
TOKEN_SECONDS = 10 * 366 * 86400.0  # the longest life of a token that expires

# Files.
CONTENT_BYTES = 64 * MIB  # of one file for boards
CONTENT_STORE_BYTES = 256 * MIB  # of files that are kept on disk, to be used again
CONTENT_STORE_FILES = 1000  # such files
UPLOADS = 250  # of callers, unfinished
FILE_READ_BYTES = 64 * KIB  # of a file, in one read
FILE_OPS = 500  # file operations in one job
FILE_OPS_BYTES = 64 * KIB  # of their names and paths
PATH_BYTES = KIB  # of one path
#: Unconfirmed bytes on the way to or from one board; and to all boards of a job together, of which
#: each has at least the minimum.
WINDOW_BYTES = 64 * KIB
MIN_WINDOW_BYTES = 4 * KIB
TOTAL_WINDOW_BYTES = 16 * MIB

# Boards.
BOARD_MESSAGE_BYTES = 64 * KIB
BOARD_BUFFER_BYTES = 64 * KIB  # the largest receive buffer that a board may announce
READ_BURST_BYTES = 64 * KIB  # read from one board before a pause
READ_PAUSE_SECONDS = 0.01  # in which others are served: 6 MB a second
TAKEOVER_SPREAD_SECONDS = 120.0  # reconnect spread of boards that replace each other by one key
QUEUED_JOBS = 1000  # of one board
QUEUED_BYTES = 32 * MIB  # of their cells
TAIL_BYTES = 64 * KIB  # of each job's output, and of its value, that the server keeps
RECENT_JOBS = 1000  # ended jobs that are kept in memory, with their tails
RECENT_BYTES = 16 * MIB  # of their tails together

# Packages: for sources, archives and the compiler. The costs of one plan add up.
FETCHES = 8  # at the same time
FETCH_SECONDS = 60.0  # for one, with all its redirects
FETCH_REDIRECTS = 5
PACKAGES = 200  # in one plan, dependencies included
PACKAGE_FILES = 1000  # in a package, an archive, or a plan
PACKAGE_DOCUMENT_BYTES = 8 * MIB  # an index's page, a repository's refs
PACKAGE_FILE_BYTES = 4 * MIB
PACKAGE_ARCHIVE_BYTES = 16 * MIB
PACKAGE_UNPACKED_BYTES = 32 * MIB  # of an archive, or of a plan
PACKAGE_CACHE_BYTES = 512 * MIB  # with more, the oldest files are deleted
PLAN_SECONDS = 300.0
PLANS_PER_LINK = 16  # that were not carried out; with more, the oldest are dropped
RESOLVE_ROUNDS = 10_000  # steps of the resolver
COMPILE_SECONDS = 10.0  # for one file, of processor time and of elapsed time
COMPILE_BYTES = 256 * MIB  # of memory
COMPILED_BYTES = 4 * MIB  # of the compiler's output

# Samples and subscriptions.
SAMPLE_BYTES = KIB  # of one sample; the board's own limit is 512 bytes of JSON
SAMPLES_PER_SECOND = 100  # of one board, and as a burst after a pause; the board's own limit is 50
SAMPLES_PER_BOARD = 1000  # kept of one board; the default of `--samples`
TOTAL_SAMPLES = 100_000  # kept of all boards together
REPLY_SAMPLES = 100_000  # in one reply
SUBSCRIPTION_UPDATE_SECONDS = 0.25  # between two updates
SUBSCRIPTIONS = 200  # of all callers
SUBSCRIPTIONS_PER_LINK = 16
SUBSCRIPTION_UPDATE_BOARDS = 2000  # in one update; the others are in the next
SUBSCRIPTION_PENDING_SAMPLES = 10_000  # queued for a subscriber that does not read

# Logs and stored rows.
LOG_BYTES = 8 * MIB  # of server.log; one older file is kept
PEER_LINES_PER_MINUTE = 10  # in server.log, for one board, or one unauthenticated address
LIBRARY_LINES_PER_MINUTE = 30  # in server.log, for one library: malformed HTTP, for example
FAILURE_LINES_PER_MINUTE = 1  # in server.log, for each kind of unexpected exception
STRANGER_ROWS_PER_ADDRESS_PER_MINUTE = 10  # in the audit log and in server.log, for one address
STRANGER_ROWS_TOTAL_PER_MINUTE = 30  # for all addresses: 6 MB a day at the worst
REFUSAL_ROWS_PER_MINUTE = 60  # in the audit log, for one token
READ_ROWS_PER_MINUTE = 1  # in the audit log, for one token and each verb that only reads
PROGRAM_CHARS = 128  # of a board's description of its own program
AUDIT_CHARS = 500  # of a target and of a detail
KEEP_JOBS_DAYS = 90  # after which a job's row may be deleted (`--keep-jobs`)
KEEP_AUDIT_DAYS = 400  # after which a row of the audit log may be deleted (`--keep-audit`)
MIN_KEEP_AUDIT_DAYS = 31  # the database itself refuses to delete younger rows (30 days)
PRUNE_DAYS = 7  # at most this many days of the oldest rows are deleted in one day
PRUNE_ROWS = 500  # deleted in one transaction: a few milliseconds
