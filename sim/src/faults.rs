//! What goes wrong, and when: a list of faults, drawn from the seed before the run.
//!
//! Who is hit is decided when the time comes, and a fault that would break more than the protocol
//! promises to survive does not happen.

use std::time::Duration;

use r2p2::Time;

use crate::network::up_to;

/// Which replica a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Whoever leads at the time; anyone, if nobody does.
    Leader,
    /// The one at this position, counted around.
    Position(usize),
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A process dies, and starts again after a while.
    Kill(Target, Duration),
    /// A process is stopped in good order, and starts again after a while.
    Stop(Target, Duration),
    /// All processes die at once.
    KillAll(Duration),
    /// A process stands still for a while.
    Pause(Target, Duration),
    /// A replica is cut off from all others. Clients still reach it.
    Isolate(Target, Duration, Cut),
    /// The replicas are parted in two, the first `usize` by position from the target on one side.
    Part(Target, usize, Duration, Cut),
    /// Nothing that clients send reaches this replica.
    Deafen(Target, Duration),
    /// The wall clock of a replica jumps by so many microseconds.
    Jump(Target, i64),
    /// A disk is so many times slower for a while.
    SlowDisk(Target, u32, Duration),
}

/// How links are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Packets go out of the first side.
    pub leaves_out: bool,
    /// Packets come in to the first side.
    pub leaves_in: bool,
    /// What is on its way is lost too.
    pub eats: bool,
}

/// A sort of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// [`Fault::Kill`].
    Kill,
    /// [`Fault::KillAll`].
    Blackout,
    /// [`Fault::Stop`].
    Stop,
    /// [`Fault::Pause`].
    Pause,
    /// [`Fault::Isolate`].
    Isolate,
    /// [`Fault::Part`].
    Part,
    /// [`Fault::Deafen`].
    Deafen,
    /// [`Fault::Jump`].
    Jump,
    /// [`Fault::SlowDisk`].
    SlowDisk,
}

/// Which faults there are in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultOptions {
    /// Any of these; nothing goes wrong if there are none.
    pub kinds: Vec<FaultKind>,
    /// The time from one to the next is up to this long.
    pub pause_max: Duration,
    /// They last up to this long.
    pub length_max: Duration,
}

impl FaultOptions {
    /// Nothing goes wrong.
    pub const NONE: Self =
        Self { kinds: Vec::new(), pause_max: Duration::ZERO, length_max: Duration::ZERO };

    pub(crate) fn from_rng(rng: &mut fastrand::Rng, is_quick: bool) -> Self {
        use FaultKind::{Blackout, Deafen, Isolate, Jump, Kill, Part, Pause, SlowDisk, Stop};
        let scale = if is_quick { 10 } else { 1 };
        let millis = |millis| Duration::from_millis(millis) / scale;
        let pause_max = millis([100, 300, 1000][rng.usize(..3)]);
        let length_max = millis([100, 500, 1500][rng.usize(..3)]);
        // In how many runs of a hundred each is.
        let shares = [
            (Kill, 50),
            (Blackout, 25),
            (Stop, 33),
            (Pause, 33),
            (Isolate, 70),
            (Part, 70),
            (Deafen, 33),
            (Jump, 33),
            (SlowDisk, 25),
        ];
        let kinds = shares.into_iter().filter(|(_, share)| rng.u32(..100) < *share);
        let kinds = kinds.map(|(kind, _)| kind).collect();
        Self { kinds, pause_max, length_max }
    }

    /// The faults of a run that lasts for `chaos`.
    pub(crate) fn plan(
        &self,
        rng: &mut fastrand::Rng,
        chaos: Duration,
        replicas: usize,
    ) -> Vec<(Time, Fault)> {
        let mut plan = Vec::new();
        let mut at = Time::ZERO + up_to(rng, self.pause_max);
        while !self.kinds.is_empty() && at < Time::ZERO + chaos {
            plan.push((at, self.draw(rng, replicas)));
            at += Duration::from_nanos(1) + up_to(rng, self.pause_max);
        }
        plan
    }

    fn draw(&self, rng: &mut fastrand::Rng, replicas: usize) -> Fault {
        // Who leads has the most to lose.
        let anyone = Target::Position(rng.usize(..replicas));
        let target = if rng.bool() { Target::Leader } else { anyone };
        let length = up_to(rng, self.length_max);
        match self.kinds[rng.usize(..self.kinds.len())] {
            FaultKind::Kill => Fault::Kill(target, length),
            FaultKind::Blackout => Fault::KillAll(length),
            FaultKind::Stop => Fault::Stop(target, length),
            FaultKind::Pause => Fault::Pause(target, length),
            FaultKind::Isolate => Fault::Isolate(target, length, Cut::draw(rng)),
            FaultKind::Part => {
                let side = rng.usize(1..=replicas.div_ceil(2));
                Fault::Part(target, side, length, Cut::draw(rng))
            }
            FaultKind::Deafen => Fault::Deafen(target, length),
            FaultKind::Jump => {
                let two_hours_us = 7_200_000_000;
                Fault::Jump(target, rng.i64(-two_hours_us..two_hours_us))
            }
            FaultKind::SlowDisk => Fault::SlowDisk(target, rng.u32(2..200), length),
        }
    }
}

impl Cut {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        let (leaves_out, leaves_in) = match rng.u8(..4) {
            0 => (true, false),
            1 => (false, true),
            _ => (false, false),
        };
        Self { leaves_out, leaves_in, eats: rng.bool() }
    }
}
