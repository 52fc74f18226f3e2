//! What must have come before what: the direct serialization graph of Adya, with real time.

use super::{
    budget::Budget,
    lists::{Lists, seen},
    txn::{Status, Txns},
};
use crate::History;

/// That one transaction came before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) kind: EdgeKind,
    pub(super) key: u32,
    /// Of `Ww` the element before that of `element`.
    pub(super) before: u32,
    /// What the second appended; of `Wr` what it saw.
    pub(super) element: u32,
}

/// Why one came before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EdgeKind {
    /// The second appended behind the first.
    Ww,
    /// The second saw what the first appended.
    Wr,
    /// The first did not see what the second appended.
    Rw,
    /// The first had completed when the second began.
    RealTime,
}

impl EdgeKind {
    /// A bit, to make sets of kinds.
    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Transactions, and what came before what.
#[derive(Debug)]
pub(super) struct Graph {
    /// In order of where they come from.
    edges: Vec<Edge>,
    /// Where those of each transaction begin.
    starts: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Graph {
    pub(super) fn new(
        txns: &Txns,
        lists: &Lists,
        history: &History,
        budget: &mut Budget<'_>,
    ) -> Self {
        let mut edges = Vec::new();
        add_appends(txns, lists, &mut edges);
        add_reads(txns, lists, &mut edges);
        add_real_time(txns, history, &mut edges, budget);
        edges.retain(|edge| edge.from != edge.to);
        edges.sort_by_key(|edge| (edge.from, edge.kind.bit(), edge.to));
        edges.dedup_by_key(|edge| (edge.from, edge.kind.bit(), edge.to));
        let first_of = |txn: usize| edges.partition_point(|edge| (edge.from as usize) < txn) as u32;
        let starts = (0..=txns.txns.len()).map(first_of).collect();
        Self { edges, starts }
    }

    /// What came directly after a transaction, for reasons of the kinds of a set.
    pub(super) fn after(&self, txn: u32, kinds: u8) -> impl Iterator<Item = &Edge> {
        let range = self.starts[txn as usize] as usize..self.starts[txn as usize + 1] as usize;
        self.edges[range].iter().filter(move |edge| edge.kind.bit() & kinds != 0)
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The strongly connected parts with more than one transaction, by reasons of some kinds only
    /// (Tarjan's algorithm, without recursion).
    pub(super) fn components(&self, kinds: u8) -> Vec<Vec<u32>> {
        let mut tarjan = Tarjan {
            numbers: vec![NONE; self.len()],
            lowest: vec![NONE; self.len()],
            is_on_stack: vec![false; self.len()],
            stack: Vec::new(),
            next: 0,
            found: Vec::new(),
        };
        let mut path: Vec<(u32, usize)> = Vec::new();
        for root in 0..self.len() as u32 {
            if tarjan.numbers[root as usize] != NONE {
                continue;
            }
            tarjan.enter(root);
            path.push((root, self.starts[root as usize] as usize));
            while let Some((txn, at)) = path.last_mut() {
                if *at == self.starts[*txn as usize + 1] as usize {
                    let txn = *txn;
                    path.pop();
                    tarjan.leave(txn, path.last().map(|(before, _)| *before));
                    continue;
                }
                let edge = &self.edges[*at];
                *at += 1;
                if edge.kind.bit() & kinds != 0 && tarjan.follow(edge) {
                    path.push((edge.to, self.starts[edge.to as usize] as usize));
                }
            }
        }
        tarjan.found
    }
}

struct Tarjan {
    numbers: Vec<u32>,
    lowest: Vec<u32>,
    is_on_stack: Vec<bool>,
    stack: Vec<u32>,
    next: u32,
    found: Vec<Vec<u32>>,
}

impl Tarjan {
    fn enter(&mut self, txn: u32) {
        self.numbers[txn as usize] = self.next;
        self.lowest[txn as usize] = self.next;
        self.next += 1;
        self.stack.push(txn);
        self.is_on_stack[txn as usize] = true;
    }

    /// Whether it leads to where nobody was.
    fn follow(&mut self, edge: &Edge) -> bool {
        let (from, to) = (edge.from as usize, edge.to as usize);
        if self.numbers[to] == NONE {
            self.enter(edge.to);
            return true;
        }
        if self.is_on_stack[to] {
            self.lowest[from] = self.lowest[from].min(self.numbers[to]);
        }
        false
    }

    fn leave(&mut self, txn: u32, before: Option<u32>) {
        let lowest = self.lowest[txn as usize];
        if let Some(before) = before {
            let before = &mut self.lowest[before as usize];
            *before = lowest.min(*before);
        }
        if lowest == self.numbers[txn as usize] {
            let start = self.stack.iter().rposition(|it| *it == txn);
            let component = self.stack.split_off(start.expect("it was put there on entering"));
            for txn in &component {
                self.is_on_stack[*txn as usize] = false;
            }
            if component.len() > 1 {
                self.found.push(component);
            }
        }
    }
}

/// Elements stand in the list in the order in which they were appended.
fn add_appends(txns: &Txns, lists: &Lists, edges: &mut Vec<Edge>) {
    for (key, list) in (0..).zip(&lists.lists) {
        let mut last = None;
        let appended = |element: &u32| Some((txns.appender(*element)?, *element));
        for (to, element) in list.longest.iter().filter_map(appended) {
            if let Some((from, before)) = last {
                edges.push(Edge { from, to, kind: EdgeKind::Ww, key, before, element });
            }
            last = Some((to, element));
        }
        let Some((from, before)) = last else { continue };
        for (to, element) in list.unseen.iter().filter_map(appended) {
            edges.push(Edge { from, to, kind: EdgeKind::Ww, key, before, element });
        }
    }
}

/// What a transaction saw was appended before, and what it did not see after.
fn add_reads(txns: &Txns, lists: &Lists, edges: &mut Vec<Edge>) {
    for seen in seen(txns) {
        let list = &lists.lists[seen.key as usize];
        if !list.longest.starts_with(seen.list) {
            continue;
        }
        let edge =
            |from, to, kind, element| Edge { from, to, kind, key: seen.key, before: NONE, element };
        let appended = |element: &u32| Some((txns.appender(*element)?, *element));
        if let Some((from, element)) = seen.list.iter().rev().find_map(appended) {
            edges.push(edge(from, seen.txn, EdgeKind::Wr, element));
        }
        match list.longest[seen.list.len()..].iter().find_map(appended) {
            Some((to, element)) => edges.push(edge(seen.txn, to, EdgeKind::Rw, element)),
            None => {
                for (to, element) in list.unseen.iter().filter_map(appended) {
                    edges.push(edge(seen.txn, to, EdgeKind::Rw, element));
                }
            }
        }
    }
}

/// So many numbers take no more than an edge.
const NUMBERS_OF_EDGE: usize = size_of::<Edge>() / size_of::<u32>();

/// What had completed when another began came before it. It is enough to say so of those that were
/// not followed by a third one in between. These are as many as were concurrent with a transaction, which
/// may be too many: then only some are there, and a cycle of them is one all the same.
fn add_real_time(txns: &Txns, history: &History, edges: &mut Vec<Edge>, budget: &mut Budget<'_>) {
    let mut events: Vec<(u64, bool, u32)> = Vec::new();
    for (number, txn) in (0..).zip(&txns.txns) {
        let operation = &history.operations[txn.place];
        if txn.status != Status::Aborted {
            events.push((operation.invoked_ns, false, number));
        }
        if let (Status::Committed, Some(completed_ns)) = (txn.status, operation.completed_ns) {
            events.push((completed_ns, true, number));
        }
    }
    events.sort_unstable();
    let mut before: Vec<Vec<u32>> = vec![Vec::new(); txns.txns.len()];
    let mut last: Vec<u32> = Vec::new();
    // How many are in `before`.
    let mut kept = 0;
    for (_, is_completion, txn) in events {
        if is_completion {
            let before = std::mem::take(&mut before[txn as usize]);
            kept -= before.len();
            last.retain(|it| !before.contains(it));
            last.push(txn);
        } else {
            kept += last.len();
            if !budget.has_room_for(edges.len() + last.len() + kept / NUMBERS_OF_EDGE) {
                return;
            }
            before[txn as usize].clone_from(&last);
            let kind = EdgeKind::RealTime;
            let edge = |from: &u32| Edge {
                from: *from,
                to: txn,
                kind,
                key: NONE,
                before: NONE,
                element: NONE,
            };
            edges.extend(last.iter().map(edge));
        }
    }
}
