//! Which Protection Server an agent connects to, and why: pure, so that the
//! agent decides and the console explains by the same rules.
//!
//! Candidates pass the hard rules; the rest are ordered by licence, locality
//! tier, load, and a rendezvous hash that spreads ties. Hysteresis keeps a
//! connected agent where it is unless a tier is gained; a gain in load must be
//! above [`LOAD_GAIN_PERMILLE`] (how long it must hold is the caller's clock).

use crate::control::{InfrastructurePath, LicenceState, Name, SvmEntry};
use crate::ids::{AgentId, SvmId};

/// A connected agent moves for load only above this difference, in thousandths.
pub const LOAD_GAIN_PERMILLE: u16 = 300;

/// How near a Protection Server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// On the same hypervisor.
    Hypervisor,
    /// In the same cluster.
    Cluster,
    /// In the same data centre.
    Datacenter,
    /// Anywhere.
    Any,
}

impl Tier {
    /// How near `there` is to `here`; unknown places are never near.
    pub fn between(here: &InfrastructurePath, there: &InfrastructurePath) -> Self {
        let same = |a: &Name, b: &Name| !a.is_empty() && a == b;
        let in_datacenter = same(&here.datacenter, &there.datacenter);
        // A name below is the same place only if no name above contradicts it.
        let datacenters_agree =
            in_datacenter || here.datacenter.is_empty() || there.datacenter.is_empty();
        let in_cluster = datacenters_agree && same(&here.cluster, &there.cluster);
        if datacenters_agree && same(&here.hypervisor, &there.hypervisor) {
            Self::Hypervisor
        } else if in_cluster {
            Self::Cluster
        } else if in_datacenter {
            Self::Datacenter
        } else {
            Self::Any
        }
    }
}

/// Why a Protection Server is no candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Excluded {
    /// It takes agents with certain tags, and this one carries none of them.
    Tags,
    /// It holds no definitions.
    NoDefinitions,
    /// It is draining.
    Draining,
    /// It has no address.
    NoAddress,
}

/// A candidate with what it is ordered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub id: SvmId,
    /// Its licence.
    pub licence: LicenceState,
    /// How near it is.
    pub tier: Tier,
    /// Its load in thousandths, queue wait included.
    pub load: u16,
    rendezvous: u64,
}

impl Candidate {
    fn rank(&self) -> (bool, Tier, u16, u64, SvmId) {
        (
            self.licence != LicenceState::Valid,
            self.tier,
            self.load,
            self.rendezvous,
            self.id,
        )
    }
}

/// The candidates in order of preference, and the others with their reasons.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranking {
    /// Best first.
    pub candidates: Vec<Candidate>,
    /// Not to be used.
    pub excluded: Vec<(SvmId, Excluded)>,
}

/// Orders the list for one agent.
pub fn rank(
    agent: AgentId,
    path: &InfrastructurePath,
    tags: &[Name],
    svms: &[SvmEntry],
) -> Ranking {
    let mut ranking = Ranking::default();
    for svm in svms {
        match excluded(tags, svm) {
            Some(reason) => ranking.excluded.push((svm.id, reason)),
            None => ranking.candidates.push(candidate(agent, path, svm)),
        }
    }
    ranking.candidates.sort_by_key(Candidate::rank);
    ranking
}

fn excluded(tags: &[Name], svm: &SvmEntry) -> Option<Excluded> {
    let report = &svm.report;
    if report.draining {
        Some(Excluded::Draining)
    } else if report.generations.is_empty() {
        Some(Excluded::NoDefinitions)
    } else if report.addresses.is_empty() {
        Some(Excluded::NoAddress)
    } else if !report.tags.is_empty() && !report.tags.iter().any(|tag| tags.contains(tag)) {
        Some(Excluded::Tags)
    } else {
        None
    }
}

fn candidate(agent: AgentId, path: &InfrastructurePath, svm: &SvmEntry) -> Candidate {
    let load = svm.report.average_load;
    // A second of waiting weighs as much as a full machine.
    let wait = u16::try_from(load.queue_wait_ms).unwrap_or(u16::MAX);
    Candidate {
        id: svm.id,
        licence: svm.report.licence,
        tier: Tier::between(path, &svm.report.path),
        load: load.load_permille.saturating_add(wait),
        rendezvous: rendezvous(agent, svm.id),
    }
}

fn rendezvous(agent: AgentId, svm: SvmId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(agent.0.as_bytes()).update(svm.0.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Whether an agent that is connected to `current` should move to the best.
pub fn should_move(ranking: &Ranking, current: SvmId) -> bool {
    let Some(best) = ranking.candidates.first() else {
        return false;
    };
    let Some(now) = ranking
        .candidates
        .iter()
        .find(|candidate| candidate.id == current)
    else {
        return true;
    };
    if best.id == now.id {
        return false;
    }
    let better_kind = (best.licence != LicenceState::Valid, best.tier)
        < (now.licence != LicenceState::Valid, now.tier);
    better_kind || now.load.saturating_sub(best.load) > LOAD_GAIN_PERMILLE
}
