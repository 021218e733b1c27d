//! Getting and loading the agent's identity.

use std::time::Duration;

use palisade_daemon::enrol::{EnrolError, enrol, read_token, read_token_file};
use palisade_daemon::membership::Membership;
use palisade_protocol::control::{Component, HostFacts};
use palisade_protocol::token::JoinToken;

use crate::settings::{Folders, Settings};

/// Between attempts of a daemon that has a token and finds no server.
const RETRY: Duration = Duration::from_secs(30);
/// The first waits are shorter: at a site's start the server may be late.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// `palisade-agent enrol`: enrols unless there is an identity already, and says
/// which. Gives the sentence to print.
///
/// # Errors
/// Why the agent could not enrol, and what helps.
pub async fn command(
    token: Option<&str>,
    settings: &Settings,
    folders: &Folders,
) -> anyhow::Result<String> {
    if let Some(membership) = Membership::load(&folders.state)? {
        return Ok(format!(
            "already enrolled as {} ({}); to enrol anew, remove {} first",
            membership.name,
            membership.identity.id(),
            folders.state.join("identity").display()
        ));
    }
    let token = match (token, &settings.join_token_file) {
        (Some(text), _) => read_token(text)?,
        (None, Some(path)) => read_token_file(path)?,
        (None, None) => anyhow::bail!(
            "no join token: give one (palisade-agent enrol TOKEN, or - for standard input), or \
             set join_token_file; `palisade token create` makes one"
        ),
    };
    let membership = join(&token, &settings.host_facts(), folders).await?;
    Ok(format!(
        "enrolled as {} ({})",
        membership.name,
        membership.identity.id()
    ))
}

/// The daemon's identity: kept, or got with the token file, waiting for a server.
///
/// # Errors
/// When there is no token, or the server refuses it.
pub async fn load_or_join(settings: &Settings, folders: &Folders) -> anyhow::Result<Membership> {
    if let Some(membership) = Membership::load(&folders.state)? {
        return Ok(membership);
    }
    let Some(path) = &settings.join_token_file else {
        anyhow::bail!(
            "this agent has no identity yet ({}): run `palisade-agent enrol TOKEN` or set \
             join_token_file; `palisade token create` makes a token",
            folders.state.display()
        );
    };
    let token = read_token_file(path)?;
    let mut wait = FIRST_RETRY;
    loop {
        match join(&token, &settings.host_facts(), folders).await {
            Ok(membership) => return Ok(membership),
            Err(error) => match error.downcast_ref::<EnrolError>() {
                Some(EnrolError::Unreachable(_)) => {
                    tracing::warn!(%error, "cannot enrol yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY);
                }
                _ => return Err(error),
            },
        }
    }
}

async fn join(
    token: &JoinToken,
    host: &HostFacts,
    folders: &Folders,
) -> anyhow::Result<Membership> {
    let membership = enrol(token, Component::Agent, host.clone()).await?;
    membership.save(&folders.state)?;
    tracing::info!(id = %membership.identity.id(), name = %membership.name, "enrolled");
    Ok(membership)
}
