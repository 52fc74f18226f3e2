//! The trait that a service implements to be replicated.

use std::io::{self, Read, Write};

/// What a service may know of the outside while it executes: the same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The log index of the request; grows with every request.
    pub index: u64,
    /// The leader's clock when it ordered the request, in microseconds since the Unix epoch; never
    /// goes back (P22).
    pub time_us: u64,
    /// Random bits, fresh for each index and equal on all replicas.
    pub seed: u64,
}

/// Writes the state that a service had when the writer was made.
pub type SnapshotWriter = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A deterministic service: equal commands in equal order give equal replies and equal states.
///
/// What is required, and what a simulation of the service checks:
///
/// - Equal commands in equal order, from the empty state or from one that was restored, give the
///   same replies on every replica.
/// - After equal commands every query has the same answer on every replica.
/// - A snapshot holds everything that later replies and answers depend on. Its bytes may differ
///   from replica to replica.
///
/// Commands, queries and replies are bytes. A service reads no clock, no randomness and no
/// address: what it needs of these comes in the [`Context`]. A reply that depends on the order in
/// which a `HashMap` with a random hasher is iterated is the classic mistake.
///
/// The input of `execute` and `query` comes from clients unchecked: what a service cannot parse it
/// answers with an error reply of its own. A panic in `execute` stops the replica's service (P42):
/// the state may be half changed, and every replica would panic at the same entry. A panic in
/// `query` is answered to the client as an error, and the service goes on.
pub trait StateMachine: Send + 'static {
    /// Executes a command, which may change the state, and appends the reply to `reply`.
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>);

    /// Executes a query, which changes nothing, and appends the reply to `reply`.
    ///
    /// After a panic the service goes on as if the query had not been. So what a query changes
    /// behind a `&self` (a cache in a lock, say) must stay usable when it panics half-way.
    fn query(&self, context: &Context, query: &[u8], reply: &mut Vec<u8>);

    /// Takes the state as it is now, cheaply (the service stands still meanwhile), and returns
    /// what writes it, which runs on another thread while commands go on.
    fn snapshot(&self) -> SnapshotWriter;

    /// Replaces the whole state by one that a [`SnapshotWriter`] wrote.
    ///
    /// The bytes may come from another replica, so they are input to check. On an error, or after
    /// a panic, the state may be anything: the replica then restores a snapshot of its own, so
    /// this must work whatever an earlier call left behind.
    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()>;

    /// Returns a digest of the whole state, equal wherever the state is. Simulations compare it
    /// between replicas, and find at once what replies would show later. None by default.
    fn digest(&self) -> Option<u64> {
        None
    }
}
