//! The network: links between endpoints that delay, lose, double and reorder what is sent, and
//! cuts.

use std::time::Duration;

use hovercraft::messages::Message;
use r2p2::Time;

use crate::{faults::Fault, options::NetworkOptions, seed::Seed};

/// A replica or a client, by its position among all endpoints: replicas come first.
pub(crate) type Endpoint = usize;

/// The fault that is the cause of something, by its number.
pub(crate) type Cause = usize;

#[derive(Debug, Clone, Copy)]
struct Cut {
    cause: Cause,
    since: Time,
    /// What is on its way is lost too.
    eats: bool,
}

#[derive(Debug)]
struct Link {
    rng: fastrand::Rng,
    cuts: Vec<Cut>,
    /// It never comes back.
    is_dead: bool,
    /// Larger packets vanish on it.
    packet_bytes_max: Option<usize>,
}

/// What happens to packets here and there: the worst of all that goes on.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    pub(crate) loss_per_mille: u32,
    pub(crate) doubled_per_mille: u32,
    spread_us: u64,
    pub(crate) damaged_per_mille: u32,
    flipped_per_mille: u32,
    pub(crate) late_per_mille: u32,
    late_us: u64,
    /// What comes from or goes to aggregators comes again.
    echoed_per_mille: u32,
    echo_us: u64,
    /// None: packets of any size come through.
    pub(crate) packet_bytes_max: Option<usize>,
}

impl Weather {
    /// What these faults make together.
    pub(crate) fn of<'a>(faults: impl IntoIterator<Item = &'a Fault>) -> Self {
        let mut weather = Self::default();
        for fault in faults {
            match *fault {
                Fault::Loss { per_mille, .. } => {
                    weather.loss_per_mille = weather.loss_per_mille.max(per_mille);
                }
                Fault::Duplication { per_mille, .. } => {
                    weather.doubled_per_mille = weather.doubled_per_mille.max(per_mille);
                }
                Fault::Reordering { spread_us, .. } => {
                    weather.spread_us = weather.spread_us.max(spread_us);
                }
                Fault::Corruption { per_mille, .. } => {
                    weather.damaged_per_mille = weather.damaged_per_mille.max(per_mille);
                }
                Fault::BitFlip { per_mille, .. } => {
                    weather.flipped_per_mille = weather.flipped_per_mille.max(per_mille);
                }
                Fault::DelayTail { per_mille, late_us, .. } => {
                    weather.late_per_mille = weather.late_per_mille.max(per_mille);
                    weather.late_us = weather.late_us.max(late_us);
                }
                Fault::Echo { per_mille, late_us, .. } => {
                    weather.echoed_per_mille = weather.echoed_per_mille.max(per_mille);
                    weather.echo_us = weather.echo_us.max(late_us);
                }
                Fault::Mtu { bytes, .. } => {
                    let max = weather.packet_bytes_max.map_or(bytes, |before| before.min(bytes));
                    weather.packet_bytes_max = Some(max);
                }
                _ => {}
            }
        }
        weather
    }

    /// How long after it a packet from or to an aggregator is heard again, if it is.
    pub(crate) fn echo(&self, rng: &mut fastrand::Rng) -> Option<Duration> {
        happens(rng, self.echoed_per_mille).then(|| up_to_us(rng, self.echo_us))
    }
}

/// The one link of an endpoint to all others, which carries only so much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipe {
    pub(crate) cause: Cause,
    pub(crate) endpoint: Endpoint,
    pub(crate) kbit_per_s: u64,
    /// Bytes that wait at each end at most; what comes on top is lost.
    pub(crate) queue_bytes: u64,
    pub(crate) delay: Duration,
    /// When each end has sent everything that waits there: from the endpoint, and to it.
    free_at: [Time; 2],
}

impl Pipe {
    pub(crate) fn new(
        (cause, endpoint): (Cause, Endpoint),
        kbit_per_s: u32,
        queue_bytes: u32,
        delay: Duration,
    ) -> Self {
        let (kbit_per_s, queue_bytes) = (kbit_per_s.max(1).into(), queue_bytes.into());
        Self { cause, endpoint, kbit_per_s, queue_bytes, delay, free_at: [Time::ZERO; 2] }
    }

    /// Sends so many bytes; returns how long they take to the other end, none if they are lost.
    fn send(&mut self, now: Time, is_out: bool, bytes: u64) -> Option<Duration> {
        let free_at = &mut self.free_at[usize::from(!is_out)];
        let begins = (*free_at).max(now);
        let waiting_bytes = begins.since(now).as_micros() as u64 * self.kbit_per_s / 8000;
        if waiting_bytes + bytes > self.queue_bytes {
            return None;
        }
        *free_at = begins + Duration::from_micros(bytes * 8000 / self.kbit_per_s);
        Some(free_at.since(now) + self.delay)
    }
}

/// When the copies of a packet arrive.
pub(crate) type Arrivals = [Option<Time>; 2];

#[derive(Debug)]
pub(crate) struct Network {
    options: NetworkOptions,
    endpoints: usize,
    /// From × to.
    links: Vec<Link>,
    pipes: Vec<Pipe>,
    weather: Weather,
    /// What the weather is made of.
    causes: Vec<(Cause, Fault)>,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
    pub(crate) too_large: u64,
    pub(crate) cut_off: u64,
    pub(crate) damaged: u64,
    pub(crate) flipped: u64,
    /// Bytes that narrow links have carried, and that their queues had no room for.
    pub(crate) squeezed_bytes: u64,
    pub(crate) overflowed_bytes: u64,
}

impl Network {
    pub(crate) fn new(seed: Seed, options: NetworkOptions, endpoints: usize) -> Self {
        let link = |number| Link {
            rng: seed.stream("link", number as u64),
            cuts: Vec::new(),
            is_dead: false,
            packet_bytes_max: None,
        };
        let links = (0..endpoints * endpoints).map(link).collect();
        Self {
            options,
            endpoints,
            links,
            pipes: Vec::new(),
            weather: Weather::default(),
            causes: Vec::new(),
            lost: 0,
            doubled: 0,
            late: 0,
            too_large: 0,
            cut_off: 0,
            damaged: 0,
            flipped: 0,
            squeezed_bytes: 0,
            overflowed_bytes: 0,
        }
    }

    /// Sends a packet, whose size is only asked for if it matters.
    pub(crate) fn send(
        &mut self,
        now: Time,
        from: Endpoint,
        to: Endpoint,
        bytes: impl FnOnce() -> usize,
    ) -> Arrivals {
        let is_narrow = self.pipes.iter().any(|pipe| [from, to].contains(&pipe.endpoint));
        let link = &mut self.links[from * self.endpoints + to];
        if link.is_dead || !link.cuts.is_empty() {
            self.cut_off += 1;
            return [None; 2];
        }
        let weather = &self.weather;
        if happens(&mut link.rng, weather.loss_per_mille) {
            self.lost += 1;
            return [None; 2];
        }
        let bytes_max = weather.packet_bytes_max.into_iter().chain(link.packet_bytes_max).min();
        let bytes = if is_narrow || bytes_max.is_some() { bytes() } else { 0 };
        if bytes_max.is_some_and(|max| bytes > max) {
            self.too_large += 1;
            return [None; 2];
        }
        let mut way = Duration::ZERO;
        for pipe in self.pipes.iter_mut().filter(|pipe| [from, to].contains(&pipe.endpoint)) {
            let Some(time) = pipe.send(now, pipe.endpoint == from, bytes as u64) else {
                self.overflowed_bytes += bytes as u64;
                return [None; 2];
            };
            self.squeezed_bytes += bytes as u64;
            way += time;
        }
        let now = now + way;
        let is_late = happens(&mut link.rng, weather.late_per_mille);
        self.late += u64::from(is_late);
        let first = Some(now + delay(&mut link.rng, &self.options, weather, is_late));
        let is_doubled = happens(&mut link.rng, weather.doubled_per_mille);
        self.doubled += u64::from(is_doubled);
        let second = || now + delay(&mut link.rng, &self.options, weather, false);
        [first, is_doubled.then(second)]
    }

    /// Perhaps damages what a message carries that has a checksum of its own, bodies and parts of
    /// snapshots, before it is sent: as what the sender has in memory may be.
    pub(crate) fn damage(&mut self, from: Endpoint, to: Endpoint, message: &mut Message) {
        let carried = match message {
            Message::Bodies { parts, .. } => parts.first_mut().map(|part| &mut part.request.body),
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
        let rng = &mut self.links[from * self.endpoints + to].rng;
        if let Some(byte) = carried.and_then(|bytes| bytes.last_mut())
            && happens(rng, self.weather.damaged_per_mille)
        {
            self.damaged += 1;
            *byte ^= 1;
        }
    }

    /// Perhaps flips a bit of what a message orders, so that no request fits it any more.
    pub(crate) fn flip(&mut self, from: Endpoint, to: Endpoint, message: &mut Message) {
        let entries = match message {
            Message::AppendEntries(append) => &mut append.entries,
            Message::Aggregate(aggregate) => &mut aggregate.append.entries,
            _ => return,
        };
        let rng = &mut self.links[from * self.endpoints + to].rng;
        if !entries.is_empty() && happens(rng, self.weather.flipped_per_mille) {
            let at = rng.usize(..entries.len());
            entries[at].flip_bit(rng.u32(..));
            self.flipped += 1;
        }
    }

    /// Returns a number that says which bit of a packet is flipped on its way, if one is.
    pub(crate) fn damage_packet(&mut self, from: Endpoint, to: Endpoint) -> Option<u64> {
        let rng = &mut self.links[from * self.endpoints + to].rng;
        if !happens(rng, self.weather.damaged_per_mille) {
            return None;
        }
        self.damaged += 1;
        Some(rng.u64(..))
    }

    /// Whether a packet that was sent at `sent` comes through to its end.
    pub(crate) fn delivers(&mut self, sent: Time, from: Endpoint, to: Endpoint) -> bool {
        let cuts = &self.links[from * self.endpoints + to].cuts;
        let is_eaten = cuts.iter().any(|cut| cut.eats || sent >= cut.since);
        self.cut_off += u64::from(is_eaten);
        !is_eaten
    }

    /// Cuts one direction of one link.
    pub(crate) fn cut(
        &mut self,
        now: Time,
        cause: Cause,
        from: Endpoint,
        to: Endpoint,
        eats: bool,
    ) {
        let cut = Cut { cause, since: now, eats };
        self.links[from * self.endpoints + to].cuts.push(cut);
    }

    /// Makes the link of an endpoint a narrow one.
    pub(crate) fn narrow(&mut self, pipe: Pipe) {
        self.pipes.push(pipe);
    }

    /// Larger packets vanish in one direction of one link until all is calm.
    pub(crate) fn pass_small(&mut self, from: Endpoint, to: Endpoint, packet_bytes_max: usize) {
        self.links[from * self.endpoints + to].packet_bytes_max = Some(packet_bytes_max);
    }

    /// Cuts one direction of one link for good.
    pub(crate) fn kill_link(&mut self, from: Endpoint, to: Endpoint) {
        self.links[from * self.endpoints + to].is_dead = true;
    }

    /// When something old comes again, if it does, long after it was sent.
    pub(crate) fn echo(&mut self, now: Time, from: Endpoint, to: Endpoint) -> Option<Time> {
        let rng = &mut self.links[from * self.endpoints + to].rng;
        self.weather.echo(rng).map(|late| now + late)
    }

    /// Something happens to packets from now on.
    pub(crate) fn disturb(&mut self, cause: Cause, fault: Fault) {
        self.causes.push((cause, fault));
        self.look_at_the_sky();
    }

    /// What a fault did ends.
    pub(crate) fn mend(&mut self, cause: Cause) {
        for link in &mut self.links {
            link.cuts.retain(|cut| cut.cause != cause);
        }
        self.causes.retain(|(other, _)| *other != cause);
        self.pipes.retain(|pipe| pipe.cause != cause);
        self.look_at_the_sky();
    }

    /// From now on nothing is lost, doubled, late or damaged.
    pub(crate) fn calm(&mut self) {
        for link in &mut self.links {
            link.cuts.clear();
            link.packet_bytes_max = None;
        }
        self.causes.clear();
        self.pipes.clear();
        self.look_at_the_sky();
    }

    fn look_at_the_sky(&mut self) {
        self.weather = Weather::of(self.causes.iter().map(|(_, fault)| fault));
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

/// A time up to so many microseconds.
pub(crate) fn up_to_us(rng: &mut fastrand::Rng, max_us: u64) -> Duration {
    if max_us == 0 { Duration::ZERO } else { Duration::from_nanos(rng.u64(..=max_us * 1000)) }
}

/// How long a packet takes.
pub(crate) fn delay(
    rng: &mut fastrand::Rng,
    options: &NetworkOptions,
    weather: &Weather,
    is_late: bool,
) -> Duration {
    let spread_us = options.delay_spread_us + weather.spread_us;
    let usual = Duration::from_micros(options.delay_min_us) + up_to_us(rng, spread_us);
    if is_late { usual + up_to_us(rng, weather.late_us) } else { usual }
}
