//! Which role has which permission.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What somebody is at a place.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Role {
    /// May do everything.
    Admin,
    /// Runs it day by day; gives nobody access.
    Operator,
    /// Sees everything, the audit log included, and changes nothing.
    Auditor,
    /// Runs one tenant and its accounts; sees nothing else.
    TenantAdmin,
}

/// All roles, in the order of [`TABLE`]'s columns.
pub const ROLES: [Role; 4] = [
    Role::Admin,
    Role::Operator,
    Role::Auditor,
    Role::TenantAdmin,
];

/// Something that can be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// To see what is the site's: its state, hypervisors, Protection Servers.
    SeeSite,
    /// To change Protection Servers and their definitions.
    ManageSvms,
    /// To see guests: agents, alerts, exposures, detections.
    SeeGuests,
    /// To cut an agent off, and to let it be stopped.
    ManageGuests,
    /// To see policies and groups, and what comes of them.
    SeePolicies,
    /// To change policies and groups.
    ManagePolicies,
    /// To see join tokens, without their secrets.
    SeeJoinTokens,
    /// To make and revoke join tokens.
    ManageJoinTokens,
    /// To see accounts and their API tokens.
    SeeAccounts,
    /// To make accounts, to give them roles, to disable them.
    ManageAccounts,
    /// To read the audit log.
    SeeAudit,
}

use Permission::{
    ManageAccounts, ManageGuests, ManageJoinTokens, ManagePolicies, ManageSvms, SeeAccounts,
    SeeAudit, SeeGuests, SeeJoinTokens, SeePolicies, SeeSite,
};

/// Which role has which permission; all else is refused.
#[rustfmt::skip]
pub const TABLE: [(Permission, [bool; 4]); 11] = [
    //                   admin operator auditor tenant_admin
    (SeeSite,          [true,  true,    true,   false]),
    (ManageSvms,       [true,  true,    false,  false]),
    (SeeGuests,        [true,  true,    true,   true]),
    (ManageGuests,     [true,  true,    false,  true]),
    (SeePolicies,      [true,  true,    true,   true]),
    (ManagePolicies,   [true,  true,    false,  true]),
    (SeeJoinTokens,    [true,  true,    true,   true]),
    (ManageJoinTokens, [true,  true,    false,  true]),
    (SeeAccounts,      [true,  false,   true,   true]),
    (ManageAccounts,   [true,  false,   false,  true]),
    (SeeAudit,         [true,  false,   true,   true]),
];

impl Role {
    /// Its name, as the API and the command line say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::TenantAdmin => "tenant_admin",
        }
    }

    /// Whether it has a permission.
    pub fn has(self, permission: Permission) -> bool {
        let column = ROLES.iter().position(|role| *role == self);
        TABLE
            .iter()
            .filter(|(row, _)| *row == permission)
            .any(|(_, has)| column.and_then(|at| has.get(at)).copied() == Some(true))
    }

    /// All that it has.
    pub fn permissions(self) -> impl Iterator<Item = Permission> {
        let all = TABLE.iter().map(|(permission, _)| *permission);
        all.filter(move |permission| self.has(*permission))
    }
}

impl Permission {
    /// What it lets somebody do, after "may".
    pub const fn explain(self) -> &'static str {
        match self {
            SeeSite => "see the site",
            ManageSvms => "change Protection Servers",
            SeeGuests => "see guests",
            ManageGuests => "change guests",
            SeePolicies => "see policies",
            ManagePolicies => "change policies",
            SeeJoinTokens => "see join tokens",
            ManageJoinTokens => "make and revoke join tokens",
            SeeAccounts => "see accounts",
            ManageAccounts => "change accounts",
            SeeAudit => "read the audit log",
        }
    }

    /// Whether it is about what is the site's alone, and nothing of a tenant.
    pub const fn is_of_site(self) -> bool {
        matches!(self, SeeSite | ManageSvms)
    }

    /// The roles that have it.
    pub fn roles(self) -> impl Iterator<Item = Role> {
        ROLES.into_iter().filter(move |role| role.has(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_row_for_each_permission_and_means_what_roles_say() {
        for (at, (permission, _)) in TABLE.iter().enumerate() {
            let rows = TABLE.iter().filter(|(row, _)| row == permission).count();
            assert_eq!(rows, 1, "row {at}");
            assert!(Role::Admin.has(*permission));
            assert!(permission.roles().count() > 0);
        }
        let changes = [ManageSvms, ManageGuests, ManageJoinTokens, ManageAccounts];
        assert!(changes.iter().all(|change| !Role::Auditor.has(*change)));
        assert!(!Role::Operator.has(ManageAccounts) && !Role::Operator.has(SeeAudit));
        assert!(!Role::TenantAdmin.has(SeeSite) && !Role::TenantAdmin.has(ManageSvms));
    }
}
