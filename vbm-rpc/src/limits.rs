//! Every limit of the bus, with its unit. A limit that a user may meet is named in the error that they get.

use std::time::Duration;

/// The largest body of one message. Larger things go as a stream or by reference.
pub const PAYLOAD_MAX_BYTES: usize = 1024 * 1024;
/// The deepest nesting of a body: a reader uses its stack for each level, and a thread of tokio's has 2 MiB.
pub const BODY_MAX_DEPTH: usize = 128;
/// The longest method name.
pub const METHOD_MAX_BYTES: usize = 128;
/// The longest idempotency key.
pub const IDEMPOTENCY_KEY_MAX_BYTES: usize = 256;
/// The longest trace parent: W3C Trace Context, section 3.2, has 55 in version 00.
pub const TRACEPARENT_MAX_BYTES: usize = 256;
/// The longest boot id.
pub const BOOT_ID_MAX_BYTES: usize = 128;
/// The most services of one member.
pub const MEMBER_MAX_SERVICES: usize = 16;

/// The deadline of a call that names none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// The longest deadline. What takes longer is an operation with a ticket, not a call.
pub const DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// The most unanswered messages of one process to one destination; more are [`Overloaded`](crate::Fate::Overloaded).
pub const INFLIGHT_MAX_PER_DESTINATION: usize = 8_192;
/// The most handlers that run at once in one process.
pub const HANDLERS_MAX: usize = 1_024;
/// The most requests that wait in a process for a handler; further ones stay with the transport.
pub const REQUEST_QUEUE_MAX: usize = 1_024;
/// The most handlers of the control lane that run at once in one process, besides [`HANDLERS_MAX`].
pub const CONTROL_HANDLERS_MAX: usize = 64;
/// The most requests of the control lane that wait in a process for a handler.
pub const CONTROL_QUEUE_MAX: usize = 256;
/// The most queue entries (of up to 256 requests each) kept for one destination before senders are
/// [`Overloaded`](crate::Fate::Overloaded). Soft: each sender looks a few times a second.
pub const DEPTH_SOFT_MAX_ENTRIES: usize = 10_000;
/// A request that was delivered this often and never completed goes to the dead letters.
pub const DELIVERIES_MAX: u32 = 5;
/// A request that was delivered this often and never completed is run alone from then on, so that it takes no others
/// with it to the dead letters.
pub const SUSPECT_AFTER: u32 = 2;
/// The most dead letters of one shard; the oldest go first.
pub const DEAD_LETTERS_MAX: usize = 1_000;
/// How long a dead letter is kept.
pub const DEAD_LETTERS_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most places whose bad input is logged, once for each kind ([`BadInput`](crate::BadInput)); that of others is
/// counted.
pub const BAD_INPUT_PLACES_MAX: usize = 1_024;
/// The most hops kept of one traced call.
pub const HOPS_MAX: usize = 64;
/// How long the hops of a traced call are kept.
pub const HOPS_TTL: Duration = Duration::from_secs(600);
/// The most replies of a broadcast that wait to be looked at.
pub const BROADCAST_QUEUE_MAX: usize = 4_096;

/// A handler that is at work for longer than this before it first waits, or ends, gets a task of its own: the
/// dispatcher, in which quick ones begin, does not stand still for it a second time.
pub const INLINE_MAX: Duration = Duration::from_micros(100);
/// How many calls of a method get tasks after one was slower than [`INLINE_MAX`].
pub const INLINE_AGAIN_CALLS: u32 = 1_024;
/// The most requests that the dispatcher takes at once.
pub const DISPATCH_MAX: usize = 32;

/// A handler that takes longer than this tells its caller that it has begun.
pub const ACCEPT_AFTER: Duration = Duration::from_millis(20);

/// How often a process tells each process that it works for, or reads from, that it still does: in one frame for all
/// their requests together.
pub const BEAT_EVERY: Duration = Duration::from_secs(1);
/// After this many beats without a sign of life a worker counts as silent, and its calls end.
pub const SILENT_BEATS: u32 = 4;
/// The same for a call that another member of the service may take over: longer than a take-over lasts
/// ([`PRESENCE_TTL`], and two heartbeats of who takes over).
pub const TAKEOVER_BEATS: u32 = 14;
/// The most signs of life in one frame.
pub const BEAT_MAX_SIGNS: usize = 1_000;
/// A request for one node that nobody has begun after this time makes its caller look whether the node is there.
pub const PRESENCE_LOOK_AFTER: Duration = HEARTBEAT_EVERY;
/// The most nodes that are looked for at once.
pub const PRESENCE_LOOKS_MAX: usize = 16;
/// A node that is absent at this many looks in a row, [`HEARTBEAT_EVERY`] apart, is gone: what it had not begun ends.
pub const ABSENT_LOOKS: u32 = 3;

/// How many items of a stream may be under way or unread. The reader grants more as it consumes.
pub const STREAM_WINDOW_ITEMS: u64 = 64;
/// How many bytes of items may be under way or unread; the item that crosses it still goes.
pub const STREAM_WINDOW_BYTES: u64 = 512 * 1024;
/// The most streams that one process reads at once: their windows fill half of its reply inbox at most.
pub const STREAMS_READ_MAX: usize = 128;
/// The most streams that one process serves at once: they take half of its handlers at most.
pub const STREAMS_SERVED_MAX: usize = 512;
/// The longest wait for one item of a stream that names none.
pub const STREAM_IDLE: Duration = Duration::from_secs(30);
/// The longest life of one stream, and its life when none is named.
pub const STREAM_DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a handler's progress is sent at most; in between the newest counts.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long a recorded answer is kept.
pub const DEDUPE_TTL: Duration = Duration::from_secs(600);
/// The most recorded answers of a process.
pub const DEDUPE_MAX_RECORDS: usize = 65_536;
/// The most bytes of recorded answers of a process.
pub const DEDUPE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// The most calls with one key that wait for its answer while it runs; more are [`Overloaded`](crate::Fate::Overloaded),
/// and may be repeated. A call that is sent again counts once.
pub const DEDUPE_MAX_WAITERS: usize = 64;

/// How long a shutdown waits for running handlers before it drops them.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How often a member says that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// How long a member counts as alive after its last heartbeat: three may be missed.
pub const PRESENCE_TTL: Duration = Duration::from_secs(8);

/// How long an ended ticket is kept when its submitter names no time.
pub const TICKET_KEEP: Duration = Duration::from_secs(3600);
/// The longest that an ended ticket is kept.
pub const TICKET_KEEP_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long after its deadline a ticket without an end is ended by who looks at it: the last word of a worker may be
/// on its way.
pub const TICKET_GRACE: Duration = Duration::from_secs(2);
/// How often a waiting process looks at a ticket first; the pauses grow to [`TICKET_POLL_MAX`].
pub const TICKET_POLL_MIN: Duration = Duration::from_millis(10);
/// How often a waiting process looks at a ticket at last.
pub const TICKET_POLL_MAX: Duration = Duration::from_millis(500);
/// How often the members of a destination look for tickets that nobody ended or called back for.
pub const TICKET_SWEEP_EVERY: Duration = Duration::from_secs(5);
/// The most overdue tickets that one sweep takes.
pub const TICKET_SWEEP_MAX: usize = 256;
/// The deadline of one callback; until it is handled there are more of them.
pub const CALLBACK_DEADLINE: Duration = Duration::from_secs(60);
/// The largest end of a ticket that a callback is told; of a larger one it is told the ticket alone.
pub const CALLBACK_END_MAX_BYTES: usize = PAYLOAD_MAX_BYTES - 64 * 1024;
/// The longest header of a submitted request: its ticket and its callback.
pub const SUBMISSION_MAX_BYTES: usize = 2_048;
/// The most calls or handlers that wait at a [`ConcurrencyLimitLayer`](crate::layers::ConcurrencyLimitLayer).
pub const CONCURRENCY_WAITING_MAX: usize = 1_024;
/// How often a [`RetryLayer`](crate::layers::RetryLayer) sends a call at most, the first time included.
pub const RETRY_ATTEMPTS_MAX: u16 = 4;
/// The wait before the second sending; it doubles from there, and a random half of it is left out.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(20);
/// The longest wait between two sendings.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

/// The shortest lease: shorter ones are lost to the jitter of a busy machine.
pub const LEASE_MIN: Duration = Duration::from_millis(500);
/// The lease of a leader that names none.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(5);
/// The longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(3600);
/// How long a candidate waits for the members' word about an epoch.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(1);
/// How many members are asked about an epoch at once.
pub const PROPOSE_PARALLEL_MAX: usize = 256;
/// The highest epoch that is believed: Redis' scripts count exactly up to here, and a liar cannot use all epochs up.
pub const EPOCH_MAX: u64 = 1 << 53;
