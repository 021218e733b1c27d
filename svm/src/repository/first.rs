//! Waiting for the first definitions of all: a Protection Server that has none serves
//! nobody, and says so to the Integration Server meanwhile.

use std::sync::Arc;
use std::time::Duration;

use palisade_daemon::control::{ControlError, Session};
use palisade_daemon::host;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{FromServer, Hello, SvmReport, ToServer};
use palisade_protocol::problem::{Problem, ProblemKind};
use tokio::sync::mpsc;

use super::Follower;
use super::pull::PullError;
use crate::cache::now_ms;
use crate::report::Standing;

/// Between two attempts to connect, and two pulls that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Waits until the wanted generation is here and another one than before; `loaded` says
/// why the one that is here cannot be used.
pub async fn wait(
    follower: &Arc<Follower>,
    membership: &Membership,
    standing: &Standing,
    loaded: Option<&str>,
) {
    tracing::warn!(
        "there are no definitions yet: waiting for those of the site (`palisade definitions import DIR`)"
    );
    loop {
        let hello = Hello {
            version: Text::cut(env!("CARGO_PKG_VERSION")),
            host: host::facts(),
        };
        match Session::connect(membership, hello).await {
            Ok((session, _, pushed)) => {
                let came = come(follower, &session, pushed, standing, loaded).await;
                session.close();
                match came {
                    Ok(()) => return,
                    Err(error) => tracing::info!(%error, "waiting for definitions goes on"),
                }
            }
            Err(error) => tracing::info!(%error, "no Integration Server; it is tried again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn come(
    follower: &Follower,
    session: &Session,
    mut pushed: mpsc::Receiver<FromServer>,
    standing: &Standing,
    loaded: Option<&str>,
) -> Result<(), ControlError> {
    let mut since_ms = now_ms();
    let mut wait = None;
    loop {
        let why = loaded.map_or_else(
            || PullError::NothingOffered.sentence(),
            |why| format!("the site's definitions cannot be used: {why}"),
        );
        let why = follower.problem().unwrap_or_else(|| Text::cut(&why));
        let report = ToServer::SvmReport(report(standing, why, since_ms));
        session.request(&report).await?;
        // Only what the server says is a reason, until a pull has failed.
        let told = async {
            loop {
                match pushed.recv().await {
                    Some(FromServer::Published { .. }) => return Ok(()),
                    Some(_) => {}
                    None => return Err(ControlError::Closed),
                }
            }
        };
        match wait {
            None => told.await?,
            Some(wait) => {
                if let Ok(told) = tokio::time::timeout(wait, told).await {
                    told?;
                }
            }
        }
        match follower.pull(session).await {
            Ok(pulled) if pulled.changed || loaded.is_none() => return Ok(()),
            Ok(_) => wait = None,
            Err(PullError::Cut(_)) => return Err(ControlError::Closed),
            Err(_) => {
                since_ms = since_ms.min(now_ms());
                wait = Some(RETRY);
            }
        }
    }
}

fn report(standing: &Standing, why: Text<1024>, since_ms: u64) -> SvmReport {
    SvmReport {
        addresses: List::default(),
        path: standing.path.clone(),
        licence: standing.licence,
        average_load: Default::default(),
        agents: 0,
        generations: List::default(),
        draining: true,
        tags: List::cut(standing.tags.iter().cloned()),
        problems: List::cut([Problem {
            kind: ProblemKind::DefinitionsRepository { why },
            since_ms,
        }]),
        tenants: List::cut(standing.tenants.iter().cloned()),
        followed: None,
    }
}
