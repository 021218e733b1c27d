//! What agents' lists have in common: made once for each tenant and change, since many
//! agents ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use palisade_protocol::bounded::List;
use palisade_protocol::control::{MAX_REVOKED, MAX_SVMS, SvmEntry};
use palisade_protocol::ids::{SvmId, TenantId};

use super::roster;

/// Tenants whose lists are kept; more are made anew each time somebody asks.
const MAX_TENANTS: usize = 256;

/// What the lists of a tenant's agents have in common.
#[derive(Debug)]
pub struct Common {
    /// Of the rest.
    pub hash: [u8; 32],
    /// The entries.
    pub svms: List<SvmEntry, MAX_SVMS>,
    /// Who was revoked.
    pub revoked: List<SvmId, MAX_REVOKED>,
}

/// The lists as of one count of changes.
#[derive(Debug, Default)]
pub struct Lists(Mutex<(u64, HashMap<TenantId, Arc<Common>>)>);

impl Lists {
    /// The entries of a tenant as of this count of changes, and who was revoked; made by
    /// `make` if they are not there.
    pub fn get(
        &self,
        version: u64,
        tenant: &TenantId,
        make: impl FnOnce() -> (List<SvmEntry, MAX_SVMS>, List<SvmId, MAX_REVOKED>),
    ) -> Arc<Common> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, lists) = &mut *kept;
        if *of != version {
            *of = version;
            lists.clear();
        }
        if let Some(common) = lists.get(tenant) {
            return Arc::clone(common);
        }
        let (svms, revoked) = make();
        let common = Arc::new(Common {
            hash: roster::hash(&svms, &revoked),
            svms,
            revoked,
        });
        if lists.len() < MAX_TENANTS {
            lists.insert(tenant.clone(), Arc::clone(&common));
        }
        common
    }
}
