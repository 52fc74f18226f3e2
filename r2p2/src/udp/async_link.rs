//! A [`UdpLink`] that a tokio task waits for instead of a thread.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddrV4, UdpSocket},
    task::Poll,
};

use tokio::io::Interest;

use super::{BindError, Source, UdpConfig, UdpLink, UdpStatistics};
use crate::{AsyncLink, Link, Outbox};

/// A link for a task on tokio: wait for [`AsyncLink::readable`], then use it as a [`Link`].
#[derive(Debug)]
pub struct AsyncUdpLink {
    link: UdpLink,
    /// Second handles of the link's sockets, by which the runtime watches them.
    unicast: tokio::net::UdpSocket,
    member: Option<tokio::net::UdpSocket>,
}

impl AsyncUdpLink {
    /// Opens the sockets that `config` asks for.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn bind(config: &UdpConfig) -> Result<Self, BindError> {
        let link = UdpLink::bind(config)?;
        let watch = |socket: io::Result<UdpSocket>| {
            socket.and_then(tokio::net::UdpSocket::from_std).map_err(BindError::Socket)
        };
        let unicast = watch(link.unicast.try_clone())?;
        let member = link.member.as_ref();
        let member = member.map(|member| watch(member.try_clone())).transpose()?;
        Ok(Self { link, unicast, member })
    }

    /// The address that peers see, with the port that the kernel chose if none was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddrV4> {
        self.link.local_address()
    }

    /// What the link has done so far.
    pub fn statistics(&self) -> UdpStatistics {
        self.link.statistics()
    }
}

impl AsyncLink for AsyncUdpLink {
    async fn readable(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            if let Some(member) = &self.member
                && let Poll::Ready(ready) = member.poll_recv_ready(context)
            {
                return Poll::Ready(ready);
            }
            self.unicast.poll_recv_ready(context)
        })
        .await
    }
}

impl Link for AsyncUdpLink {
    fn send(&mut self, outbox: &mut Outbox) -> io::Result<()> {
        self.link.send(outbox)
    }

    fn receive(&mut self, each: &mut dyn FnMut(SocketAddrV4, &[u8])) -> io::Result<usize> {
        let mut count = 0;
        let group = self.member.as_ref().map(|member| (member, Source::Group));
        let sockets = group.into_iter().chain([(&self.unicast, Source::Unicast)]);
        for (watched, source) in sockets {
            // To say WouldBlock is how the runtime learns that the socket is drained. It must be said
            // in the call that drained it, for a later one could wipe out news of a later datagram.
            let drained = watched.try_io(Interest::READABLE, || {
                let (received, drained) = self.link.receive_from(source, each)?;
                count += received;
                if drained { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match drained {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(count)
    }
}
