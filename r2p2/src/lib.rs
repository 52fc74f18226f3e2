//! R2P2: a UDP transport made for RPCs (Kogias et al., ATC 2019).

mod body;
mod client;
mod link;
mod message;
mod options;
mod outbox;
mod partial;
mod reassembly;
mod repair;
mod replies;
mod request_ids;
mod segments;
mod server;
mod service;
mod time;
mod timers;
mod udp;
mod wire;

pub use body::Body;
pub use client::{
    ClientConfig, ClientEndpoint, ClientEvent, ClientEventKind, RequestError, RequestHandle,
};
pub use link::Link;
pub use message::{Message, MessageConfig, MessageReceiver, MessageSender};
pub use options::{Identity, Missing, Options, OptionsError, Session};
pub use outbox::{BATCH_BYTES_MAX, Batch, Outbox, SEGMENTS_MAX};
pub use reassembly::ReassemblyCounters;
pub use segments::SendError;
pub use server::{Incoming, ReplyTo, ServerConfig, ServerEndpoint};
pub use service::{Alarm, CallError, CallSettings, Client, Clock, Outcome, Server};
pub use time::Time;
pub use udp::{AsyncUdpLink, BindError, UdpConfig, UdpLink, UdpStatistics, Waker};
pub use wire::{
    DATAGRAM_BYTES_MAX, Feedback, HEADER_BYTES, Header, MessageType, PACKETS_MAX, Packet, Policy,
    WireError, message_type,
};
