//! The key-value service: an ordered map from bytes to bytes.
//!
//! # Encoding
//!
//! A command, a query and a reply are each a version byte and a validated rkyv record
//! (little-endian, unaligned, its root at the end):
//!
//! | bytes | content |
//! |---|---|
//! | 1 | [`FORMAT_VERSION`] |
//! | n | a [`Request`] in commands and queries, a [`Response`] in replies |
//!
//! A command may hold any [`Operation`], a query only those that read. A [`Request::Batch`] runs
//! its operations in order with nothing between them. A reply holds at most [`REPLY_BYTES_MAX`]
//! bytes, so a batch stops *before* the operation whose reply would not fit: the caller sees fewer
//! replies than it sent operations, and sends the rest again.
//!
//! What the service does not do it answers with a [`Refusal`]; nothing that a client sends panics.

mod blob;
mod client;
mod record;
mod service;
mod snapshot;

use bytes::Bytes;
pub use client::{Kv, KvError};
pub use record::{
    Condition, FORMAT_VERSION, Operation, Page, Refusal, Reply, Request, Response, decode_response,
    encode_request,
};
pub use service::KvService;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 64 << 10;

/// The longest value, in bytes; a page that holds it and its key fits a reply.
pub const VALUE_BYTES_MAX: usize = REPLY_BYTES_MAX - 2 * KEY_BYTES_MAX - 1024;

/// The largest reply, in bytes: what every R2P2 client accepts.
pub const REPLY_BYTES_MAX: usize = 8 << 20;

/// The most operations and keys in one request, because nothing else runs while it executes.
pub const REQUEST_ITEMS_MAX: usize = 65_536;

/// The most keys on one page of a scan.
pub const PAGE_KEYS_MAX: u32 = 10_000;

/// The first key behind all that begin with `prefix`; none if there is no such key.
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_begin_with_it() {
        assert_eq!(prefix_end(b"ab"), Some("ac".into()));
        assert_eq!(prefix_end(b"a\xFF\xFF"), Some("b".into()));
        assert_eq!(prefix_end(b"\xFF"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
