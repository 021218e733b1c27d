//! Why this Protection Server, and why not each other one.
//!
//! The keeper publishes an [`Explanation`] each time it has looked; `status` and
//! `palisade-agent explain` show it as it is at that moment ([`Explanation::shown`]).

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use palisade_protocol::control::{InfrastructurePath, LicenceState, SvmEntry};
use palisade_protocol::ids::SvmId;
use palisade_protocol::selection::{Candidate, Excluded, Reach, why_not};
use serde::{Deserialize, Serialize};

use super::Source;
use super::attempts::{Attempts, Failure};
use super::candidates::Candidates;
use crate::link::{Link, Target};

/// What the keeper knew when it looked.
#[derive(Clone, Default)]
pub struct Explanation {
    source: String,
    place: Option<InfrastructurePath>,
    tags: Vec<String>,
    reach: Reach,
    svms: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    name: String,
    id: Option<SvmId>,
    addresses: Vec<String>,
    role: Role,
    link: Option<Arc<Link>>,
    candidate: Option<Candidate>,
    why: String,
    failure: Option<Failure>,
}

/// What a Protection Server is to this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It is asked.
    InUse,
    /// It stands by.
    Spare,
    /// It may be used.
    Candidate,
    /// It must not be used.
    Excluded,
}

impl Explanation {
    /// What follows from the candidates and the sessions in force, used and spare.
    pub fn new(
        candidates: &Candidates,
        source: &Source,
        reach: Reach,
        links: [Option<&Arc<Link>>; 2],
        attempts: &Attempts,
    ) -> Self {
        let mut explanation = Self {
            source: match (source, &candidates.ranked) {
                (Source::Static(_), _) => "the agent's settings".to_owned(),
                (Source::List(_), Some((_, list))) => {
                    format!("the Integration Server's list, version {}", list.etag)
                }
                (Source::List(_), None) => "no list yet".to_owned(),
            },
            reach,
            ..Self::default()
        };
        if let Some((_, list)) = &candidates.ranked {
            explanation.place = Some(list.own_path.clone());
            explanation.tags = list.own_tags.iter().map(ToString::to_string).collect();
        }
        for target in &candidates.targets {
            explanation
                .svms
                .push(Entry::candidate(target, candidates, links, attempts));
        }
        if let Some((ranking, list)) = &candidates.ranked {
            for (id, why) in &ranking.excluded {
                let svm = list.svms.iter().find(|svm| svm.id == *id);
                let used = links[0].is_some_and(|link| link.id == *id);
                explanation.svms.push(Entry {
                    name: svm.map(|svm| svm.name.to_string()).unwrap_or_default(),
                    id: Some(*id),
                    addresses: Vec::new(),
                    role: if used { Role::InUse } else { Role::Excluded },
                    link: None,
                    candidate: None,
                    why: match used {
                        true => {
                            format!("{}; it is used until another one answers", said(*why, svm))
                        }
                        false => said(*why, svm),
                    },
                    failure: None,
                });
            }
        }
        if let Some(link) = links[0]
            && explanation.svms.iter().all(|svm| svm.id != Some(link.id))
        {
            explanation.svms.push(Entry {
                name: link.name.clone(),
                id: Some(link.id),
                addresses: vec![link.address.to_string()],
                role: Role::InUse,
                link: Some(Arc::clone(link)),
                candidate: None,
                why: "it is not listed any more; it is used until another one answers".to_owned(),
                failure: None,
            });
        }
        explanation
    }

    /// As it is now.
    pub fn shown(&self, now: Instant) -> Shown {
        Shown {
            source: self.source.clone(),
            path: self.reach,
            place: self.place.as_ref().map_or_else(String::new, place),
            tags: self.tags.clone(),
            svms: self.svms.iter().map(|svm| svm.shown(now)).collect(),
        }
    }
}

/// Why one is excluded, with the tags that it asks for.
fn said(why: Excluded, svm: Option<&SvmEntry>) -> String {
    match svm {
        Some(svm) if why == Excluded::Tags => {
            let tags: Vec<&str> = svm.report.tags.iter().map(|tag| tag.as_str()).collect();
            format!("{why}: {}", tags.join(", "))
        }
        _ => why.to_string(),
    }
}

fn place(path: &InfrastructurePath) -> String {
    let parts = [&path.datacenter, &path.cluster, &path.hypervisor];
    let known: Vec<&str> = parts
        .iter()
        .map(|part| part.as_str())
        .filter(|part| !part.is_empty())
        .collect();
    match known.is_empty() {
        true => "unknown".to_owned(),
        false => known.join(" / "),
    }
}

impl Entry {
    fn candidate(
        target: &Target,
        candidates: &Candidates,
        [used, spare]: [Option<&Arc<Link>>; 2],
        attempts: &Attempts,
    ) -> Self {
        let is = |link: Option<&Arc<Link>>| link.is_some_and(|link| link.is(target));
        let role = match (is(used), is(spare)) {
            (true, _) => Role::InUse,
            (_, true) => Role::Spare,
            _ => Role::Candidate,
        };
        let link = match role {
            Role::InUse => used.cloned(),
            Role::Spare => spare.cloned(),
            _ => None,
        };
        let ranking = candidates.ranked.as_ref().map(|(ranking, _)| ranking);
        let ranked = |id: SvmId| ranking.and_then(|ranking| ranking.candidate(id));
        let candidate = target.id.and_then(ranked).cloned();
        let why = match (role, &candidate, used.and_then(|used| ranked(used.id))) {
            (Role::InUse, Some(own), _) => format!("the best that answers: it is {}", own.tier),
            (Role::InUse, None, _) => "the first that answers".to_owned(),
            (_, Some(own), Some(used)) => why_not(own, used).to_string(),
            (_, None, _) if used.is_some() => "one written before it answers".to_owned(),
            _ => "it does not answer".to_owned(),
        };
        Self {
            name: target.name.clone(),
            id: target.id.or_else(|| link.as_ref().map(|link| link.id)),
            addresses: target.addresses.iter().map(ToString::to_string).collect(),
            role,
            failure: match link.is_some() {
                true => None,
                false => attempts.of(target).cloned(),
            },
            link,
            candidate,
            why,
        }
    }

    fn shown(&self, now: Instant) -> Svm {
        let link = self.link.as_ref();
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).ok();
        Svm {
            name: self.name.clone(),
            id: self.id.map(|id| id.to_string()),
            addresses: self.addresses.clone(),
            role: self.role,
            why: self.why.clone(),
            nearness: self.candidate.as_ref().map(|own| own.tier.to_string()),
            licence_valid: self
                .candidate
                .as_ref()
                .map(|own| own.licence == LicenceState::Valid),
            score: self.candidate.as_ref().map(Candidate::score),
            connected_s: link.map(|link| now.saturating_duration_since(link.since).as_secs()),
            round_trip_us: link.and_then(|link| micros(link.round_trip())),
            failure: self.failure.as_ref().map(|failure| LastFailure {
                reason: failure.reason.clone(),
                ago_s: now.saturating_duration_since(failure.at).as_secs(),
            }),
        }
    }
}

/// The choice, for programs and people.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Shown {
    /// Where the candidates come from.
    pub source: String,
    /// How far the policy allows.
    pub path: Reach,
    /// Where this guest is.
    pub place: String,
    /// This guest's tags.
    pub tags: Vec<String>,
    /// All Protection Servers that are known, best first.
    pub svms: Vec<Svm>,
}

/// One Protection Server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Svm {
    /// Its name for people.
    pub name: String,
    /// Its id, where it is known.
    pub id: Option<String>,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// What it is to this agent.
    pub role: Role,
    /// Why.
    pub why: String,
    /// How near it is.
    pub nearness: Option<String>,
    /// Whether its licence is valid.
    pub licence_valid: Option<bool>,
    /// Its score, in thousandths of a full machine; less is better.
    pub score: Option<u32>,
    /// Seconds since the session began.
    pub connected_s: Option<u64>,
    /// Its round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// How it failed the last time.
    pub failure: Option<LastFailure>,
}

/// How a Protection Server failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastFailure {
    /// Why.
    pub reason: String,
    /// Seconds ago.
    pub ago_s: u64,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "candidates from {}", self.source)?;
        if !self.place.is_empty() {
            writeln!(f, "this guest is at {}", self.place)?;
        }
        if !self.tags.is_empty() {
            writeln!(f, "its tags are {}", self.tags.join(", "))?;
        }
        if self.svms.is_empty() {
            writeln!(f, "no Protection Server is known")?;
        }
        for svm in &self.svms {
            writeln!(f, "{svm}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Svm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::InUse => "in use",
            Role::Spare => "stands by",
            Role::Candidate => "not used",
            Role::Excluded => "excluded",
        };
        write!(f, "{role:<10} {}", self.name)?;
        if !self.addresses.is_empty() && self.addresses != [self.name.clone()] {
            write!(f, " ({})", self.addresses.join(", "))?;
        }
        write!(f, ": {}", self.why)?;
        if let Some(score) = self.score {
            write!(f, "; score {score}")?;
        }
        if let Some(micros) = self.round_trip_us {
            write!(f, "; round trip {}.{:03} ms", micros / 1000, micros % 1000)?;
        }
        if let Some(failure) = &self.failure {
            write!(f, "; failed {} s ago: {}", failure.ago_s, failure.reason)?;
        }
        Ok(())
    }
}
