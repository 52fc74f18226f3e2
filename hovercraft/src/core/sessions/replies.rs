//! The replies that a session keeps, in pages: what is charged for them is what they take (P20).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{digest::Digest, request::Outcome};

/// Number of sequences in a page.
const PAGE_SLOTS: u64 = 4;

/// Number of bytes that a page is charged with, beside the replies in it: what its slots take, its
/// place among the pages, and what an allocator adds. Part of P21, so it is the same everywhere.
pub(crate) const PAGE_BYTES: u64 = 224;

/// A reply that may be asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    digest: Digest,
    /// Every digest gets this reply: the sequence was refused for ever (P23).
    is_final: bool,
    pub(crate) outcome: Outcome,
    pub(crate) body: Bytes,
}

impl Kept {
    /// The reply to the request with this digest; none stands for every request.
    pub(crate) fn new(digest: Option<Digest>, outcome: Outcome, body: Bytes) -> Self {
        let is_final = digest.is_none();
        Self { digest: digest.unwrap_or(Digest(0)), is_final, outcome, body }
    }

    /// The digest of the one request that gets this reply; none if every request does.
    pub(crate) fn digest(&self) -> Option<Digest> {
        (!self.is_final).then_some(self.digest)
    }

    /// Returns whether a request with this digest gets this reply.
    pub(crate) fn answers(&self, digest: Digest) -> bool {
        self.is_final || self.digest == digest
    }
}

/// The kept replies of one session, by sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Replies {
    /// In ascending order of their numbers; only those that hold something.
    pages: VecDeque<Page>,
    size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    /// The sequences in it are `number * PAGE_SLOTS` and the next ones.
    number: u64,
    slots: Box<[Option<Kept>; PAGE_SLOTS as usize]>,
}

impl Replies {
    /// Returns what is charged for them.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Kept> {
        let at = self.find(sequence / PAGE_SLOTS).ok()?;
        self.pages[at].slots[slot(sequence)].as_ref()
    }

    /// Keeps a reply.
    ///
    /// # Panics
    ///
    /// If there is one for the sequence.
    pub(crate) fn keep(&mut self, sequence: u64, kept: Kept) {
        let number = sequence / PAGE_SLOTS;
        let at = self.find(number).unwrap_or_else(|at| {
            self.pages.insert(at, Page { number, slots: Box::default() });
            self.size_bytes += PAGE_BYTES;
            at
        });
        self.size_bytes += kept.body.len() as u64;
        let before = self.pages[at].slots[slot(sequence)].replace(kept);
        assert!(before.is_none(), "a sequence is executed or refused once (P21)");
    }

    /// Removes the replies below a sequence.
    pub(crate) fn remove_below(&mut self, lowest: u64) {
        let Self { pages, size_bytes } = self;
        let body_bytes = |page: &Page| -> u64 {
            page.slots.iter().flatten().map(|kept| kept.body.len() as u64).sum()
        };
        let is_below = |page: &mut Page| page.number < lowest / PAGE_SLOTS;
        while let Some(page) = pages.pop_front_if(is_below) {
            *size_bytes -= PAGE_BYTES + body_bytes(&page);
        }
        let Some(page) = pages.front_mut().filter(|page| page.number == lowest / PAGE_SLOTS) else {
            return;
        };
        for kept in page.slots[..slot(lowest)].iter_mut().filter_map(Option::take) {
            *size_bytes -= kept.body.len() as u64;
        }
        if page.slots.iter().all(Option::is_none) {
            pages.pop_front();
            *size_bytes -= PAGE_BYTES;
        }
    }

    /// In ascending order of their sequences.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Kept)> {
        self.pages.iter().flat_map(|page| {
            let first = page.number * PAGE_SLOTS;
            (first..).zip(page.slots.iter()).filter_map(|(at, kept)| Some((at, kept.as_ref()?)))
        })
    }

    /// Forgets all replies and keeps their room: a planted bug.
    pub(crate) fn forget(&mut self) {
        for page in &mut self.pages {
            *page.slots = Default::default();
        }
    }

    /// Where the page with a number is, or where it would be. Mostly it is the last one.
    fn find(&self, number: u64) -> Result<usize, usize> {
        match self.pages.back() {
            Some(last) if last.number == number => Ok(self.pages.len() - 1),
            Some(last) if last.number > number => {
                self.pages.binary_search_by_key(&number, |page| page.number)
            }
            _ => Err(self.pages.len()),
        }
    }
}

fn slot(sequence: u64) -> usize {
    (sequence % PAGE_SLOTS) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn kept(bytes: usize) -> Kept {
        Kept::new(Some(Digest(7)), Outcome::Executed, Bytes::from(vec![1; bytes]))
    }

    #[test]
    fn a_page_is_charged_with_what_it_takes() {
        let slots = size_of::<[Option<Kept>; PAGE_SLOTS as usize]>();
        let taken = (slots + size_of::<Page>()) as u64;
        assert!(taken <= PAGE_BYTES && PAGE_BYTES <= taken + 32, "{taken}");
    }

    #[test]
    fn a_lone_reply_far_above_the_lowest_takes_one_page() {
        let mut replies = Replies::default();
        replies.keep(4096, kept(0));
        assert_eq!(replies.size_bytes(), PAGE_BYTES);
        replies.remove_below(4096);
        assert_eq!(replies.size_bytes(), PAGE_BYTES);
        replies.remove_below(4097);
        assert_eq!(replies, Replies::default());
    }

    proptest! {
        /// Against a plain map.
        #[test]
        fn what_is_kept_is_found_and_charged(
            steps in prop::collection::vec((1..40_u64, 0..30_usize, 0..4_u8), 0..60),
        ) {
            let mut replies = Replies::default();
            let mut model = BTreeMap::new();
            let mut lowest = 1;
            for (sequence, bytes, what) in steps {
                if what == 0 {
                    lowest = sequence.max(lowest);
                    replies.remove_below(lowest);
                    model.retain(|sequence, _| *sequence >= lowest);
                } else if sequence >= lowest && !model.contains_key(&sequence) {
                    replies.keep(sequence, kept(bytes));
                    model.insert(sequence, bytes);
                }
                for sequence in 0..42 {
                    let found = replies.get(sequence).map(|kept| kept.body.len());
                    prop_assert_eq!(found, model.get(&sequence).copied());
                }
                let mut pages: Vec<_> = model.keys().map(|sequence| sequence / PAGE_SLOTS).collect();
                pages.dedup();
                let bodies: usize = model.values().sum();
                let charged = pages.len() as u64 * PAGE_BYTES + bodies as u64;
                prop_assert_eq!(replies.size_bytes(), charged);
                let listed: Vec<_> = replies.iter().map(|(sequence, _)| sequence).collect();
                prop_assert_eq!(listed, model.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}
