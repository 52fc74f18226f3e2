//! What a replica is when it starts: a member as before, or one that may have forgotten what it
//! acknowledged (P37, P39).

use crate::{
    entry::Incarnation,
    storage::{Durability, HardState, Loaded},
};

/// The hard state of a run that begins with what `loaded` says, to be saved before the run takes
/// part in anything. `drawn` is a fresh random incarnation.
///
/// A replica keeps its incarnation only if everything that it ever acknowledged is certainly
/// there: after a clean stop, or if the last run was in `sync` and nothing is torn. With a new
/// incarnation it is recovering, because no configuration names it yet.
pub fn begin_run(loaded: &Loaded, durability: Durability, drawn: Incarnation) -> HardState {
    let Some(before) = &loaded.hard_state else {
        return HardState {
            term: 0,
            vote: None,
            incarnation: drawn,
            birth: None,
            durability,
            clean: false,
        };
    };
    let keeps_all = before.durability == Durability::Sync
        || (planted!("interval-keeps-all") && before.durability == Durability::Interval);
    let is_whole = loaded.torn.is_none() && (before.clean || keeps_all);
    // Before `init` there is nothing to forget.
    let keeps = is_whole || before.birth.is_none() || planted!("empty-voter");
    let incarnation = if keeps { before.incarnation } else { drawn };
    HardState { incarnation, durability, clean: false, ..before.clone() }
}

/// Says what a run may have lost that begins with another incarnation than the one before it.
pub(crate) fn missing(loaded: &Loaded, state: &HardState) -> Option<String> {
    let before = loaded.hard_state.as_ref()?;
    if before.incarnation == state.incarnation {
        return None;
    }
    Some(match loaded.torn {
        Some(torn) => torn.to_string(),
        None => "the last run did not end in good order, and its durability did not promise that \
            everything is on disk then"
            .to_owned(),
    })
}

/// The hard state of a run that has ended with everything handed to the store, which puts all of it
/// on disk before this marker of a clean stop, in every durability.
pub fn end_run(state: &HardState) -> HardState {
    HardState { clean: true, ..state.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::DIGEST_KEY;
    use crate::entry::{ClusterLimits, Configuration, NodeId};
    use crate::storage::{Birth, Torn};

    fn loaded(durability: Durability, clean: bool, torn: Option<Torn>) -> Loaded {
        let configuration = Configuration::new(1, Vec::new(), ClusterLimits::default());
        let before = HardState {
            term: 7,
            vote: Some(NodeId(2)),
            incarnation: Incarnation(1),
            birth: Some(Birth {
                cluster: 5,
                node: NodeId(1),
                configuration,
                digest_key: DIGEST_KEY,
            }),
            durability,
            clean,
        };
        let hard_state = Some(before);
        Loaded { hard_state, snapshot: None, first_index: 1, entries: Vec::new(), torn }
    }

    fn after(durability: Durability, clean: bool, torn: Option<Torn>) -> HardState {
        begin_run(&loaded(durability, clean, torn), Durability::Sync, Incarnation(2))
    }

    #[test]
    fn a_run_says_what_it_may_have_lost() {
        let missing = |durability, clean, torn| {
            let loaded = loaded(durability, clean, torn);
            missing(&loaded, &begin_run(&loaded, Durability::Sync, Incarnation(2)))
        };
        assert_eq!(missing(Durability::Sync, false, None), None);
        let text = missing(Durability::Sync, true, Some(Torn::Mark)).unwrap();
        assert!(text.contains("`synced` is missing"), "{text}");
        let text = missing(Durability::Sync, false, Some(Torn::Tail)).unwrap();
        assert!(text.contains("records that were synced"), "{text}");
        assert!(missing(Durability::Interval, false, None).unwrap().contains("last run"));
    }

    #[test]
    fn the_last_run_decides_whether_the_incarnation_stays() {
        let incarnation = |durability, clean, torn| after(durability, clean, torn).incarnation.0;
        assert_eq!(incarnation(Durability::Sync, false, None), 1);
        assert_eq!(incarnation(Durability::Sync, false, Some(Torn::Tail)), 2);
        assert_eq!(incarnation(Durability::Interval, false, None), 2);
        assert_eq!(incarnation(Durability::Interval, true, None), 1);
        assert_eq!(incarnation(Durability::Memory, false, None), 2);
    }

    #[test]
    fn term_and_vote_outlive_everything_and_the_marker_does_not() {
        let state = after(Durability::Interval, true, None);
        assert_eq!((state.term, state.vote, state.clean), (7, Some(NodeId(2)), false));
    }
}
