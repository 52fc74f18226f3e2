//! Binding: metadata that the leader ordered, waiting for its bodies (P6, P8).
//!
//! The metadata here follows the log without a gap: position 0 has the index after the log's last
//! entry. An entry moves to the log only from the front and only with its body.

use std::{collections::VecDeque, iter, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    core::{
        ahead::{AHEAD_BYTES_MAX, Ahead},
        lookup::Lookup,
    },
    entry::{Configuration, Index, NodeId, Term},
    messages::BodyWant,
    request::{Key, Request, ReturnPath},
};

/// Bytes that a part which came too early counts for beside its body.
const AHEAD_OVERHEAD_BYTES: usize = 64;

/// A body that is missing, or a part of one.
#[derive(Debug)]
pub(crate) struct Missing<'a> {
    /// Place of its metadata.
    pub(crate) position: usize,
    pub(crate) term: Term,
    pub(crate) key: Key,
    /// Bytes of the whole body.
    pub(crate) body_len: u32,
    /// The parts that are here.
    partial: Option<&'a Partial>,
}

impl Missing<'_> {
    /// Returns how many bytes are here, wherever they belong.
    pub(crate) fn here(&self) -> usize {
        self.partial.map_or(0, Partial::here)
    }

    /// Returns the first range at or above an offset that is not here, as far as parts that come
    /// too early are kept.
    pub(crate) fn gap(&self, from: u32) -> Range<u32> {
        let start = self.partial.map_or(0, |partial| partial.start.len());
        let from = u64::from(from).max(start as u64).min(u64::from(self.body_len));
        let whole = |partial: &Partial| partial.ahead.gap(from, iter::empty());
        let Range { start: from, end } = self.partial.map_or(from..u64::MAX, whole);
        let end = end.min((start + AHEAD_BYTES_MAX) as u64).min(u64::from(self.body_len));
        // Neither is beyond the body.
        from as u32..end.max(from) as u32
    }
}

/// An entry whose body may be missing.
#[derive(Debug)]
pub(crate) struct Ordered {
    pub(crate) term: Term,
    pub(crate) log_time_us: u64,
    pub(crate) session_delta_us: u32,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Noop,
    Configuration(Arc<Configuration>),
    Request { key: Key, body_len: u32, replier: NodeId, body: Body },
}

/// What is here of a request that was ordered.
#[derive(Debug)]
pub(crate) enum Body {
    /// Perhaps in the unordered set.
    Unknown,
    /// Parts of it, fetched from another replica.
    Partial(Box<Partial>),
    /// Fetched from another replica, outside the unordered set's budget (P9).
    Here(Arc<Request>, Option<ReturnPath>),
}

/// Parts of a body: all from its start, and those that came before the ones in front of them.
#[derive(Debug, Default)]
pub(crate) struct Partial {
    start: BytesMut,
    ahead: Ahead,
}

impl Partial {
    /// Adds bytes at an offset; not before the end of those from the start.
    fn add(&mut self, offset: usize, part: &[u8]) {
        let here = self.start.len();
        if offset > here {
            self.keep(offset, part);
            return;
        }
        self.start.extend_from_slice(part);
        while let Some(next) = self.ahead.take(self.start.len() as u64) {
            self.start.extend_from_slice(&next);
        }
    }

    /// Keeps what is not here of bytes that came too early.
    fn keep(&mut self, offset: usize, part: &[u8]) {
        let (here, end) = (self.start.len() as u64, offset + part.len());
        let mut from = offset;
        while from < end {
            let gap = self.ahead.gap(from as u64, iter::empty());
            let (start, to) =
                (gap.start.min(end as u64) as usize, gap.end.min(end as u64) as usize);
            if start < to {
                self.ahead.keep(here, start as u64, part[start - offset..to - offset].to_vec());
            }
            from = to.max(start);
        }
    }

    /// Returns the number of bytes that are here.
    fn here(&self) -> usize {
        self.start.len() + self.ahead.size().1
    }
}

impl Body {
    /// Adds bytes at an offset, not before the end of those from the start; returns the body if it
    /// is whole now.
    fn add(&mut self, offset: usize, part: &[u8], body_len: usize) -> Option<Bytes> {
        if let Self::Unknown = self {
            if part.len() == body_len {
                return Some(Bytes::copy_from_slice(part));
            }
            *self = Self::Partial(Box::default());
        }
        let Self::Partial(partial) = self else { return None };
        partial.add(offset, part);
        (partial.start.len() == body_len).then(|| partial.start.split().freeze())
    }

    /// Returns the bytes that it counts for.
    fn cost(&self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Partial(partial) => {
                partial.here() + partial.ahead.size().0 * AHEAD_OVERHEAD_BYTES
            }
            Self::Here(request, _) => request.body().len(),
        }
    }
}

/// Metadata without a place in the log yet.
#[derive(Debug)]
pub(crate) struct Binding {
    ordered: VecDeque<Ordered>,
    /// Bodies that are wanted, by the highest index that wants them.
    wanted: Lookup<Key, Index>,
    /// Bytes of bodies that were fetched and are not in the log yet.
    fetched_bytes: usize,
    count_max: usize,
    fetched_bytes_max: usize,
}

impl Binding {
    pub(crate) fn new(count_max: usize, fetched_bytes_max: usize, seed: u64) -> Self {
        let wanted = Lookup::new(seed);
        Self { ordered: VecDeque::new(), wanted, fetched_bytes: 0, count_max, fetched_bytes_max }
    }

    /// Remembers the metadata of `index`, which is the next one. Returns false if it has no room.
    pub(crate) fn push(&mut self, index: Index, ordered: Ordered) -> bool {
        if self.ordered.len() >= self.count_max {
            return false;
        }
        if let Content::Request { key, .. } = &ordered.content {
            self.wanted.insert(*key, index);
        }
        self.ordered.push_back(ordered);
        true
    }

    pub(crate) fn front(&self) -> Option<&Ordered> {
        self.ordered.front()
    }

    /// Takes the first one, to put it into the log.
    pub(crate) fn pop(&mut self) -> Option<Ordered> {
        let ordered = self.ordered.pop_front()?;
        self.forget(&ordered);
        Some(ordered)
    }

    /// Removes the metadata at position `from` and behind it, handing the bodies that were fetched
    /// for it to `each`.
    pub(crate) fn truncate(&mut self, from: usize, mut each: impl FnMut(Arc<Request>)) {
        while self.ordered.len() > from {
            let ordered = self.ordered.pop_back().expect("it is longer than `from`");
            self.forget(&ordered);
            if let Content::Request { body: Body::Here(request, _), .. } = ordered.content {
                each(request);
            }
        }
    }

    /// The term at a position.
    pub(crate) fn term(&self, position: usize) -> Option<Term> {
        self.ordered.get(position).map(|ordered| ordered.term)
    }

    /// Whether an entry here has this request.
    pub(crate) fn wants(&self, key: &Key) -> bool {
        self.wanted.contains(key)
    }

    /// Takes a part of a body that begins at `offset`, in whatever order parts come. What there is
    /// no room for is ignored; but the lowest index always has room, for one body of the largest
    /// size (P9). Returns true if the body is now complete.
    pub(crate) fn fill(
        &mut self,
        position: usize,
        offset: u32,
        part: &[u8],
        return_path: Option<ReturnPath>,
        request_of: impl FnOnce(Bytes) -> Option<Request>,
    ) -> bool {
        let Some(Ordered { content, .. }) = self.ordered.get_mut(position) else {
            return false;
        };
        let Content::Request { key, body_len, body, .. } = content else {
            return false;
        };
        let (offset, body_len) = (offset as usize, *body_len as usize);
        let here = match body {
            Body::Unknown => 0,
            Body::Partial(partial) => partial.start.len(),
            Body::Here(..) => return false,
        };
        // A part that came in another way may overlap what is here.
        let known = here.saturating_sub(offset);
        let Some(new) = part.get(known..).filter(|new| !new.is_empty() || body_len == 0) else {
            return false;
        };
        let overhead = if offset > here { AHEAD_OVERHEAD_BYTES } else { 0 };
        let cost = self.fetched_bytes + new.len() + overhead;
        let has_room = position == 0 || cost <= self.fetched_bytes_max;
        if !has_room || offset + part.len() > body_len {
            return false;
        }
        // Only a request with the digest that the leader ordered is bound (P2, P9).
        let is_ordered = |request: &Request| {
            let is_refused = planted!("unsound-not-bound") && !request.is_sound();
            (request.key() == *key || planted!("recovery-without-digest")) && !is_refused
        };
        self.fetched_bytes -= body.cost();
        if let Some(whole) = body.add(offset.max(here), new, body_len) {
            let ordered = request_of(whole).filter(is_ordered);
            if ordered.is_none() && planted!("wrong-body-takes-room") {
                self.fetched_bytes += body_len;
            }
            *body = ordered.map_or(Body::Unknown, |it| Body::Here(Arc::new(it), return_path));
        }
        self.fetched_bytes += body.cost();
        matches!(body, Body::Here(..))
    }

    /// Keeps a request that the unordered set gives up, if an entry here waits for it and there is
    /// room; `log_last` is the index of the log's last entry.
    pub(crate) fn keep(
        &mut self,
        log_last: Index,
        request: Arc<Request>,
        return_path: Option<ReturnPath>,
    ) {
        let index = self.wanted.get(&request.key());
        let position = index.and_then(|index| index.checked_sub(log_last + 1));
        let ordered = position.and_then(|position| self.ordered.get_mut(position as usize));
        let Some(Ordered { content: Content::Request { body, .. }, .. }) = ordered else {
            return;
        };
        if let Body::Here(..) = body {
            return;
        }
        let bytes = self.fetched_bytes - body.cost() + request.body().len();
        if position == Some(0) || bytes <= self.fetched_bytes_max {
            self.fetched_bytes = bytes;
            *body = Body::Here(request, return_path);
        }
    }

    /// The bodies that are missing from a position on, lowest first.
    pub(crate) fn missing_from(&self, position: usize) -> impl Iterator<Item = Missing<'_>> {
        let ordered = self.ordered.iter().enumerate().skip(position);
        ordered.filter_map(|(position, ordered)| {
            let Content::Request { key, body, body_len, .. } = &ordered.content else {
                return None;
            };
            let partial = match body {
                Body::Unknown => None,
                Body::Partial(partial) => Some(&**partial),
                Body::Here(..) => return None,
            };
            let (term, key, body_len) = (ordered.term, *key, *body_len);
            Some(Missing { position, term, key, body_len, partial })
        })
    }

    /// Returns whether the metadata that a want was made of is still here, behind a log that ends
    /// at `log_last`.
    pub(crate) fn has(&self, log_last: Index, want: &BodyWant) -> bool {
        let position = want.index.checked_sub(log_last + 1);
        let Some(Ordered { term, content, .. }) =
            position.and_then(|position| self.ordered.get(position as usize))
        else {
            return false;
        };
        let Content::Request { key, body_len, .. } = content else {
            return false;
        };
        (*term, *key, *body_len) == (want.term, want.key(), want.body_len)
    }

    /// Returns whether the body of an entry behind the log has this length; true of what is in the
    /// log already.
    pub(crate) fn has_length(&self, log_last: Index, index: Index, length: u32) -> bool {
        let position = index.checked_sub(log_last + 1);
        let ordered = position.and_then(|position| self.ordered.get(position as usize));
        ordered.is_none_or(|ordered| {
            matches!(&ordered.content, Content::Request { body_len, .. } if *body_len == length)
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.ordered.len()
    }

    /// Returns whether more metadata, and bodies with it, may be remembered.
    pub(crate) fn has_room(&self) -> bool {
        self.ordered.len() < self.count_max && self.room_bytes() > 0
    }

    /// How many more bytes of fetched bodies there is room for.
    pub(crate) fn room_bytes(&self) -> usize {
        self.fetched_bytes_max.saturating_sub(self.fetched_bytes)
    }

    fn forget(&mut self, ordered: &Ordered) {
        let Content::Request { key, body, .. } = &ordered.content else {
            return;
        };
        // A later entry may want the same request; it asks anew when it is at the front.
        self.wanted.remove(key);
        self.fetched_bytes -= body.cost();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{DIGEST_KEY, request};

    fn ordered(client: u64, sequence: u64) -> Ordered {
        let request = request(client, sequence);
        let content = Content::Request {
            key: request.key(),
            body_len: request.body().len() as u32,
            replier: NodeId(1),
            body: Body::Unknown,
        };
        Ordered { term: 1, log_time_us: 0, session_delta_us: 0, content }
    }

    fn same(client: u64, sequence: u64) -> impl FnOnce(Bytes) -> Option<Request> {
        move |body| {
            let request = request(client, sequence);
            Some(Request::new(
                DIGEST_KEY,
                request.identity(),
                request.lowest(),
                request.kind(),
                body,
            ))
        }
    }

    #[test]
    fn a_body_comes_in_parts_and_its_digest_is_checked() {
        let mut binding = Binding::new(10, 100, 0);
        binding.push(1, ordered(1, 1));
        assert!(!binding.fill(0, 0, b"bo", None, same(1, 1)));
        assert_eq!(binding.missing_from(0).next().map(|missing| missing.gap(0)), Some(2..4));
        assert!(!binding.fill(0, 2, b"dyx", None, same(1, 1)));
        assert!(binding.fill(0, 2, b"dy", None, same(1, 1)));
        assert_eq!((binding.missing_from(0).count(), binding.fetched_bytes), (0, 4));
        binding.pop();
        assert_eq!(binding.fetched_bytes, 0);
    }

    #[test]
    fn parts_of_a_body_come_in_any_order_and_only_gaps_are_left() {
        let mut binding = Binding::new(10, 100, 0);
        binding.push(1, ordered(1, 1));
        let fill = |binding: &mut Binding, offset, part: &[u8]| {
            let done = binding.fill(0, offset, part, None, same(1, 1));
            let missing = binding.missing_from(0).next();
            (done, missing.map(|missing| (missing.here(), missing.gap(0), missing.gap(2))))
        };
        assert_eq!(fill(&mut binding, 3, b"yx"), (false, Some((0, 0..4, 2..4))), "it is too long");
        assert_eq!(fill(&mut binding, 4, b""), (false, Some((0, 0..4, 2..4))));
        assert_eq!(fill(&mut binding, 3, b"y"), (false, Some((1, 0..3, 2..3))));
        assert_eq!(fill(&mut binding, 3, b"y"), (false, Some((1, 0..3, 2..3))), "it came twice");
        assert_eq!(fill(&mut binding, 1, b"o"), (false, Some((2, 0..1, 2..3))));
        assert_eq!(binding.fetched_bytes, 2 + 2 * AHEAD_OVERHEAD_BYTES);
        // A part that overlaps others brings the rest.
        assert_eq!(fill(&mut binding, 1, b"ody"), (false, Some((3, 0..1, 4..4))));
        assert_eq!(binding.fetched_bytes, 3 + 3 * AHEAD_OVERHEAD_BYTES);
        assert_eq!(fill(&mut binding, 0, b"bod"), (true, None));
        assert_eq!(binding.fetched_bytes, 4);
        // Bytes that are given up count for nothing.
        binding.push(2, ordered(1, 2));
        assert!(!binding.fill(1, 3, b"y", None, same(1, 2)));
        binding.truncate(1, |_| panic!("the body is not whole"));
        binding.pop();
        assert_eq!(binding.fetched_bytes, 0);
    }

    #[test]
    fn no_part_is_asked_for_further_ahead_than_it_is_kept() {
        let mut binding = Binding::new(10, 100, 0);
        let mut long = ordered(1, 1);
        let Content::Request { body_len, .. } = &mut long.content else { panic!("it is one") };
        *body_len = u32::MAX;
        binding.push(1, long);
        let gap = |binding: &Binding, from| binding.missing_from(0).next().unwrap().gap(from);
        let ahead = AHEAD_BYTES_MAX as u32;
        assert_eq!([gap(&binding, 0), gap(&binding, ahead)], [0..ahead, ahead..ahead]);
        // Parts of a byte do not fill the memory.
        for offset in 1..ahead {
            binding.fill(0, 2 * offset, b"x", None, same(1, 1));
        }
        assert!(binding.fetched_bytes < AHEAD_BYTES_MAX, "{} bytes", binding.fetched_bytes);
        // At an index that is not the lowest they have the room that there is.
        binding.push(2, ordered(1, 2));
        assert!(!binding.fill(1, 3, b"y", None, same(1, 2)));
        assert_eq!(binding.missing_from(1).next().map(|missing| missing.here()), Some(0));
    }

    #[test]
    fn bodies_that_there_is_no_room_for_are_not_kept_but_for_the_lowest() {
        // P9: two bodies of four bytes, and room for six.
        let mut binding = Binding::new(10, 6, 0);
        for sequence in 1..=3 {
            binding.push(sequence, ordered(1, sequence));
        }
        assert!(binding.fill(1, 0, b"body", None, same(1, 2)));
        assert!(!binding.fill(2, 0, b"body", None, same(1, 3)));
        assert!(binding.fill(0, 0, b"body", None, same(1, 1)));
        assert_eq!((binding.missing_from(0).count(), binding.room_bytes()), (1, 0));
    }

    #[test]
    fn what_expires_elsewhere_is_kept_where_an_entry_waits_for_it() {
        let mut binding = Binding::new(10, 6, 0);
        for sequence in 1..=3 {
            binding.push(6 + sequence, ordered(1, sequence));
        }
        binding.fill(1, 0, b"bo", None, same(1, 2));
        binding.keep(6, request(1, 2), None);
        // Nobody waits for one, and there is no room for the other.
        binding.keep(6, request(2, 1), None);
        binding.keep(6, request(1, 3), None);
        let missing: Vec<_> = binding.missing_from(0).map(|missing| missing.position).collect();
        assert_eq!((missing, binding.room_bytes()), (vec![0, 2], 2));
        // The lowest one always has room (P9).
        binding.keep(6, request(1, 1), None);
        assert_eq!((binding.missing_from(0).count(), binding.room_bytes()), (1, 0));
        while binding.pop().is_some() {}
        assert_eq!(binding.fetched_bytes, 0);
    }

    #[test]
    fn a_body_with_another_digest_is_not_bound() {
        let mut binding = Binding::new(10, 100, 0);
        binding.push(1, ordered(1, 1));
        assert!(!binding.fill(0, 0, b"evil", None, same(1, 1)));
        assert!(!binding.fill(0, 0, b"body", None, same(1, 2)));
        assert_eq!((binding.missing_from(0).count(), binding.fetched_bytes), (1, 0));
    }

    #[test]
    fn it_is_bounded_and_truncation_gives_bodies_back() {
        let mut binding = Binding::new(2, 100, 0);
        assert!(binding.push(1, ordered(1, 1)));
        assert!(binding.push(2, ordered(1, 2)));
        assert!(!binding.push(3, ordered(1, 3)));
        binding.fill(1, 0, b"body", None, same(1, 2));
        let mut returned = Vec::new();
        binding.truncate(1, |request| returned.push(request.key()));
        assert_eq!(returned, [request(1, 2).key()]);
        assert!(binding.wants(&request(1, 1).key()) && !binding.wants(&request(1, 2).key()));
    }
}
