//! Planted bugs, as in [`r2p2::planted`].

#[cfg(feature = "planted")]
pub use r2p2::planted::*;

/// Whether this thread has chosen the defect of this name.
#[cfg(feature = "planted")]
macro_rules! planted {
    ($name:literal) => {{
        const NAME: u64 = $crate::planted::number($name);
        $crate::planted::is_chosen(NAME)
    }};
}

#[cfg(not(feature = "planted"))]
macro_rules! planted {
    ($name:literal) => {
        false
    };
}

/// The clock of the replica that this thread runs, for a defect that reads one.
#[cfg(not(feature = "planted"))]
pub(crate) const fn clock_us() -> u64 {
    0
}
