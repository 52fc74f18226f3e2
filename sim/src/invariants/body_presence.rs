//! Body presence (P2, P6): what is in a log has its body, and that is the one that was ordered: its
//! digest is that of the identity, the kind and the bytes.

use hovercraft::{DigestKey, Entry, Index, NodeId, Payload};

use super::{Violation, broken};

pub(super) fn check(
    node: NodeId,
    digest_key: DigestKey,
    index: Index,
    entry: &Entry,
) -> Result<(), Violation> {
    let Payload::Request { request, .. } = &entry.payload else { return Ok(()) };
    if request.has_digest_of(digest_key) {
        return Ok(());
    }
    let what = format!("the body of {index}@{} at {node} is not what was ordered", entry.term);
    broken("body presence", "P2, P6", what)
}
