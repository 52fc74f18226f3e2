//! A part of the cluster that must make progress although the rest never comes back, as data.
//!
//! Progress of a healed cluster says little about one that stays as it is: here a quorum goes on
//! alone, in one of the shapes in which consensus protocols have stood still.

use serde::{Deserialize, Serialize};

use crate::options::ClusterOptions;

/// The replicas that go on, and the state of the others meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survivors {
    /// Replicas by number, a quorum at least, in the order of `shape`.
    pub members: Vec<usize>,
    /// The pairs of them that hear each other.
    pub shape: Shape,
    /// The state of all others.
    pub others: Others,
}

/// The pairs of survivors that hear each other, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// All of them.
    Full,
    /// The first one hears all, and they hear only it (quorum loss).
    Star,
    /// Each hears its neighbours in the list.
    Chain,
}

/// The fault of a replica that does not survive, for as long as the others are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Others {
    /// It is down.
    Down,
    /// It and the survivors do not hear each other.
    CutOff,
    /// It hears no survivor, and they hear it.
    Deaf,
    /// No survivor hears it, and it hears them.
    Mute,
    /// Its turns take long.
    Slow,
    /// Its disk completes nothing.
    Stalled,
    /// Only small packets pass between it and the survivors: heartbeats, not what they announce.
    Narrow,
}

impl Survivors {
    /// Those of most clusters of several replicas; none in the others.
    pub(crate) fn draw(rng: &mut fastrand::Rng, cluster: &ClusterOptions) -> Option<Self> {
        use Others::{CutOff, Deaf, Down, Mute, Narrow, Slow, Stalled};
        let replicas = usize::from(cluster.replicas);
        let quorum = replicas / 2 + 1;
        let mut members: Vec<_> = (1..=replicas).collect();
        rng.shuffle(&mut members);
        members.truncate(rng.usize(quorum..=replicas));
        let shape = [Shape::Full, Shape::Full, Shape::Star, Shape::Chain][rng.usize(..4)];
        let others = [Down, CutOff, Deaf, Mute, Slow, Stalled, Narrow][rng.usize(..7)];
        // Aggregators reach everybody.
        let shape = if cluster.aggregators > 0 { Shape::Full } else { shape };
        let is_asked = replicas > 1 && rng.u8(..4) > 0;
        is_asked.then_some(Self { members, shape, others })
    }

    /// Says what cannot be, if anything.
    pub(crate) fn check(&self, cluster: &ClusterOptions) -> Result<(), String> {
        let replicas = usize::from(cluster.replicas);
        let mut members = self.members.clone();
        members.sort_unstable();
        members.dedup();
        let are_known = members.iter().all(|number| (1..=replicas).contains(number));
        if !are_known || members.len() != self.members.len() || members.len() <= replicas / 2 {
            return Err(format!(
                "`survivors.members` are {:?}, and must be a quorum of replicas 1 to {replicas}",
                self.members
            ));
        }
        if self.shape != Shape::Full && cluster.aggregators > 0 {
            return Err("`survivors.shape` must be `full` where there are `aggregators`, which \
                        reach everybody"
                .to_owned());
        }
        Ok(())
    }

    /// The members by position.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.members.iter().map(|number| number - 1).collect()
    }

    /// Returns whether two of the survivors, by their places in the list, hear each other.
    pub(crate) fn are_linked(&self, a: usize, b: usize) -> bool {
        match self.shape {
            Shape::Full => true,
            Shape::Star => a == 0 || b == 0,
            Shape::Chain => a.abs_diff(b) <= 1,
        }
    }
}
