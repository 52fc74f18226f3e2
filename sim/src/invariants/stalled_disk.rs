//! A leader whose disk stands gives way, and only then (P38), where nothing goes wrong but that disks
//! stand still.
//!
//! Looks at how long the disks have stood, not at what replicas think of them. From a leader that
//! kept its office for a minute while its file system was frozen.

use std::time::Duration;

use hovercraft::{
    Term,
    core::Core,
    messages::{Envelope, Message},
};
use r2p2::Time;

use super::{Violation, broken};
use crate::{disk::Disk, history::position, options::Options, replica::Replica};

const NAME: &str = "stalled disk";

/// Expectations where nothing goes wrong but that disks stand still.
#[derive(Debug, Default)]
pub(crate) struct StalledDisk {
    /// None where other things go wrong too.
    limits: Option<Limits>,
    /// The term that each replica leads, as of its last turn.
    leading: Vec<Option<Term>>,
    /// Number of times that each has given way, as of its last turn.
    gave_way: Vec<u64>,
    /// Since when each log has been full.
    full_since: Vec<Option<Time>>,
    /// The term in which each can speak, since its disk holds it, as of its last turn; 0 if in
    /// none. And since when.
    terms: Vec<(Term, Time)>,
    /// When a leader gave way, if nobody has led since.
    vacant_since: Option<Time>,
}

/// With what clocks, packets and turns may add.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// A disk has stood for so long when its replica gives way.
    stands_least: Duration,
    /// When a disk has stood for so long, its replica has noticed.
    stands_most: Duration,
    /// A disk that has stood for less may be taken for one that moves.
    moves: Duration,
    /// A disk that has not stood for so long is known to move.
    remembered: Duration,
    /// After so long another replica leads.
    successor: Duration,
    /// A replica that can speak in its leader's term for so long has answered it.
    answers: Duration,
}

impl StalledDisk {
    pub(super) fn of(options: &Options) -> Self {
        let cluster = &options.cluster;
        let us = Duration::from_micros;
        let election = us(cluster.election_max_us);
        let drift = us(cluster.election_max_us * u64::from(options.drift_ppm_max) / 400_000);
        let hop_us = options.network.delay_min_us + options.network.delay_spread_us;
        let sync_us = options.disk.sync_min_us + options.disk.sync_spread_us;
        let slack_us = 2 * cluster.heartbeat_us + 4 * (hop_us + options.pace.turn_max_us) + sync_us;
        let slack = us(slack_us) + drift;
        let count = usize::from(cluster.replicas);
        let limits = Limits {
            // A write waits from when it is handed over: behind what the disk does for a snapshot,
            // and then for its own sync; the stall may begin at the end of that.
            stands_least: (2 * election).saturating_sub(drift + us(2 * sync_us)),
            stands_most: 2 * election + slack,
            moves: election + slack,
            remembered: 6 * election + slack,
            successor: 12 * election,
            answers: slack,
        };
        Self {
            limits: Some(limits),
            leading: vec![None; count],
            gave_way: vec![0; count],
            full_since: vec![None; count],
            terms: vec![(0, Time::ZERO); count],
            vacant_since: None,
        }
    }

    /// A replica starts.
    pub(super) fn started(&mut self, at: usize) {
        if self.limits.is_some() {
            (self.leading[at], self.full_since[at], self.vacant_since) = (None, None, None);
            self.gave_way[at] = 0;
        }
    }

    /// At the end of a replica's turn.
    pub(super) fn check(
        &mut self,
        now: Time,
        replicas: &[Replica],
        at: usize,
        core: &Core,
    ) -> Result<(), Violation> {
        let Some(limits) = self.limits else { return Ok(()) };
        let replica = &replicas[at];
        let is_full = core.status().log_bytes >= 2 * replica.settings.log_bytes_max as u64;
        self.full_since[at] = is_full.then(|| self.full_since[at].unwrap_or(now));
        let (node, term) = (replica.node, core.hard_state().term);
        // A replica that waits for the disk to hold a higher term says nothing in the old one.
        let on_disk = replica.disk.durable_hard_state().term == term;
        let spoken = if on_disk { term } else { 0 };
        if self.terms[at].0 != spoken {
            self.terms[at] = (spoken, now);
        }
        let leads = core.is_leader().then_some(term);
        let before = std::mem::replace(&mut self.leading[at], leads);
        let stood = replica.disk.has_stood_for(now);
        let count = core.counters().disks_gave_way;
        let gave_way = std::mem::replace(&mut self.gave_way[at], count) != count;
        if leads.is_some() {
            self.vacant_since = None;
            let waited = self.waited(now, at, &replica.disk);
            if waited >= limits.stands_most && has_successors(now, replicas, at, limits) {
                let what =
                    format!("{node} leads term {term}, and its disk has stood for {waited:?}");
                return broken(NAME, "P38", what);
            }
            return Ok(());
        }
        if before == Some(term) {
            let quorum = core.configuration().quorum();
            let movers = self.movers(now, replicas, at, limits.moves);
            // Check-quorum does not count it either. And others are silent while theirs stand: they
            // say nothing of a term that is not on disk. Without a quorum of answers it steps down
            // whatever its own disk does.
            let is_heard = self.answering(now, at, term, limits) + 1 >= quorum;
            let is_early = stood < limits.stands_least && (gave_way || is_heard);
            if is_early || (gave_way && movers < quorum) {
                let what = format!(
                    "{node} stepped down in term {term}: its disk has stood for {stood:?}, and \
                     those of {movers} others move"
                );
                return broken(NAME, "P38", what);
            }
            self.vacant_since = gave_way.then_some(now);
        }
        if self.vacant_since.is_some_and(|since| now.since(since) > limits.successor)
            && has_successors(now, replicas, at, limits)
        {
            let what = format!("nobody leads {:?} after a leader gave way", limits.successor);
            return broken(NAME, "P38", what);
        }
        Ok(())
    }

    /// A replica sends a message.
    pub(super) fn sent(
        &self,
        now: Time,
        replica: &Replica,
        envelope: &Envelope,
    ) -> Result<(), Violation> {
        let Some(limits) = self.limits else { return Ok(()) };
        if !matches!(envelope.message, Message::PreVote { .. } | Message::Vote { .. }) {
            return Ok(());
        }
        // When a stall ends the disk completes what has waited, the own vote too.
        if now == replica.disk.stalled_until {
            return Ok(());
        }
        let waited = self.waited(now, position(replica.node), &replica.disk);
        if waited >= limits.stands_most {
            let node = replica.node;
            let what = format!("{node} asks for votes, and its disk has stood for {waited:?}");
            return broken(NAME, "P38", what);
        }
        Ok(())
    }

    /// Returns how long work has waited for a disk that stands. A snapshot counts while the log is
    /// full.
    fn waited(&self, now: Time, at: usize, disk: &Disk) -> Duration {
        let full_since = self.full_since[at];
        let makes_room_since = disk.snapshot_since.and_then(|since| Some(since.max(full_since?)));
        let since = [disk.writing_since, makes_room_since];
        let waited = since.into_iter().flatten().map(|since| now.since(since)).max();
        waited.unwrap_or_default().min(disk.stood_for(now))
    }

    /// Number of other replicas that have answered a leader of this term.
    fn answering(&self, now: Time, at: usize, term: Term, limits: Limits) -> usize {
        let answers = |(other, (spoken, since)): &(usize, &(Term, Time))| {
            *other != at && *spoken == term && now.since(*since) >= limits.answers
        };
        self.terms.iter().enumerate().filter(answers).count()
    }

    /// Number of other replicas whose disks may be taken for ones that move: nothing has waited for
    /// them for so long.
    fn movers(&self, now: Time, replicas: &[Replica], at: usize, least: Duration) -> usize {
        let moves = |(other, replica): &(usize, &Replica)| {
            *other != at && self.waited(now, *other, &replica.disk) < least
        };
        replicas.iter().enumerate().filter(moves).count()
    }
}

/// Returns whether a quorum without this replica is known to have disks that move.
fn has_successors(now: Time, replicas: &[Replica], at: usize, limits: Limits) -> bool {
    let quorum = replicas.len() / 2 + 1;
    let moves = |(other, replica): (usize, &Replica)| {
        other == at || replica.disk.has_moved_for(now, limits.remembered)
    };
    replicas.len() > quorum && replicas.iter().enumerate().all(moves)
}
