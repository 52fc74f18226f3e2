//! How a client is made.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use bytes::Bytes;
use r2p2::{AsyncLink, Clock};
use tokio::sync::mpsc;

use super::{
    CallError, CallKind, Client, ConnectError, Destinations, Session,
    driver::{Driver, Stats},
};
use crate::{Mode, Multicast, entropy::random_u64};

/// How long a call may take unless the user says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// How long connecting by a switch takes at least: no client is so impatient that it never gets
/// around one that is dead, which takes two copies of a request.
const BY_SWITCH_MIN: Duration = Duration::from_millis(200);

/// How many calls may be on their way to the driver; more callers wait for their turn.
const QUEUE: usize = 4096;

/// Builds a [`Client`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct ClientBuilder {
    members: Vec<SocketAddrV4>,
    multicast: Option<Multicast>,
    switch: Option<SocketAddrV4>,
    mode: Mode,
    timeout: Duration,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self {
            members: Vec::new(),
            multicast: None,
            switch: None,
            mode: Mode::default(),
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// The replicas. Each of them gets every request, unless there is a multicast group; in the mode
    /// `raft` one of them gets it.
    pub fn members(mut self, addresses: impl IntoIterator<Item = SocketAddrV4>) -> Self {
        self.members = addresses.into_iter().collect();
        self
    }

    /// A multicast group by which a request reaches all replicas, and the address of the interface
    /// of this host that leads there (P3).
    pub fn multicast(mut self, group: SocketAddrV4, interface: Ipv4Addr) -> Self {
        self.multicast = Some(Multicast { group, interface });
        self
    }

    /// A switch, which passes every request on to all replicas (P3). While it seems to be gone the
    /// client sends to the members itself, if it has been told of them.
    pub fn switch(mut self, address: SocketAddrV4) -> Self {
        self.switch = Some(address);
        self
    }

    /// The mode of the replicas; `hovercraft` unless said otherwise.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How long a call may take, and connecting too, though by a switch 200 ms at least; 5 s unless
    /// said otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens a session with the cluster (P20), and starts a task on the present tokio runtime that
    /// serves the client and its clones until the last of them is dropped.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time enabled.
    #[cfg(not(madsim))]
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let mut config = r2p2::UdpConfig::new(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        if let Some(multicast) = self.multicast {
            config.interface = multicast.interface;
        }
        // Settings first: their errors are easier to act on.
        self.destinations()?;
        let link = r2p2::AsyncUdpLink::bind(&config)?;
        self.connect_on(link).await
    }

    /// Connects as [`Client`]s do, on a link of the caller's: a simulated network, for example.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time enabled.
    pub async fn connect_on(self, link: impl AsyncLink + 'static) -> Result<Client, ConnectError> {
        let destinations = self.destinations()?;
        // No two clients may open a session under one identity.
        let session = Session::new(&destinations, random_u64());
        let (sender, calls) = mpsc::channel(QUEUE);
        let (clock, stats) = (Clock::start(), Stats::default());
        let driver = Driver { link, session, clock, stats: stats.clone(), calls };
        tokio::spawn(driver.drive());
        let timeout = match self.switch {
            Some(_) => self.timeout.max(BY_SWITCH_MIN),
            None => self.timeout,
        };
        let client = Client { calls: sender, clock, timeout, stats };
        match client.submit(CallKind::Connect, Bytes::new()).await {
            Ok(_) => Ok(Client { timeout: self.timeout, ..client }),
            Err(CallError::NotSent(timeout)) => Err(ConnectError::TimedOut(timeout)),
            Err(CallError::TwoClusters { odd, odd_cluster, cluster }) => {
                Err(ConnectError::TwoClusters { odd, odd_cluster, cluster })
            }
            Err(_) => Err(ConnectError::Stopped),
        }
    }

    fn destinations(&self) -> Result<Destinations, ConnectError> {
        let wrong = |setting, reason| Err(ConnectError::Setting { setting, reason });
        if let Some(switch) = self.switch {
            let members = self.members.clone();
            return match (self.mode, self.multicast) {
                (_, Some(_)) => {
                    wrong("switch", "requests go by a switch or by multicast, not by both")
                }
                (Mode::Raft, None) => {
                    wrong("switch", "in the mode raft a request goes to one replica: name members")
                }
                (_, None) => Ok(Destinations::BySwitch { switch, members }),
            };
        }
        match (self.mode, self.multicast) {
            (Mode::Raft, Some(_)) => {
                wrong("multicast", "in the mode raft a request goes to one replica: name members")
            }
            (_, Some(Multicast { group, .. })) if !group.ip().is_multicast() => {
                wrong("multicast", "the group must be one of 224.0.0.0 to 239.255.255.255")
            }
            (_, Some(Multicast { group, .. })) => Ok(Destinations::All(vec![group])),
            (_, None) if self.members.is_empty() => {
                wrong("members", "name at least one replica, or a multicast group")
            }
            (Mode::Raft, None) => Ok(Destinations::OneByOne(self.members.clone())),
            (_, None) => Ok(Destinations::All(self.members.clone())),
        }
    }
}
