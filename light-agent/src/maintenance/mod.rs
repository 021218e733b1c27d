//! Stopping and removing the agent with leave: a maintenance token that the Integration
//! Server signed for this one guest and a time.
//!
//! ```text
//!  palisade-agent maintenance begin TOKEN ─► verified ─► maintenance.token
//!                                                             │ verified again, each time
//!  stop, uninstall, the package's removal ────────────────────┴─► allowed, or why not
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`command`] | `palisade-agent maintenance`, `stop` and `uninstall` |
//! | [`mod@unit`] | that systemd refuses to stop the service by hand |
//!
//! Owns whether leave is needed (`maintenance.token_required`) and given. It keeps honest
//! hands and scripts off, and makes the rest visible: who is root in a guest can kill the
//! agent, change its settings, or boot without it. The Integration Server says when an
//! agent is lost while its domain runs.

pub mod command;
pub mod unit;

use std::path::Path;

use anyhow::{Context as _, bail};
use palisade_daemon::membership::Membership;
use palisade_protocol::identity::Identity;
use palisade_protocol::maintenance::{self, Allowed, BadMaintenance, Grant, MAX_TEXT_BYTES};
use serde::Deserialize;

use crate::settings::Folders;
use crate::state_file::StateFile;

/// What an administrator sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether the agent is stopped and removed only with a maintenance token.
    pub token_required: bool,
}

/// The token in a state folder.
#[derive(Debug, Clone)]
pub struct TokenFile(StateFile);

impl TokenFile {
    /// The file in a state folder.
    pub fn new(state: &Path) -> Self {
        let path = state.join("maintenance.token");
        let damaged = "a damaged maintenance token allows nothing";
        // With its quotes.
        Self(StateFile::new(path, MAX_TEXT_BYTES as u64 + 2, damaged))
    }

    /// Keeps a token, if it counts here and now; gives what it allows.
    ///
    /// # Errors
    /// Why it does not count, or the disk's.
    pub fn begin(&self, text: &str, identity: &Identity, now_ms: u64) -> anyhow::Result<Grant> {
        let grant = verified(text, identity, now_ms)?;
        self.0.save(&text.trim())?;
        Ok(grant)
    }

    /// What is allowed now, if there is a token; why not, if it counts no more.
    pub fn grant(&self, identity: &Identity, now_ms: u64) -> Option<Result<Grant, BadMaintenance>> {
        let text: String = self.0.load()?;
        Some(verified(&text, identity, now_ms))
    }

    /// Ends it; says whether there was one.
    ///
    /// # Errors
    /// The system's.
    pub fn end(&self) -> std::io::Result<bool> {
        self.0.remove()
    }
}

fn verified(text: &str, identity: &Identity, now_ms: u64) -> Result<Grant, BadMaintenance> {
    maintenance::verify(text, &identity.trust(), identity.id(), now_ms)
}

/// Whether something may be done now.
///
/// # Errors
/// Why not, and what helps.
pub fn permit(
    settings: &Settings,
    folders: &Folders,
    wanted: Allowed,
    now_ms: u64,
) -> anyhow::Result<()> {
    if !settings.token_required {
        return Ok(());
    }
    // An agent of no site protects nothing, and nobody could give it leave.
    let Some(membership) = Membership::load(&folders.state)? else {
        return Ok(());
    };
    let what = match wanted {
        Allowed::Stop => "stopping",
        Allowed::Remove => "removing",
    };
    let helps = format!(
        "at the Integration Server, `palisade agent maintenance {}{} --reason WHY` prints a \
         token; give it to `palisade-agent maintenance begin`",
        membership.name,
        match wanted {
            Allowed::Stop => "",
            Allowed::Remove => " --remove",
        }
    );
    match TokenFile::new(&folders.state).grant(&membership.identity, now_ms) {
        Some(Ok(grant)) if grant.allowed.covers(wanted) => Ok(()),
        Some(Ok(grant)) => bail!(
            "{what} this agent needs more than the maintenance token {} allows, which is to {}: \
             {helps}",
            grant.id,
            grant.allowed.as_str()
        ),
        Some(Err(error)) => Err(error).with_context(|| format!("{what} this agent: {helps}")),
        None => bail!("{what} this agent needs a maintenance token: {helps}"),
    }
}
