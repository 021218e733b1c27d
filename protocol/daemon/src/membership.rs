//! What a component keeps of its site, in its state folder:
//!
//! ```text
//! identity/key.pem     its key (0600)
//! identity/chain.pem   its certificate, the issuing CA, the root
//! site.json            the servers' control addresses, and its name
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use palisade_protocol::identity::{Identity, IdentityError, write_atomic};
use serde::{Deserialize, Serialize};

/// A component's place in a site.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Its key and certificates.
    pub identity: Identity,
    /// Control addresses of the Integration Servers.
    pub servers: Vec<SocketAddr>,
    /// Its name for people, as the server gave it.
    pub name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteFile {
    servers: Vec<SocketAddr>,
    name: String,
}

/// Why a membership cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The identity is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The list of servers is unusable.
    #[error("{path}: {detail}; remove the folder and enrol again")]
    Site {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

impl Membership {
    /// Reads the membership in a state folder; `None` when there is none yet.
    ///
    /// # Errors
    /// [`MembershipError`] naming the file and the remedy.
    pub fn load(state: &Path) -> Result<Option<Self>, MembershipError> {
        let Some(identity) = Identity::load(&state.join("identity"))? else {
            return Ok(None);
        };
        let path = state.join("site.json");
        let damaged = |detail: String| MembershipError::Site {
            path: path.clone(),
            detail,
        };
        let text = std::fs::read_to_string(&path).map_err(|error| damaged(error.to_string()))?;
        let site: SiteFile =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(Self {
            identity,
            servers: site.servers,
            name: site.name,
        }))
    }

    /// Writes the membership; the identity last, because it is what `load` asks for.
    ///
    /// # Errors
    /// [`MembershipError`] naming the file.
    pub fn save(&self, state: &Path) -> Result<(), MembershipError> {
        let path = state.join("site.json");
        let site = SiteFile {
            servers: self.servers.clone(),
            name: self.name.clone(),
        };
        let text = serde_json::to_string_pretty(&site).map_err(|error| MembershipError::Site {
            path: path.clone(),
            detail: error.to_string(),
        })?;
        write_atomic(&path, text.as_bytes(), 0o644)?;
        Ok(self.identity.save(&state.join("identity"))?)
    }
}
