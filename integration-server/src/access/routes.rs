//! Which permission each route needs. A route that is not in here is refused, and a test
//! compares it with the API's specification.

use super::grants::Access;
use super::role::Permission::{
    self, ManageAccounts, ManageGuests, ManageJoinTokens, ManagePolicies, ManageSvms, SeeAccounts,
    SeeAudit, SeeGuests, SeeJoinTokens, SeePolicies, SeeSite,
};
use super::scope::Scope;

/// What a route needs of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: whoever asks has no account yet, or shows it now.
    Nobody,
    /// To be somebody: it is about the caller himself.
    Somebody,
    /// The same, with a session: a token that was stolen does not make itself at home.
    Session,
    /// The permission for the whole site.
    Site(Permission),
    /// The permission for some place; the handler looks at each object's, and one that
    /// the caller may not see is one that does not exist.
    Within(Permission),
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path, as the specification has it.
    pub path: &'static str,
    /// What it needs.
    pub need: Need,
    /// Whether a session must have been confirmed lately by its password.
    pub dangerous: bool,
    /// Whether it is refused to API tokens of accounts: who gives credentials would outlive
    /// his own.
    pub personal: bool,
}

use Need::{Nobody, Session, Site, Somebody, Within};

const fn calm(method: &'static str, path: &'static str, need: Need) -> Route {
    Route {
        method,
        path,
        need,
        dangerous: false,
        personal: false,
    }
}

const fn dangerous(method: &'static str, path: &'static str, need: Need) -> Route {
    Route {
        method,
        path,
        need,
        dangerous: true,
        personal: false,
    }
}

const fn personal(method: &'static str, path: &'static str, need: Need) -> Route {
    Route {
        method,
        path,
        need,
        dangerous: true,
        personal: true,
    }
}

/// All of them.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    calm     ("GET",    "/api/v1/status",                     Site(SeeSite)),
    calm     ("GET",    "/api/v1/inventory",                  Site(SeeSite)),
    calm     ("GET",    "/api/v1/svms",                       Site(SeeSite)),
    dangerous("DELETE", "/api/v1/svms/{id}",                  Site(ManageSvms)),
    calm     ("GET",    "/api/v1/svms/{id}/definitions",      Site(SeeSite)),
    dangerous("POST",   "/api/v1/svms/{id}/definitions",      Site(ManageSvms)),
    calm     ("GET",    "/api/v1/definitions",                Site(SeeSite)),
    calm     ("GET",    "/api/v1/definitions/generations/{generation}", Site(SeeSite)),
    dangerous("POST",   "/api/v1/definitions/generations",    Site(ManageSvms)),
    calm     ("POST",   "/api/v1/definitions/missing",        Site(ManageSvms)),
    calm     ("PUT",    "/api/v1/definitions/files/{sha256}", Site(ManageSvms)),
    dangerous("PUT",    "/api/v1/definitions/wanted",         Site(ManageSvms)),
    calm     ("GET",    "/api/v1/definitions/metadata/{role}", Site(SeeSite)),
    dangerous("PUT",    "/api/v1/definitions/signed",         Site(ManageSvms)),
    calm     ("GET",    "/api/v1/agents",                     Within(SeeGuests)),
    dangerous("DELETE", "/api/v1/agents/{id}",                Within(ManageGuests)),
    dangerous("POST",   "/api/v1/agents/{id}/maintenance",    Within(ManageGuests)),
    calm     ("GET",    "/api/v1/agents/{id}/selection",      Within(SeeGuests)),
    calm     ("GET",    "/api/v1/agents/{id}/policy",         Within(SeePolicies)),
    calm     ("GET",    "/api/v1/policy-settings",            Within(SeePolicies)),
    calm     ("GET",    "/api/v1/policies",                   Within(SeePolicies)),
    calm     ("GET",    "/api/v1/policies/{id}",              Within(SeePolicies)),
    dangerous("PUT",    "/api/v1/policies/{id}",              Within(ManagePolicies)),
    dangerous("PATCH",  "/api/v1/policies/{id}",              Within(ManagePolicies)),
    calm     ("GET",    "/api/v1/policies/{id}/revisions",    Within(SeePolicies)),
    calm     ("GET",    "/api/v1/policies/{id}/diff",         Within(SeePolicies)),
    dangerous("POST",   "/api/v1/policies/{id}/revert",       Within(ManagePolicies)),
    calm     ("GET",    "/api/v1/groups",                     Within(SeePolicies)),
    dangerous("POST",   "/api/v1/groups",                     Within(ManagePolicies)),
    calm     ("GET",    "/api/v1/groups/{id}",                Within(SeePolicies)),
    dangerous("PATCH",  "/api/v1/groups/{id}",                Within(ManagePolicies)),
    dangerous("DELETE", "/api/v1/groups/{id}",                Within(ManagePolicies)),
    calm     ("GET",    "/api/v1/groups/{id}/members",        Within(SeePolicies)),
    calm     ("GET",    "/api/v1/group-preview",              Within(SeePolicies)),
    calm     ("GET",    "/api/v1/alerts",                     Within(SeeGuests)),
    calm     ("GET",    "/api/v1/exposures",                  Within(SeeGuests)),
    calm     ("GET",    "/api/v1/detections",                 Within(SeeGuests)),
    calm     ("GET",    "/api/v1/tokens",                     Within(SeeJoinTokens)),
    dangerous("POST",   "/api/v1/tokens",                     Within(ManageJoinTokens)),
    calm     ("DELETE", "/api/v1/tokens/{id}",                Within(ManageJoinTokens)),
    calm     ("GET",    "/api/v1/accounts",                   Within(SeeAccounts)),
    personal ("POST",   "/api/v1/accounts",                   Within(ManageAccounts)),
    personal ("PATCH",  "/api/v1/accounts/{id}",              Within(ManageAccounts)),
    personal ("DELETE", "/api/v1/accounts/{id}",              Within(ManageAccounts)),
    personal ("PUT",    "/api/v1/accounts/{id}/password",     Within(ManageAccounts)),
    personal ("DELETE", "/api/v1/accounts/{id}/totp",         Within(ManageAccounts)),
    calm     ("GET",    "/api/v1/api-tokens",                 Somebody),
    dangerous("POST",   "/api/v1/api-tokens",                 Session),
    calm     ("DELETE", "/api/v1/api-tokens/{id}",            Somebody),
    calm     ("GET",    "/api/v1/audit",                      Within(SeeAudit)),
    calm     ("GET",    "/api/v1/audit/verification",         Site(SeeAudit)),
    calm     ("POST",   "/api/v1/setup",                      Nobody),
    calm     ("POST",   "/api/v1/session",                    Nobody),
    calm     ("GET",    "/api/v1/session",                    Somebody),
    calm     ("DELETE", "/api/v1/session",                    Session),
    calm     ("POST",   "/api/v1/session/confirmation",       Session),
    dangerous("PUT",    "/api/v1/session/password",           Session),
    dangerous("POST",   "/api/v1/session/totp",               Session),
    dangerous("PUT",    "/api/v1/session/totp",               Session),
    dangerous("DELETE", "/api/v1/session/totp",               Session),
];

/// The route of a request; HEAD is GET without its body.
pub fn find(method: &str, path: &str) -> Option<&'static Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    ROUTES
        .iter()
        .find(|route| route.method == method && route.path == path)
}

impl Route {
    /// Whether this caller may come as far as the handler.
    pub fn lets(&self, access: &Access) -> bool {
        match self.need {
            Nobody | Somebody | Session => true,
            Site(permission) => access.may(permission, &Scope::site()),
            Within(permission) => access.may_somewhere(permission),
        }
    }

    /// What it needs, for the specification.
    pub fn explain(&self) -> String {
        let roles = |permission: Permission| {
            let names: Vec<&str> = permission.roles().map(super::Role::as_str).collect();
            names.join(", ")
        };
        let mut text = match self.need {
            Nobody => "Needs no account.".to_owned(),
            Somebody => "For every account.".to_owned(),
            Session => "For every account, with a session.".to_owned(),
            Site(permission) => {
                format!(
                    "For who may {} at `/`: {}.",
                    permission.explain(),
                    roles(permission)
                )
            }
            Within(permission) => {
                format!(
                    "For who may {} there: {}.",
                    permission.explain(),
                    roles(permission)
                )
            }
        };
        if self.dangerous {
            text.push_str(" A session must have been confirmed within the last five minutes.");
        }
        if self.personal {
            text.push_str(" Not with an API token.");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Grant, Role};

    #[test]
    fn a_route_is_there_once_and_found() {
        for route in ROUTES {
            let same = ROUTES
                .iter()
                .filter(|other| (other.method, other.path) == (route.method, route.path));
            assert_eq!(same.count(), 1, "{route:?}");
            assert_eq!(find(route.method, route.path), Some(route));
        }
        assert_eq!(
            find("HEAD", "/api/v1/status"),
            find("GET", "/api/v1/status")
        );
        assert_eq!(find("PUT", "/api/v1/status"), None);
    }

    #[test]
    fn whoever_changes_something_may_do_so_by_name() {
        let auditor = Access::of(vec![Grant {
            role: Role::Auditor,
            path: Scope::site(),
        }]);
        for route in ROUTES {
            let changes = route.method != "GET";
            if let Site(_) | Within(_) = route.need {
                assert_eq!(route.lets(&auditor), !changes, "{route:?}");
                assert!(!route.lets(&Access::default()), "{route:?}");
            }
            assert!(route.lets(&Access::everything()));
            assert!(!route.explain().is_empty());
        }
    }
}
