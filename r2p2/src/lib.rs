//! R2P2: a UDP transport made for RPCs (Kogias et al., ATC 2019).

#[macro_use]
#[doc(hidden)]
pub mod planted;

mod body;
mod bypass;
mod check;
mod client;
mod clock;
mod link;
mod message;
mod options;
mod outbox;
mod partial;
mod pass_on;
mod reassembly;
mod repair;
mod replies;
mod request_ids;
mod router;
mod segments;
mod server;
// On real sockets alone: the simulation has a network of its own.
#[cfg(not(madsim))]
mod service;
mod time;
mod timers;
mod udp;
mod wire;

pub use body::Body;
pub use check::{CheckSeed, put_check_right};
pub use client::{
    ClientConfig, ClientEndpoint, ClientEvent, ClientEventKind, RequestError, RequestHandle,
};
pub use clock::{Alarm, Clock};
pub use link::{AsyncLink, Link, WaitLink};
pub use message::{Message, MessageConfig, MessageReceiver, MessageSender};
pub use options::{Identity, Missing, Options, OptionsError, Reason, Session};
pub use outbox::{BATCH_BYTES_MAX, Batch, Outbox, SEGMENTS_MAX};
pub use pass_on::{has_room_for_origin, pass_on, refuse};
pub use reassembly::ReassemblyCounters;
pub use router::{Router, RouterConfig, RouterCounters, Routing};
pub use segments::SendError;
pub use server::{Incoming, ReplyTo, ServerConfig, ServerEndpoint};
#[cfg(not(madsim))]
pub use service::{CallError, CallSettings, Client, Outcome, Server};
pub use time::Time;
#[cfg(not(madsim))]
pub use udp::AsyncUdpLink;
pub use udp::{BindError, UdpConfig, UdpLink, UdpStatistics};
pub use wire::{
    DATAGRAM_BYTES_MAX, Feedback, HEADER_BYTES, Header, MessageType, PACKETS_MAX, Packet, Policy,
    WireError, message_type,
};
