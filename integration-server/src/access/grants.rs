//! The decision: may this caller do that, there?

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::role::{Permission, Role};
use super::scope::Scope;

/// Most grants of one account.
pub const MAX_GRANTS: usize = 32;

/// A role at a place and all below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Which role.
    pub role: Role,
    /// Where: `/`, `/tenants/NAME`, `/tenants/NAME/vms/ID`.
    #[schema(value_type = String, max_length = 192)]
    pub path: Scope,
}

/// A grant that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadGrant {
    /// A tenant's admin is one of a tenant.
    #[error(
        "tenant_admin is given for a path below /tenants, like /tenants/acme; for / there is admin"
    )]
    TenantAdminOfSite,
    /// There are too many.
    #[error("an account has at most {MAX_GRANTS} grants")]
    TooMany,
}

impl Grant {
    /// Whether it allows something somewhere. What is the site's is nothing that anybody
    /// has within a tenant.
    fn allows(&self, permission: Permission, place: &Scope) -> bool {
        self.role.has(permission)
            && self.path.covers(place)
            && (place.is_site() || !permission.is_of_site())
    }
}

/// Looks at grants before they are kept; sorted, each once.
///
/// # Errors
/// [`BadGrant`].
pub fn checked(mut grants: Vec<Grant>) -> Result<Vec<Grant>, BadGrant> {
    if grants.len() > MAX_GRANTS {
        return Err(BadGrant::TooMany);
    }
    let of_site = |grant: &Grant| grant.role == Role::TenantAdmin && grant.path.is_site();
    if grants.iter().any(of_site) {
        return Err(BadGrant::TenantAdminOfSite);
    }
    grants.sort();
    grants.dedup();
    Ok(grants)
}

/// What one caller may do: an account's grants, and within them what the token that
/// he shows is limited to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    grants: Vec<Grant>,
    limit: Option<Grant>,
}

impl Access {
    /// All of an account's.
    pub const fn of(grants: Vec<Grant>) -> Self {
        Self {
            grants,
            limit: None,
        }
    }

    /// Everything everywhere: who holds the machine's own token.
    pub fn everything() -> Self {
        Self::of(vec![Grant {
            role: Role::Admin,
            path: Scope::site(),
        }])
    }

    /// The same within a token's limit.
    #[must_use]
    pub fn limited(self, limit: Grant) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// Whether something may be done at a place. What nothing allows is refused.
    pub fn may(&self, permission: Permission, place: &Scope) -> bool {
        self.grants
            .iter()
            .any(|grant| grant.allows(permission, place))
            && self
                .limit
                .as_ref()
                .is_none_or(|limit| limit.allows(permission, place))
    }

    /// Whether there is any place where something may be done: the places that grants
    /// and limit name are enough to look at, since what is below them has no more.
    pub fn may_somewhere(&self, permission: Permission) -> bool {
        self.grants
            .iter()
            .chain(&self.limit)
            .any(|grant| self.may(permission, &grant.path))
    }

    /// Whether this grant may be given or taken: nobody gives what he does not have.
    pub fn may_give(&self, grant: &Grant) -> bool {
        self.may(Permission::ManageAccounts, &grant.path)
            && grant
                .role
                .permissions()
                .filter(|permission| grant.allows(*permission, &grant.path))
                .all(|permission| self.may(permission, &grant.path))
    }

    /// Whether an account with these grants may be changed: who has more than the caller,
    /// or nothing that is his, is not his to change.
    pub fn may_manage(&self, grants: &[Grant]) -> bool {
        match grants {
            [] => self.may(Permission::ManageAccounts, &Scope::site()),
            grants => grants.iter().all(|grant| self.may_give(grant)),
        }
    }

    /// Whether an account with these grants may be seen.
    pub fn may_see(&self, grants: &[Grant]) -> bool {
        let sees = |place: &Scope| self.may(Permission::SeeAccounts, place);
        match grants {
            [] => sees(&Scope::site()),
            grants => grants.iter().all(|grant| sees(&grant.path)),
        }
    }

    /// The tenants outside of which a permission allows nothing; none when it holds for
    /// the whole site.
    pub fn tenants(&self, permission: Permission) -> Option<Vec<String>> {
        if self.may(permission, &Scope::site()) {
            return None;
        }
        let mut tenants: Vec<String> = self
            .grants
            .iter()
            .chain(&self.limit)
            .filter(|grant| self.may(permission, &grant.path))
            .filter_map(|grant| grant.path.of_tenant())
            .map(|tenant| tenant.as_str().to_owned())
            .collect();
        tenants.sort();
        tenants.dedup();
        Some(tenants)
    }
}

#[cfg(test)]
mod tests {
    use super::super::role::{ROLES, TABLE};
    use super::super::scope::tests_support::scopes;
    use super::*;
    use proptest::prelude::*;

    fn permissions() -> impl Strategy<Value = Permission> {
        prop::sample::select(TABLE.map(|(permission, _)| permission).to_vec())
    }

    fn grants() -> impl Strategy<Value = Vec<Grant>> {
        let role = prop::sample::select(ROLES.to_vec());
        let grant = (role, scopes()).prop_map(|(role, path)| Grant { role, path });
        let sound = |grant: &Grant| grant.role != Role::TenantAdmin || !grant.path.is_site();
        prop::collection::vec(grant.prop_filter("a tenant's", sound), 0..5)
    }

    fn callers() -> impl Strategy<Value = Access> {
        (grants(), prop::option::of(grants())).prop_map(|(grants, limit)| Access {
            grants,
            limit: limit.and_then(|limit| limit.into_iter().next()),
        })
    }

    #[test]
    fn nobody_without_a_grant_may_do_anything() {
        let nobody = Access::default();
        for (permission, _) in TABLE {
            assert!(!nobody.may(permission, &Scope::site()));
            assert!(!nobody.may_somewhere(permission));
        }
        assert!(!nobody.may_manage(&[]) && !nobody.may_see(&[]));
        assert!(Access::everything().may(Permission::ManageAccounts, &Scope::site()));
    }

    #[test]
    fn what_is_no_grant_is_refused() {
        let grant = |role, path: &str| Grant {
            role,
            path: path.parse().unwrap(),
        };
        assert_eq!(
            checked(vec![grant(Role::TenantAdmin, "/")]),
            Err(BadGrant::TenantAdminOfSite)
        );
        let many = vec![grant(Role::Auditor, "/"); MAX_GRANTS + 1];
        assert_eq!(checked(many), Err(BadGrant::TooMany));
        let twice = vec![grant(Role::Auditor, "/"); 2];
        assert_eq!(checked(twice).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_allowed_without_a_grant_for_it(caller in callers(), permission in permissions(), place in scopes()) {
            let allowed = caller.may(permission, &place);
            let by_grant = caller.grants.iter().any(|grant| grant.role.has(permission) && grant.path.covers(&place) && (place.is_site() || !permission.is_of_site()));
            prop_assert!(!allowed || by_grant);
            if let Some(limit) = &caller.limit {
                prop_assert!(!allowed || limit.role.has(permission) && limit.path.covers(&place));
            } else {
                prop_assert_eq!(allowed, by_grant);
            }
            // What is allowed somewhere is allowed below it, and is found by may_somewhere.
            prop_assert!(!allowed || caller.may_somewhere(permission));
        }

        #[test]
        fn a_tenant_never_reaches_another(grants in grants(), permission in permissions(), place in scopes()) {
            let own = |grant: &Grant| grant.path.of_tenant().is_some_and(|tenant| tenant.as_str() == "a");
            let caller = Access::of(grants.into_iter().filter(own).collect());
            let other = place.of_tenant().is_none_or(|tenant| tenant.as_str() != "a");
            prop_assert!(!other || !caller.may(permission, &place));
            let tenants = caller.tenants(permission).unwrap();
            prop_assert!(tenants.iter().all(|tenant| tenant == "a"));
            prop_assert!(!caller.may(permission, &place) || tenants.len() == 1);
        }

        #[test]
        fn nobody_gives_what_he_does_not_have(caller in callers(), given in grants(), permission in permissions(), place in scopes()) {
            if caller.may_manage(&given) && !given.is_empty() {
                let other = Access::of(given);
                prop_assert!(!other.may(permission, &place) || caller.may(permission, &place));
            }
        }

        #[test]
        fn a_token_has_no_more_than_its_account(grants in grants(), limit in grants(), permission in permissions(), place in scopes()) {
            if let Some(limit) = limit.into_iter().next() {
                let account = Access::of(grants);
                let token = account.clone().limited(limit);
                prop_assert!(!token.may(permission, &place) || account.may(permission, &place));
                prop_assert!(!token.may_somewhere(permission) || account.may_somewhere(permission));
            }
        }
    }
}
