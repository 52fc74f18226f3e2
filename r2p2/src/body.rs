//! The bytes of a message: borrowed where one datagram holds them all, shared otherwise.

use std::ops::Deref;

use bytes::Bytes;

/// The body of a message.
///
/// A message of a single packet is borrowed from its datagram, so that receiving it allocates
/// nothing; one of several packets owns the bytes that it was put together from.
#[derive(Debug, Clone)]
pub enum Body<'a> {
    /// Part of a datagram that the caller still holds.
    Borrowed(&'a [u8]),
    /// A buffer of its own, cheap to clone.
    Shared(Bytes),
}

impl Body<'_> {
    /// The bytes as a value that outlives the datagram; copies them if they are borrowed.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes,
        }
    }
}

impl Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl PartialEq for Body<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Body<'_> {}

impl<'a> From<&'a [u8]> for Body<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl From<Bytes> for Body<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Shared(bytes)
    }
}
