//! A request that is asked of a second Protection Server when the first is quiet.
//!
//! ```text
//!  ask the first ──answer──────────────────────────────► done
//!        └ nothing heard for 0.5 s ─► ask the spare, too ─► the first verdict counts
//! ```
//!
//! Owns which answer counts; does not own when a session is quiet ([`crate::link`]) or
//! which one stands by ([`crate::selection`]). At most two are asked.

use std::sync::Arc;

use palisade_protocol::scan::ScanRequest;
use tokio::sync::watch;

use crate::link::{Link, LinkError, Offer, Reply};
use crate::selection::LinkState;

/// Asks over `link`, and over another session in force, if there is one, once `link` is
/// quiet. Says whether the other one answered, and what went wrong over `link` if neither
/// did.
pub async fn ask(
    link: &Arc<Link>,
    sessions: &watch::Receiver<LinkState>,
    request: &ScanRequest,
    offer: Offer<'_>,
) -> (Result<Reply, LinkError>, bool) {
    let ask = |link: Arc<Link>| {
        let request = request.clone();
        async move { link.ask(request, offer).await }
    };
    let mut first = std::pin::pin!(ask(Arc::clone(link)));
    tokio::select! {
        biased;
        reply = &mut first => return (reply, false),
        () = link.quiet() => {}
    }
    let Some(spare) = other_than(link, sessions) else {
        return (first.await, false);
    };
    tracing::debug!(svm = %link.id, spare = %spare.id, "nothing heard; the one that stands by is asked, too");
    let mut second = std::pin::pin!(ask(spare));
    let (reply, first_was_it) = tokio::select! {
        reply = &mut first => (reply, true),
        reply = &mut second => (reply, false),
    };
    if matches!(reply, Ok(Reply::Verdict(_) | Reply::Unreadable(_))) {
        return (reply, !first_was_it);
    }
    // Refused, busy or lost: the other one may still give a verdict.
    match first_was_it {
        true => match second.await {
            Ok(second) => (Ok(second), true),
            Err(_) => (reply, false),
        },
        false => match first.await {
            Ok(first) => (Ok(first), false),
            Err(error) => (reply.map_err(|_| error), true),
        },
    }
}

/// The session that may be asked beside this one.
fn other_than(link: &Link, sessions: &watch::Receiver<LinkState>) -> Option<Arc<Link>> {
    let state = sessions.borrow();
    let mut others = [state.link(), state.spare()].into_iter().flatten();
    others.find(|other| other.id != link.id).map(Arc::clone)
}
