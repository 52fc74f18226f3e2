//! The session table's rules, one by one.

use std::time::Duration;

use super::{replies::PAGE_BYTES, *};
use crate::core::testing::request_of;

/// Number of bytes that a session takes beside its replies, as P20 says.
const SESSION_BYTES: u64 = 192;

fn limits() -> ClusterLimits {
    ClusterLimits { session_window: 4, ..ClusterLimits::default() }
}

/// A table, and the limits that it is applied with.
struct Table {
    sessions: Sessions,
    limits: ClusterLimits,
    index: Index,
}

impl Table {
    fn new(limits: ClusterLimits) -> Self {
        Self { sessions: Sessions::default(), limits, index: 0 }
    }

    /// The next entry, after so much session time.
    fn advance(&mut self, delta_us: u32) {
        self.index += 1;
        self.sessions.advance(self.index, delta_us, &self.limits);
    }

    fn open(&mut self) -> u64 {
        self.advance(0);
        self.sessions.open(&self.limits)
    }

    /// A write of a client, with a reply of so many bytes if it is executed.
    fn reply(&mut self, client: u64, sequence: u64, lowest: u64, bytes: usize) -> Verdict {
        self.advance(0);
        let request = request_of(client, sequence, lowest, Kind::Write, b"body");
        let verdict = self.sessions.check(client, sequence, &request, &self.limits);
        if verdict == Verdict::Execute {
            let body = Bytes::from(vec![7; bytes]);
            let digest = request.digest();
            self.sessions.record(client, sequence, digest, Outcome::Executed, body);
        }
        verdict
    }

    /// A write of client 1, whose reply says its sequence.
    fn write(&mut self, sequence: u64, lowest: u64, body: &'static [u8]) -> Verdict {
        self.advance(0);
        let request = request_of(1, sequence, lowest, Kind::Write, body);
        let verdict = self.sessions.check(1, sequence, &request, &self.limits);
        if verdict == Verdict::Execute {
            let reply = Bytes::from(format!("reply {sequence}"));
            self.sessions.record(1, sequence, request.digest(), Outcome::Executed, reply);
        }
        verdict
    }

    /// Goes on to an index without doing anything.
    fn pass_to(&mut self, index: Index) {
        while self.index < index {
            self.advance(0);
        }
    }

    fn clients(&self) -> Vec<u64> {
        self.sessions.clients().collect()
    }

    /// The order within each class, oldest first.
    fn order(&self) -> Vec<(usize, Vec<u64>)> {
        let lists = self.sessions.lists.iter().enumerate().filter(|(_, list)| list.first != 0);
        lists
            .map(|(class, list)| {
                let after = |client: &u64| self.sessions.slots[client].after;
                let next = |client: &u64| Some(after(client)).filter(|after| *after != 0);
                (class, std::iter::successors(Some(list.first), next).collect())
            })
            .collect()
    }
}

fn with_client() -> Table {
    let mut table = Table::new(limits());
    assert_eq!(table.open(), 1);
    table
}

fn answer(outcome: Outcome, body: &'static str) -> Verdict {
    Verdict::Answer(outcome, Bytes::from_static(body.as_bytes()))
}

#[test]
fn a_write_is_executed_once_in_any_order() {
    let mut table = with_client();
    assert_eq!(table.write(2, 1, b"b"), Verdict::Execute);
    assert_eq!(table.write(1, 1, b"a"), Verdict::Execute);
    assert_eq!(table.write(2, 1, b"b"), answer(Outcome::Executed, "reply 2"));
    assert_eq!(table.write(2, 1, b"x"), answer(Outcome::IdentityReused, ""));
    assert_eq!(table.write(3, 3, b"c"), Verdict::Execute);
    assert_eq!(table.write(2, 1, b"b"), answer(Outcome::Stale, ""));
    assert_eq!(table.write(7, 3, b"d"), answer(Outcome::OutsideWindow, ""));
    assert_eq!(table.write(6, 3, b"d"), Verdict::Execute);
}

#[test]
fn an_unknown_client_is_refused() {
    let mut table = with_client();
    assert_eq!(table.reply(2, 1, 1, 0), answer(Outcome::SessionExpired, ""));
}

#[test]
fn a_cancelled_sequence_answers_refused_to_every_digest() {
    let mut table = with_client();
    table.write(1, 1, b"a");
    let cancel = |table: &mut Table, sequence, target: &'static [u8]| {
        table.advance(0);
        let request = request_of(1, sequence, 1, Kind::Cancel, target);
        let verdict = table.sessions.check(1, sequence, &request, &limits());
        assert_eq!(verdict, Verdict::Execute);
        table.sessions.cancel(1, sequence, &request)
    };
    let executed = cancel(&mut table, 3, &[0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(executed, (Outcome::Executed, Bytes::from_static(b"reply 1")));
    let refused = cancel(&mut table, 4, &[0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(refused, (Outcome::Refused, Bytes::new()));
    assert_eq!(table.write(2, 1, b"b"), answer(Outcome::Refused, ""));
    assert_eq!(table.write(2, 1, b"x"), answer(Outcome::Refused, ""));
}

#[test]
fn idle_sessions_expire_by_session_time_and_the_used_ones_stay() {
    let limits = ClusterLimits { session_lifetime: Duration::from_secs(2), ..limits() };
    let mut table = Table::new(limits);
    assert_eq!((table.open(), table.open()), (1, 2));
    table.advance(1_000_000);
    table.reply(1, 1, 1, 0);
    table.advance(1_000_000);
    assert_eq!(table.clients(), [1, 2]);
    table.advance(1);
    assert_eq!(table.clients(), [1]);
    table.advance(1_000_000);
    assert!(table.clients().is_empty());
}

#[test]
fn when_there_are_too_many_the_least_recently_used_goes() {
    let mut table = Table::new(ClusterLimits { sessions_max: 3, ..limits() });
    assert_eq!([table.open(), table.open(), table.open()], [1, 2, 3]);
    // What a session keeps, and so its class, does not matter here.
    table.reply(1, 1, 1, 10_000);
    assert_eq!(table.open(), 5);
    assert_eq!(table.clients(), [1, 3, 5]);
    table.reply(3, 1, 1, 0);
    table.open();
    assert_eq!(table.clients(), [3, 5, 7]);
    // The limit has become smaller.
    table.limits.sessions_max = 1;
    table.open();
    assert_eq!(table.clients(), [8]);
}

#[test]
fn bytes_are_evicted_at_every_256th_index_only_and_by_size_class() {
    let mut table = Table::new(ClusterLimits { session_bytes_max: 4000, ..limits() });
    let [small, first, second, larger] = [(); 4].map(|()| table.open());
    table.reply(first, 1, 1, 1100 - PAGE_BYTES as usize);
    table.reply(larger, 1, 1, 2100 - PAGE_BYTES as usize);
    table.reply(small, 1, 1, 10);
    // Of the same class as `first`, and larger: within a class the size does not count.
    table.reply(second, 1, 1, 1900 - PAGE_BYTES as usize);
    assert_eq!(table.sessions.kept_bytes(), 1100 + 1900 + 2100 + PAGE_BYTES + 10);
    table.pass_to(255);
    assert_eq!(table.clients(), [small, first, second, larger]);
    table.advance(0);
    assert_eq!(table.clients(), [small, first, second]);
    // 1,100 + 1,900 + 234 are within the budget; 1,000 more are not, and `first` was used longer ago.
    table.reply(small, 2, 2, 1700 - PAGE_BYTES as usize);
    assert_eq!(table.sessions.kept_bytes(), 1100 + 1900 + 1700);
    table.pass_to(511);
    assert_eq!(table.clients(), [small, first, second]);
    table.advance(0);
    assert_eq!(table.clients(), [small, second]);
}

#[test]
fn an_idle_session_takes_at_most_512_bytes_and_a_lone_write_far_above_one_page() {
    let limits = ClusterLimits { session_window: 4096, ..limits() };
    let mut table = Table::new(limits);
    let client = table.open();
    assert_eq!(table.sessions.kept_bytes(), 0);
    assert_eq!(table.reply(client, 4096, 1, 64), Verdict::Execute);
    assert_eq!(table.sessions.kept_bytes(), PAGE_BYTES + 64);
    assert!(SESSION_BYTES + table.sessions.kept_bytes() <= 512);
    // Beside its replies: the table's place, the counters of the reference, and an allocator's.
    let taken = size_of::<Slot>() + 8 + size_of::<Session>() + 16;
    assert!((taken as u64) < SESSION_BYTES, "{taken}");
}

/// One greedy client, many honest ones, and a million sessions that nobody uses.
#[test]
fn neither_greed_nor_a_million_sessions_evict_an_honest_session_that_is_in_use() {
    let limits = ClusterLimits {
        sessions_max: 1024,
        session_bytes_max: 8 << 20,
        session_window: 4096,
        ..ClusterLimits::default()
    };
    let mut table = Table::new(limits);
    let honest: Vec<_> = (0..100).map(|_| table.open()).collect();
    let mut greedy: Vec<_> = (0..10).map(|_| table.open()).collect();
    let mut sequences = vec![1; honest.len()];
    for round in 0..1_000_000_u64 {
        table.open();
        // Each is used again before a table full of others was.
        if round % 4 == 0 {
            let at = (round / 4) as usize % honest.len();
            let (client, sequence) = (honest[at], sequences[at]);
            // Up to eight replies of 100 bytes are kept.
            let verdict = table.reply(client, sequence, sequence.saturating_sub(7).max(1), 100);
            assert_eq!(verdict, Verdict::Execute, "honest session {client} in round {round}");
            sequences[at] += 1;
        }
        if round % 16 == 0 {
            let at = (round / 16) as usize % greedy.len();
            let sequence = 1 + (round / 16 / greedy.len() as u64) % 4096;
            if table.reply(greedy[at], sequence, 1, 20_000) != Verdict::Execute {
                greedy[at] = table.open();
            }
        }
    }
    let clients = table.clients();
    assert!(honest.iter().all(|client| clients.contains(client)));
    assert!(clients.len() <= 1024);
    let overshoot = 256 * (20_000 + PAGE_BYTES);
    assert!(table.sessions.kept_bytes() <= (8 << 20) + overshoot);
}

#[test]
fn a_snapshot_keeps_everything_the_order_of_eviction_included() {
    let mut table = with_client();
    for _ in 0..4 {
        table.open();
    }
    table.sessions.advance(6, 5, &limits());
    table.index = 6;
    table.write(1, 1, b"a");
    table.write(3, 1, b"c");
    table.reply(4, 1, 1, 30);
    table.reply(2, 1, 1, 40);
    table.reply(4, 2, 1, 3000);
    let mut bytes = Vec::new();
    table.sessions.write(&mut bytes).unwrap();
    let read = Sessions::read(table.index, &mut &bytes[..]).unwrap();
    assert_eq!(read, table.sessions);
    assert_eq!(read.kept_bytes(), table.sessions.kept_bytes());
    let restored = Table { sessions: read, limits: limits(), index: table.index };
    assert_eq!(restored.order(), table.order());
    for len in 0..bytes.len() {
        assert!(Sessions::read(table.index, &mut &bytes[..len]).is_err());
    }
    // A session that is used above the snapshot is none of it.
    assert!(Sessions::read(table.index - 1, &mut &bytes[..]).is_err());
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, index: u64) {
        let _ = Sessions::read(index, &mut &bytes[..]);
    }

    /// A table that was restored at any point goes on as the one that it was taken of.
    #[test]
    fn a_restored_table_goes_on_alike(
        steps in proptest::collection::vec((0..12_u64, 1..9_u64, 1..6_u64, 0..900_usize), 1..90),
        at in 0..90_usize,
    ) {
        let limits = ClusterLimits {
            sessions_max: 4,
            session_bytes_max: 2000,
            session_lifetime: Duration::from_millis(40),
            ..limits()
        };
        let mut table = Table::new(limits);
        let mut restored: Option<Table> = None;
        // Bytes are evicted within the run.
        table.pass_to(200);
        for (number, (client, sequence, lowest, bytes)) in steps.into_iter().enumerate() {
            if number == at {
                let mut written = Vec::new();
                table.sessions.write(&mut written).unwrap();
                let sessions = Sessions::read(table.index, &mut &written[..]).unwrap();
                restored = Some(Table { sessions, limits, index: table.index });
            }
            let step = |table: &mut Table| match client {
                0 | 1 => {
                    table.advance(1000 * (sequence as u32));
                    Some(table.sessions.open(&table.limits))
                }
                client => {
                    let nth = table.clients().get(client as usize % 4).copied().unwrap_or(client);
                    table.reply(nth, sequence, lowest, bytes);
                    None
                }
            };
            let opened = step(&mut table);
            if let Some(restored) = &mut restored {
                proptest::prop_assert_eq!(step(restored), opened);
                proptest::prop_assert_eq!(&restored.sessions, &table.sessions);
                proptest::prop_assert_eq!(restored.order(), table.order());
            }
        }
    }
}
