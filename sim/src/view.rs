//! The replicated state of a replica, as far as it can be compared with that of another: what the
//! framework keeps, what was executed, and what the service says. A service's snapshots are not
//! compared: equal states may be written in different bytes.

use std::io;

use bytes::Bytes;
use hovercraft::{Context, core::Applier};
use xxhash_rust::xxh3::Xxh3;

use crate::{service::Calls, workload::Workload};

/// A replica's state, as queries show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    /// Digest of the sessions, log time, configuration, and everything that was executed.
    framework: u64,
    /// The service's own, if it offers one.
    digest: Option<u64>,
    /// Its answers to the samples.
    answers: Vec<Vec<u8>>,
}

/// The queries that show a state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    queries: Vec<Bytes>,
}

impl Samples {
    pub(crate) fn of(workload: &dyn Workload) -> Self {
        Self { queries: workload.samples() }
    }

    /// Looks at the state of a replica, whose service is watched with `calls`; none if it is
    /// poisoned.
    pub(crate) fn view(&self, applier: &Applier, calls: &Calls) -> Option<View> {
        calls.look(|| {
            let context = Context { index: applier.applied(), time_us: 0, seed: 0 };
            let service = applier.service();
            let answer = |query: &Bytes| {
                let mut reply = Vec::new();
                service.query(&context, query, &mut reply);
                reply
            };
            Some(View {
                framework: framework(applier)?,
                digest: service.digest(),
                answers: self.queries.iter().map(answer).collect(),
            })
        })
    }

    /// Says what the first difference between two states of the same index is.
    pub(crate) fn difference(
        &self,
        workload: &dyn Workload,
        (here, is): (&str, &View),
        (there, was): (&str, &View),
    ) -> String {
        let differs = |(own, other): &(&Vec<u8>, &Vec<u8>)| own != other;
        let mut pairs = is.answers.iter().zip(&was.answers);
        if let Some(at) = pairs.position(|pair| differs(&pair)) {
            let query = workload.describe(&self.queries[at]);
            let (own, other) = (&is.answers[at], &was.answers[at]);
            return format!("`{query}`: {}", two_values((here, own), (there, other)));
        }
        if is.digest != was.digest {
            let [own, other] = [is.digest, was.digest].map(Option::unwrap_or_default);
            return format!(
                "the digest of the service's state is {own:016x} on {here} and {other:016x} on \
                 {there}"
            );
        }
        format!("the sessions, log time or executed commands of {here} are not those of {there}")
    }
}

/// Two byte strings and where they first differ.
pub(crate) fn two_values((here, own): (&str, &[u8]), (there, other): (&str, &[u8])) -> String {
    let same = own.iter().zip(other).take_while(|(a, b)| a == b).count();
    let around = |bytes: &[u8]| {
        let from = same.saturating_sub(8).min(bytes.len());
        let to = (same + 16).min(bytes.len());
        let text = bytes[from..to].escape_ascii().to_string();
        format!("{}{text}{}", cut(from > 0), cut(to < bytes.len()))
    };
    format!(
        "{here} answered \"{}\" and {there} \"{}\"; they differ from byte {same} on",
        around(own),
        around(other)
    )
}

fn cut(is_cut: bool) -> &'static str {
    if is_cut { "…" } else { "" }
}

/// Of everything but the service. The snapshot of a service that is being looked at says only what
/// it has executed.
fn framework(applier: &Applier) -> Option<u64> {
    let (meta, writer) = applier.snapshot()?;
    let mut hash = Hash(Xxh3::with_seed(meta.index));
    writer(&mut hash).expect("hashing does not fail");
    let beside = [meta.term, meta.log_time_us, meta.configuration.id].map(u64::to_le_bytes);
    hash.0.update(beside.as_flattened());
    Some(hash.0.digest())
}

/// Hashes what is written to it.
struct Hash(Xxh3);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_of_two_values_is_shown() {
        let text =
            two_values(("1", b"a long beginning, then x"), ("2", b"a long beginning, then y!"));
        assert_eq!(
            text,
            "1 answered \"…g, then x\" and 2 \"…g, then y!\"; they differ from byte 23 on"
        );
    }
}
