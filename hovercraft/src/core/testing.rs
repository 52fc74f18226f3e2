//! Entries and requests for the tests of this crate.

use std::{net::Ipv4Addr, net::SocketAddrV4, sync::Arc};

use bytes::Bytes;

use crate::{
    entry::{Entry, NodeId, Payload, Term},
    request::{Identity, Kind, Request, ReturnPath},
};

pub(crate) fn request(client: u64, sequence: u64) -> Arc<Request> {
    request_of(client, sequence, 1, Kind::Write, b"body")
}

pub(crate) fn request_of(
    client: u64,
    sequence: u64,
    lowest: u64,
    kind: Kind,
    body: &'static [u8],
) -> Arc<Request> {
    let identity = Identity::Session { client, sequence };
    Arc::new(Request::new(identity, lowest, kind, Bytes::from_static(body)))
}

pub(crate) fn return_path(port: u16) -> ReturnPath {
    ReturnPath { address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), request_id: port }
}

pub(crate) fn entry(term: Term, payload: Payload) -> Entry {
    Entry { term, log_time_us: 0, session_delta_us: 0, payload, return_path: None }
}

pub(crate) fn noop(term: Term) -> Entry {
    entry(term, Payload::Noop)
}

/// A write of `client` in `term`, with replier 1.
pub(crate) fn write(term: Term, client: u64, sequence: u64) -> Entry {
    let payload = Payload::Request { replier: NodeId(1), request: request(client, sequence) };
    entry(term, payload)
}
