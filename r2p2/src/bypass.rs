//! What a client does when its switch dies: it goes around it, and looks now and then whether it is
//! back.

use std::{net::SocketAddrV4, time::Duration};

use crate::Time;

/// So many copies of a request go by the switch alone. What is unanswered then was lost twice, or
/// the switch is gone.
const COPIES_BY_SWITCH: u32 = 2;

/// After how long one request tries again whether the switch is back, or was there all the time: an
/// election looks the same from here.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A request, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) serial: u64,
    /// How many copies were sent since something was heard of it.
    pub(crate) unheard: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Bypass {
    /// None while the switch works.
    gone: Option<Gone>,
    /// How many copies went by the switch of requests that were given up before anything was heard
    /// of them, since something was.
    in_vain: u32,
}

#[derive(Debug)]
struct Gone {
    /// When the next request is to try the switch.
    probe_at: Time,
    /// The one that does.
    probe: Option<u64>,
}

impl Bypass {
    /// A request is about to be sent for the first time.
    pub(crate) fn begun(&mut self, now: Time, serial: u64) {
        if let Some(gone) = &mut self.gone
            && now >= gone.probe_at
        {
            *gone = Gone { probe_at: now + AGAIN_AFTER, probe: Some(serial) };
        }
    }

    /// Where the next copy goes, of destinations whose first is the switch.
    pub(crate) fn destinations<'a>(
        &self,
        all: &'a [SocketAddrV4],
        copies: Copies,
    ) -> &'a [SocketAddrV4] {
        if copies.unheard >= COPIES_BY_SWITCH {
            all
        } else if self.goes_by_switch(copies) {
            &all[..1]
        } else {
            &all[1..]
        }
    }

    /// Nothing was ever heard of a request that is given up. Whoever is too impatient for a third
    /// copy of one request goes around the switch with the next.
    pub(crate) fn given_up(&mut self, now: Time, copies: Copies) {
        if !self.goes_by_switch(copies) {
            return;
        }
        self.in_vain = self.in_vain.saturating_add(copies.unheard);
        if self.in_vain >= COPIES_BY_SWITCH {
            self.gone = Some(Gone { probe_at: now + AGAIN_AFTER, probe: None });
        }
    }

    /// A request has been refused.
    pub(crate) fn refused(&mut self) {
        self.in_vain = 0;
    }

    /// A request has been answered.
    pub(crate) fn answered(&mut self, now: Time, copies: Copies) {
        if !self.goes_by_switch(copies) {
            return;
        }
        self.in_vain = 0;
        let is_gone = copies.unheard > COPIES_BY_SWITCH;
        self.gone = is_gone.then(|| Gone { probe_at: now + AGAIN_AFTER, probe: None });
    }

    /// Whether it is one that the switch is to pass on.
    fn goes_by_switch(&self, copies: Copies) -> bool {
        self.gone.as_ref().is_none_or(|gone| gone.probe == Some(copies.serial))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn copies(serial: u64, unheard: u32) -> Copies {
        Copies { serial, unheard }
    }

    #[test]
    fn what_a_dead_switch_loses_goes_around_it_until_it_is_back() {
        let all: Vec<_> =
            (1..=4).map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).collect();
        let mut bypass = Bypass::default();
        let mut now = Time::ZERO;
        bypass.begun(now, 1);
        let ports = |bypass: &Bypass, copies| {
            let to = bypass.destinations(&all, copies);
            (to.first().unwrap().port(), to.last().unwrap().port())
        };
        assert_eq!(ports(&bypass, copies(1, 0)), (1, 1));
        assert_eq!(ports(&bypass, copies(1, 1)), (1, 1));
        assert_eq!(ports(&bypass, copies(1, 2)), (1, 4));
        bypass.answered(now, copies(1, 3));
        // Whoever comes now does not wait for it.
        bypass.begun(now, 2);
        assert_eq!(ports(&bypass, copies(2, 0)), (2, 4));
        bypass.answered(now, copies(2, 1));
        now += AGAIN_AFTER;
        bypass.begun(now, 3);
        bypass.begun(now, 4);
        assert_eq!(ports(&bypass, copies(3, 0)), (1, 1));
        assert_eq!(ports(&bypass, copies(4, 0)), (2, 4));
        bypass.answered(now, copies(4, 1));
        assert_eq!(ports(&bypass, copies(5, 0)), (2, 4));
        bypass.answered(now, copies(3, 1));
        assert_eq!(ports(&bypass, copies(5, 0)), (1, 1));
    }

    #[test]
    fn requests_that_are_given_up_early_show_together_that_the_switch_is_gone() {
        let all = [SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1); 2];
        let mut bypass = Bypass::default();
        let now = Time::ZERO;
        bypass.given_up(now, copies(1, 1));
        bypass.refused();
        bypass.given_up(now, copies(2, 1));
        bypass.answered(now, copies(3, 1));
        bypass.given_up(now, copies(4, 1));
        assert!(bypass.gone.is_none(), "it was heard of between any two of them");
        bypass.given_up(now, copies(5, 1));
        bypass.begun(now, 6);
        assert_eq!(bypass.destinations(&all, copies(6, 0)), &all[1..]);
        // A probe that is given up shows that it still is.
        bypass.begun(now + AGAIN_AFTER, 7);
        bypass.given_up(now + AGAIN_AFTER, copies(7, 1));
        bypass.begun(now + AGAIN_AFTER, 8);
        assert_eq!(bypass.destinations(&all, copies(8, 0)), &all[1..]);
        bypass.begun(now + AGAIN_AFTER * 2, 9);
        bypass.answered(now + AGAIN_AFTER * 2, copies(9, 1));
        assert!(bypass.gone.is_none());
    }

    #[test]
    fn a_probe_that_the_switch_loses_shows_that_it_is_still_gone() {
        let all = [SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1); 2];
        let mut bypass = Bypass::default();
        bypass.answered(Time::ZERO, copies(1, 3));
        bypass.begun(Time::ZERO + AGAIN_AFTER, 2);
        bypass.answered(Time::ZERO + AGAIN_AFTER, copies(2, 3));
        bypass.begun(Time::ZERO + AGAIN_AFTER, 3);
        assert_eq!(bypass.destinations(&all, copies(3, 0)).len(), 1);
        assert!(bypass.gone.is_some());
    }
}
