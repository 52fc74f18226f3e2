//! Where requests go.

use std::{net::SocketAddrV4, sync::Arc};

/// Where a client's requests go (P3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// Every request goes to all of these: the replicas, or one address that reaches them all.
    All(Vec<SocketAddrV4>),
    /// Every request goes to one of these, and a retry to the next: for the mode `raft`, where any
    /// replica passes requests on to the leader.
    OneByOne(Vec<SocketAddrV4>),
    /// Every request goes to a switch, which passes it on to all replicas; to these themselves
    /// while the switch seems to be gone.
    BySwitch {
        /// Where the switch is.
        switch: SocketAddrV4,
        /// The replicas.
        members: Vec<SocketAddrV4>,
    },
}

/// The destinations in the order in which they are to be tried.
#[derive(Debug)]
pub(super) struct Route {
    /// One order if all get every request; else one that begins with each replica.
    orders: Vec<Arc<[SocketAddrV4]>>,
    current: usize,
}

impl Route {
    pub(super) fn new(destinations: &Destinations) -> Self {
        let orders: Vec<Arc<[SocketAddrV4]>> = match destinations {
            Destinations::All(addresses) => vec![Arc::from(&addresses[..])],
            Destinations::BySwitch { switch, members } => {
                vec![[&[*switch][..], members].concat().into()]
            }
            Destinations::OneByOne(addresses) => (0..addresses.len())
                .map(|first| [&addresses[first..], &addresses[..first]].concat().into())
                .collect(),
        };
        let is_somewhere = orders.first().is_some_and(|order| !order.is_empty());
        assert!(is_somewhere, "there is nowhere to send requests to");
        Self { orders, current: 0 }
    }

    /// For the next request.
    pub(super) fn destinations(&self) -> &Arc<[SocketAddrV4]> {
        &self.orders[self.current]
    }

    /// Whoever answered last is asked first: it is the leader, and saves the leader the forwarding.
    pub(super) fn answered_by(&mut self, from: SocketAddrV4) {
        if self.orders.len() > 1
            && self.orders[self.current][0] != from
            && let Some(order) = self.orders.iter().position(|order| order[0] == from)
        {
            self.current = order;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn replicas() -> Vec<SocketAddrV4> {
        (1..=3).map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).collect()
    }

    fn ports(route: &Route) -> Vec<u16> {
        route.destinations().iter().map(SocketAddrV4::port).collect()
    }

    #[test]
    fn whoever_answered_last_is_asked_first() {
        let mut route = Route::new(&Destinations::OneByOne(replicas()));
        assert_eq!(ports(&route), [1, 2, 3]);
        route.answered_by(replicas()[1]);
        assert_eq!(ports(&route), [2, 3, 1]);
        route.answered_by(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));
        assert_eq!(ports(&route), [2, 3, 1]);
    }

    #[test]
    fn who_answers_does_not_matter_where_all_are_asked() {
        let mut route = Route::new(&Destinations::All(replicas()));
        route.answered_by(replicas()[1]);
        assert_eq!(ports(&route), [1, 2, 3]);
    }
}
