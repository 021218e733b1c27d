//! Places of a site, as paths: `/`, `/tenants/acme`, `/tenants/acme/groups/web`,
//! `/tenants/acme/groups/web/vms/ID`, `/tenants/acme/vms/ID`.
//!
//! A grant is given for a place and holds for all below it; an object has one place.

use std::fmt;
use std::str::FromStr;

use palisade_protocol::ids::{AgentId, TenantId};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest path, in bytes: two names of 63, an id of 36 and what stands between.
pub const MAX_PATH_BYTES: usize = 192;
/// Longest name of a group, in bytes.
const MAX_GROUP_BYTES: usize = 63;

/// A place: the site, a tenant, a group of its VMs, or one VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Scope {
    tenant: Option<Tenant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Tenant {
    name: TenantId,
    group: Option<String>,
    vm: Option<AgentId>,
}

/// A text is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no path: /, /tenants/NAME, /tenants/NAME/groups/NAME and /tenants/NAME/vms/ID are"
)]
pub struct BadScope(String);

impl Scope {
    /// The whole site.
    pub const fn site() -> Self {
        Self { tenant: None }
    }

    /// One tenant.
    pub const fn tenant(name: TenantId) -> Self {
        Self {
            tenant: Some(Tenant {
                name,
                group: None,
                vm: None,
            }),
        }
    }

    /// A group of a tenant's VMs; none where this is no group's name.
    pub fn group(tenant: TenantId, name: &str) -> Option<Self> {
        is_group(name).then(|| Self {
            tenant: Some(Tenant {
                name: tenant,
                group: Some(name.to_owned()),
                vm: None,
            }),
        })
    }

    /// One VM of a tenant: an agent's place.
    pub const fn vm(tenant: TenantId, vm: AgentId) -> Self {
        Self {
            tenant: Some(Tenant {
                name: tenant,
                group: None,
                vm: Some(vm),
            }),
        }
    }

    /// Whether this is the whole site.
    pub const fn is_site(&self) -> bool {
        self.tenant.is_none()
    }

    /// The tenant that this is in; none for the site.
    pub fn of_tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref().map(|tenant| &tenant.name)
    }

    /// Whether a place is this one or below it.
    pub fn covers(&self, place: &Self) -> bool {
        let Some(own) = &self.tenant else {
            return true;
        };
        let Some(other) = &place.tenant else {
            return false;
        };
        own.name == other.name
            && (own.group.is_none() || own.group == other.group)
            && (own.vm.is_none() || own.vm == other.vm)
    }
}

impl FromStr for Scope {
    type Err = BadScope;
    fn from_str(text: &str) -> Result<Self, BadScope> {
        let bad = || BadScope(text.chars().take(64).collect());
        if text == "/" {
            return Ok(Self::site());
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(bad());
        }
        let mut parts = text.strip_prefix('/').ok_or_else(bad)?.split('/');
        let mut next = || parts.next();
        if next() != Some("tenants") {
            return Err(bad());
        }
        let name = next().and_then(|name| name.parse().ok()).ok_or_else(bad)?;
        let mut kind = next();
        let mut group = None;
        if kind == Some("groups") {
            let name = next().filter(|name| is_group(name)).ok_or_else(bad)?;
            group = Some(name.to_owned());
            kind = next();
        }
        let vm = match kind {
            None => None,
            Some("vms") => {
                let id = next().filter(|id| id.len() == 36).ok_or_else(bad)?;
                Some(AgentId(id.parse().map_err(|_| bad())?))
            }
            Some(_) => return Err(bad()),
        };
        if next().is_some() {
            return Err(bad());
        }
        Ok(Self {
            tenant: Some(Tenant { name, group, vm }),
        })
    }
}

/// Lower-case letters, digits and hyphens, like a tenant's name.
fn is_group(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_GROUP_BYTES).contains(&name.len()) && name.bytes().all(is_known)
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tenant) = &self.tenant else {
            return f.write_str("/");
        };
        write!(f, "/tenants/{}", tenant.name.as_str())?;
        if let Some(group) = &tenant.group {
            write!(f, "/groups/{group}")?;
        }
        if let Some(vm) = tenant.vm {
            write!(f, "/vms/{}", vm.0)?;
        }
        Ok(())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests_support {
    use super::*;
    use proptest::prelude::*;

    /// A few names, so that equal ones come up.
    pub fn scopes() -> impl Strategy<Value = Scope> {
        let tenant = prop::sample::select(vec!["a", "ab", "b"]);
        let group = prop::option::of(prop::sample::select(vec!["g", "h"]));
        let vm = prop::option::of(0_u128..3);
        prop::option::weighted(0.8, (tenant, group, vm)).prop_map(|place| Scope {
            tenant: place.map(|(name, group, vm)| Tenant {
                name: name.parse().unwrap(),
                group: group.map(str::to_owned),
                vm: vm.map(|vm| AgentId(uuid::Uuid::from_u128(vm))),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::scopes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_path_is_refused() {
        let id = "01234567-89ab-4def-8123-456789abcdef";
        for good in [
            "/".to_owned(),
            "/tenants/acme".to_owned(),
            "/tenants/acme/groups/web".to_owned(),
            format!("/tenants/acme/groups/web/vms/{id}"),
            format!("/tenants/acme/vms/{id}"),
        ] {
            assert_eq!(good.parse::<Scope>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "//",
            "/tenants",
            "/tenants/",
            "/tenants/acme/",
            "/tenants/ACME",
            "/tenants/../x",
            "tenants/acme",
            "/tenants/acme/groups",
            "/tenants/acme/groups/",
            "/tenants/acme/groups/A",
            "/tenants/acme/vms/x",
            "/tenants/acme/vms/0123456789ab4def8123456789abcdef",
            "/tenants/acme/groups/web/tenants/x",
            "/groups/web",
        ] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_path_is_read_as_it_is_written(scope in scopes()) {
            let text = scope.to_string();
            prop_assert!(text.len() <= MAX_PATH_BYTES);
            prop_assert_eq!(text.parse::<Scope>().unwrap(), scope);
        }

        #[test]
        fn covering_is_an_order(a in scopes(), b in scopes(), c in scopes()) {
            prop_assert!(a.covers(&a) && Scope::site().covers(&a));
            prop_assert!(!(a.covers(&b) && b.covers(&a)) || a == b);
            prop_assert!(!(a.covers(&b) && b.covers(&c)) || a.covers(&c));
            prop_assert!(!a.covers(&b) || a.is_site() || a.of_tenant() == b.of_tenant());
        }
    }
}
