//! What goes wrong, as data.
//!
//! Who is hit is decided when the time comes ("the leader"), and a fault that would break more than
//! the protocol promises to survive does not happen unless the schedule goes beyond that.

pub(crate) mod plan;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which replica a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Whoever leads at the time; the first, if nobody does.
    Leader,
    /// A replica by its number, counted from 1.
    Replica(usize),
}

/// Who is parted from whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sides {
    /// One replica from all others.
    Alone(Target),
    /// These, by number, from all others.
    Halves(Vec<usize>),
    /// Every replica hears its neighbours on a ring, and so a majority, and no two the same; of
    /// three, one hears both others and these do not hear each other.
    Ring,
}

impl Sides {
    /// Whether a replica, by its position, is on the first side.
    pub(crate) fn is_first(&self, at: usize, find: impl Fn(Target) -> usize) -> bool {
        match self {
            Self::Alone(target) => find(*target) == at,
            Self::Halves(side) => side.contains(&(at + 1)),
            Self::Ring => false,
        }
    }

    /// Whether the link between two of `count` replicas, by their positions, leads from the first
    /// side to the other.
    pub(crate) fn part(
        &self,
        a: usize,
        b: usize,
        count: usize,
        find: impl Fn(Target) -> usize,
    ) -> bool {
        let is_between = match self {
            Self::Alone(target) => find(*target) == a,
            Self::Halves(side) => side.contains(&(a + 1)) && !side.contains(&(b + 1)),
            Self::Ring => !are_neighbours(a, b, count),
        };
        a != b && is_between
    }
}

impl Switches {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn are_between(&self) -> bool {
        *self == Self::Between
    }
}

/// Whether two replicas hear each other on a ring in which each hears a bare majority, itself
/// included.
fn are_neighbours(a: usize, b: usize, count: usize) -> bool {
    if count == 3 {
        return a == 0 || b == 0;
    }
    let reach = (count / 2).div_ceil(2);
    let distance = a.abs_diff(b);
    distance.min(count - distance) <= reach
}

/// On which side of a cut aggregators are: a switch stands somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Switches {
    /// Everybody still reaches them: the two sides hear each other by way of them.
    #[default]
    Between,
    /// With the first side.
    First,
    /// With the others.
    Second,
}

/// In which direction links are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ways {
    /// Nothing comes through.
    Both,
    /// Nothing gets out of the first side.
    Out,
    /// Nothing gets in to the first side.
    In,
}

/// What a crash leaves of writes that no sync followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaves {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// A prefix of them.
    Prefix,
    /// A prefix, and of the write behind it a part.
    Torn,
    /// Some of them, and not those before them.
    Reordered,
}

/// Something that goes wrong. Times are in microseconds of simulated time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are what their names say; the rest is told here")]
pub enum Fault {
    /// Of a thousand packets so many are lost.
    Loss { per_mille: u32, for_us: u64 },
    /// Of a thousand packets so many arrive twice.
    Duplication { per_mille: u32, for_us: u64 },
    /// Packets take up to so much longer, each for itself: they overtake each other.
    Reordering { spread_us: u64, for_us: u64 },
    /// Of a thousand packets so many arrive damaged.
    Corruption { per_mille: u32, for_us: u64 },
    /// Of a thousand packets so many are late.
    DelayTail { per_mille: u32, late_us: u64, for_us: u64 },
    /// Packets with more bytes than this vanish.
    Mtu { bytes: usize, for_us: u64 },
    /// Replicas do not hear each other; clients still reach all. `eats`: what is on its way is lost
    /// too.
    Partition {
        sides: Sides,
        ways: Ways,
        eats: bool,
        for_us: u64,
        #[serde(default, skip_serializing_if = "Switches::are_between")]
        switches: Switches,
    },
    /// The same, on and off.
    Flapping { sides: Sides, ways: Ways, period_us: u64, for_us: u64 },
    /// Nothing that clients send reaches a replica: multicast that reaches some and not others.
    Deafen { target: Target, for_us: u64 },
    /// Nothing that a replica sends reaches a client.
    Mute { target: Target, for_us: u64 },
    /// A process dies, and starts again after a while.
    Kill { target: Target, down_us: u64, leaves: Leaves },
    /// All processes die at once.
    Blackout { down_us: u64, leaves: Leaves },
    /// A process is stopped in good order, and starts again after a while.
    Restart { target: Target, down_us: u64 },
    /// A process stands still.
    Pause { target: Target, for_us: u64 },
    /// Every turn of a process takes up to so much longer.
    SlowNode { target: Target, turn_us: u64, for_us: u64 },
    /// A wall clock jumps.
    ClockJump { target: Target, by_us: i64 },
    /// All clocks of a process, its timers too, run too fast or too slow by millionths.
    ClockDrift { target: Target, ppm: i32, for_us: u64 },
    /// A disk is so many times slower.
    SlowDisk { target: Target, times: u32, for_us: u64 },
    /// A disk completes nothing.
    SyncStall { target: Target, for_us: u64 },
    /// The next write of a disk fails: the replica stops, and starts again after a while.
    WriteError { target: Target, down_us: u64 },
    /// A disk is full: nothing grows but the log, within the room that it has reserved.
    FullDisk { target: Target, for_us: u64 },
    /// Something that was synced is damaged on disk while the process is down, before the tail: the
    /// replica refuses to start until its disk is put right.
    Damage { target: Target, down_us: u64 },
    /// An aggregator, by its number from 1, dies and forgets everything; for good, or it starts
    /// again after a while.
    KillAggregator { number: usize, down_us: u64, for_good: bool },
    /// An aggregator and a replica, by number, do not hear each other; `ways` are the replica's.
    CutAggregator { number: usize, replica: usize, ways: Ways, for_us: u64, for_good: bool },
    /// Of a thousand packets from and to aggregators so many are heard again, long after.
    Echo { per_mille: u32, late_us: u64, for_us: u64 },
    /// Of a thousand messages that order entries, so many have one bit of an entry's digest,
    /// identity or length flipped: memory that fails where no checksum looks.
    BitFlip { per_mille: u32, for_us: u64 },
    /// The one link of a replica to all others carries only so much; what its queue has no room for
    /// is lost.
    Narrow { target: Target, kbit_per_s: u32, queue_bytes: u32, delay_us: u64, for_us: u64 },
    /// A follower's directory is copied, and later put back in the place of what it has become.
    OldCopy { target: Target, for_us: u64 },
}

/// A sort of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the fault of the same name")]
pub enum FaultKind {
    Loss,
    Duplication,
    Reordering,
    Corruption,
    DelayTail,
    Mtu,
    Partition,
    Flapping,
    Deafen,
    Mute,
    Kill,
    Blackout,
    Restart,
    Pause,
    SlowNode,
    ClockJump,
    ClockDrift,
    SlowDisk,
    SyncStall,
    WriteError,
    FullDisk,
    Damage,
    KillAggregator,
    CutAggregator,
    Echo,
    BitFlip,
    Narrow,
    OldCopy,
}

impl FaultKind {
    /// All of them, with the name under which each is counted.
    pub const ALL: [(Self, &'static str); 28] = [
        (Self::Loss, "fault: loss"),
        (Self::Duplication, "fault: duplication"),
        (Self::Reordering, "fault: reordering"),
        (Self::Corruption, "fault: corruption"),
        (Self::DelayTail, "fault: delay tail"),
        (Self::Mtu, "fault: mtu"),
        (Self::Partition, "fault: partition"),
        (Self::Flapping, "fault: flapping"),
        (Self::Deafen, "fault: deafen"),
        (Self::Mute, "fault: mute"),
        (Self::Kill, "fault: kill"),
        (Self::Blackout, "fault: blackout"),
        (Self::Restart, "fault: restart"),
        (Self::Pause, "fault: pause"),
        (Self::SlowNode, "fault: slow node"),
        (Self::ClockJump, "fault: clock jump"),
        (Self::ClockDrift, "fault: clock drift"),
        (Self::SlowDisk, "fault: slow disk"),
        (Self::SyncStall, "fault: sync stall"),
        (Self::WriteError, "fault: write error"),
        (Self::FullDisk, "fault: full disk"),
        (Self::Damage, "fault: damage"),
        (Self::KillAggregator, "fault: kill aggregator"),
        (Self::CutAggregator, "fault: cut aggregator"),
        (Self::Echo, "fault: echo"),
        (Self::BitFlip, "fault: bit flip"),
        (Self::Narrow, "fault: narrow"),
        (Self::OldCopy, "fault: old copy"),
    ];

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl Fault {
    /// What sort it is.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Loss { .. } => FaultKind::Loss,
            Self::Duplication { .. } => FaultKind::Duplication,
            Self::Reordering { .. } => FaultKind::Reordering,
            Self::Corruption { .. } => FaultKind::Corruption,
            Self::DelayTail { .. } => FaultKind::DelayTail,
            Self::Mtu { .. } => FaultKind::Mtu,
            Self::Partition { .. } => FaultKind::Partition,
            Self::Flapping { .. } => FaultKind::Flapping,
            Self::Deafen { .. } => FaultKind::Deafen,
            Self::Mute { .. } => FaultKind::Mute,
            Self::Kill { .. } => FaultKind::Kill,
            Self::Blackout { .. } => FaultKind::Blackout,
            Self::Restart { .. } => FaultKind::Restart,
            Self::Pause { .. } => FaultKind::Pause,
            Self::SlowNode { .. } => FaultKind::SlowNode,
            Self::ClockJump { .. } => FaultKind::ClockJump,
            Self::ClockDrift { .. } => FaultKind::ClockDrift,
            Self::SlowDisk { .. } => FaultKind::SlowDisk,
            Self::SyncStall { .. } => FaultKind::SyncStall,
            Self::WriteError { .. } => FaultKind::WriteError,
            Self::FullDisk { .. } => FaultKind::FullDisk,
            Self::Damage { .. } => FaultKind::Damage,
            Self::KillAggregator { .. } => FaultKind::KillAggregator,
            Self::CutAggregator { .. } => FaultKind::CutAggregator,
            Self::Echo { .. } => FaultKind::Echo,
            Self::BitFlip { .. } => FaultKind::BitFlip,
            Self::Narrow { .. } => FaultKind::Narrow,
            Self::OldCopy { .. } => FaultKind::OldCopy,
        }
    }

    /// How long it lasts, in microseconds; none if it is over at once.
    pub fn length_us(&self) -> Option<u64> {
        match self {
            Self::Loss { for_us, .. }
            | Self::Duplication { for_us, .. }
            | Self::Reordering { for_us, .. }
            | Self::Corruption { for_us, .. }
            | Self::DelayTail { for_us, .. }
            | Self::Mtu { for_us, .. }
            | Self::Partition { for_us, .. }
            | Self::Flapping { for_us, .. }
            | Self::Deafen { for_us, .. }
            | Self::Mute { for_us, .. }
            | Self::Pause { for_us, .. }
            | Self::SlowNode { for_us, .. }
            | Self::ClockDrift { for_us, .. }
            | Self::SlowDisk { for_us, .. }
            | Self::SyncStall { for_us, .. }
            | Self::CutAggregator { for_us, .. }
            | Self::Echo { for_us, .. }
            | Self::BitFlip { for_us, .. }
            | Self::Narrow { for_us, .. }
            | Self::OldCopy { for_us, .. }
            | Self::FullDisk { for_us, .. } => Some(*for_us),
            Self::Kill { down_us, .. }
            | Self::Blackout { down_us, .. }
            | Self::Restart { down_us, .. }
            | Self::WriteError { down_us, .. }
            | Self::KillAggregator { down_us, .. }
            | Self::Damage { down_us, .. } => Some(*down_us),
            Self::ClockJump { .. } => None,
        }
    }

    /// Whether nothing ends it, not even the healing.
    pub(crate) fn is_for_good(&self) -> bool {
        match self {
            Self::KillAggregator { for_good, .. } | Self::CutAggregator { for_good, .. } => {
                *for_good
            }
            _ => false,
        }
    }

    /// The one replica that it hits, if it is one.
    pub(crate) fn target(&self) -> Option<Target> {
        match self {
            Self::Partition { sides: Sides::Alone(target), .. }
            | Self::Flapping { sides: Sides::Alone(target), .. }
            | Self::Deafen { target, .. }
            | Self::Mute { target, .. }
            | Self::Kill { target, .. }
            | Self::Restart { target, .. }
            | Self::Pause { target, .. }
            | Self::SlowNode { target, .. }
            | Self::ClockJump { target, .. }
            | Self::ClockDrift { target, .. }
            | Self::SlowDisk { target, .. }
            | Self::SyncStall { target, .. }
            | Self::WriteError { target, .. }
            | Self::FullDisk { target, .. }
            | Self::Narrow { target, .. }
            | Self::OldCopy { target, .. }
            | Self::Damage { target, .. } => Some(*target),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    /// As its JSON, without quotes: what a story shows is what the file says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        let text = text.trim_start_matches("{\"fault\":").replace(['"', '{', '}'], "");
        f.write_str(&text.replace(',', ", ").replace(':', " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        for (position, (kind, name)) in FaultKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, position);
            assert_eq!(kind.name(), name);
        }
    }

    #[test]
    fn a_fault_reads_well() {
        let fault = Fault::Kill { target: Target::Leader, down_us: 300, leaves: Leaves::Torn };
        assert_eq!(fault.to_string(), "kill, target leader, down_us 300, leaves torn");
    }
}
