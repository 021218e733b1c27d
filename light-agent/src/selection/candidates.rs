//! The candidates at a moment, from the settings or from the list, best first.
//!
//! Owns how both sources look alike to whoever chooses; the order of a list is
//! `palisade_protocol::selection`'s, that of settings is as written.

use std::sync::Arc;

use palisade_protocol::control::SvmList;
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::SvmId;
use palisade_protocol::selection::{Chooser, Gain, Measured, Ranking, Reach, gain, rank};

use super::seats::Session;
use super::{Source, agent_id};
use crate::link::Target;
use crate::settings::StaticSvm;

/// The candidates.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// Where to connect to, best first.
    pub targets: Vec<Target>,
    /// The order in numbers, as long as `targets`, and the list that it is of; none for
    /// settings.
    pub ranked: Option<(Ranking, Arc<SvmList>)>,
    /// Why there is no candidate at all, where that is so.
    pub nothing: Option<&'static str>,
}

impl Candidates {
    /// Reads the source.
    pub fn of(
        source: &Source,
        identity: &Identity,
        reach: Reach,
        measured: impl Fn(SvmId) -> Option<Measured>,
    ) -> Self {
        match source {
            Source::Static(svms) => Self {
                targets: svms.iter().map(written).collect(),
                ..Self::default()
            },
            Source::List(list) => match list.borrow().clone() {
                Some(list) => {
                    let chooser = Chooser {
                        agent: agent_id(identity),
                        path: &list.own_path,
                        tags: &list.own_tags,
                        reach,
                    };
                    let ranking = rank(&chooser, &list.svms, measured);
                    Self::listed(Arc::clone(&list), ranking)
                }
                None => Self {
                    nothing: Some("no list of Protection Servers yet"),
                    ..Self::default()
                },
            },
        }
    }

    /// A list in this order.
    pub fn listed(list: Arc<SvmList>, mut ranking: Ranking) -> Self {
        let entry = |id| list.svms.iter().find(|svm| svm.id == id);
        ranking.candidates.retain(|one| entry(one.id).is_some());
        let targets = ranking
            .candidates
            .iter()
            .filter_map(|candidate| entry(candidate.id))
            .map(|svm| Target {
                id: Some(svm.id),
                name: svm.name.as_str().to_owned(),
                addresses: svm.report.addresses.iter().map(|at| at.address).collect(),
            })
            .collect();
        let nothing = list
            .svms
            .is_empty()
            .then_some("the list of Protection Servers is empty");
        Self {
            targets,
            ranked: Some((ranking, list)),
            nothing,
        }
    }

    /// Whether the server has revoked it.
    pub fn is_revoked(&self, id: SvmId) -> bool {
        let list = self.ranked.as_ref().map(|(_, list)| list);
        list.is_some_and(|list| list.revoked.contains(&id))
    }

    /// Where a session's Protection Server stands among them.
    pub fn position(&self, session: &impl Session) -> Option<usize> {
        self.targets.iter().position(|target| session.is(target))
    }

    /// What would be gained by one session instead of another: nothing by one that is none
    /// with a candidate.
    pub fn gain(&self, from: &impl Session, to: &impl Session) -> Option<Gain> {
        self.gain_of(self.position(from), self.position(to)?)
    }

    /// The most that could be gained by a session with another one.
    pub fn best_gain(&self, from: &impl Session) -> Option<Gain> {
        let from = self.position(from);
        let gains = (0..self.targets.len()).filter_map(|to| self.gain_of(from, to));
        gains.min()
    }

    /// Those by which something is gained for which `which` holds, best first.
    pub fn better_than(
        &self,
        session: &impl Session,
        which: impl Fn(Option<Gain>) -> bool,
    ) -> Vec<Target> {
        let from = self.position(session);
        let targets = self.targets.iter().enumerate();
        let better = targets.filter(|(to, _)| which(self.gain_of(from, *to)));
        better.map(|(_, target)| target.clone()).collect()
    }

    /// Those with which there is none of these sessions, best first.
    pub fn all_but<S: Session>(&self, sessions: [Option<&S>; 2]) -> Vec<Target> {
        let open = |target: &Target| sessions.iter().flatten().any(|one| one.is(target));
        let mut targets = self.targets.clone();
        targets.retain(|target| !open(target));
        targets
    }

    /// Whether load alone tells two apart.
    pub fn is_same_kind(&self, one: &impl Session, other: &impl Session) -> bool {
        let at = |session| self.ranked.as_ref()?.0.candidates.get(session?);
        match (at(self.position(one)), at(self.position(other))) {
            (Some(one), Some(other)) => one.is_same_kind(other),
            _ => false,
        }
    }

    /// The worst that is known of the load of a session's Protection Server.
    pub fn worst_score(&self, session: &impl Session) -> Option<u32> {
        let (ranking, _) = self.ranked.as_ref()?;
        let candidate = ranking.candidates.get(self.position(session)?)?;
        Some(candidate.listed.max(candidate.score()))
    }

    fn gain_of(&self, from: Option<usize>, to: usize) -> Option<Gain> {
        match &self.ranked {
            Some((ranking, _)) => {
                let at = |index: usize| ranking.candidates.get(index);
                gain(from.and_then(at), at(to)?)
            }
            // Of settings, what is written first is best.
            None => match from {
                None => Some(Gain::Needed),
                Some(from) => (to < from).then_some(Gain::Kind),
            },
        }
    }

    /// Why others are none, for people; empty if there is nothing to say.
    pub fn unusable(&self) -> String {
        let Some((ranking, list)) = &self.ranked else {
            return String::new();
        };
        let name = |id| list.svms.iter().find(|svm| svm.id == id);
        let excluded: Vec<String> = ranking
            .excluded
            .iter()
            .filter_map(|(id, why)| Some(format!("{}: {why}", name(*id)?.name)))
            .collect();
        match excluded.is_empty() {
            true => String::new(),
            false => format!("not usable: {}", excluded.join(", ")),
        }
    }
}

fn written(svm: &StaticSvm) -> Target {
    Target {
        id: svm.id,
        name: svm.address.to_string(),
        addresses: vec![svm.address],
    }
}
