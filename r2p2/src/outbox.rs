//! Datagrams that wait to be sent, grouped so that one system call can take many.

use std::{collections::HashMap, net::SocketAddrV4};

use foldhash::fast::FixedState;

/// The most datagrams that one batch holds: the kernel's limit on segments of one GSO send.
pub const SEGMENTS_MAX: usize = 64;

/// The most bytes that one batch holds: what fits one UDP send before the kernel cuts it up.
pub const BATCH_BYTES_MAX: usize = 65_000;

/// Datagrams of one size for one destination, back to back; only the last may be shorter.
#[derive(Debug)]
pub struct Batch {
    /// Where the datagrams go: one host, or a multicast group.
    pub destination: SocketAddrV4,
    /// The size in bytes of every datagram but the last.
    pub segment_size: usize,
    /// The datagrams, back to back.
    pub bytes: Vec<u8>,
    segment_count: usize,
    /// A shorter datagram ended the batch, or its size or count is at the limit.
    closed: bool,
}

impl Batch {
    /// The datagrams, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.segment_size)
    }
}

/// A queue of datagrams that endpoints write into and a [`Link`](crate::Link) drains.
///
/// Datagrams for one destination keep their order. Those of equal size share a [`Batch`], which a
/// link sends with one system call where the kernel can segment (GSO). Nothing here waits: what is
/// in the outbox is sent at the end of the caller's turn, so batches grow with the load alone.
#[derive(Debug, Default)]
pub struct Outbox {
    batches: Vec<Batch>,
    /// The last batch of each destination. Whoever answers clients alternates between hundreds of
    /// destinations, so finding their batches must not take a search.
    last_of: HashMap<SocketAddrV4, usize, FixedState>,
    spare: Vec<Vec<u8>>,
    datagram_count: usize,
}

impl Outbox {
    /// An empty outbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one datagram for `destination`, whose bytes `write` appends to the given buffer.
    ///
    /// # Panics
    ///
    /// If `write` appends nothing, or more than [`BATCH_BYTES_MAX`] bytes.
    pub fn push(&mut self, destination: SocketAddrV4, write: impl FnOnce(&mut Vec<u8>)) {
        self.datagram_count += 1;
        let Some(batch) = self.last_batch(destination).filter(|batch| !batch.closed) else {
            let mut bytes = self.spare.pop().unwrap_or_default();
            write(&mut bytes);
            check_size(bytes.len());
            self.begin(destination, bytes);
            return;
        };
        // The size is known only once written: write behind the destination's last batch, and move
        // the datagram to a batch of its own if it does not fit that batch's rule.
        let start = batch.bytes.len();
        write(&mut batch.bytes);
        let size = batch.bytes.len() - start;
        check_size(size);
        if size <= batch.segment_size && batch.bytes.len() <= BATCH_BYTES_MAX {
            batch.segment_count += 1;
            batch.closed = size < batch.segment_size || batch.segment_count >= SEGMENTS_MAX;
            return;
        }
        batch.closed = true;
        let mut bytes = self.spare.pop().unwrap_or_default();
        let batch = self.last_batch(destination).expect("just written to");
        bytes.extend_from_slice(&batch.bytes[start..]);
        batch.bytes.truncate(start);
        self.begin(destination, bytes);
    }

    /// Removes every batch, oldest first, handing each to `send`; buffers are kept for reuse.
    pub fn drain(&mut self, mut send: impl FnMut(&Batch)) {
        for mut batch in self.batches.drain(..) {
            send(&batch);
            batch.bytes.clear();
            if self.spare.len() < SEGMENTS_MAX {
                self.spare.push(batch.bytes);
            }
        }
        self.last_of.clear();
        self.datagram_count = 0;
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// How many datagrams wait.
    pub fn datagram_count(&self) -> usize {
        self.datagram_count
    }

    /// The last batch of a destination, which alone may grow.
    fn last_batch(&mut self, destination: SocketAddrV4) -> Option<&mut Batch> {
        // Runs to one destination are common, and cost no look-up.
        let newest = self.batches.len().checked_sub(1)?;
        let position = if self.batches[newest].destination == destination {
            newest
        } else {
            *self.last_of.get(&destination)?
        };
        Some(&mut self.batches[position])
    }

    fn begin(&mut self, destination: SocketAddrV4, bytes: Vec<u8>) {
        self.last_of.insert(destination, self.batches.len());
        self.batches.push(Batch {
            destination,
            segment_size: bytes.len(),
            segment_count: 1,
            bytes,
            closed: false,
        });
    }
}

fn check_size(size: usize) {
    assert!(size > 0 && size <= BATCH_BYTES_MAX, "a datagram of {size} bytes");
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn destination(number: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, number)
    }

    proptest! {
        #[test]
        fn every_destination_gets_its_datagrams_in_order(
            turns in prop::collection::vec(
                prop::collection::vec((0..4_u16, prop_oneof![1..4_usize, Just(1400)]), 0..200),
                1..4,
            )
        ) {
            let mut outbox = Outbox::new();
            for turn in turns {
                let mut pushed = vec![Vec::new(); 4];
                for (mark, (number, size)) in turn.into_iter().enumerate() {
                    let datagram = vec![mark as u8; size];
                    outbox.push(destination(number), |out| out.extend_from_slice(&datagram));
                    pushed[usize::from(number)].push(datagram);
                }
                let count = outbox.datagram_count();
                prop_assert_eq!(count, pushed.iter().map(Vec::len).sum::<usize>());
                let mut drained = vec![Vec::new(); 4];
                outbox.drain(|batch| {
                    assert!(batch.bytes.len() <= BATCH_BYTES_MAX);
                    let number = usize::from(batch.destination.port());
                    let before: usize = drained[number].len();
                    drained[number].extend(batch.datagrams().map(<[u8]>::to_vec));
                    assert!(drained[number].len() - before <= SEGMENTS_MAX);
                });
                prop_assert_eq!(drained, pushed);
                prop_assert!(outbox.is_empty() && outbox.datagram_count() == 0);
            }
        }
    }

    #[test]
    fn equal_datagrams_share_batches_whatever_is_between_them() {
        let mut outbox = Outbox::new();
        for _ in 0..100 {
            for number in 0..10 {
                outbox.push(destination(number), |out| out.extend_from_slice(&[7; 100]));
            }
        }
        let mut sizes = Vec::new();
        outbox.drain(|batch| sizes.push(batch.datagrams().count()));
        assert_eq!(sizes, [[64; 10], [36; 10]].concat());
    }

    #[test]
    fn only_the_last_datagram_of_a_batch_is_shorter() {
        let mut outbox = Outbox::new();
        for size in [5, 5, 3, 5, 9, 9] {
            outbox.push(destination(0), |out| out.extend(std::iter::repeat_n(0, size)));
        }
        let mut batches: Vec<Vec<usize>> = Vec::new();
        outbox.drain(|batch| batches.push(batch.datagrams().map(<[u8]>::len).collect()));
        assert_eq!(batches, [vec![5, 5, 3], vec![5], vec![9, 9]]);
    }
}
