//! Where all chance comes from.

use hovercraft::DigestKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The one number that a run derives from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The stream of one source of chance. Each source has its own, so that what one of them does,
    /// or whether it is there at all, does not reshuffle the others.
    pub(crate) fn stream(self, source: &str, number: u64) -> fastrand::Rng {
        let name = xxh3_64_with_seed(source.as_bytes(), number);
        fastrand::Rng::with_seed(xxh3_64_with_seed(&name.to_le_bytes(), self.0))
    }

    /// The secret of the cluster (P2). Simulated clients know it, because they hand over requests
    /// with their digests.
    pub(crate) fn digest_key(self) -> DigestKey {
        let mut stream = self.stream("digest key", 0);
        DigestKey::new([stream.u64(..), stream.u64(..)])
    }
}
