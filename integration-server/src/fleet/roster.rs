//! The Protection Servers that agents choose from. Pure; time is an argument, in steady
//! milliseconds.
//!
//! ```text
//!               connected ──────────► Connected ◄──┐
//!   add (known)      │                    │ gone   │ connected
//!        └──► Gone{since} ◄───────────────┘        │
//!                │      └──────────────────────────┘
//!                └─ since + lost_after ─► listed as absent: agents try it last
//! ```
//!
//! An entry is listed once it has reported. That it has no session with this server is no
//! reason to take it away from agents, which may reach it all the same: when the server is
//! cut off, or its clock jumps, they would have none. Only a revocation ends an entry, and
//! agents are told of that, so that they leave at once.

use std::collections::{BTreeMap, VecDeque};

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    InfrastructurePath, MAX_REVOKED, MAX_SVMS, MAX_TENANTS, Name, SvmEntry, SvmReport,
};
use palisade_protocol::ids::{SvmId, TenantId};
use palisade_protocol::problem::Problems;
use palisade_protocol::trust::sha256;
use uuid::Uuid;

/// A load that moved by this much, in thousandths, is worth telling agents.
pub const LOAD_STEP_PERMILLE: u16 = 100;
/// A queue wait that moved by this much is worth telling agents.
pub const QUEUE_STEP_MS: u32 = 100;

/// How long a Protection Server may be without a session until that is an alert, in
/// milliseconds, if it is not listed as absent before: it tries to connect once a minute.
pub const ALERT_AFTER_MS: u64 = 90_000;

/// How a Protection Server stands to a tenant's agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub id: SvmId,
    /// Why it is not in their list; none if it is.
    pub unlisted: Option<Unlisted>,
}

/// Why a Protection Server is not in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// It serves other tenants.
    OtherTenants,
    /// It has not said yet where it is.
    NoReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Connected,
    Gone { since_ms: u64 },
}

#[derive(Debug, Clone)]
struct Known {
    name: String,
    product_uuid: Option<Uuid>,
    presence: Presence,
    /// As agents were told: load moves in steps. It is listed once there is one.
    report: Option<SvmReport>,
    /// As agents were told.
    absent: bool,
}

/// A Protection Server that has no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Which.
    pub id: SvmId,
    /// Its name.
    pub name: String,
    /// Since when, in steady milliseconds; at the earliest since this server's start.
    pub since_ms: u64,
    /// From when on that is an alert.
    pub alert_ms: u64,
}

/// The list's source.
#[derive(Debug)]
pub struct Roster {
    lost_after_ms: u64,
    svms: BTreeMap<SvmId, Known>,
    /// The latest first, and whose agents knew it; none for all.
    revoked: VecDeque<(SvmId, List<TenantId, MAX_TENANTS>)>,
}

impl Roster {
    /// An empty roster; who is gone for `lost_after_ms` is listed as absent.
    pub fn new(lost_after_ms: u64) -> Self {
        Self {
            lost_after_ms,
            svms: BTreeMap::new(),
            revoked: VecDeque::new(),
        }
    }

    /// Takes in what the store knows, as gone since now: it may come back.
    pub fn add(
        &mut self,
        id: SvmId,
        name: String,
        product_uuid: Option<Uuid>,
        report: Option<SvmReport>,
        now_ms: u64,
    ) {
        let presence = Presence::Gone { since_ms: now_ms };
        self.svms.insert(
            id,
            Known {
                name,
                product_uuid,
                presence,
                report,
                absent: false,
            },
        );
    }

    /// A session began. True when agents' lists change. One of a revoked Protection Server
    /// that slipped in is cut, and counts for nothing.
    pub fn connected(&mut self, id: SvmId, name: &str, product_uuid: Option<Uuid>) -> bool {
        if self.revoked.iter().any(|(revoked, _)| *revoked == id) {
            return false;
        }
        let known = self.svms.entry(id).or_insert_with(|| Known {
            name: name.to_owned(),
            product_uuid,
            presence: Presence::Connected,
            report: None,
            absent: false,
        });
        let moved = known.product_uuid != product_uuid;
        known.presence = Presence::Connected;
        known.product_uuid = product_uuid;
        let was_absent = std::mem::take(&mut known.absent);
        known.report.is_some() && (was_absent || moved)
    }

    /// A report came. True when it says something that agents care about.
    pub fn reported(&mut self, id: SvmId, report: SvmReport) -> bool {
        let Some(known) = self.svms.get_mut(&id) else {
            return false;
        };
        let was_absent = std::mem::take(&mut known.absent);
        match &known.report {
            Some(told) if !differs(told, &report) => was_absent,
            _ => {
                known.report = Some(report);
                true
            }
        }
    }

    /// A session ended. Lists do not change before `lost_after`.
    pub fn gone(&mut self, id: SvmId, now_ms: u64) -> bool {
        if let Some(known) = self.svms.get_mut(&id) {
            known.presence = Presence::Gone { since_ms: now_ms };
        }
        false
    }

    /// Forgets a Protection Server that was revoked, and has agents told. True when lists
    /// change.
    pub fn revoke(&mut self, id: SvmId) -> bool {
        let known = self.svms.remove(&id);
        let report = known.and_then(|known| known.report);
        self.add_revoked(id, report.as_ref());
        self.revoked.rotate_right(1);
        self.revoked.truncate(MAX_REVOKED);
        true
    }

    /// Takes in one that was revoked before those that are known to be.
    pub fn add_revoked(&mut self, id: SvmId, report: Option<&SvmReport>) {
        self.revoked.retain(|(known, _)| *known != id);
        let tenants = report.map(|report| report.tenants.clone());
        self.revoked.push_back((id, tenants.unwrap_or_default()));
    }

    /// Those revoked ones that a tenant's agents may have known, the latest first.
    pub fn revoked(&self, tenant: &TenantId) -> List<SvmId, MAX_REVOKED> {
        let knew =
            |tenants: &List<TenantId, MAX_TENANTS>| tenants.is_empty() || tenants.contains(tenant);
        let revoked = self.revoked.iter().filter(|(_, tenants)| knew(tenants));
        List::cut(revoked.map(|(id, _)| *id))
    }

    /// How each one that is known stands to a tenant's agents.
    pub fn standings(&self, tenant: &TenantId) -> Vec<Standing> {
        let of = |(id, known): (&SvmId, &Known)| Standing {
            id: *id,
            unlisted: match known {
                _ if !known.serves(tenant) => Some(Unlisted::OtherTenants),
                Known { report: None, .. } => Some(Unlisted::NoReport),
                _ => None,
            },
        };
        self.svms.iter().map(of).collect()
    }

    /// Time passed. True when lists change.
    pub fn tick(&mut self, now_ms: u64) -> bool {
        let mut changed = false;
        for known in self.svms.values_mut().filter(|known| !known.absent) {
            if let Presence::Gone { since_ms } = known.presence
                && now_ms.saturating_sub(since_ms) >= self.lost_after_ms
            {
                known.absent = true;
                changed |= known.report.is_some();
            }
        }
        changed
    }

    /// Who has no session.
    pub fn absent(&self) -> Vec<Absent> {
        let gone = self.svms.iter().filter_map(|(id, known)| {
            let Presence::Gone { since_ms } = known.presence else {
                return None;
            };
            Some(Absent {
                id: *id,
                name: known.name.clone(),
                since_ms,
                alert_ms: since_ms.saturating_add(self.lost_after_ms.min(ALERT_AFTER_MS)),
            })
        });
        gone.collect()
    }

    /// The list for a tenant's agents, with the places that the inventory knows filled in
    /// where a Protection Server does not say its own.
    pub fn entries(
        &self,
        tenant: &TenantId,
        place_of: impl Fn(Uuid) -> Option<InfrastructurePath>,
    ) -> List<SvmEntry, MAX_SVMS> {
        List::cut(
            self.svms
                .iter()
                .filter(|(_, known)| known.serves(tenant))
                .filter_map(|(id, known)| {
                    let mut report = known.report.clone()?;
                    // Not agents' concern, and would make equal lists differ.
                    report.agents = 0;
                    report.problems = Problems::default();
                    report.followed = None;
                    // Nobody is told who else there is.
                    report.tenants = List::default();
                    if report.path == InfrastructurePath::default()
                        && let Some(place) = known.product_uuid.and_then(&place_of)
                    {
                        report.path = place;
                    }
                    Some(SvmEntry {
                        id: *id,
                        name: Text::cut(&known.name),
                        report,
                        absent: known.absent,
                    })
                }),
        )
    }
}

impl Known {
    fn serves(&self, tenant: &TenantId) -> bool {
        let reserved = self.report.as_ref().map(|report| &report.tenants);
        reserved.is_none_or(|tenants| tenants.is_empty() || tenants.contains(tenant))
    }
}

fn differs(told: &SvmReport, new: &SvmReport) -> bool {
    let (old_load, load) = (told.average_load, new.average_load);
    let without_load = |report: &SvmReport| SvmReport {
        average_load: Default::default(),
        agents: 0,
        problems: Problems::default(),
        followed: None,
        ..report.clone()
    };
    without_load(told) != without_load(new)
        || old_load.load_permille.abs_diff(load.load_permille) >= LOAD_STEP_PERMILLE
        || old_load.queue_wait_ms.abs_diff(load.queue_wait_ms) >= QUEUE_STEP_MS
}

/// Hash of what a tenant's lists have in common.
pub fn hash(svms: &[SvmEntry], revoked: &[SvmId]) -> [u8; 32] {
    // The types have nothing that JSON could not hold.
    sha256(&serde_json::to_vec(&(svms, revoked)).unwrap_or_default())
}

/// A list's version: of its content alone, so that equal servers and restarts give
/// equal lists the same one. Never 0.
pub fn etag(svms_hash: &[u8; 32], own_path: &InfrastructurePath, own_tags: &[Name]) -> u64 {
    let mut bytes = svms_hash.to_vec();
    bytes.extend(serde_json::to_vec(&(own_path, own_tags)).unwrap_or_default());
    let mut first = [0; 8];
    first.copy_from_slice(&sha256(&bytes)[..8]);
    u64::from_le_bytes(first).max(1)
}

#[cfg(test)]
mod tests {
    use palisade_protocol::control::{LicenceState, SvmAddress};
    use palisade_protocol::scan::LoadHint;

    use super::*;

    fn report(load_permille: u16) -> SvmReport {
        SvmReport {
            addresses: List::cut([SvmAddress {
                network: Text::default(),
                address: ([127, 0, 0, 1], 7443).into(),
            }]),
            path: InfrastructurePath::default(),
            licence: LicenceState::Valid,
            average_load: LoadHint {
                load_permille,
                queue_wait_ms: 0,
            },
            agents: 0,
            generations: List::default(),
            draining: false,
            tags: List::default(),
            problems: Problems::default(),
            tenants: List::default(),
            followed: None,
        }
    }

    fn version(roster: &Roster) -> u64 {
        etag(
            &hash(
                &roster.entries(&tenant("one"), |_| None),
                &roster.revoked(&tenant("one")),
            ),
            &InfrastructurePath::default(),
            &[],
        )
    }

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    /// Whatever this server has lost, agents may still reach.
    #[test]
    fn an_svm_is_listed_once_it_reported_and_as_absent_once_it_is_lost() {
        let id = SvmId::random();
        let mut roster = Roster::new(1000);
        assert!(!roster.connected(id, "svm-1", None));
        let entries = |roster: &Roster| roster.entries(&tenant("one"), |_| None);
        assert!(entries(&roster).is_empty(), "nothing to offer yet");
        assert!(roster.reported(id, report(0)));
        assert!(!entries(&roster)[0].absent);
        assert!(!roster.gone(id, 5000));
        let absent = &roster.absent()[0];
        assert_eq!((absent.since_ms, absent.alert_ms), (5000, 6000));
        assert!(!roster.tick(5999));
        assert!(!entries(&roster)[0].absent);
        assert!(roster.tick(6000));
        assert!(entries(&roster)[0].absent, "tried last");
        assert!(!roster.tick(9000), "said once");
        assert!(roster.connected(id, "svm-1", None));
        assert!(!entries(&roster)[0].absent, "back with its last report");
    }

    #[test]
    fn agents_are_told_of_those_revoked_ones_that_they_may_have_known() {
        let (known, reserved, unknown) = (SvmId::random(), SvmId::random(), SvmId::random());
        let mut roster = Roster::new(1000);
        roster.add_revoked(unknown, None);
        for id in [known, reserved] {
            roster.connected(id, "svm", None);
        }
        roster.reported(known, report(0));
        let tenants = List::cut([tenant("two")]);
        roster.reported(
            reserved,
            SvmReport {
                tenants,
                ..report(0)
            },
        );
        let before = version(&roster);
        assert!(roster.revoke(reserved));
        assert!(!roster.connected(reserved, "svm", None), "it slipped in");
        assert!(!roster.gone(reserved, 1));
        assert!(roster.absent().is_empty());
        assert_eq!(version(&roster), before, "none of theirs");
        assert!(roster.revoke(known));
        assert_ne!(version(&roster), before);
        assert!(roster.entries(&tenant("two"), |_| None).is_empty());
        assert_eq!(*roster.revoked(&tenant("one")), [known, unknown]);
        assert_eq!(*roster.revoked(&tenant("two")), [known, reserved, unknown]);
        for _ in 0..MAX_REVOKED {
            roster.revoke(SvmId::random());
        }
        assert_eq!(roster.revoked.len(), MAX_REVOKED);
        assert!(!roster.revoked(&tenant("one")).contains(&known));
    }

    #[test]
    fn only_what_agents_care_about_is_a_change() {
        let id = SvmId::random();
        let mut roster = Roster::new(1000);
        roster.connected(id, "svm-1", None);
        roster.reported(id, report(0));
        let first = version(&roster);
        assert!(!roster.reported(
            id,
            SvmReport {
                agents: 40,
                ..report(LOAD_STEP_PERMILLE - 1)
            }
        ));
        assert_eq!(version(&roster), first);
        assert!(roster.reported(id, report(LOAD_STEP_PERMILLE)));
        assert_ne!(version(&roster), first);
        assert!(roster.reported(
            id,
            SvmReport {
                draining: true,
                ..report(LOAD_STEP_PERMILLE)
            }
        ));
        assert!(roster.revoke(id));
        assert!(!roster.reported(id, report(0)), "a removed one stays away");
    }

    #[test]
    fn who_is_reserved_for_others_is_not_listed_and_tells_nobody() {
        let (all, some) = (SvmId::random(), SvmId::random());
        let mut roster = Roster::new(1000);
        for id in [all, some] {
            roster.connected(id, "svm", None);
        }
        roster.reported(all, report(0));
        let reserved = SvmReport {
            tenants: List::cut([tenant("one"), tenant("two")]),
            ..report(0)
        };
        assert!(roster.reported(some, reserved));
        let listed = |name: &str| {
            let entries = roster.entries(&tenant(name), |_| None);
            assert!(entries.iter().all(|entry| entry.report.tenants.is_empty()));
            entries.iter().map(|entry| entry.id).collect::<Vec<_>>()
        };
        assert_eq!(listed("one").len(), 2);
        assert_eq!(listed("three"), [all]);
        let standings = roster.standings(&tenant("three"));
        let of = |id| standings.iter().find(|standing| standing.id == id).unwrap();
        assert_eq!(of(all).unlisted, None);
        assert_eq!(of(some).unlisted, Some(Unlisted::OtherTenants));
    }

    #[test]
    fn a_tag_is_another_version() {
        let here = InfrastructurePath::default();
        let tagged = etag(&[0; 32], &here, &[Text::cut("gold")]);
        assert_ne!(tagged, etag(&[0; 32], &here, &[]));
    }

    #[test]
    fn equal_lists_have_equal_versions_after_a_restart() {
        let id = SvmId::random();
        let mut first = Roster::new(1000);
        first.connected(id, "svm-1", None);
        first.reported(id, report(7));
        let mut second = Roster::new(1000);
        second.add(id, "svm-1".to_owned(), None, Some(report(7)), 99);
        assert_eq!(version(&first), version(&second));
        assert_ne!(version(&first), 0);
    }

    #[test]
    fn a_place_is_filled_in_from_the_inventory_unless_the_svm_says_its_own() {
        let id = SvmId::random();
        let uuid = Uuid::from_u128(1);
        let place = InfrastructurePath {
            datacenter: Text::cut("dc"),
            cluster: Text::default(),
            hypervisor: Text::cut("hv1"),
        };
        let mut roster = Roster::new(1000);
        roster.connected(id, "svm-1", Some(uuid));
        roster.reported(id, report(0));
        let known = |asked: Uuid| (asked == uuid).then(|| place.clone());
        assert_eq!(roster.entries(&tenant("one"), known)[0].report.path, place);
        let own = InfrastructurePath {
            hypervisor: Text::cut("hv9"),
            ..Default::default()
        };
        roster.reported(
            id,
            SvmReport {
                path: own.clone(),
                ..report(0)
            },
        );
        assert_eq!(roster.entries(&tenant("one"), known)[0].report.path, own);
    }
}
