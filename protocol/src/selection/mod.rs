//! Which Protection Server an agent connects to, and why: pure, so that the
//! agent decides and explains by the same rules.
//!
//! ```text
//!  list ─► hard rules ─► absent ones last ─► licence ─► nearness ─► load, in steps ─► rendezvous hash
//!             └► excluded, and why
//! ```
//!
//! The hash spreads ties: agents that see the same list do not all go to the same
//! Protection Server. The order is of the list alone. What an agent measured over its
//! sessions counts where two are compared of both of which it knows as much ([`gain`]):
//! a fresh load and a round trip beside minutes-old words about another one would make
//! whoever is known look worse than whoever is not. When a connected agent moves is
//! [`Steady`]'s to say. Owns no clock and no session: what was measured is an argument.

mod steady;
mod why;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::{InfrastructurePath, LicenceState, Name, SvmEntry};
use crate::ids::{AgentId, SvmId};
use crate::scan::LoadHint;

pub use steady::{Gain, LOAD_HOLD, MOVE_SPREAD, Steady, gain};
pub use why::{WhyNot, why_not};

/// A connected agent moves for load only above this difference, in thousandths.
pub const LOAD_GAIN_PERMILLE: u32 = 300;
/// Scores within one step of this many thousandths are equal, and the hash decides.
pub const SCORE_STEP_PERMILLE: u32 = 100;
/// What a millisecond of round trip weighs, in thousandths.
const ROUND_TRIP_PERMILLE_PER_MS: u32 = 10;

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

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hypervisor => "on the same hypervisor",
            Self::Cluster => "in the same cluster",
            Self::Datacenter => "in the same data centre",
            Self::Any => "elsewhere",
        })
    }
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

/// How far from the guest a Protection Server may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// On the same hypervisor only.
    Hypervisor,
    /// In the same cluster at most.
    Cluster,
    /// In the same data centre at most.
    Datacenter,
    /// Anywhere; near ones first.
    #[default]
    #[serde(alias = "standard")]
    Any,
}

impl Reach {
    fn tier(self) -> Tier {
        match self {
            Self::Hypervisor => Tier::Hypervisor,
            Self::Cluster => Tier::Cluster,
            Self::Datacenter => Tier::Datacenter,
            Self::Any => Tier::Any,
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
    /// It is further away than the policy allows.
    TooFar {
        /// How near it is.
        is: Tier,
        /// How near it has to be.
        reach: Reach,
    },
}

impl std::fmt::Display for Excluded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tags => write!(
                f,
                "it takes only agents with one of its tags, and this one has none of them"
            ),
            Self::NoDefinitions => write!(f, "it has no definitions yet"),
            Self::Draining => write!(f, "it is draining"),
            Self::NoAddress => write!(f, "it has told no address"),
            Self::TooFar { is, reach } => write!(
                f,
                "it is {is}, and selection.path allows {} at most",
                reach.tier()
            ),
        }
    }
}

/// What an agent measured of a Protection Server over a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Its load, as it said it there.
    pub load: LoadHint,
    /// The round trip.
    pub round_trip: Duration,
}

/// The agent that chooses.
#[derive(Debug, Clone, Copy)]
pub struct Chooser<'a> {
    /// Who it is.
    pub agent: AgentId,
    /// Where it is.
    pub path: &'a InfrastructurePath,
    /// Its tags.
    pub tags: &'a [Name],
    /// How far it may go.
    pub reach: Reach,
}

/// A candidate with what it is ordered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub id: SvmId,
    /// The server has had no session with it for long.
    pub absent: bool,
    /// Its licence.
    pub licence: LicenceState,
    /// How near it is.
    pub tier: Tier,
    /// Load and queue wait as the list has them, in thousandths; less is better.
    pub listed: u32,
    /// Load, queue wait and round trip as they were measured, where they were.
    pub measured: Option<u32>,
    rendezvous: u64,
}

impl Candidate {
    /// The best that is known of it.
    pub fn score(&self) -> u32 {
        self.measured.unwrap_or(self.listed)
    }

    /// What no load makes up for.
    pub(crate) fn kind(&self) -> (bool, Tier) {
        (self.licence != LicenceState::Valid, self.tier)
    }

    /// Whether load alone tells the two apart.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        self.kind() == other.kind()
    }

    /// The scores of both, measured or listed alike.
    pub(crate) fn against(&self, other: &Self) -> (u32, u32) {
        match (self.measured, other.measured) {
            (Some(own), Some(other)) => (own, other),
            _ => (self.listed, other.listed),
        }
    }

    fn rank(&self) -> (bool, bool, Tier, u32, u64, SvmId) {
        let (unlicensed, tier) = self.kind();
        let step = self.listed / SCORE_STEP_PERMILLE;
        (
            self.absent,
            unlicensed,
            tier,
            step,
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

impl Ranking {
    /// The candidate of this id.
    pub fn candidate(&self, id: SvmId) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.id == id)
    }
}

/// Orders the list for one agent, which may know more of some by its sessions.
pub fn rank(
    chooser: &Chooser<'_>,
    svms: &[SvmEntry],
    measured: impl Fn(SvmId) -> Option<Measured>,
) -> Ranking {
    let mut ranking = Ranking::default();
    for svm in svms {
        match excluded(chooser, svm) {
            Some(reason) => ranking.excluded.push((svm.id, reason)),
            None => ranking
                .candidates
                .push(candidate(chooser, svm, measured(svm.id))),
        }
    }
    ranking.candidates.sort_by_key(Candidate::rank);
    ranking
}

fn excluded(chooser: &Chooser<'_>, svm: &SvmEntry) -> Option<Excluded> {
    let report = &svm.report;
    let is = Tier::between(chooser.path, &report.path);
    if report.draining {
        Some(Excluded::Draining)
    } else if report.generations.is_empty() {
        Some(Excluded::NoDefinitions)
    } else if report.addresses.is_empty() {
        Some(Excluded::NoAddress)
    } else if !report.tags.is_empty() && !report.tags.iter().any(|tag| chooser.tags.contains(tag)) {
        Some(Excluded::Tags)
    } else if is > chooser.reach.tier() {
        let reach = chooser.reach;
        Some(Excluded::TooFar { is, reach })
    } else {
        None
    }
}

fn candidate(chooser: &Chooser<'_>, svm: &SvmEntry, measured: Option<Measured>) -> Candidate {
    Candidate {
        id: svm.id,
        absent: svm.absent,
        licence: svm.report.licence,
        tier: Tier::between(chooser.path, &svm.report.path),
        listed: busy(svm.report.average_load),
        measured: measured.map(|measured| {
            let ms = u32::try_from(measured.round_trip.as_millis()).unwrap_or(u32::MAX);
            let away = ms.saturating_mul(ROUND_TRIP_PERMILLE_PER_MS);
            busy(measured.load).saturating_add(away)
        }),
        rendezvous: rendezvous(chooser.agent, svm.id),
    }
}

/// A second of waiting weighs as much as a full machine.
fn busy(load: LoadHint) -> u32 {
    u32::from(load.load_permille).saturating_add(load.queue_wait_ms)
}

fn rendezvous(agent: AgentId, svm: SvmId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(agent.0.as_bytes()).update(svm.0.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}
