//! What a policy is of: `site`, `tenant:acme`, `group:ID`, `vm:ID`.

use std::fmt;
use std::str::FromStr;

use palisade_protocol::ids::{AgentId, TenantId};
use uuid::Uuid;

/// What a policy is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The whole site.
    Site,
    /// A tenant.
    Tenant(TenantId),
    /// A group, by its id: another one of the same name is another one.
    Group(Uuid),
    /// One VM, by its agent's id.
    Vm(AgentId),
}

/// A text names nothing that has a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} has no policy: site, tenant:NAME, group:ID and vm:ID have")]
pub struct BadSubject(String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.write_str("site"),
            Self::Tenant(name) => write!(f, "tenant:{name}"),
            Self::Group(id) => write!(f, "group:{id}"),
            Self::Vm(id) => write!(f, "vm:{id}"),
        }
    }
}

impl FromStr for Subject {
    type Err = BadSubject;
    fn from_str(text: &str) -> Result<Self, BadSubject> {
        let bad = || BadSubject(text.chars().take(64).collect());
        if text == "site" {
            return Ok(Self::Site);
        }
        let (kind, name) = text.split_once(':').ok_or_else(bad)?;
        match kind {
            "tenant" => name.parse().map(Self::Tenant).map_err(|_| bad()),
            // One spelling each: they are keys.
            "group" => {
                let id: AgentId = name.parse().map_err(|_| bad())?;
                Ok(Self::Group(id.0))
            }
            "vm" => name.parse().map(Self::Vm).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_each() {
        let id = "01234567-89ab-4def-8123-456789abcdef";
        for good in [
            "site".to_owned(),
            "tenant:acme".to_owned(),
            format!("group:{id}"),
            format!("vm:{id}"),
        ] {
            assert_eq!(good.parse::<Subject>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "/",
            "Site",
            "site:",
            "tenant:",
            "tenant:ACME",
            "tenant:a/b",
            "group:web",
            "vm:0123456789ab4def8123456789abcdef",
            "vm:01234567-89AB-4def-8123-456789abcdef",
            "host:hv1",
        ] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
    }
}
