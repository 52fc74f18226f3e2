//! The network: links between endpoints that delay, lose, double and reorder what is sent, and
//! cuts.

use std::time::Duration;

use hovercraft::messages::Message;
use r2p2::Time;

use crate::seed::Seed;

/// How the links behave.
#[derive(Debug, Clone, Copy)]
pub struct NetworkOptions {
    /// A packet takes at least this long.
    pub delay_min: Duration,
    /// And up to this much longer, each packet for itself: so they overtake each other.
    pub delay_spread: Duration,
    /// Of a thousand packets, this many are late.
    pub late_per_mille: u32,
    /// Up to this late.
    pub late_max: Duration,
    /// Of a thousand packets, this many are lost.
    pub loss_per_mille: u32,
    /// Of a thousand packets, this many arrive twice.
    pub doubled_per_mille: u32,
    /// Of a thousand messages with bodies or parts of snapshots, which have checksums of their own,
    /// this many arrive damaged.
    pub damaged_per_mille: u32,
}

/// A replica or a client, by its position among all endpoints: replicas come first.
pub(crate) type Endpoint = usize;

#[derive(Debug, Clone, Copy)]
struct Cut {
    since: Time,
    /// What is on its way is lost too.
    eats: bool,
}

#[derive(Debug)]
struct Link {
    rng: fastrand::Rng,
    cut: Option<Cut>,
}

/// When the copies of a packet arrive.
pub(crate) type Arrivals = [Option<Time>; 2];

#[derive(Debug)]
pub(crate) struct Network {
    options: NetworkOptions,
    endpoints: usize,
    /// From × to.
    links: Vec<Link>,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) cut_off: u64,
    pub(crate) damaged: u64,
}

impl Network {
    pub(crate) fn new(seed: Seed, options: NetworkOptions, endpoints: usize) -> Self {
        let link = |number| Link { rng: seed.stream("link", number as u64), cut: None };
        let links = (0..endpoints * endpoints).map(link).collect();
        Self { options, endpoints, links, lost: 0, doubled: 0, cut_off: 0, damaged: 0 }
    }

    /// Sends a packet.
    pub(crate) fn send(&mut self, now: Time, from: Endpoint, to: Endpoint) -> Arrivals {
        let options = self.options;
        let link = &mut self.links[from * self.endpoints + to];
        if link.cut.is_some() {
            self.cut_off += 1;
            return [None; 2];
        }
        if happens(&mut link.rng, options.loss_per_mille) {
            self.lost += 1;
            return [None; 2];
        }
        let first = Some(now + delay(&mut link.rng, &options));
        let is_doubled = happens(&mut link.rng, options.doubled_per_mille);
        self.doubled += u64::from(is_doubled);
        [first, is_doubled.then(|| now + delay(&mut link.rng, &options))]
    }

    /// Perhaps damages what a message carries.
    pub(crate) fn damage(&mut self, from: Endpoint, to: Endpoint, message: &mut Message) {
        let rng = &mut self.links[from * self.endpoints + to].rng;
        if self.options.damaged_per_mille == 0 {
            return;
        }
        let carried = match message {
            Message::Bodies { parts } => parts.first_mut().map(|part| &mut part.request.body),
            Message::Entries { entries, .. } => {
                let request = entries.first_mut().and_then(|entry| entry.request.as_mut());
                request.map(|request| &mut request.body)
            }
            Message::AppendEntries(append) => {
                append.requests.first_mut().map(|(_, request)| &mut request.body)
            }
            Message::SnapshotPart { data, .. } => Some(data),
            _ => None,
        };
        if let Some(byte) = carried.and_then(|bytes| bytes.last_mut())
            && happens(rng, self.options.damaged_per_mille)
        {
            *byte ^= 1;
            self.damaged += 1;
        }
    }

    /// Whether a packet that was sent at `sent` comes through to its end.
    pub(crate) fn delivers(&mut self, sent: Time, from: Endpoint, to: Endpoint) -> bool {
        let cut = self.links[from * self.endpoints + to].cut;
        let is_eaten = cut.is_some_and(|cut| cut.eats || sent >= cut.since);
        self.cut_off += u64::from(is_eaten);
        !is_eaten
    }

    /// Cuts one direction of one link.
    pub(crate) fn cut(&mut self, now: Time, from: Endpoint, to: Endpoint, eats: bool) {
        self.links[from * self.endpoints + to].cut = Some(Cut { since: now, eats });
    }

    /// Mends every link.
    pub(crate) fn mend(&mut self) {
        for link in &mut self.links {
            link.cut = None;
        }
    }

    /// From now on nothing is lost, doubled, late or damaged.
    pub(crate) fn calm(&mut self) {
        self.mend();
        self.options.loss_per_mille = 0;
        self.options.doubled_per_mille = 0;
        self.options.late_per_mille = 0;
        self.options.damaged_per_mille = 0;
    }
}

/// Whether something happens that happens so many times in a thousand.
pub(crate) fn happens(rng: &mut fastrand::Rng, per_mille: u32) -> bool {
    per_mille > 0 && rng.u32(..1000) < per_mille
}

/// A time up to `max`.
pub(crate) fn up_to(rng: &mut fastrand::Rng, max: Duration) -> Duration {
    Duration::from_nanos(rng.u64(..=max.as_nanos() as u64))
}

fn delay(rng: &mut fastrand::Rng, options: &NetworkOptions) -> Duration {
    let usual = options.delay_min + up_to(rng, options.delay_spread);
    if happens(rng, options.late_per_mille) { usual + up_to(rng, options.late_max) } else { usual }
}
