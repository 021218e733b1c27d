//! The candidates at a moment, from the settings or from the list, best first.
//!
//! Owns how both sources look alike to the keeper; the order of a list is
//! `palisade_protocol::selection`'s, that of settings is as written.

use std::sync::Arc;

use palisade_protocol::control::SvmList;
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::SvmId;
use palisade_protocol::selection::{Chooser, Gain, Measured, Ranking, Reach, gain, rank};

use super::{Source, agent_id};
use crate::link::{Link, Target};
use crate::settings::StaticSvm;

/// The candidates.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// Where to connect to, best first.
    pub targets: Vec<Target>,
    /// The order in numbers, and the list that it is of; none for settings.
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
        measured: impl Fn(SvmId) -> Measured,
    ) -> Self {
        match source {
            Source::Static(svms) => Self {
                targets: svms.iter().map(written).collect(),
                ..Self::default()
            },
            Source::List(list) => match list.borrow().clone() {
                Some(list) => Self::listed(list, identity, reach, measured),
                None => Self {
                    nothing: Some("no list of Protection Servers yet"),
                    ..Self::default()
                },
            },
        }
    }

    fn listed(
        list: Arc<SvmList>,
        identity: &Identity,
        reach: Reach,
        measured: impl Fn(SvmId) -> Measured,
    ) -> Self {
        let chooser = Chooser {
            agent: agent_id(identity),
            path: &list.own_path,
            tags: &list.own_tags,
            reach,
        };
        let ranking = rank(&chooser, &list.svms, measured);
        let entry = |id| list.svms.iter().find(|svm| svm.id == id);
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

    /// Where a session's Protection Server stands among them.
    pub fn position(&self, link: &Link) -> Option<usize> {
        self.targets.iter().position(|target| link.is(target))
    }

    /// Where a session of this Protection Server would better go, and what for: to
    /// whichever is best, or, of settings, to what is written before it and is connected.
    pub fn gain(&self, used: &Link, spare: Option<&Link>) -> Option<(SvmId, Gain)> {
        match &self.ranked {
            Some((ranking, _)) => gain(ranking, used.id),
            None => {
                let spare = spare?;
                let before = self.position(spare)? < self.position(used)?;
                before.then_some((spare.id, Gain::Kind))
            }
        }
    }

    /// The target that stands by best for a session in use, among those that `may` be.
    pub fn spare_for(&self, used: &Link, may: impl Fn(&Target) -> bool) -> Option<&Target> {
        let mut others = self.targets.iter().filter(|target| !used.is(target));
        others.find(|target| may(target))
    }

    /// Whether another one would stand by better than `spare` does: nearer, licensed,
    /// written before it, or much less busy.
    pub fn better_spare(&self, used: &Link, spare: &Link) -> Option<&Target> {
        let id = match &self.ranked {
            Some((ranking, _)) => {
                let (id, _) = gain(&ranking.clone().without(used.id), spare.id)?;
                id
            }
            None => {
                let first = self.spare_for(used, |_| true)?;
                let position = self.targets.iter().position(|target| target == first)?;
                return (position < self.position(spare)?).then_some(first);
            }
        };
        self.targets.iter().find(|target| target.id == Some(id))
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
