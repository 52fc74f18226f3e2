//! Planted bugs: one-line defects that are in the product only with the feature `planted`, and there
//! only in threads that choose one. The simulation proves with them that it finds what it should.
//!
//! `planted!("name")` stands where the mistake is; without the feature it is the constant `false`,
//! and nothing of it is compiled in. The names are listed in `sim/src/bugs.rs`.

/// True if this thread has chosen the defect of this name.
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

#[cfg(feature = "planted")]
pub use chosen::*;

#[cfg(feature = "planted")]
mod chosen {
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<u64> = const { Cell::new(0) };
        static CLOCK_US: Cell<u64> = const { Cell::new(0) };
    }

    /// From now on this thread has the defect of this name, or none.
    pub fn plant(name: Option<&str>) {
        CHOSEN.set(name.map_or(0, number));
    }

    /// Returns what a replica that this thread runs next would read from its clock.
    pub fn set_clock_us(clock_us: u64) {
        CLOCK_US.set(clock_us);
    }

    /// Returns what [`set_clock_us`] said last.
    pub fn clock_us() -> u64 {
        CLOCK_US.get()
    }

    /// Returns whether this thread has chosen the defect of this number.
    pub fn is_chosen(number: u64) -> bool {
        CHOSEN.get() == number
    }

    /// FNV-1a: a number for a name, at compile time.
    pub const fn number(name: &str) -> u64 {
        let (bytes, mut hash, mut at) = (name.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        hash
    }
}
