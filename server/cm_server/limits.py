"""The limits of the server; docs/security.md says what happens when one is exceeded.

Limits keep one peer from making the server unusable for others: none of them grows with what a
peer sends. ``Server`` takes one ``Limits`` and passes it to its parts, so that a test, or a server
for a small machine, can have others: ``Server(home, limits=Limits(callers=3))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of what the server accepts, keeps and does; sizes in bytes, times in seconds."""

    # Unauthenticated connections: without a valid token or a board's proof.
    head_bytes: int = 8 * KIB  # of an HTTP request's head, and of its body (no request needs one)
    head_seconds: float = 10.0  # for a whole request
    #: For a board's proof, after its link was upgraded to WebSocket.
    authentication_seconds: float = 10.0
    #: Unauthenticated connections of all addresses, and of one. Beyond it, the oldest is closed
    #: instead of refusing the newest: a peer that can authenticate does it within milliseconds.
    unauthenticated: int = 1536
    #: Boards of one building may share an address: 600 ESP32s connect in a second, TLS takes 2 s
    #: each.
    unauthenticated_per_address: int = 1280
    #: Connections accepted in one iteration of the event loop. The others wait in the kernel, where
    #: they cost nothing, instead of being closed during their handshake because the loop is busy.
    accepted_at_once: int = 16
    #: A TLS handshake or an HTTP request takes up to a millisecond; an aborted one a tenth of it.
    accepted_per_second: int = 500
    accepted_ahead_seconds: float = 0.25  # of such work may be queued; the other connections wait
    #: Of a board before its proof: one of each kind; pings are not allowed.
    unauthenticated_messages: int = 8
    #: Reads for a TLS handshake, a request, or a board's proof. The first ones are immediate; the
    #: others share a rate, so that bytes that arrive one by one are read together.
    unauthenticated_reads: int = 64
    unauthenticated_reads_at_once: int = 2
    #: Of all such connections, from the third read of each on.
    unauthenticated_reads_per_second: int = 500
    accept_retry_seconds: float = 1.0  # until the next attempt when no file descriptors are left
    #: File descriptors that connections leave to the server's own files; a quarter at most.
    reserved_descriptors: int = 32
    #: Of one address; then wrong tokens get 429; valid ones are accepted.
    bad_logins_per_minute: int = 20
    rate_limit_keys: int = 1024  # whose events are counted at the same time
    token_chars: int = 256  # of a token that is compared; the server's own tokens have 46

    # Work. Small messages cost by their number, which a limit on bytes does not bound.
    #: For this time one link may occupy the event loop; then others are served. A message is never
    #: divided.
    slice_seconds: float = 0.00025
    #: A message that takes longer is followed by a pause of the same length, for all links of its
    #: token, in which others are served.
    free_work_seconds: float = 0.002
    messages_per_second: int = 10_000  # of one link; cells without a pause need a quarter
    messages_at_once: int = 10_000  # of one link, after a pause
    #: A message that is rarely sent (ping, facts, sample) counts as this many.
    rare_messages: int = 20
    strays_per_minute: int = 100  # messages of a board about jobs that are not its own

    # Callers.
    callers: int = 1000  # links at the same time
    callers_per_token: int = 250
    reserved_callers: int = 50  # of these, for administrators
    caller_message_bytes: int = 16 * MIB  # a cell and its target
    message_seconds: float = 180.0  # in which a caller's message must arrive, once it has begun
    message_stall_seconds: float = 3.0  # without a byte of it, while other messages have to wait
    #: Of messages that have begun to arrive. With more, the first is completed; the others wait.
    unfinished_token_bytes: int = 24 * MIB  # of all links of one token
    unfinished_bytes: int = 96 * MIB  # of all callers
    reserved_unfinished_bytes: int = 24 * MIB  # of these, for administrators
    free_unfinished_bytes: int = 64 * KIB  # of each link, which do not count
    #: Of output queued for a caller that does not read; results are always queued.
    outbox_bytes: int = MIB
    frame_bytes: int = MIB  # at this size no more messages are added to a frame
    #: Queued for any link. With more, nothing more is read from a caller, and a link whose peer
    #: reads nothing for the time below is closed.
    unsent_bytes: int = 8 * MIB
    stall_seconds: float = 30.0
    unsent_board_bytes: int = 32 * MIB  # the largest cell, and more; a board's link is closed then
    close_seconds: float = 1.0  # in which a peer can read why its link is closed
    cell_seconds: float = 7 * 86400.0  # of `timeout` and of `wait`
    ahead_seconds: float = 300.0  # that a cell's time may be ahead: its boards wait for it
    reservation_seconds: float = 30 * 86400.0  # of a board by a caller
    stay_seconds: float = 86400.0  # that a board stays awake for a caller: it costs its battery
    stay_expires_seconds: float = 7 * 86400.0  # in which it must have woken
    # Requests; the head of a SUBMIT counts as one.
    request_bytes: int = MIB  # of its JSON: 10,000 names, or the files of a large install
    request_values: int = 40_000  # in all lists and objects of one together
    request_text_chars: int = 64 * KIB  # of one text: as long as a target
    request_depth: int = 6  # of lists and objects in each other
    interrupt_jobs: int = 10_000  # numbers of jobs in one request: as many as a full server has
    labels: int = 64  # of one board
    pending_requests: int = 256  # of one link, that are answered later: by a plan, or the store
    #: Of a part of a long reply; the next part is sent when the caller has read it.
    reply_part_bytes: int = 128 * KIB
    #: Long replies that are sent as one message, to clients that cannot read parts; others wait.
    undivided_replies: int = 2
    installed_boards: int = 50  # whose packages are read from the store at once
    reply_jobs: int = 1000  # in one reply
    reply_audit_rows: int = 10_000
    enrol_names: int = 10_000  # in one request
    tokens: int = 1000  # valid ones; of the others, only the newest ones are listed, as many
    token_seconds: float = 10 * 366 * 86400.0  # the longest life of a token that expires

    # Work that waits for boards, in the store.
    waiting_jobs: int = 100_000  # of all callers
    waiting_jobs_per_token: int = 1000
    reserved_waiting_jobs: int = 5000  # of these, for administrators
    waiting_seconds: float = 30 * 86400.0  # the longest wait
    waiting_default_seconds: float = 7 * 86400.0  # where a caller does not say how long
    waiting_work_bytes: int = 32 * MIB  # of one cell, or of all files of one upload or install
    waiting_token_bytes: int = 128 * MIB
    waiting_page: int = 5000  # that are read from the store at once, for a list
    upload_ops: int = 2000  # files and folders of one upload that waits
    blob_bytes: int = 1024 * MIB  # of all, and of the files of generations
    reserved_waiting_bytes: int = 64 * MIB  # of these, for administrators
    output_chars: int = 64 * MIB  # of what jobs printed that have waited; the oldest go first

    # What ran where.
    text_chars: int = (
        256 * KIB
    )  # of the text of one cell; of a longer one, only its SHA-256 is kept
    text_token_chars: int = 32 * MIB  # of the texts of one token in a day; the same
    text_total_chars: int = 256 * MIB  # of all texts; those that were not run for longest go first
    #: Rows of jobs that are examined in one transaction, for a history, or to forget texts. 5 ms.
    examined_jobs: int = 10_000
    reply_history_chars: int = 512 * KIB  # of texts in one reply; what is more is in the next

    # Files.
    content_bytes: int = 64 * MIB  # of one file for boards
    #: Of files on disk: those that are kept to be used again, unfinished uploads, and what jobs and
    #: plans still need.
    content_store_bytes: int = 256 * MIB
    content_store_token_bytes: int = 128 * MIB  # that cannot be deleted
    reserved_content_store_bytes: int = 32 * MIB  # of these, for administrators
    content_store_files: int = 1000  # that are kept to be used again
    uploads: int = 250  # of callers, unfinished
    uploads_per_token: int = 64
    reserved_uploads: int = 32  # of these, for administrators
    upload_idle_seconds: float = 60.0  # without a piece; then the upload is discarded
    file_read_bytes: int = 64 * KIB  # of a file, in one read
    file_ops: int = 500  # file operations in one job
    file_ops_bytes: int = 64 * KIB  # of their names and paths
    path_bytes: int = KIB  # of one path
    rollout_groups: int = 100  # of boards in one plan
    rollout_pins: int = 10_000  # boards that are held back, or have settings of their own
    generation_files: int = 1000  # of a program; an install has fewer
    generation_bytes: int = 8 * MIB  # of all its files, and of the packages' for all kinds
    generations_bytes: int = 256 * MIB  # of the files of all generations in the database
    reply_rollouts: int = 1000
    settings_bytes: int = 16 * KIB  # of a board's settings.json
    secrets: int = 1000  # in all
    secret_bytes: int = 4 * KIB  # of one
    mount_files: int = 200  # of a folder that is mounted on boards
    mount_list_bytes: int = 4 * KIB  # of the list of them, which boards keep
    mount_piece_bytes: int = 16 * KIB  # of a file, that its caller is asked for at once
    mount_cache_bytes: int = 16 * MIB  # of such pieces, of all mounted folders
    mount_read_seconds: float = 4.0  # in which a caller sends one; a board waits for 5 s
    #: Unconfirmed bytes on the way to or from one board; and to all boards of a job together, of
    #: which each has at least the minimum.
    window_bytes: int = 64 * KIB
    min_window_bytes: int = 4 * KIB
    total_window_bytes: int = 16 * MIB

    # Boards.
    board_message_bytes: int = 64 * KIB
    board_buffer_bytes: int = 64 * KIB  # the largest receive buffer that a board may announce
    read_burst_bytes: int = 64 * KIB  # read from one board before a pause
    read_pause_seconds: float = 0.01  # in which others are served: 6 MB a second
    #: Reconnect spread of boards that replace each other by one key.
    takeover_spread_seconds: float = 120.0
    open_jobs: int = 200_000  # that have not ended, on all boards
    open_jobs_per_token: int = 50_000  # five cells on each of 10,000 boards
    reserved_open_jobs: int = 20_000  # of these, for administrators
    open_cells_bytes: int = 256 * MIB  # of the cells of such jobs, each counted once
    open_cells_token_bytes: int = 64 * MIB
    reserved_open_cells_bytes: int = 32 * MIB  # of these, for administrators
    queued_jobs: int = 1000  # of one board and one token
    all_queued_jobs: int = 4000  # of one board
    queued_bytes: int = 32 * MIB  # of the cells of one board and one token
    tail_bytes: int = 64 * KIB  # of each job's output, and of its value, that the server keeps
    recent_jobs: int = 1000  # ended jobs that are kept in memory, with their tails
    recent_bytes: int = 16 * MIB  # of their tails together

    # Packages: for sources, archives and the compiler. The costs of one plan add up.
    fetches: int = 8  # at the same time
    fetch_seconds: float = 60.0  # for one, with all its redirects
    fetch_response_seconds: float = 20.0  # until the head of a response
    fetch_redirects: int = 5
    packages: int = 200  # in one plan, dependencies included
    package_files: int = 1000  # in a package, an archive, or a plan
    package_document_bytes: int = 8 * MIB  # an index's page, a repository's refs
    #: Of a board's list of its packages: 1,000 files have half of it. The store keeps it.
    manifest_bytes: int = 256 * KIB
    package_file_bytes: int = 4 * MIB
    package_archive_bytes: int = 16 * MIB
    package_unpacked_bytes: int = 32 * MIB  # of an archive, or of a plan
    package_cache_bytes: int = 512 * MIB  # with more, the oldest files are deleted
    plan_seconds: float = 300.0
    plans_at_once: int = 6  # that are being made: each has its files and archives in memory
    plans_at_once_per_token: int = 2
    plans_per_link: int = 16  # that were not carried out; with more, the oldest are dropped
    resolve_rounds: int = 10_000  # steps of the resolver
    compile_seconds: float = 10.0  # for one file, of processor time and of elapsed time
    compile_bytes: int = 256 * MIB  # of memory
    compiled_bytes: int = 4 * MIB  # of the compiler's output

    # Samples and subscriptions.
    sample_bytes: int = KIB  # of one sample; the board's own limit is 512 bytes of JSON
    #: Of one board, and as a burst after a pause; the board's own limit is 50.
    samples_per_second: int = 100
    total_samples: int = 100_000  # kept of all boards together
    reply_samples: int = 100_000  # in one reply
    subscription_update_seconds: float = 0.25  # between two updates
    subscriptions: int = 200  # of all callers
    subscriptions_per_link: int = 16
    subscriptions_per_token: int = 64
    reserved_subscriptions: int = 32  # of these, for administrators
    subscription_update_boards: int = 2000  # in one update; the others are in the next
    subscription_pending_samples: int = 10_000  # queued for a subscriber that does not read
    subscription_pending_log_chars: int = MIB  # the same

    # Samples that are kept for days. What a board sends beyond them is left out, and counted.
    history_board_names: int = 64  # of values of one board, in a day
    history_token_names: int = 100_000  # of all boards that enrolled themselves with one token
    #: Values of one board in a day: about 80 MB. A sample a second with a hundred values.
    history_board_values: int = 10_000_000
    #: Of all boards that enrolled themselves with one token: half of what the files may need in a
    #: week, so that one token's boards cannot displace all others.
    history_token_values: int = 90_000_000
    history_unwritten_values: int = 1_000_000  # that wait for a slow disk: 20 MB of memory
    history_free_bytes: int = 512 * MIB  # of the disk that stay free for the server's other files
    history_page_values: int = 50_000  # in one reply; what is more is in the next
    history_queries_per_token: int = 4  # that wait or are carried out
    history_query_seconds: float = 20.0  # for one page

    # Boards' logs.
    log_bytes_per_second: int = 32 * KIB  # of one board; the excess is lost, and counted
    log_burst_bytes: int = 64 * KIB  # after a pause
    log_chars: int = 16 * KIB  # kept of one board
    log_trim_chars: int = 4 * KIB  # that a board may have beyond it until its oldest are deleted
    log_min_chars: int = 32  # as how many a short text counts: its row needs space, too
    log_total_chars: int = 64 * MIB  # kept of all boards together
    log_total_trim_chars: int = MIB  # the same for all boards
    log_write_seconds: float = 1.0  # until what was printed is in the store
    log_unwritten_chars: int = 8 * MIB  # that wait for a store that does not answer
    reply_log_chars: int = MIB  # in one reply; what is more is in the next

    # What went wrong on boards.
    traceback_chars: int = 2000  # that are kept of a traceback in a board's log
    health_write_seconds: float = 1.0  # until restarts and errors are in the store
    reply_crashes: int = 100  # different errors in one reply

    # What waits for a database that does not answer. Beyond it, new cells and other requests are
    # refused; results and what is sent to boards are not.
    store_operations: int = 1000
    store_bytes: int = 64 * MIB  # of the cells that wait
    # A cell waits for the end of the event loop's turn, to share a transaction, if one of another
    # caller ended less than this ago: then more of them are likely to come in this turn.
    store_gather_seconds: float = 0.002
    #: For an SQLite file that another program has locked; PostgreSQL has its own timeouts.
    store_lock_seconds: float = 60.0
    #: Rows changed between two checkpoints of SQLite's write-ahead log: about 4 MiB of it.
    store_checkpoint_rows: int = 500
    store_log_bytes: int = 16 * MIB  # of that log; then cells wait for a checkpoint

    # Logs and stored rows.
    library_line_chars: int = 500  # of a line of server.log that a library writes
    log_bytes: int = 8 * MIB  # of server.log; one older file is kept
    peer_lines_per_minute: int = 10  # in server.log, for one board, or one unauthenticated address
    #: In server.log, for one library: malformed HTTP, for example.
    library_lines_per_minute: int = 30
    failure_lines_per_minute: int = 1  # in server.log, for each kind of unexpected exception
    #: In the audit log and in server.log, for one address.
    stranger_rows_per_address_per_minute: int = 10
    stranger_rows_total_per_minute: int = 30  # for all addresses: 6 MB a day at the worst
    refusal_rows_per_minute: int = 60  # in the audit log, for one token
    read_rows_per_minute: int = 1  # in the audit log, for one token and each verb that only reads
    program_chars: int = 128  # of a board's description of its own program
    audit_chars: int = 500  # of a target and of a detail
    title_chars: int = 120  # of what lists of jobs call a job
    prune_days: int = 7  # at most this many days of the oldest rows are deleted in one day
    prune_rows: int = 500  # deleted in one transaction: a few milliseconds
