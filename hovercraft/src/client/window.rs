//! The sequences of one session: which are in use, and which the client is done with (P1, P20).

use std::collections::VecDeque;

use r2p2::Session as SessionOption;

/// However large a window the cluster grants, no more of it is used.
const SIZE_MAX: u32 = 65_536;

/// Gives out sequences, as many from the lowest unacknowledged one on as the cluster allows.
///
/// The lowest unacknowledged sequence is that of the oldest request whose outcome still matters. It
/// only grows, and a request keeps the one that it was first sent with (P2). Once it has passed an
/// unexecuted request, that is never executed (P21).
#[derive(Debug)]
pub(super) struct Window {
    client: u64,
    size: usize,
    lowest: u64,
    /// Position i is sequence `lowest` + i; true if the client is done with it.
    done: VecDeque<bool>,
    /// Requests that may be followed by a cancellation, which will need a sequence too.
    reserved: usize,
}

impl Window {
    pub(super) fn new(client: u64, size: u32) -> Self {
        let size = SIZE_MAX.min(size) as usize;
        Self { client, size, lowest: 1, done: VecDeque::new(), reserved: 0 }
    }

    /// Whose session it is.
    pub(super) fn client(&self) -> u64 {
        self.client
    }

    /// Whether no sequence is in use.
    pub(super) fn is_idle(&self) -> bool {
        self.done.is_empty()
    }

    /// Whether [`Self::begin`] may be called: every cancellation that may come has room still.
    pub(super) fn has_room(&self, may_be_cancelled: bool) -> bool {
        self.done.len() + self.reserved + 1 + usize::from(may_be_cancelled) <= self.size
    }

    /// The identity of a new request, for which there must be room.
    pub(super) fn begin(&mut self, may_be_cancelled: bool) -> SessionOption {
        assert!(self.has_room(may_be_cancelled), "the caller checks the window");
        self.reserved += usize::from(may_be_cancelled);
        self.next()
    }

    /// The identity of a cancellation; room for it was reserved by the request that it cancels.
    pub(super) fn begin_cancellation(&mut self) -> SessionOption {
        self.reserved -= 1;
        self.next()
    }

    /// The client has what it wanted of a sequence, or has given it up. `reserved` says that it
    /// might have been cancelled and was not.
    pub(super) fn end(&mut self, sequence: u64, reserved: bool) {
        self.reserved -= usize::from(reserved);
        let position = sequence - self.lowest;
        let before = std::mem::replace(&mut self.done[position as usize], true);
        assert!(!before, "a sequence ends once");
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.lowest += 1;
        }
    }

    fn next(&mut self) -> SessionOption {
        assert!(self.done.len() < self.size, "what is reserved is within the window");
        let sequence = self.lowest + self.done.len() as u64;
        self.done.push_back(false);
        SessionOption { client: self.client, sequence, lowest: self.lowest }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_waits_for_the_oldest() {
        let mut window = Window::new(7, 3);
        let [first, second, third] = [(); 3].map(|()| window.begin(false));
        assert_eq!(first, SessionOption { client: 7, sequence: 1, lowest: 1 });
        assert_eq!(third, SessionOption { client: 7, sequence: 3, lowest: 1 });
        assert!(!window.has_room(false));
        window.end(second.sequence, false);
        assert!(!window.has_room(false));
        window.end(first.sequence, false);
        let fourth = window.begin(false);
        assert_eq!(fourth, SessionOption { client: 7, sequence: 4, lowest: 3 });
    }

    #[test]
    fn a_request_that_may_be_cancelled_takes_two_places() {
        let mut window = Window::new(7, 3);
        let first = window.begin(true);
        assert!(!window.has_room(true));
        window.begin(false);
        assert!(!window.has_room(false));
        let cancellation = window.begin_cancellation();
        assert_eq!((cancellation.sequence, cancellation.lowest), (3, first.sequence));
    }

    proptest! {
        #[test]
        fn sequences_stay_in_the_window_and_are_never_acknowledged_early(
            size in 1..8_u32,
            steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut window = Window::new(7, size);
            // Sequence → whether it may be cancelled still.
            let mut used = BTreeMap::new();
            let mut highest = 0;
            let mut check = |given: SessionOption, used: &BTreeMap<u64, bool>| {
                prop_assert_eq!(given.sequence, highest + 1);
                highest = given.sequence;
                prop_assert!(given.sequence - given.lowest < u64::from(size));
                let oldest = used.keys().next().copied().unwrap_or(given.sequence);
                prop_assert_eq!(given.lowest, oldest);
                Ok(())
            };
            for (step, which) in steps {
                let picked = (!used.is_empty())
                    .then(|| which.index(used.len()))
                    .and_then(|position| used.iter().nth(position))
                    .map(|(sequence, may_be_cancelled)| (*sequence, *may_be_cancelled));
                match (step, picked) {
                    (0 | 1, _) if window.has_room(step == 1) => {
                        let given = window.begin(step == 1);
                        check(given, &used)?;
                        used.insert(given.sequence, step == 1);
                    }
                    (2, Some((sequence, true))) => {
                        let given = window.begin_cancellation();
                        check(given, &used)?;
                        used.insert(sequence, false);
                        used.insert(given.sequence, false);
                    }
                    (3, Some((sequence, reserved))) => {
                        window.end(sequence, reserved);
                        used.remove(&sequence);
                    }
                    _ => {}
                }
            }
        }
    }
}
