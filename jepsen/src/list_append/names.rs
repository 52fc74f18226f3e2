//! Anomalies in words.

use super::{
    Anomaly, AnomalyKind,
    cycles::Cycle,
    graph::{Edge, EdgeKind},
    txn::Txns,
};
use crate::{History, Value};

/// What tells the names of things.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) history: &'a History,
    pub(super) txns: &'a Txns,
}

impl Names<'_> {
    /// A list was seen that is not the beginning of another.
    pub(super) fn incompatible(
        &self,
        key: u32,
        (one, seen): (u32, &[u32]),
        (other, longest): (u32, &[u32]),
    ) -> Anomaly {
        let explanation = format!(
            "of key {}, {} saw {} and {} saw {}: neither is the beginning of the other",
            self.key(key),
            self.txn(one),
            self.list(seen),
            self.txn(other),
            self.list(longest),
        );
        self.anomaly(AnomalyKind::IncompatibleOrder, &[one, other], explanation)
    }

    /// A transaction contradicts itself.
    pub(super) fn internal(&self, txn: u32, key: u32, seen: &[u32], known: &[u32]) -> Anomaly {
        let explanation = format!(
            "{} saw {} for key {}, where by its own steps before and after it is a list that ends \
             with {}",
            self.txn(txn),
            self.list(seen),
            self.key(key),
            self.list(known),
        );
        self.anomaly(AnomalyKind::Internal, &[txn], explanation)
    }

    /// A transaction saw an element that should not be there.
    pub(super) fn of_element(
        &self,
        kind: AnomalyKind,
        reader: u32,
        key: u32,
        element: u32,
    ) -> Anomaly {
        let appender = self.txns.elements[element as usize].appender;
        let reader_name = self.txn(reader);
        let (key, element) = (self.key(key), self.element(element));
        let by = appender.map(|appender| self.txn(appender)).unwrap_or_default();
        let explanation = match kind {
            AnomalyKind::G1a => format!(
                "{reader_name} saw {element} in {key}, which {by} appended, and that failed"
            ),
            AnomalyKind::G1b => format!(
                "{reader_name} saw {key} end with {element}, behind which {by} appended more"
            ),
            AnomalyKind::DuplicateElements => format!("{reader_name} saw {element} twice in {key}"),
            _ => format!("{reader_name} saw {element} in {key}, which nobody appended"),
        };
        let txns: Vec<_> = [Some(reader), appender].into_iter().flatten().collect();
        self.anomaly(kind, &txns, explanation)
    }

    /// An append was acknowledged, and is in no list that was read later.
    pub(super) fn lost(&self, appender: u32, reader: u32, key: u32, element: u32) -> Anomaly {
        let explanation = format!(
            "{} appended {} to {} and was done before {} began, which did not see it, and nobody did",
            self.txn(appender),
            self.element(element),
            self.key(key),
            self.txn(reader),
        );
        self.anomaly(AnomalyKind::LostAppend, &[appender, reader], explanation)
    }

    pub(super) fn cycle(&self, cycle: &Cycle) -> Anomaly {
        let reasons: Vec<_> = cycle.edges.iter().map(|edge| self.reason(edge)).collect();
        let txns: Vec<_> = cycle.edges.iter().map(|edge| edge.from).collect();
        let explanation =
            format!("{}: each came before the next, and so before itself", reasons.join("; "));
        self.anomaly(cycle.kind, &txns, explanation)
    }

    fn reason(&self, edge: &Edge) -> String {
        let (from, to) = (self.txn(edge.from), self.txn(edge.to));
        let key = || self.key(edge.key);
        match edge.kind {
            EdgeKind::Ww => format!(
                "{from} appended {} to {}, and {to} {} behind it",
                self.element(edge.before),
                key(),
                self.element(edge.element)
            ),
            EdgeKind::Wr => {
                format!(
                    "{from} appended {} to {}, which {to} saw",
                    self.element(edge.element),
                    key()
                )
            }
            EdgeKind::Rw => {
                format!(
                    "{from} did not see {} in {}, which {to} appended",
                    self.element(edge.element),
                    key()
                )
            }
            EdgeKind::RealTime => format!("{from} was done before {to} began"),
        }
    }

    fn anomaly(&self, kind: AnomalyKind, txns: &[u32], explanation: String) -> Anomaly {
        let mut operations: Vec<_> =
            txns.iter().map(|txn| self.txns.txns[*txn as usize].place).collect();
        operations.sort_unstable();
        operations.dedup();
        Anomaly { kind, operations, explanation }
    }

    fn txn(&self, txn: u32) -> String {
        let operation = &self.history.operations[self.txns.txns[txn as usize].place];
        match operation.line {
            0 => format!(
                "the transaction of process {} at {}",
                operation.process, operation.invoked_ns
            ),
            line => format!("the transaction of line {line} (process {})", operation.process),
        }
    }

    fn key(&self, key: u32) -> &Value {
        &self.txns.keys[key as usize]
    }

    fn element(&self, element: u32) -> &Value {
        &self.txns.elements[element as usize].value
    }

    /// A list, or its end if it is long.
    fn list(&self, elements: &[u32]) -> String {
        const SHOWN: usize = 12;
        let shown = &elements[elements.len().saturating_sub(SHOWN)..];
        let shown: Vec<_> = shown.iter().map(|it| self.element(*it).to_string()).collect();
        let before = if elements.len() > SHOWN { "… " } else { "" };
        format!("[{before}{}]", shown.join(" "))
    }
}
