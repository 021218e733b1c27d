//! SPIFFE ids: the role, tenant and id that a certificate vouches for.
//!
//! ```text
//! spiffe://<deployment>/tenant/<tenant>/agent/<uuid>
//! spiffe://<deployment>/svm/<uuid>
//! spiffe://<deployment>/server/<name>
//! ```
//!
//! An agent always belongs to a tenant, and its certificate says which. A
//! Protection Server and an Integration Server belong to the site and serve
//! every tenant, so they carry none. One text for one id: parsing accepts what
//! [`SpiffeId`]'s `Display` writes and nothing else.

use std::fmt;
use std::str::FromStr;

use crate::ids::{AgentId, BadId, DeploymentId, ServerName, SvmId, TenantId};

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A Light Agent of a tenant.
    Agent {
        /// Whose guest it runs in.
        tenant: TenantId,
        /// Which agent.
        id: AgentId,
    },
    /// A Protection Server.
    Svm(SvmId),
    /// An Integration Server.
    Server(ServerName),
}

impl Role {
    /// The role's kind, without its id.
    pub fn kind(&self) -> RoleKind {
        match self {
            Self::Agent { .. } => RoleKind::Agent,
            Self::Svm(_) => RoleKind::Svm,
            Self::Server(_) => RoleKind::Server,
        }
    }

    /// The tenant that the role belongs to, if it belongs to one.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Agent { tenant, .. } => Some(tenant),
            Self::Svm(_) | Self::Server(_) => None,
        }
    }
}

/// The kinds of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoleKind {
    /// Light Agent.
    Agent,
    /// Protection Server.
    Svm,
    /// Integration Server.
    Server,
}

impl fmt::Display for RoleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "Light Agent",
            Self::Svm => "Protection Server",
            Self::Server => "Integration Server",
        })
    }
}

/// A component's identity within a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The trust domain.
    pub deployment: DeploymentId,
    /// Who it is.
    pub role: Role,
}

impl SpiffeId {
    /// Longest text, in bytes: three labels, a UUID and the fixed parts.
    pub const MAX_BYTES: usize = 256;

    /// An agent's id.
    pub fn agent(deployment: &DeploymentId, tenant: &TenantId, id: AgentId) -> Self {
        Self {
            deployment: deployment.clone(),
            role: Role::Agent {
                tenant: tenant.clone(),
                id,
            },
        }
    }

    /// A Protection Server's id.
    pub fn svm(deployment: &DeploymentId, id: SvmId) -> Self {
        Self {
            deployment: deployment.clone(),
            role: Role::Svm(id),
        }
    }

    /// An Integration Server's id.
    pub fn server(deployment: &DeploymentId, name: &ServerName) -> Self {
        Self {
            deployment: deployment.clone(),
            role: Role::Server(name.clone()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.deployment)?;
        match &self.role {
            Role::Agent { tenant, id } => write!(f, "tenant/{tenant}/agent/{id}"),
            Role::Svm(id) => write!(f, "svm/{id}"),
            Role::Server(name) => write!(f, "server/{name}"),
        }
    }
}

/// A text is not a Palisade SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSpiffeId {
    /// The shape is not one of the three.
    #[error("{0:?} is not a Palisade SPIFFE id")]
    Shape(String),
    /// A part of it is malformed.
    #[error(transparent)]
    Part(#[from] BadId),
}

impl FromStr for SpiffeId {
    type Err = BadSpiffeId;
    fn from_str(text: &str) -> Result<Self, BadSpiffeId> {
        let shape = || BadSpiffeId::Shape(text.chars().take(Self::MAX_BYTES).collect());
        if text.len() > Self::MAX_BYTES {
            return Err(shape());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(shape)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let (deployment, role) = match parts.as_slice() {
            [deployment, "tenant", tenant, "agent", id] => (
                deployment,
                Role::Agent {
                    tenant: tenant.parse()?,
                    id: id.parse()?,
                },
            ),
            [deployment, "svm", id] => (deployment, Role::Svm(id.parse()?)),
            [deployment, "server", name] => (deployment, Role::Server(name.parse()?)),
            _ => return Err(shape()),
        };
        Ok(Self {
            deployment: deployment.parse()?,
            role,
        })
    }
}
