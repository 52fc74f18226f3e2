//! The planted bugs: one-line defects that a good engineer makes, each compiled into the product
//! only with the feature `planted`, and chosen at run time. They prove that the simulation finds
//! what it should.

/// The place where seeds find a defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The stepper: `hovercraft-sim sweep`.
    Stepper,
    /// The real shells on simulated hosts: `cargo world`.
    World,
    /// Runs of the segmented store that crash: `hovercraft/tests/planted.rs`.
    Store,
}

impl Tier {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stepper => "stepper",
            Self::World => "world",
            Self::Store => "store",
        }
    }
}

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Bug {
    /// Its name, as in the product's source: `planted!("…")`.
    pub name: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
    /// What the product does wrong.
    pub what: &'static str,
    /// The tier that finds it.
    pub tier: Tier,
}

impl Bug {
    const fn found_by(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }
}

/// Whether this build has them.
pub const ARE_PLANTED: bool = cfg!(feature = "planted");

/// The bug of a name.
pub fn find(name: &str) -> Option<&'static Bug> {
    BUGS.iter().find(|bug| bug.name == name)
}

/// From now on, runs of this thread have this bug, or none.
pub(crate) fn plant(bug: Option<&'static Bug>) {
    #[cfg(feature = "planted")]
    hovercraft::planted::plant(bug.map(|bug| bug.name));
    #[cfg(not(feature = "planted"))]
    assert!(bug.is_none(), "this build has no planted bugs");
}

const fn bug(name: &'static str, rule: &'static str, what: &'static str) -> Bug {
    Bug { name, rule, what, tier: Tier::Stepper }
}

/// All of them, found by the stepper if nothing else is said.
pub const BUGS: &[Bug] = &[
    bug(
        "commit-own-last",
        "P12",
        "a follower takes all of its own log as committed that the leader's commit index reaches, verified or not",
    ),
    bug(
        "ack-before-body",
        "P6",
        "a follower acknowledges what it has metadata of, before the bodies are there",
    ),
    bug("ack-before-sync", "P37", "a follower acknowledges its log before it is synced"),
    bug("vote-not-synced", "P37", "a vote is sent before it is on disk"),
    bug("commit-old-term", "P13", "a leader commits an entry of an old term by counting"),
    bug("rechoose-replier", "P7", "the leader names another replier when it sends an entry again"),
    bug(
        "bind-by-short-id",
        "P2, P8",
        "a body is bound to metadata by 16 bits of its sequence, whoever sent it",
    ),
    bug(
        "answers-by-any-statement",
        "P17",
        "a new run answers what comes after the first commit index that it hears of, however old",
    ),
    bug("message-unchecked", "§1", "a message of a replica is taken whatever its check is"),
    bug("request-unchecked", "§1", "a request is taken whatever its check is"),
    bug("reply-unchecked", "§1", "a reply is taken whatever its check is"),
    bug(
        "replies-forgotten",
        "P21",
        "when the leader changes, what sessions have executed is forgotten: duplicates are not noticed",
    ),
    bug("sessions-not-restored", "P20", "the session table of a snapshot is not read back"),
    bug(
        "tail-behind-snapshot-dropped",
        "P36",
        "a log that begins right behind the snapshot loses its tail",
    ),
    bug(
        "going-back-answers",
        "P17, P36",
        "a service that went back to the own snapshot answers again what it had answered",
    ),
    bug(
        "not-gone-back",
        "P36",
        "a service that could not read a snapshot goes on with whatever state it is left with",
    ),
    bug(
        "read-too-early",
        "P17",
        "a read is executed as soon as it is in the log, before it is committed",
    ),
    bug("leader-counts-unsynced", "P37", "the leader counts itself before its own sync"),
    bug(
        "replaced-sync-counts",
        "P37",
        "the completed sync of an entry that was replaced counts for the one that replaced it",
    ),
    bug(
        "metadata-across-terms",
        "P8",
        "remembered metadata is kept across a change of term, and bound as if it were of the new one",
    ),
    bug(
        "empty-voter",
        "P37",
        "a replica that restarted empty in `memory` keeps its incarnation and votes",
    ),
    bug("expiry-by-local-time", "P22", "a session expires by the replica's own clock"),
    bug(
        "queues-not-reset",
        "P15",
        "a new leader does not count what its log already has in the repliers' queues",
    ),
    bug("stale-pre-vote", "P33", "a late reply to an earlier pre-vote counts for the vote"),
    bug(
        "pause-is-silence",
        "P33",
        "a replica that did not run takes that for silence of the others",
    ),
    bug(
        "disk-gives-way-at-once",
        "P38",
        "a leader gives way whenever something waits for its disk",
    ),
    bug(
        "disk-gives-way-alone",
        "P38",
        "a leader gives way although no quorum of the others has disks that move",
    ),
    bug("disk-stands-and-campaigns", "P38", "a replica whose disk stands asks for votes"),
    bug("disk-keeps-office", "P38", "a leader whose disk stands keeps its office"),
    bug("truncate-off-by-one", "P8", "a conflict truncates one entry too few"),
    bug("no-noop", "P10", "a new leader appends no entry of its own"),
    bug("vote-twice", "P37", "a replica votes for two candidates in one term"),
    bug("vote-unseen", "Raft §5.4.1", "a vote goes to whoever asks first, whatever their log"),
    bug("cancel-not-kept", "P23", "a cancellation answers `Refused` and does not keep that"),
    bug(
        "lowest-checked-late",
        "P21",
        "a *lowest* above the sequence is looked at after it has raised the session's",
    ),
    bug(
        "evicts-the-newest",
        "P21",
        "where there are too many sessions, the newest one goes for the next",
    ),
    bug(
        "evicts-the-oldest",
        "P21",
        "where kept replies take too much, the least recently used session goes, not the largest",
    ),
    bug(
        "bytes-evicted-early",
        "P21",
        "sessions are evicted for their size at any index, not at every 256th only",
    ),
    bug(
        "unsound-not-bound",
        "P21",
        "a follower does not bind a request that its intake would have refused",
    ),
    bug("queue-off-by-one", "P15", "a replier is given one entry more than its bound"),
    bug("read-by-everyone", "P17", "every replica executes a read"),
    bug(
        "recovering-counts",
        "P37, P39",
        "votes and acknowledgements of a replica that is recovering count",
    ),
    bug("recovery-without-digest", "P9", "a recovered body is bound without looking at its digest"),
    bug(
        "refusal-truncates-log",
        "P9",
        "a follower to which the leader refuses a body takes back its log from there on too",
    ),
    bug(
        "refusal-keeps-verified",
        "P6, P9",
        "what is verified stays above the metadata that a follower takes back",
    ),
    bug(
        "silence-is-refusal",
        "P9",
        "a follower that gets no body for long takes back all that is not committed",
    ),
    bug("log-not-synced", "P37", "the log says that a batch is on disk, and has not synced it"),
    bug("name-not-synced", "P37", "a file is renamed into its place, and its directory not synced"),
    bug("mark-before-sync", "P38", "the log notes what is on disk before it is"),
    bug("restored-counts", "P37", "a replica that began with an older copy of its disk is counted"),
    bug(
        "late-run-counts",
        "P37",
        "an acknowledgement of a run that is over counts for the later one",
    ),
    bug("agg-late-run-counts", "P28, P37", "the same at an aggregator"),
    bug("older-slot", "P38", "the first slot that is intact counts, whichever is newer"),
    bug("spare-cut", "P38", "a segment uses less than all of what was reserved for it"),
    bug("room-given-twice", "P38", "what is handed over takes no room before it is stored"),
    bug("full-disk-ignored", "P38", "entries are handed over that the log has no room for"),
    bug("checksum-not-checked", "P38", "a record of the log is taken without its checksum"),
    bug(
        "agg-commit-own-tail",
        "P12, P29",
        "a follower takes its own log as committed as far as an aggregator announces, verified or not",
    ),
    bug(
        "agg-old-answers",
        "P28",
        "the aggregator counts answers of earlier terms and configurations: late ones, and those that it remembers",
    ),
    bug(
        "agg-leader-unsynced",
        "P28",
        "the leader is counted by the aggregator before its own sync",
    ),
    bug(
        "agg-below-noop",
        "P28, P13",
        "the aggregator announces entries of earlier terms by counting",
    ),
    bug(
        "agg-acks-last",
        "P28, P6",
        "a follower acknowledges to the aggregator the end of the message, whatever it holds",
    ),
    bug(
        "agg-resets-election",
        "P29",
        "an announcement of the aggregator counts as a sign of the leader",
    ),
    bug(
        "agg-feeds-check-quorum",
        "P31",
        "what the aggregator remembers keeps a leader in office that no quorum hears",
    ),
    bug("agg-no-fallback", "P32", "a leader does not notice that its aggregator is silent"),
    bug(
        "agg-dead-link",
        "P26, P30",
        "a follower that the aggregator does not reach is never served directly",
    ),
    bug("feedback-leaks", "P24", "a place in the system that no FEEDBACK frees is never freed"),
    bug(
        "configuration-not-truncated",
        "P34",
        "a configuration stays in force whose entry was truncated",
    ),
    bug("configuration-lost-by-trim", "P34", "a trim forgets the configuration that it removes"),
    bug(
        "configuration-kept-at-install",
        "P34, P36",
        "after a snapshot of another replica the configuration before it stays in force",
    ),
    bug("elected-by-half", "Raft §5.2", "half of an even number of votes elect a leader"),
    bug(
        "heard-by-half",
        "P31",
        "answers of half of an even number of replicas keep a leader in office",
    ),
    bug("quorum-of-half", "Raft §5.4", "half of an even number of replicas are a quorum"),
    bug(
        "agg-counts-half",
        "P28",
        "half of an even number of replicas are a quorum to the aggregator",
    ),
    bug(
        "tail-kept-unlike-snapshot",
        "P36",
        "entries above an installed snapshot stay, whatever the log holds at its index",
    ),
    bug(
        "going-back-skips-one",
        "P36",
        "a service that went back to its own snapshot skips the entry behind it",
    ),
    bug(
        "order-of-use-not-restored",
        "P20, P21",
        "a snapshot brings sessions back in the order of their opening, not of their use",
    ),
    bug(
        "older-snapshots-stay",
        "P36",
        "the snapshots before an install that drops the log stay, even those of a higher index",
    )
    .found_by(Tier::Store),
    bug(
        "removals-not-synced",
        "P36",
        "an install is complete before the removal of the older snapshots is on disk",
    )
    .found_by(Tier::Store),
    bug("install-before-sync", "P36", "a snapshot is installed below a log that is not synced")
        .found_by(Tier::Store),
    bug(
        "restart-not-synced",
        "P36, P38",
        "an install is complete before the log that begins behind it is on disk",
    )
    .found_by(Tier::Store),
    bug(
        "tail-terms-not-compared",
        "P36",
        "a log keeps its tail beside a snapshot of another term at the same index",
    )
    .found_by(Tier::Store),
    bug("reads-keep-no-session", "P21", "a session in which a client only reads expires"),
    bug("session-ends-early", "P21", "a session expires a 64th of its lifetime too early"),
    bug("snapshot-renews-sessions", "P22", "in a snapshot every session was used just now"),
    bug("one-session-too-many", "P21", "there is one session more than may be"),
    bug("interval-keeps-all", "P37", "after a crash in `interval` a replica keeps its incarnation"),
    bug("recovering-candidate", "P37", "a replica that is recovering asks for votes"),
    bug(
        "truncation-not-recorded",
        "P38",
        "a truncation that nothing follows is not in the log file",
    ),
    bug("roll-before-sync", "P38", "a segment begins before the one before it is on disk"),
    bug("torn-tail-not-told", "P38", "a log that lost what was synced is taken as whole"),
    bug(
        "answers-dated-by-arrival",
        "P31",
        "an answer of a follower counts from its arrival, not from the message that it answers",
    ),
    bug("suspects-stay", "P8", "what is known to differ from the leader's log stays in the log"),
    bug(
        "bulk-terms-not-compared",
        "P9",
        "entries in bulk leave those of other terms where they are",
    ),
    bug("donor-sends-uncommitted", "P9, P12", "a donor sends its whole log, committed or not"),
    bug(
        "bodies-by-key-only",
        "P9",
        "a donor looks for bodies by their key alone, which it forgets in time",
    ),
    bug("wrong-body-takes-room", "P9", "a body with another digest takes room for good"),
    bug("run-told-once", "P37", "a run makes itself known once in a term, heard or not"),
    bug(
        "stored-before-sync",
        "P37",
        "the storage role says that writes are stored before it syncs them",
    )
    .found_by(Tier::World),
    bug(
        "snapshot-before-sync",
        "P36",
        "a snapshot is begun before the log that it rests on is synced",
    )
    .found_by(Tier::World),
    bug("retry-not-ordered-again", "P18, P21", "a retry whose reply is not kept is forgotten")
        .found_by(Tier::World),
    bug(
        "unread-snapshot-installed",
        "P36",
        "a snapshot that the service could not read is installed",
    )
    .found_by(Tier::World),
];
