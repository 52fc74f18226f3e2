//! The randomness that a process starts with: seeds, and numbers that no two may share.

/// From the operating system, or from the seed of a simulation.
pub(crate) fn random_u64() -> u64 {
    #[cfg(madsim)]
    return madsim::rand::random();
    #[cfg(not(madsim))]
    {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    }
}

/// As [`random_u64`], but never 0, which stands for nobody.
pub(crate) fn random_number() -> u64 {
    random_u64().max(1)
}
