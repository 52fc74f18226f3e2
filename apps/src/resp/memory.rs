//! How much memory the connections may hold together.
//!
//! A few large requests and replies at a time are normal; every connection holding one is an
//! attack, or too many clients. So each may hold a little of its own, and what goes beyond comes
//! out of one pool. A connection never waits for the pool, because two that each hold a half of
//! what they need would wait for ever: it is told so and ends.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a connection may hold without asking, in bytes.
const FREE_BYTES: usize = 64 << 10;

/// What the connections share.
#[derive(Debug, Clone)]
pub(super) struct Pool(Arc<Semaphore>);

/// What one connection holds of the pool; given back when dropped.
#[derive(Debug)]
pub(super) struct Loan {
    pool: Pool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    /// A pool of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// A loan of nothing yet.
    pub(super) fn loan(&self) -> Loan {
        Loan { pool: self.clone(), permit: None }
    }
}

impl Loan {
    /// Takes what is missing to hold `bytes`; false, and nothing taken, if the pool has not enough.
    pub(super) fn cover(&mut self, bytes: usize) -> bool {
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.saturating_sub(FREE_BYTES).saturating_sub(held);
        if missing == 0 {
            return true;
        }
        let Ok(missing) = u32::try_from(missing) else {
            return false;
        };
        let Ok(more) = Arc::clone(&self.pool.0).try_acquire_many_owned(missing) else {
            return false;
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        true
    }

    /// Gives everything back.
    pub(super) fn release(&mut self) {
        self.permit = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_what_is_beyond_their_own() {
        const POOL_BYTES: usize = 1 << 20;
        let pool = Pool::new(POOL_BYTES);
        let (mut first, mut second) = (pool.loan(), pool.loan());
        assert!(first.cover(POOL_BYTES));
        assert!(second.cover(2 * FREE_BYTES));
        assert!(!second.cover(2 * FREE_BYTES + 1));
        assert!(!second.cover(usize::MAX));
        assert!(second.cover(FREE_BYTES), "it still holds what it had");
        first.release();
        assert!(second.cover(POOL_BYTES));
        drop(second);
        assert!(first.cover(POOL_BYTES + FREE_BYTES));
    }
}
