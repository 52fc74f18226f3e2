//! The network of the world: a simulator of madsim's, which delays, loses, doubles, damages and cuts
//! what is sent between hosts.
//!
//! madsim's own UDP takes 1 ms a hop, has no multicast, and loses datagrams when a receive is
//! cancelled; hence this one. It delivers in order of (time, sequence), so that a seed repeats.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    future::poll_fn,
    net::{Ipv4Addr, SocketAddrV4},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use madsim::{
    Config,
    plugin::{Simulator, node, simulator},
    rand::GlobalRng,
    task::NodeId,
    time::{TimeHandle, sleep},
};
use r2p2::{DATAGRAM_BYTES_MAX, Packet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::switches;
use crate::{
    faults::Fault,
    network::{Cause, Weather, delay, happens},
    options::NetworkOptions,
    seed::Seed,
};

/// How many bytes of datagrams wait for a socket's owner at most; the rest is lost.
const RECEIVE_BUFFER_BYTES: usize = 256 << 10;

/// The ports from here on are given to those who ask for any.
const PORT_BASE: u16 = 40_000;

/// What the fabric has done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FabricCounters {
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) late: u64,
    pub(super) damaged: u64,
    pub(super) too_large: u64,
    pub(super) cut_off: u64,
    pub(super) multicast: u64,
    /// Came from or went to the switch, and came again.
    pub(super) echoed: u64,
    /// There was no room in a receive buffer.
    pub(super) overrun: u64,
    /// Nobody was there.
    pub(super) unreachable: u64,
}

pub(super) struct Fabric {
    time: TimeHandle,
    state: Mutex<State>,
}

struct State {
    seed: Seed,
    options: NetworkOptions,
    weather: Weather,
    /// What the weather is made of.
    causes: Vec<(Cause, Fault)>,
    hosts: Vec<NodeId>,
    sockets: BTreeMap<SocketAddrV4, Socket>,
    lines: BTreeMap<(Ipv4Addr, Ipv4Addr), Line>,
    flying: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
    next_port: u16,
    /// Wakes the pump.
    pump: Option<Waker>,
    /// Of everything that was delivered, and when: two runs are the same if this is.
    digest: u64,
    counters: FabricCounters,
}

struct Socket {
    /// Tells it from an earlier one at the same address.
    number: u64,
    host: NodeId,
    group: Option<SocketAddrV4>,
    inbox: VecDeque<(SocketAddrV4, Bytes)>,
    inbox_bytes: usize,
    owner: Option<Waker>,
}

/// One direction between two hosts.
struct Line {
    rng: fastrand::Rng,
    cuts: Vec<Cut>,
    /// It never comes back.
    is_dead: bool,
}

#[derive(Clone, Copy)]
struct Cut {
    cause: Cause,
    since: Duration,
    /// What is on its way is lost too.
    eats: bool,
}

/// A datagram on its way. The order is that of the fields.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    due: Duration,
    sequence: u64,
    sent: Duration,
    from: SocketAddrV4,
    to: SocketAddrV4,
    datagram: Bytes,
}

impl Simulator for Fabric {
    fn new(_: &GlobalRng, time: &TimeHandle, _: &Config) -> Self {
        let state = State {
            seed: Seed(0),
            options: NetworkOptions { delay_min_us: 20, delay_spread_us: 0, encodes: true },
            weather: Weather::default(),
            causes: Vec::new(),
            hosts: Vec::new(),
            sockets: BTreeMap::new(),
            lines: BTreeMap::new(),
            flying: BinaryHeap::new(),
            sequence: 0,
            next_port: PORT_BASE,
            pump: None,
            digest: 0,
            counters: FabricCounters::default(),
        };
        Self { time: time.clone(), state: Mutex::new(state) }
    }

    fn create_node(&self, id: NodeId) {
        self.state().hosts.push(id);
    }

    /// The host has died: so have its sockets.
    fn reset_node(&self, id: NodeId) {
        self.state().sockets.retain(|_, socket| socket.host != id);
    }
}

impl Fabric {
    /// The one of this runtime.
    pub(super) fn current() -> Arc<Self> {
        simulator::<Self>()
    }

    pub(super) fn set_up(&self, seed: Seed, options: NetworkOptions) {
        let mut state = self.state();
        (state.seed, state.options) = (seed, options);
    }

    /// Something happens to packets from now on.
    pub(super) fn disturb(&self, cause: Cause, fault: Fault) {
        let mut state = self.state();
        state.causes.push((cause, fault));
        state.look_at_the_sky();
    }

    /// Cuts one direction between two hosts.
    pub(super) fn cut(&self, cause: Cause, from: Ipv4Addr, to: Ipv4Addr, eats: bool) {
        let since = self.time.elapsed();
        self.state().line(from, to).cuts.push(Cut { cause, since, eats });
    }

    /// Cuts one direction between two hosts for good.
    pub(super) fn kill_line(&self, from: Ipv4Addr, to: Ipv4Addr) {
        self.state().line(from, to).is_dead = true;
    }

    /// What a fault did ends.
    pub(super) fn mend(&self, cause: Cause) {
        let mut state = self.state();
        for line in state.lines.values_mut() {
            line.cuts.retain(|cut| cut.cause != cause);
        }
        state.causes.retain(|(other, _)| *other != cause);
        state.look_at_the_sky();
    }

    /// From now on nothing is lost, doubled, late, damaged or cut off.
    pub(super) fn calm(&self) {
        let mut state = self.state();
        state.lines.values_mut().for_each(|line| line.cuts.clear());
        state.causes.clear();
        state.look_at_the_sky();
    }

    /// All hosts that there are.
    pub(super) fn hosts(&self) -> Vec<NodeId> {
        self.state().hosts.clone()
    }

    pub(super) fn counters(&self) -> FabricCounters {
        self.state().counters
    }

    pub(super) fn digest(&self) -> u64 {
        self.state().digest
    }

    /// Notes something else that makes a run what it is.
    pub(super) fn note(&self, what: &[u8]) {
        let now = self.time.elapsed();
        self.state().note(now, what);
    }

    /// Opens a socket of the present host; port 0 takes a free one. Its number, and its address.
    pub(super) fn bind(
        &self,
        address: SocketAddrV4,
        group: Option<SocketAddrV4>,
    ) -> (u64, SocketAddrV4) {
        let host = node();
        let mut state = self.state();
        let mut address = address;
        while address.port() == 0 || state.sockets.contains_key(&address) {
            // Whoever asks for a port gets it, or the run is wrong.
            assert!(address.port() >= PORT_BASE || address.port() == 0, "{address} is in use");
            state.next_port = state.next_port.checked_add(1).unwrap_or(PORT_BASE);
            address.set_port(state.next_port);
        }
        let number = state.next_sequence();
        let socket =
            Socket { number, host, group, inbox: VecDeque::new(), inbox_bytes: 0, owner: None };
        state.sockets.insert(address, socket);
        (number, address)
    }

    pub(super) fn close(&self, address: SocketAddrV4, number: u64) {
        let mut state = self.state();
        if state.sockets.get(&address).is_some_and(|socket| socket.number == number) {
            state.sockets.remove(&address);
        }
    }

    /// Whether something waits at a socket; if not, its owner will be woken.
    pub(super) fn poll_readable(&self, address: SocketAddrV4, owner: &Waker) -> bool {
        let mut state = self.state();
        let Some(socket) = state.sockets.get_mut(&address) else { return false };
        socket.owner = Some(owner.clone());
        !socket.inbox.is_empty()
    }

    /// Takes up to `count_max` of what waits at a socket.
    pub(super) fn take(
        &self,
        address: SocketAddrV4,
        count_max: usize,
    ) -> Vec<(SocketAddrV4, Bytes)> {
        let mut state = self.state();
        let Some(socket) = state.sockets.get_mut(&address) else { return Vec::new() };
        let count = socket.inbox.len().min(count_max);
        let taken: Vec<_> = socket.inbox.drain(..count).collect();
        socket.inbox_bytes -= taken.iter().map(|(_, datagram)| datagram.len()).sum::<usize>();
        taken
    }

    pub(super) fn send(&self, from: SocketAddrV4, to: SocketAddrV4, datagram: &[u8]) {
        assert!(datagram.len() <= DATAGRAM_BYTES_MAX, "a datagram is larger than the MTU");
        let now = self.time.elapsed();
        let mut state = self.state();
        let datagram = Bytes::copy_from_slice(datagram);
        if to.ip().is_multicast() {
            state.counters.multicast += 1;
            let members = state.sockets.iter().filter(|(_, socket)| socket.group == Some(to));
            let members: Vec<_> = members.map(|(address, _)| *address).collect();
            for member in members {
                state.transmit(now, from, member, datagram.clone());
            }
        } else {
            state.transmit(now, from, to, datagram);
        }
    }

    /// Delivers what is sent, for ever.
    pub(super) async fn pump(&self) {
        let mut alarm = pin!(sleep(Duration::ZERO));
        let mut armed = None;
        poll_fn(|context| {
            let mut state = self.state();
            while let Some(due) = state.deliver(self.time.elapsed()) {
                // A timer that is set stays set, so that one for each time is enough.
                if armed.replace(due) == Some(due) {
                    break;
                }
                alarm.as_mut().reset(Instant::now() + due.saturating_sub(self.time.elapsed()));
                if alarm.as_mut().poll(context).is_pending() {
                    break;
                }
            }
            state.pump = Some(context.waker().clone());
            Poll::<()>::Pending
        })
        .await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The one thread that there is panicked: whatever it was, the run has failed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn line(&mut self, from: Ipv4Addr, to: Ipv4Addr) -> &mut Line {
        let seed = self.seed;
        self.lines.entry((from, to)).or_insert_with(|| {
            let number = u64::from(from.to_bits()) << 32 | u64::from(to.to_bits());
            Line { rng: seed.stream("line", number), cuts: Vec::new(), is_dead: false }
        })
    }

    fn look_at_the_sky(&mut self) {
        self.weather = Weather::of(self.causes.iter().map(|(_, fault)| fault));
    }

    fn transmit(&mut self, now: Duration, from: SocketAddrV4, to: SocketAddrV4, datagram: Bytes) {
        self.line(*from.ip(), *to.ip());
        let Self { options, weather, lines, counters, .. } = self;
        let Some(line) = lines.get_mut(&(*from.ip(), *to.ip())) else { return };
        let Line { rng, cuts, is_dead } = line;
        if *is_dead || !cuts.is_empty() {
            counters.cut_off += 1;
            return;
        }
        if happens(rng, weather.loss_per_mille) {
            counters.lost += 1;
            return;
        }
        if weather.packet_bytes_max.is_some_and(|max| datagram.len() > max) {
            counters.too_large += 1;
            return;
        }
        let copies = 1 + usize::from(happens(rng, weather.doubled_per_mille));
        let damage = happens(rng, weather.damaged_per_mille).then(|| rng.u64(..));
        let mut delays = [Duration::ZERO; 2];
        let mut late = 0;
        for to_come in &mut delays[..copies] {
            let is_late = happens(rng, weather.late_per_mille);
            late += u64::from(is_late);
            *to_come = delay(rng, options, weather, is_late);
        }
        let is_of_switch = [from, to].iter().any(|end| end.ip() == switches::ADDRESS.ip());
        let echo = if is_of_switch { weather.echo(rng) } else { None };
        self.counters.late += late;
        self.counters.doubled += copies as u64 - 1;
        self.counters.echoed += u64::from(echo.is_some());
        let datagram = match damage {
            Some(bit) => match damaged(&datagram, bit) {
                Some(damaged) => {
                    self.counters.damaged += 1;
                    damaged
                }
                None => {
                    self.counters.lost += 1;
                    return;
                }
            },
            None => datagram,
        };
        for delay in delays[..copies].iter().chain(&echo) {
            let (due, sequence) = (now + *delay, self.next_sequence());
            let is_next = self.flying.peek().is_none_or(|Reverse(next)| due < next.due);
            let datagram = datagram.clone();
            self.flying.push(Reverse(Flight { due, sequence, sent: now, from, to, datagram }));
            if is_next && let Some(pump) = &self.pump {
                pump.wake_by_ref();
            }
        }
    }

    /// Delivers what is due, and returns when the next is.
    fn deliver(&mut self, now: Duration) -> Option<Duration> {
        while let Some(Reverse(next)) = self.flying.peek() {
            if next.due > now {
                return Some(next.due);
            }
            let Some(Reverse(flight)) = self.flying.pop() else { break };
            self.land(now, flight);
        }
        None
    }

    fn land(&mut self, now: Duration, flight: Flight) {
        let Flight { sent, from, to, datagram, .. } = flight;
        let cuts = &self.line(*from.ip(), *to.ip()).cuts;
        if cuts.iter().any(|cut| cut.eats || sent >= cut.since) {
            self.counters.cut_off += 1;
            return;
        }
        self.note(now, &datagram);
        let (to_bits, from_bits) = (to.ip().to_bits(), from.ip().to_bits());
        self.digest =
            xxh3_64_with_seed(&[to_bits, from_bits].map(u32::to_le_bytes).concat(), self.digest);
        let Some(socket) = self.sockets.get_mut(&to) else {
            self.counters.unreachable += 1;
            return;
        };
        if socket.inbox_bytes + datagram.len() > RECEIVE_BUFFER_BYTES {
            self.counters.overrun += 1;
            return;
        }
        self.counters.delivered += 1;
        socket.inbox_bytes += datagram.len();
        socket.inbox.push_back((from, datagram));
        if let Some(owner) = socket.owner.take() {
            owner.wake();
        }
    }

    fn note(&mut self, now: Duration, what: &[u8]) {
        let seed = xxh3_64_with_seed(&(now.as_nanos() as u64).to_le_bytes(), self.digest);
        self.digest = xxh3_64_with_seed(what, seed);
    }
}

/// The datagram with any one bit flipped; none if it is a plain one, which UDP's checksum alone
/// covers.
fn damaged(datagram: &Bytes, bit: u64) -> Option<Bytes> {
    let packet = Packet::parse(datagram).ok()?;
    if !packet.options.checked {
        return None;
    }
    let bit = bit % (datagram.len() as u64 * 8);
    let mut bytes = datagram.to_vec();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    Some(bytes.into())
}
