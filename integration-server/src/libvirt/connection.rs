//! A read-only connection that is closed when it is dropped, and one whole
//! reading of its host.

use std::collections::BTreeMap;

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use super::tags;
use crate::inventory::{DomainFacts, DomainState, HostFacts, Tags};

/// A remote host that does not answer for this long is gone: interval in seconds
/// and unanswered probes.
const KEEP_ALIVE: (i32, u32) = (5, 3);

/// An open connection.
#[derive(Debug)]
pub struct Connection(Connect);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// libvirt's.
    pub fn open(uri: &str) -> Result<Self, Error> {
        let connection = Self(Connect::open_read_only(Some(uri))?);
        // Drivers within the process have no keep-alive and need none.
        let _ = connection.0.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1);
        Ok(connection)
    }

    /// libvirt's own handle.
    pub(super) fn inner(&self) -> &Connect {
        &self.0
    }

    /// Whether the other end is still there, as far as this one knows.
    pub fn is_alive(&self) -> bool {
        self.0.is_alive().unwrap_or(false)
    }

    /// Reads the host and all its domains.
    ///
    /// # Errors
    /// libvirt's. A domain that vanishes while it is read is left out, and of one that
    /// libvirt cannot tell about the state is unknown: the others are read all the same.
    pub fn read(&self) -> Result<HostFacts, Error> {
        let hostname = self.0.get_hostname()?;
        let all = sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE | sys::VIR_CONNECT_LIST_DOMAINS_INACTIVE;
        let mut domains = BTreeMap::new();
        for domain in self.0.list_all_domains(all)? {
            let uuid = match domain.get_uuid() {
                Ok(uuid) => Uuid::from_bytes(*uuid.as_bytes()),
                Err(error) if weigh(error.code(), self.is_alive()) == Weight::Host => {
                    return Err(error);
                }
                Err(_) => continue,
            };
            let facts = match facts(&domain) {
                Ok(facts) => facts,
                Err(error) => match weigh(error.code(), self.is_alive()) {
                    Weight::Gone => continue,
                    Weight::Domain => {
                        tracing::warn!(domain = %uuid, %error, "a domain cannot be read");
                        DomainFacts {
                            name: domain.get_name().unwrap_or_else(|_| uuid.to_string()),
                            ..DomainFacts::default()
                        }
                    }
                    Weight::Host => return Err(error),
                },
            };
            domains.insert(uuid, facts);
        }
        Ok(HostFacts { hostname, domains })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A dead connection cannot be closed politely; libvirt frees it all the same.
        let _ = self.0.close();
    }
}

/// What an error about one domain says of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// The domain is gone.
    Gone,
    /// The domain is odd.
    Domain,
    /// The connection is.
    Host,
}

fn weigh(error: ErrorNumber, is_alive: bool) -> Weight {
    match error {
        ErrorNumber::NoDomain => Weight::Gone,
        _ if is_alive => Weight::Domain,
        _ => Weight::Host,
    }
}

fn facts(domain: &Domain) -> Result<DomainFacts, Error> {
    let name = domain.get_name()?;
    let (state, _reason) = domain.get_state()?;
    let tags = tags(domain, &name)?;
    Ok(DomainFacts {
        name,
        state: state_of(state),
        tags,
        began_ms: None,
    })
}

/// The tags in the domain's metadata: the running domain's, or those that it is defined
/// with when it is off.
fn tags(domain: &Domain, name: &str) -> Result<Tags, Error> {
    let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
    let element = match domain.get_metadata(kind, Some(tags::NAMESPACE), 0) {
        Ok(element) => element,
        Err(error) => match error.code() {
            ErrorNumber::NoDomainMetadata | ErrorNumber::NoSupport => return Ok(Tags::default()),
            _ => return Err(error),
        },
    };
    match tags::parse(&element) {
        Ok(tags) => Ok(tags),
        Err(problem) => {
            // Said with each reading: somebody meant something by it.
            tracing::warn!(domain = %name.escape_debug(), %problem, "a domain's tags are not used");
            Ok(Tags::default())
        }
    }
}

fn state_of(state: sys::virDomainState) -> DomainState {
    match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => DomainState::Running,
        sys::VIR_DOMAIN_PAUSED => DomainState::Paused,
        sys::VIR_DOMAIN_SHUTDOWN => DomainState::ShuttingDown,
        sys::VIR_DOMAIN_SHUTOFF => DomainState::ShutOff,
        sys::VIR_DOMAIN_CRASHED => DomainState::Crashed,
        sys::VIR_DOMAIN_PMSUSPENDED => DomainState::Suspended,
        _ => DomainState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_odd_domain_makes_no_host_unreadable() {
        assert_eq!(weigh(ErrorNumber::NoDomain, true), Weight::Gone);
        assert_eq!(weigh(ErrorNumber::OperationTimeout, true), Weight::Domain);
        assert_eq!(weigh(ErrorNumber::InternalError, true), Weight::Domain);
        assert_eq!(weigh(ErrorNumber::InternalError, false), Weight::Host);
    }
}
