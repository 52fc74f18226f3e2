//! Body presence (P2, P6): what is in a log has its body, and that is the one that was ordered: its
//! digest is that of the identity, the kind and the bytes.

use hovercraft::{Entry, Index, NodeId, Payload, Request};

use super::{Violation, broken};

pub(super) fn check(node: NodeId, index: Index, entry: &Entry) -> Result<(), Violation> {
    let Payload::Request { request, .. } = &entry.payload else { return Ok(()) };
    let body = request.body().clone();
    let again = Request::new(request.identity(), request.lowest(), request.kind(), body);
    if again.key() == request.key() {
        return Ok(());
    }
    let what = format!("the body of {index}@{} at {node} is not what was ordered", entry.term);
    broken("body presence", "P2, P6", what)
}
