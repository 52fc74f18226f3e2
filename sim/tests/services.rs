//! What the simulation says of services: it accuses no correct one, whatever its snapshots look
//! like, and finds replies and states that differ.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read},
};

use hovercraft::{Context, SnapshotWriter, StateMachine};
use hovercraft_sim::{Runner, Sweep, Wrapped, shrink};

/// Counts words, in a map with a random hasher.
#[derive(Default)]
struct Words {
    counts: HashMap<u8, u64>,
    /// A mistake: not in snapshots.
    total: u64,
    mistake: Mistake,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mistake {
    #[default]
    None,
    /// A reply names whichever word comes first in the map.
    OrderInReply,
    /// A query tells what snapshots leave out.
    TotalLeftOut,
    /// Only a digest tells it.
    TotalLeftOutAndDigested,
}

impl StateMachine for Words {
    fn execute(&mut self, _: &Context, command: &[u8], reply: &mut Vec<u8>) {
        let word = command.first().copied().unwrap_or_default();
        *self.counts.entry(word).or_default() += 1;
        self.total += 1;
        reply.extend_from_slice(&self.counts[&word].to_be_bytes());
        if self.mistake == Mistake::OrderInReply {
            reply.extend(self.counts.keys().next());
        }
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        let word = query.first().copied().unwrap_or_default();
        reply.extend_from_slice(&self.counts.get(&word).copied().unwrap_or_default().to_be_bytes());
        if self.mistake == Mistake::TotalLeftOut {
            reply.extend_from_slice(&self.total.to_be_bytes());
        }
    }

    fn snapshot(&self) -> SnapshotWriter {
        // In the order of the map, which is another one on every replica.
        let counts: Vec<_> = self.counts.iter().map(|(word, count)| (*word, *count)).collect();
        Box::new(move |to| {
            for (word, count) in counts {
                to.write_all(&[word])?;
                to.write_all(&count.to_be_bytes())?;
            }
            Ok(())
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        let (records, _) = bytes.as_chunks::<9>();
        let record = |[word, count @ ..]: &[u8; 9]| (*word, u64::from_be_bytes(*count));
        self.counts = records.iter().map(record).collect();
        self.total = 0;
        Ok(())
    }

    fn digest(&self) -> Option<u64> {
        (self.mistake == Mistake::TotalLeftOutAndDigested).then_some(self.total)
    }
}

fn words(mistake: Mistake) -> Wrapped {
    Wrapped::new(move || Words { mistake, ..Words::default() }, |rng| vec![rng.u8(..20)])
        .reads(|rng| vec![rng.u8(..20)])
        .describe(|body| format!("count word {}", body.first().copied().unwrap_or_default()))
}

/// Returns what a sweep that ends at the first failure says.
fn said(mistake: Mistake, seeds: u64) -> Option<String> {
    let sweep = Sweep { first_only: true, ..Sweep::new(0..seeds) };
    let report = sweep.run(&Runner::new(words(mistake)), |_, _| ());
    report.failures.first().map(ToString::to_string)
}

#[test]
fn a_snapshot_in_random_order_is_no_mistake() {
    assert_eq!(said(Mistake::None, 100), None);
}

#[test]
fn a_reply_in_random_order_is_found_and_told_in_the_words_of_the_service() {
    let said = said(Mistake::OrderInReply, 100).expect("it is found");
    assert!(said.contains(": The service answered a command differently"), "{said}");
    assert!(said.contains("`count word ") && said.contains("differ from byte 8 on"), "{said}");
}

#[test]
fn state_that_a_snapshot_leaves_out_is_found() {
    let in_query = said(Mistake::TotalLeftOut, 200).expect("a query tells it");
    assert!(in_query.contains("does not hold all of it"), "{in_query}");
    let in_digest = said(Mistake::TotalLeftOutAndDigested, 200).expect("the digest tells it");
    assert!(in_digest.contains("the digest of the service's state"), "{in_digest}");
}

#[test]
fn a_report_leaves_out_what_never_happened() {
    let report = Sweep::new(0..1).run(&Runner::new(words(Mistake::None)), |_, _| ());
    let lines: BTreeMap<_, _> = report.coverage.counts().collect();
    assert!(lines.values().any(|count| *count == 0), "something never happens in one seed");
    let text = report.to_string();
    assert!(text.lines().all(|line| !line.trim_start().starts_with("0 ")), "{text}");
}

#[test]
fn a_failure_of_a_service_shrinks() {
    let runner = Runner::new(words(Mistake::OrderInReply));
    let sweep = Sweep { first_only: true, ..Sweep::new(0..100) };
    let seed = sweep.run(&runner, |_, _| ()).failures.first().expect("it is found").seed;
    let shrunk = shrink(&runner, runner.schedule(seed, false), &mut |_| ()).expect("it fails");
    assert!(shrunk.schedule.operations.len() <= 20, "{}", shrunk.schedule.operations.len());
}
