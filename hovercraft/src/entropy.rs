//! The randomness that a process starts with: seeds, secrets, and numbers that no two may share.

use crate::digest::DigestKey;

/// Draws from the operating system, or from the seed of a simulation.
pub(crate) fn random_u64() -> u64 {
    #[cfg(madsim)]
    return madsim::rand::random();
    #[cfg(not(madsim))]
    {
        let mut bytes = [0; 8];
        // So few bytes come whole or not at all, and at most wait for the start of the machine.
        let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(count, Ok(bytes.len()), "the kernel gives random bytes to every process");
        u64::from_le_bytes(bytes)
    }
}

/// Draws the secret of a cluster.
pub(crate) fn random_key() -> DigestKey {
    DigestKey::new([random_u64(), random_u64()])
}

/// As [`random_u64`], but never 0, which stands for nobody.
pub(crate) fn random_number() -> u64 {
    random_u64().max(1)
}
