//! The keyed digest that ties a request to its place in the order (P2).
//!
//! A digest without a secret can be collided by hand by whoever knows the function, and two
//! replicas would bind different bodies to the same metadata. So the function has a key, which the
//! replicas of a cluster share and nobody else knows.

use std::fmt;

use highway::{HighwayHash, HighwayHasher, Key as HighwayKey};
use rkyv::{Archive, Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::request::Request;

/// 64 bits over everything that execution reads: session option, kind and body (P2).
///
/// Computed under the cluster's [`DigestKey`]: equal on all replicas, and of no use to guess at for
/// anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u64);

/// The secret under which a cluster computes its digests: 128 bits, drawn once by `init`.
///
/// It stands in every replica's birth and snapshots, and is never told to clients or operators.
#[derive(Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DigestKey([u64; 2]);

/// The longest body that is hashed by `SipHash`; above it `HighwayHash`, by SIMD, is faster.
const SHORT_BYTES_MAX: usize = 256;

impl DigestKey {
    /// Creates the key of these 128 bits, which must be random and secret in a real cluster.
    pub const fn new(secret: [u64; 2]) -> Self {
        Self(secret)
    }

    /// Computes the digest of a request with this head and body.
    pub(crate) fn digest(self, head: &[u8; Request::HEAD_BYTES], body: &[u8]) -> Digest {
        const HEAD: usize = Request::HEAD_BYTES;
        // One call over a copy costs less than feeding the parts.
        let mut buffer = [0; HEAD + SHORT_BYTES_MAX];
        match buffer.get_mut(..HEAD + body.len()) {
            Some(whole) => {
                whole[..HEAD].copy_from_slice(head);
                whole[HEAD..].copy_from_slice(body);
                Digest(self.short().hash(whole))
            }
            None => {
                let mut hasher = HighwayHasher::new(self.long());
                hasher.append(head);
                hasher.append(body);
                Digest(hasher.finalize64())
            }
        }
    }

    fn short(self) -> SipHasher13 {
        let [first, second] = self.0;
        SipHasher13::new_with_keys(first, second)
    }

    /// `HighwayHash` wants 256 bits; the further ones are derived by `SipHash`, which tells nobody
    /// the first ones.
    fn long(self) -> HighwayKey {
        let derived = |number: u8| self.short().hash(&[number]);
        HighwayKey([derived(0), derived(1), derived(2), derived(3)])
    }
}

impl fmt::Debug for DigestKey {
    /// Never the bits: what is debugged is logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::request::{Identity, Kind};

    const KEY: DigestKey = DigestKey::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
    const HEAD: [u8; Request::HEAD_BYTES] = [7; Request::HEAD_BYTES];

    /// Two bodies that XXH3 without a key gives one digest, found without a search: where a word of
    /// the input equals that of the public secret, the product of both words is zero, whatever the
    /// other one is. The last 16 of 97 bytes are in one such product alone.
    fn bodies_that_collide_by_hand() -> [Bytes; 2] {
        const SECRET_WORD: [u8; 8] = [0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb];
        [*b"for node", *b"the rest"].map(|chosen| {
            let same = [b'x'; 55];
            Bytes::from([&same[..], &SECRET_WORD, &chosen].concat())
        })
    }

    #[test]
    fn values_that_collide_by_hand_without_a_key_have_different_digests() {
        let bodies = bodies_that_collide_by_hand();
        assert_eq!(bodies[0].len(), 71);
        let unkeyed = bodies.each_ref().map(|body| xxh3_64(&[&HEAD[..], body].concat()));
        assert_eq!(unkeyed[0], unkeyed[1], "they are chosen so that XXH3 collides");
        for number in 0..1000 {
            let key = DigestKey::new([number, 3]);
            let [one, other] = bodies.each_ref().map(|body| {
                let identity = Identity::Session { client: 9, sequence: 1 };
                Request::new(key, identity, 1, Kind::Write, body.clone()).digest()
            });
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{KEY:?}"), "DigestKey(secret)");
    }

    #[test]
    fn every_byte_counts_and_so_does_the_key() {
        let other = DigestKey::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3211]);
        for len in [0, 1, 24, 71, 255, 256, 257, 300, 5000_usize] {
            let body: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let digest = KEY.digest(&HEAD, &body);
            assert_eq!(digest, KEY.digest(&HEAD, &body));
            assert_ne!(digest, other.digest(&HEAD, &body), "{len}");
            for at in 0..HEAD.len() {
                let mut head = HEAD;
                head[at] ^= 1;
                assert_ne!(digest, KEY.digest(&head, &body), "{len}, head {at}");
            }
            for at in 0..body.len() {
                let mut body = body.clone();
                body[at] ^= 0x80;
                assert_ne!(digest, KEY.digest(&HEAD, &body), "{len}, body {at}");
            }
            assert_ne!(digest, KEY.digest(&HEAD, &[&body[..], &[0]].concat()), "{len}");
        }
    }

    /// If this fails, replicas of two builds disagree about every request, and no log can be read.
    #[test]
    fn the_functions_are_these() {
        let body: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let digests = [0, 24, 256, 257, 1000].map(|len| KEY.digest(&HEAD, &body[..len]).0);
        assert_eq!(
            digests,
            [
                7_729_231_065_215_701_243,
                1_069_868_606_110_085_112,
                4_802_739_149_390_658_955,
                10_460_856_793_255_779_649,
                12_950_629_501_825_197_081,
            ]
        );
    }
}
