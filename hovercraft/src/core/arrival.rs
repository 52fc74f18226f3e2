//! What no replica says that keeps the rules is refused on arrival, here and nowhere else, so that
//! the rest of the core may rely on it (P40).

use crate::{
    core::{Core, Role},
    entry::{Configuration, Index, Term},
    messages::{AppendEntries, Envelope, Message, Ordered, Progress, WholeEntry},
    storage::SnapshotMeta,
};

/// Terms grow by one an election: a message whose term is this far above the own one is damaged or
/// forged, and adopting it would use the terms up.
const TERM_LEAP_MAX: Term = 1 << 32;

/// No index, round, offset or size is ever higher, so sums of a few of them do not overflow.
const NUMBER_MAX: u64 = 1 << 62;

impl Core {
    /// Whether a replica that keeps the rules could have sent this.
    pub(super) fn is_credible(&self, envelope: &Envelope) -> bool {
        let term = envelope.term;
        if term > self.term().saturating_add(TERM_LEAP_MAX)
            || highest_number(&envelope.message) > NUMBER_MAX
        {
            return false;
        }
        match &envelope.message {
            Message::AppendEntries(append) => self.is_append_credible(term, append),
            Message::Aggregate(aggregate) => self.is_append_credible(term, &aggregate.append),
            Message::Entries { after, after_term, entries, .. } => {
                let terms = || entries.iter().map(|entry| entry.term);
                let ordered = [*after_term].into_iter().chain(terms()).chain([term]);
                ordered.is_sorted() && self.configurations_follow(in_entries(*after, entries))
            }
            Message::SnapshotPart { meta, .. } => meta.term <= term && self.is_usable(meta),
            Message::AppendReply(reply) => self.may_have_begun(term, reply.round),
            Message::NewRun { round, .. } => self.may_have_begun(term, *round),
            Message::AggCommit(commit) => {
                let rounds = commit.replicas.iter().map(|progress| progress.round);
                let highest = rounds.fold(commit.round, u64::max);
                self.may_have_begun(term, highest)
            }
            _ => true,
        }
    }

    fn is_append_credible(&self, term: Term, append: &AppendEntries) -> bool {
        append.previous_term <= append.entries_term
            && append.entries_term <= term
            && self.configurations_follow(in_append(append))
    }

    /// Whether a leader of this term has begun this round, as far as is known here.
    fn may_have_begun(&self, term: Term, round: u64) -> bool {
        match &self.role {
            Role::Leader(leader) => round <= leader.round() || term != self.term(),
            Role::Follower { .. } | Role::Candidate(_) => true,
        }
    }

    /// Whether configurations, each with its index, are usable and their ids go on from what is
    /// committed.
    fn configurations_follow<'a>(
        &self,
        placed: impl Iterator<Item = (Index, &'a Configuration)>,
    ) -> bool {
        let commit = self.commit.index();
        let mut id = self.configurations.at(commit).id;
        for (index, configuration) in placed {
            let is_next = index <= commit || configuration.id > id;
            if !is_next || configuration.check().is_err() {
                return false;
            }
            id = id.max(configuration.id);
        }
        true
    }

    fn is_usable(&self, meta: &SnapshotMeta) -> bool {
        let Configuration { id, .. } = meta.configuration;
        let commit = self.commit.index();
        let goes_back = meta.index >= commit && id < self.configurations.at(commit).id;
        // A snapshot with another digest key is another cluster's (P2).
        let is_ours = meta.digest_key == self.digest_key;
        is_ours && !goes_back && meta.configuration.check().is_ok()
    }
}

/// The highest of the numbers in a message that are added to.
fn highest_number(message: &Message) -> u64 {
    match message {
        Message::AppendEntries(append) => highest_of_append(append),
        Message::Aggregate(aggregate) => {
            let highest = highest_of_append(&aggregate.append).max(aggregate.durable);
            highest.max(aggregate.configuration).max(aggregate.first_round)
        }
        Message::AggCommit(commit) => {
            let of_replica = |it: &Progress| it.matched.max(it.applied).max(it.round);
            let highest = commit.replicas.iter().map(of_replica).max().unwrap_or(0);
            highest.max(commit.commit).max(commit.round).max(commit.configuration)
        }
        Message::AppendReply(reply) => {
            let rejected_after = reply.rejected_after.unwrap_or(0);
            let standstill = reply.standstill.map_or(0, |it| it.index);
            let highest = reply.round.max(reply.acknowledged).max(reply.applied);
            highest.max(rejected_after).max(standstill)
        }
        Message::PreVote { last_index: index, .. }
        | Message::Vote { last_index: index, .. }
        | Message::FetchEntries { after: index, .. }
        | Message::SnapshotAvailable { index, .. } => *index,
        Message::Entries { after, until, .. } => *after.max(until),
        Message::CatchUpTo { index, round, .. }
        | Message::RunKnown { index, first_round: round, .. } => *index.max(round),
        Message::NewRun { run, round } => run.loaded_index.max(run.loaded_term).max(*round),
        Message::CaughtUp { round, .. } => *round,
        Message::FetchSnapshot { index, offset, .. } => *index.max(offset),
        Message::SnapshotPart { meta, offset, .. } => meta.index.max(meta.size_bytes).max(*offset),
        Message::FetchBodies { wants, .. } => {
            wants.iter().map(|want| want.index).max().unwrap_or(0)
        }
        Message::Bodies { parts, .. } => parts.iter().map(|part| part.index).max().unwrap_or(0),
        Message::BodiesRefused { refusals } => {
            refusals.iter().map(|refusal| refusal.want.index).max().unwrap_or(0)
        }
        Message::PreVoteReply { .. }
        | Message::VoteReply { .. }
        | Message::Acknowledge(_)
        | Message::Forward { .. }
        | Message::Recovering { .. }
        | Message::Disowned { .. } => 0,
    }
}

fn highest_of_append(append: &AppendEntries) -> u64 {
    let highest = append.previous_index.max(append.commit).max(append.noop);
    highest.max(append.first_index).max(append.round)
}

fn in_append(append: &AppendEntries) -> impl Iterator<Item = (Index, &Configuration)> {
    // Most messages have none, and need no look at their entries.
    let entries = if append.configurations.is_empty() { &[] } else { &append.entries[..] };
    let places = (append.previous_index + 1..).zip(entries);
    let places = places.filter(|(_, entry)| entry.ordered() == Some(Ordered::Configuration));
    places.map(|(index, _)| index).zip(&append.configurations)
}

fn in_entries(
    after: Index,
    entries: &[WholeEntry],
) -> impl Iterator<Item = (Index, &Configuration)> {
    let places = (after + 1..).zip(entries);
    places.filter_map(|(index, entry)| Some((index, entry.configuration.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, option, prelude::*, sample::select};
    use r2p2::Time;

    use crate::{
        core::{
            Cause, Core, Mode, Output, Reading, Run, Settings, Standstill,
            testing::{
                DIGEST_KEY, configuration, core, entry, envelope, leader, noop, request_of, settle,
                write,
            },
        },
        digest::{Digest, DigestKey},
        entry::{Configuration, Incarnation, NodeId, Payload, Term},
        messages::{
            Acknowledge, AggCommit, Aggregate, AppendEntries, AppendReply, BodyPart, BodyRefusal,
            BodyWant, Envelope, Message, Metadata, Progress, RefusalReason, WholeEntry,
            WholeRequest,
        },
        request::{Identity, Key, Kind},
        storage::SnapshotMeta,
    };

    /// Mostly where it matters, and sometimes anywhere.
    /// Boxed, because nested strategies are large, and a test's stack is small.
    fn number() -> BoxedStrategy<u64> {
        prop_oneof![12 => 0..12u64, 2 => 4096..20_000u64, 1 => any::<u64>(), 1 => u64::MAX - 2..]
            .boxed()
    }

    fn term() -> impl Strategy<Value = Term> {
        prop_oneof![12 => 0..5u64, 1 => number()]
    }

    fn any_configuration() -> impl Strategy<Value = Configuration> {
        (number(), 0..5u16, 0..3u16).prop_map(|(id, count, skip)| {
            let mut configuration = configuration(count);
            configuration.id = id;
            configuration.members.drain(..usize::from(skip.min(count)));
            configuration
        })
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        let kind = prop_oneof![4 => 0..4u8, 2 => 254..=255u8, 1 => any::<u8>()];
        let small = || prop_oneof![4 => 0..5u32, 1 => any::<u32>()];
        let fields = ([number(), number(), number()], [small(), small(), small()], 0..5u16);
        let wild = (fields, kind).prop_map(|((words, numbers, replier), kind)| {
            Metadata::of_fields(words, numbers, replier, kind)
        });
        let known = (1..5u64).prop_map(|sequence| {
            Metadata::of(&write(1, 9, sequence), 0).expect("the base is the entry's own")
        });
        prop_oneof![2 => known, 1 => wild]
    }

    fn whole_request() -> impl Strategy<Value = WholeRequest> {
        let kind = prop_oneof![Just(Kind::Write), Just(Kind::Read), Just(Kind::Cancel)];
        (1..5u64, 0..4u64, kind).prop_map(|(sequence, lowest, kind)| {
            WholeRequest::new(&request_of(9, sequence, lowest, kind, b"body"), None)
        })
    }

    fn whole_entry() -> impl Strategy<Value = WholeEntry> {
        let (configuration, request) =
            (option::of(any_configuration()), option::of(whole_request()));
        (term(), number(), metadata(), configuration, request).prop_map(
            |(term, log_time_us, metadata, configuration, request)| WholeEntry {
                term,
                log_time_us,
                metadata,
                configuration,
                request,
            },
        )
    }

    fn append_entries() -> impl Strategy<Value = AppendEntries> {
        let numbers = [number(), number(), number(), number(), number()];
        let lists = (
            vec(metadata(), 0..5),
            vec(any_configuration(), 0..3),
            vec((0..5u16, whole_request()), 0..3),
        );
        (numbers, [term(), term()], lists).prop_map(
            |(numbers, [previous_term, entries_term], (entries, configurations, requests))| {
                let [previous_index, commit, first_index, round, log_time_us] = numbers;
                AppendEntries {
                    previous_index,
                    previous_term,
                    commit,
                    noop: commit,
                    first_index,
                    round,
                    entries_term,
                    log_time_us,
                    entries,
                    configurations,
                    requests,
                }
            },
        )
    }

    fn append_reply() -> impl Strategy<Value = AppendReply> {
        (number(), number(), number(), option::of(number()), number()).prop_map(
            |(round, acknowledged, applied, rejected_after, disk_wait_us)| AppendReply {
                round,
                acknowledged,
                applied,
                poisoned: applied == 2,
                rejected_after,
                standstill: rejected_after.map(|index| Standstill { index, cause: Cause::Body }),
                disk_wait_us,
                lacks_room: applied == 3,
            },
        )
    }

    fn meta() -> impl Strategy<Value = SnapshotMeta> {
        (number(), term(), any_configuration(), number(), number()).prop_map(
            |(index, term, configuration, log_time_us, size_bytes)| SnapshotMeta {
                index,
                term,
                configuration,
                log_time_us,
                size_bytes,
                checksum: 0,
                digest_key: DIGEST_KEY,
            },
        )
    }

    fn body_want() -> impl Strategy<Value = BodyWant> {
        let sizes = (any::<u32>(), 0..6u32);
        (number(), term(), 1..5u64, sizes).prop_map(|(index, term, sequence, (offset, len))| {
            let identity = Identity::Session { client: 9, sequence };
            BodyWant::new(index, term, Key { identity, digest: Digest(sequence) }, len, offset)
        })
    }

    fn body_refusal() -> impl Strategy<Value = BodyRefusal> {
        use RefusalReason::{Kind, Length, NoEntry, Request, Term, Trimmed};
        let reasons = vec![NoEntry, Trimmed, Term, Kind, Request, Length];
        let reason = select(reasons);
        (body_want(), reason).prop_map(|(want, reason)| BodyRefusal { want, reason })
    }

    fn body_part() -> impl Strategy<Value = BodyPart> {
        (number(), any::<u32>(), 0..6u32, whole_request()).prop_map(
            |(index, body_len, offset, request)| BodyPart { index, body_len, offset, request },
        )
    }

    fn aggregation() -> impl Strategy<Value = Message> {
        let progress = || {
            let numbers = [number(), number(), number()];
            (0..5u16, numbers).prop_map(|(node, [matched, applied, round])| {
                let poisoned = applied == 2;
                let disk_wait_us = matched;
                let (node, lacks_room) = (NodeId(node), poisoned);
                Progress { node, matched, applied, round, poisoned, disk_wait_us, lacks_room }
            })
        };
        prop_oneof![
            (number(), number(), any_configuration(), append_entries()).prop_map(
                |(configuration, durable, voters, append)| {
                    let voters = voters.members;
                    let first_round = durable;
                    let aggregate =
                        Aggregate { configuration, voters, durable, first_round, append };
                    Message::Aggregate(aggregate.into())
                }
            ),
            ([number(), number(), number()], vec(progress(), 0..4)).prop_map(
                |([configuration, commit, round], replicas)| {
                    Message::AggCommit(AggCommit { configuration, commit, round, replicas })
                }
            ),
            [number(), number(), number(), number()].prop_map(
                |[configuration, round, acknowledged, applied]| {
                    let poisoned = applied == 2;
                    Message::Acknowledge(Acknowledge {
                        configuration,
                        round,
                        acknowledged,
                        applied,
                        poisoned,
                        disk_wait_us: round,
                        lacks_room: round == 1,
                    })
                }
            ),
        ]
    }

    fn message() -> impl Strategy<Value = Message> {
        let elections = prop_oneof![
            (number(), number(), term()).prop_map(|(proposed, last_index, last_term)| {
                Message::PreVote { proposed, last_index, last_term }
            }),
            (term(), any::<bool>())
                .prop_map(|(proposed, granted)| Message::PreVoteReply { proposed, granted }),
            (number(), term())
                .prop_map(|(last_index, last_term)| Message::Vote { last_index, last_term }),
            any::<bool>().prop_map(|granted| Message::VoteReply { granted }),
        ];
        let fetching = prop_oneof![
            (vec(body_want(), 0..3), 0..9u64, any::<u32>()).prop_map(|(wants, question, bytes)| {
                Message::FetchBodies { wants, question, bytes }
            }),
            (vec(body_part(), 0..3), 0..9u64)
                .prop_map(|(parts, question)| Message::Bodies { parts, question }),
            vec(body_refusal(), 0..3).prop_map(|refusals| Message::BodiesRefused { refusals }),
            (number(), 0..9u64, any::<u32>()).prop_map(|(after, question, bytes)| {
                Message::FetchEntries { after, question, bytes }
            }),
            (number(), number(), 0..9u64, any::<u32>()).prop_map(
                |(index, offset, question, bytes)| {
                    Message::FetchSnapshot { index, offset, question, bytes }
                }
            ),
            whole_request().prop_map(|request| Message::Forward { request }),
        ];
        let recovering =
            prop_oneof![
                number().prop_map(|nonce| Message::Recovering { nonce }),
                (number(), number(), number())
                    .prop_map(|(nonce, index, round)| Message::CatchUpTo { nonce, index, round }),
                (number(), number()).prop_map(|(nonce, round)| Message::CaughtUp { nonce, round }),
                (number(), number(), number(), 0..9u64).prop_map(
                    |(number, loaded_index, loaded_term, round)| {
                        let run = Run { number, loaded_index, loaded_term };
                        Message::NewRun { run, round }
                    }
                ),
                (0..9u64, number(), number()).prop_map(|(run, index, first_round)| {
                    Message::RunKnown { run, index, first_round }
                }),
                (0..9u64)
                    .prop_map(|number| { Message::Disowned { incarnation: Incarnation(number) } }),
            ];
        // Boxed, because each case as a value of its own would not fit the stack of a test.
        prop_oneof![
            8 => append_entries().prop_map(Message::AppendEntries).boxed(),
            2 => append_reply().prop_map(Message::AppendReply),
            4 => ((number(), term()), vec(whole_entry(), 0..5), 0..9u64, number()).prop_map(
                |((after, after_term), entries, question, until)| {
                    Message::Entries { after, after_term, entries, question, until }
                }
            ).boxed(),
            2 => (number(), 0..9u64)
                .prop_map(|(index, question)| Message::SnapshotAvailable { index, question }),
            3 => (meta(), number(), vec(any::<u8>(), 0..9), 0..9u64).prop_map(
                |(meta, offset, data, question)| {
                    let meta = Box::new(meta);
                    Message::SnapshotPart { meta, offset, data, question }
                }
            ).boxed(),
            2 => elections.boxed(),
            4 => aggregation().boxed(),
            3 => fetching.boxed(),
            1 => recovering.boxed(),
        ]
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrives(Envelope),
        /// Time passes, and timers are due.
        Passes(Duration),
    }

    fn step() -> impl Strategy<Value = Step> {
        let arrives =
            (1..5u16, term(), message(), 0..5u64).prop_map(|(from, term, message, life)| {
                let incarnation = Incarnation(if life == 0 { life } else { u64::from(from) });
                let is_of_aggregator = message.is_of_aggregator() && life > 1;
                let from = if is_of_aggregator { NodeId::AGGREGATOR.0 } else { from };
                Step::Arrives(Envelope { incarnation, ..envelope(from, term, message) })
            });
        let passes = (0..400u64).prop_map(|ms| Step::Passes(Duration::from_millis(ms)));
        prop_oneof![6 => arrives, 1 => passes]
    }

    /// A replica that leads, one that follows, or one with entries of three terms on its disk.
    fn any_core() -> impl Strategy<Value = Core> {
        let modes = [Mode::Raft, Mode::HovercRaft, Mode::HovercRaftPlusPlus];
        (0..3u8, select(modes.to_vec())).prop_map(|(role, mode)| {
            let settings = Settings { mode, ..Settings::default() };
            match role {
                0 => leader(settings),
                1 => core(settings, Vec::new()),
                _ => core(settings, vec![noop(1), write(1, 9, 1), noop(2), write(3, 9, 2)]),
            }
        })
    }

    fn append(entries_term: Term, after: (u64, Term), entries: Vec<Metadata>) -> AppendEntries {
        AppendEntries {
            previous_index: after.0,
            previous_term: after.1,
            commit: 4,
            noop: 4,
            first_index: 1,
            round: 1,
            entries_term,
            log_time_us: 0,
            entries,
            configurations: Vec::new(),
            requests: Vec::new(),
        }
    }

    /// Replica 1, which knows that its entries of terms 1, 1, 2 and 3 are committed.
    fn follower() -> Core {
        let entries = vec![noop(1), write(1, 9, 1), noop(2), write(3, 9, 2)];
        let mut core = core(Settings::default(), entries);
        let heartbeat = Message::AppendEntries(append(3, (4, 3), Vec::new()));
        core.handle_message(Time::ZERO, envelope(2, 3, heartbeat));
        settle(&mut core, Time::ZERO);
        assert_eq!(core.commit_index(), 4);
        core
    }

    #[test]
    fn what_breaks_the_rules_is_refused_and_counted() {
        let metadata = |entry| Metadata::of(&entry, 0).expect("the base is the entry's own");
        let noops = vec![metadata(noop(1))];
        let nobody = Configuration { members: Vec::new(), ..configuration(3) };
        let with = |configuration: Configuration| {
            let payload = Payload::Configuration(configuration.clone().into());
            let entries = vec![metadata(entry(3, payload))];
            let append = append(3, (4, 3), entries);
            let append = AppendEntries { configurations: vec![configuration], ..append };
            Message::AppendEntries(append)
        };
        let whole = |term| WholeEntry { term, ..WholeEntry::new(&noop(1), 0) };
        let reply = AppendReply { round: 1, acknowledged: u64::MAX, ..AppendReply::default() };
        let meta = SnapshotMeta {
            index: 9,
            term: 3,
            configuration: nobody.clone(),
            log_time_us: 0,
            size_bytes: 1,
            checksum: 0,
            digest_key: DIGEST_KEY,
        };
        let foreign = SnapshotMeta {
            configuration: configuration(3),
            digest_key: DigestKey::new([5, 7]),
            ..meta.clone()
        };
        let part = |meta| {
            let (meta, data) = (Box::new(meta), vec![0]);
            Message::SnapshotPart { meta, offset: 0, data, question: 1 }
        };
        let cases = [
            ("a term out of reach", u64::MAX, Message::VoteReply { granted: true }),
            ("terms that go back", 3, Message::AppendEntries(append(2, (4, 3), noops.clone()))),
            ("a term that has not begun", 3, Message::AppendEntries(append(4, (4, 3), noops))),
            ("no members", 3, with(nobody)),
            ("a configuration that goes back", 3, with(configuration(3))),
            (
                "a configuration without a next",
                3,
                with(Configuration { id: u64::MAX, ..configuration(3) }),
            ),
            (
                "terms that go back in bulk",
                3,
                Message::Entries {
                    after: 4,
                    after_term: 3,
                    entries: vec![whole(3), whole(2)],
                    question: 1,
                    until: 6,
                },
            ),
            (
                "an index without a next",
                3,
                Message::FetchEntries { after: u64::MAX, question: 1, bytes: 1 },
            ),
            ("an acknowledgement of everything", 3, Message::AppendReply(reply)),
            ("a snapshot of nobody's", 3, part(meta)),
            ("a snapshot with another digest key", 3, part(foreign)),
        ];
        for (what, term, message) in cases {
            let mut core = follower();
            core.handle_message(Time::ZERO, envelope(2, term, message));
            assert_eq!(core.counters().messages_refused, 1, "{what}");
            assert_eq!((core.hard_state().term, core.log_bounds()), (3, (1, 4)), "{what}");
        }
    }

    #[test]
    fn a_leader_that_contradicts_what_is_committed_stops_this_replica() {
        // P38: at the index before the first entry too.
        for after in [(4, 1), (3, 2)] {
            let mut core = follower();
            let metadata = Metadata::of(&noop(2), 0).expect("the base is the entry's own");
            let append = Message::AppendEntries(append(2, after, vec![metadata; 2]));
            core.handle_message(Time::ZERO, envelope(2, 3, append));
            assert!(matches!(core.poll_output(), Some(Output::Stop(_))), "{after:?}");
        }
    }

    #[test]
    fn a_leader_believes_no_round_that_it_has_not_begun() {
        let mut core = leader(Settings::default());
        let reply = AppendReply { round: 99, acknowledged: 1, ..AppendReply::default() };
        core.handle_message(Time::ZERO, envelope(2, 1, Message::AppendReply(reply)));
        assert_eq!((core.counters().messages_refused, core.commit_index()), (1, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// P40: whatever another replica says, in whatever order.
        #[test]
        fn no_message_panics(
            mut core in any_core(), steps in vec(step(), 1..40),
            reading in select(vec![Reading::Complete, Reading::Refused, Reading::Failed]),
        ) {
            let mut now = Time::ZERO + Duration::from_millis(300);
            for step in steps {
                match step {
                    Step::Arrives(envelope) => core.handle_message(now, envelope),
                    Step::Passes(time) => now += time,
                }
                core.handle_timeout(now);
                for output in settle(&mut core, now) {
                    match output {
                        Output::TakeSnapshot => core.handle_snapshot(now, None),
                        Output::StageSnapshot { .. } => core.handle_staged(now, reading),
                        Output::InstallSnapshot { .. } => core.handle_installed(now),
                        Output::DiscardSnapshot { restores_own: true } => {
                            core.handle_went_back(now, None);
                            core.handle_poisoned(now);
                        }
                        // The driver ends here.
                        Output::Stop(_) => return Ok(()),
                        Output::AnswerRetry { request, to } => core.order_again(now, &request, to),
                        _ => {}
                    }
                }
            }
        }
    }
}
