//! Who may do what, and where: pure. No clock, no store, no request.
//!
//! ```text
//!   account's grants ─┐
//!                     ├─► Access ─ may(permission, place) ─► yes | no (the default)
//!   token's limit ────┘
//!   a route ─► ROUTES: its permission, and who looks at the place
//! ```
//!
//! Owns the roles, the permissions, the paths that grants are given for, and the one
//! table that says what each route needs. Does not own who somebody is (that is
//! `accounts` and `api::auth`) or what is kept of it (`store`).
//!
//! | module | owns |
//! | --- | --- |
//! | [`scope`] | places: site, tenant, group, VM, and which covers which |
//! | [`role`] | which role has which permission: one table |
//! | [`grants`] | the decision, and who may give what to whom |
//! | [`routes`] | which permission each route needs: one table |
//!
//! **Invariant:** what no grant allows is refused; a token never allows what its account
//! may not do; nobody gives what he does not have.

pub mod grants;
pub mod role;
pub mod routes;
pub mod scope;

pub use grants::{Access, Grant, MAX_GRANTS};
pub use role::{Permission, Role};
pub use scope::Scope;
