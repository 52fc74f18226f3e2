//! A key or a value as the map holds it.

use std::{borrow::Borrow, cmp::Ordering, sync::Arc};

use bytes::Bytes;

/// How many bytes may lie within the map's nodes.
const INLINE_BYTES_MAX: usize = 22;

/// Bytes that are held in place if they are few: a search compares some twenty keys, and each that
/// lies elsewhere costs a cache miss, which is most of what a search costs; and a small value that is
/// written costs no allocation. Many bytes are never copied by a clone.
#[derive(Debug, Clone)]
pub(super) enum Blob {
    Short { length: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Long(Arc<[u8]>),
}

impl Blob {
    /// The bytes, to be sent; many are not copied.
    pub(super) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Short { .. } => Bytes::copy_from_slice(self.as_ref()),
            Self::Long(bytes) => Bytes::from_owner(Arc::clone(bytes)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.as_ref().len()
    }
}

impl From<&[u8]> for Blob {
    fn from(content: &[u8]) -> Self {
        let mut bytes = [0; INLINE_BYTES_MAX];
        match bytes.get_mut(..content.len()) {
            Some(start) => {
                start.copy_from_slice(content);
                Self::Short { length: content.len() as u8, bytes }
            }
            None => Self::Long(content.into()),
        }
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Blob {
    fn borrow(&self) -> &[u8] {
        self.as_ref()
    }
}

// By their bytes, as `Borrow` demands.

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl Eq for Blob {}

impl PartialOrd for Blob {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Blob {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_ref().cmp(other.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn few_bytes_lie_in_place() {
        assert_eq!(size_of::<Blob>(), 24);
        assert!(matches!(Blob::from(&[7; 22][..]), Blob::Short { .. }));
        assert!(matches!(Blob::from(&[7; 23][..]), Blob::Long(_)));
    }

    proptest! {
        #[test]
        fn blobs_are_their_bytes(a in vec(0u8..3, 0..30), b in vec(0u8..3, 0..30)) {
            let (blob_a, blob_b) = (Blob::from(&a[..]), Blob::from(&b[..]));
            prop_assert_eq!(blob_a.as_ref(), &a[..]);
            prop_assert_eq!(blob_a.to_bytes(), &a[..]);
            prop_assert_eq!(blob_a.cmp(&blob_b), a.cmp(&b));
            prop_assert_eq!(blob_a == blob_b, a == b);
        }
    }
}
