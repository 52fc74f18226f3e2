//! What the lists say by themselves: the order of their elements, and what no list can be.

use std::collections::HashMap;

use super::{
    Anomaly, AnomalyKind, Names,
    txn::{Status, TxnStep, Txns},
};

/// What is known of the list of each key.
#[derive(Debug)]
pub(super) struct Lists {
    /// By key.
    pub(super) lists: Vec<List>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct List {
    /// The longest one that was seen.
    pub(super) longest: Vec<u32>,
    /// What was appended and acknowledged, and never seen: it comes after everything that was.
    pub(super) unseen: Vec<u32>,
}

/// What a transaction saw of a list before it appended to it itself.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub(super) txn: u32,
    pub(super) key: u32,
    pub(super) list: &'a [u32],
}

/// All that was seen by transactions that committed, without what they appended themselves.
pub(super) fn seen(txns: &Txns) -> impl Iterator<Item = Seen<'_>> {
    (0..).zip(&txns.txns).flat_map(move |(number, txn)| {
        txn.steps.iter().filter_map(move |step| {
            let TxnStep::Read { key, seen: Some(seen) } = step else { return None };
            let is_own = |it: &&u32| txns.elements[**it as usize].appender == Some(number);
            let own = seen.iter().rev().take_while(is_own).count();
            Some(Seen { txn: number, key: *key, list: &seen[..seen.len() - own] })
        })
    })
}

impl Lists {
    pub(super) fn new(txns: &Txns, anomalies: &mut Vec<Anomaly>, names: &Names<'_>) -> Self {
        let mut lists = vec![List::default(); txns.keys.len()];
        let mut longest_by: Vec<Option<u32>> = vec![None; txns.keys.len()];
        let mut is_seen = vec![false; txns.elements.len()];
        let reads = || {
            (0..).zip(&txns.txns).flat_map(|(number, txn)| {
                txn.steps.iter().filter_map(move |step| match step {
                    TxnStep::Read { key, seen: Some(seen) } => Some((number, *key as usize, seen)),
                    _ => None,
                })
            })
        };
        for (txn, key, seen) in reads() {
            for element in seen {
                is_seen[*element as usize] = true;
            }
            if seen.len() > lists[key].longest.len() {
                lists[key].longest.clone_from(seen);
                longest_by[key] = Some(txn);
            }
        }
        let mut is_told = vec![false; txns.keys.len()];
        for (txn, key, seen) in reads() {
            if !lists[key].longest.starts_with(seen) && !std::mem::replace(&mut is_told[key], true)
            {
                let other = longest_by[key].expect("a list that is not a beginning of it was seen");
                anomalies.push(names.incompatible(
                    key as u32,
                    (txn, seen),
                    (other, &lists[key].longest),
                ));
            }
        }
        for txn in txns.txns.iter().filter(|txn| txn.status == Status::Committed) {
            for step in &txn.steps {
                if let TxnStep::Append { key, element } = step
                    && !is_seen[*element as usize]
                {
                    lists[*key as usize].unseen.push(*element);
                }
            }
        }
        Self { lists }
    }
}

/// Finds what is wrong with single reads.
pub(super) fn check_reads(txns: &Txns, anomalies: &mut Vec<Anomaly>, names: &Names<'_>) {
    for (number, txn) in (0..).zip(&txns.txns) {
        if txn.status == Status::Committed {
            check_own(txns, number, anomalies, names);
        }
    }
    for (number, txn) in (0..).zip(&txns.txns) {
        for step in &txn.steps {
            let TxnStep::Read { key, seen: Some(seen) } = step else { continue };
            check_elements(txns, number, (*key, seen), anomalies, names);
        }
    }
}

/// A transaction sees what it has seen and appended itself (INT of Cerone, Bernardi and Gotsman).
fn check_own(txns: &Txns, number: u32, anomalies: &mut Vec<Anomaly>, names: &Names<'_>) {
    // By key: whether the beginning of the list is known, and what is known of it.
    let mut known: HashMap<u32, (bool, Vec<u32>)> = HashMap::new();
    let steps = &txns.txns[number as usize].steps;
    for (at, step) in steps.iter().enumerate() {
        match step {
            TxnStep::Append { key, element } => {
                known.entry(*key).or_default().1.push(*element);
            }
            TxnStep::Read { key, seen: Some(seen) } => {
                let (is_whole, list) = known.entry(*key).or_default();
                let is_right = if *is_whole { seen == list } else { seen.ends_with(list) };
                let is_later = |it: &TxnStep| matches!(it, TxnStep::Append { element, .. } if seen.contains(element));
                if !is_right || steps[at..].iter().any(is_later) {
                    anomalies.push(names.internal(number, *key, seen, list));
                    return;
                }
                (*is_whole, *list) = (true, seen.clone());
            }
            TxnStep::Read { seen: None, .. } => {}
        }
    }
}

fn check_elements(
    txns: &Txns,
    reader: u32,
    (key, seen): (u32, &[u32]),
    anomalies: &mut Vec<Anomaly>,
    names: &Names<'_>,
) {
    let mut sorted = seen.to_vec();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        anomalies.push(names.of_element(AnomalyKind::DuplicateElements, reader, key, twice[0]));
    }
    for element in seen {
        let kind = match txns.elements[*element as usize].appender {
            None => AnomalyKind::NeverAppended,
            Some(appender) if txns.txns[appender as usize].status == Status::Aborted => {
                AnomalyKind::G1a
            }
            Some(_) => continue,
        };
        anomalies.push(names.of_element(kind, reader, key, *element));
        break;
    }
    if let Some(last) = seen.last()
        && let Some(appender) = txns.appender(*last)
        && appender != reader
        && !txns.elements[*last as usize].is_last_of_txn
    {
        anomalies.push(names.of_element(AnomalyKind::G1b, reader, key, *last));
    }
}

/// What was acknowledged before a read of its list began, and was never seen.
pub(super) fn check_lost(
    txns: &Txns,
    lists: &Lists,
    anomalies: &mut Vec<Anomaly>,
    names: &Names<'_>,
) {
    let operation = |txn: u32| &names.history.operations[txns.txns[txn as usize].place];
    // Of each key, the read that began last.
    let mut last: Vec<Option<u32>> = vec![None; txns.keys.len()];
    for seen in seen(txns) {
        let last = &mut last[seen.key as usize];
        if last.is_none_or(|it| operation(it).invoked_ns < operation(seen.txn).invoked_ns) {
            *last = Some(seen.txn);
        }
    }
    for (key, list) in (0..).zip(&lists.lists) {
        let Some(reader) = last[key as usize] else { continue };
        for element in &list.unseen {
            let Some(appender) = txns.appender(*element) else { continue };
            let completed_ns = operation(appender).completed_ns;
            if completed_ns.is_some_and(|it| it < operation(reader).invoked_ns) {
                anomalies.push(names.lost(appender, reader, key, *element));
            }
        }
    }
}
