//! All policies and groups as they are now, and what comes of them for an agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use palisade_protocol::bounded::{List, Text, TooLong};
use palisade_protocol::ids::TenantId;
use palisade_protocol::policy::{Layer, MAX_LAYERS, Policy, Setting};
use serde_json::Value;
use uuid::Uuid;

use super::{Facts, MAX_GROUPS, Query, Settings, Subject};

// Site, tenant and VM, and every group of the tenant.
const _: () = assert!(MAX_GROUPS + 3 <= MAX_LAYERS);

/// A group of a tenant's agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub id: Uuid,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its name, like no other of the tenant's.
    pub name: String,
    /// Who is in it.
    pub query: Query,
    /// Of two groups that an agent is in, the one with more wins.
    pub priority: u32,
    /// Grows with each change.
    pub revision: u64,
}

/// The latest revision of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// Its number, from 1 on; 0 before there is one.
    pub revision: u64,
    /// What it sets.
    pub settings: Arc<Settings>,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Book {
    policies: BTreeMap<Subject, Current>,
    /// By tenant, the weakest first.
    groups: BTreeMap<TenantId, Vec<Group>>,
}

/// A part of an effective policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Whose policy it is.
    pub subject: Subject,
    /// What people call it: `site`, `tenant acme`, `group web (priority 10)`, `VM`.
    pub origin: String,
    /// Its revision.
    pub revision: u64,
}

/// What an agent's settings come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// What it is made of, the most general first: those that have a policy.
    pub parts: Vec<Part>,
    /// Values by name, each with the number of its part.
    pub settings: BTreeMap<String, (Value, usize)>,
}

impl Book {
    /// The book with these pages.
    pub fn new(
        policies: impl IntoIterator<Item = (Subject, Current)>,
        groups: impl IntoIterator<Item = Group>,
    ) -> Self {
        let mut book = Self {
            policies: policies.into_iter().collect(),
            groups: BTreeMap::new(),
        };
        for group in groups {
            let of = book.groups.entry(group.tenant.clone()).or_default();
            of.push(group);
        }
        for groups in book.groups.values_mut() {
            // The first name is the strongest of those with one priority.
            groups.sort_by(|a, b| (a.priority, &b.name).cmp(&(b.priority, &a.name)));
        }
        book
    }

    /// The latest revision of a policy.
    pub fn current(&self, subject: &Subject) -> Current {
        self.policies.get(subject).cloned().unwrap_or_default()
    }

    /// A tenant's groups, the weakest first.
    pub fn groups_of(&self, tenant: &TenantId) -> &[Group] {
        self.groups.get(tenant).map_or(&[], Vec::as_slice)
    }

    /// All groups, by tenant, the weakest first.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().flatten()
    }

    /// One group.
    pub fn group(&self, id: Uuid) -> Option<&Group> {
        self.groups().find(|group| group.id == id)
    }

    /// The groups that an agent is in, the weakest first.
    pub fn groups_with<'a>(&'a self, facts: &Facts) -> impl Iterator<Item = &'a Group> {
        let groups = self.groups_of(&facts.tenant).iter();
        let folded = facts.folded();
        groups.filter(move |group| group.query.has(&folded))
    }

    /// What an agent's settings come to.
    pub fn effective(&self, facts: &Facts) -> Effective {
        let mut effective = Effective::default();
        effective.take(self, Subject::Site, || "site".to_owned());
        let tenant = &facts.tenant;
        effective.take(self, Subject::Tenant(tenant.clone()), || {
            format!("tenant {tenant}")
        });
        for group in self.groups_with(facts) {
            effective.take(self, Subject::Group(group.id), || {
                format!("group {} (priority {})", group.name, group.priority)
            });
        }
        effective.take(self, Subject::Vm(facts.id), || "VM".to_owned());
        effective
    }
}

impl Effective {
    /// Lays a more special policy over what there is.
    fn take(&mut self, book: &Book, subject: Subject, origin: impl FnOnce() -> String) {
        let Some(current) = book.policies.get(&subject) else {
            return;
        };
        let at = self.parts.len();
        for (key, value) in current.settings.iter() {
            self.settings.insert(key.clone(), (value.clone(), at));
        }
        self.parts.push(Part {
            subject,
            origin: origin(),
            revision: current.revision,
        });
    }

    /// The part that a value comes from.
    pub fn part(&self, at: usize) -> Option<&Part> {
        self.parts.get(at)
    }

    /// The document for the agent.
    ///
    /// # Errors
    /// [`TooLong`]: what is in the store goes beyond the bounds of what may be there.
    pub fn document(&self) -> Result<Policy, TooLong> {
        let layers = self.parts.iter().map(|part| Layer {
            origin: Text::cut(&part.origin),
            revision: part.revision,
        });
        let settings = self.settings.iter().map(|(key, (value, at))| {
            let origin = self.part(*at).map_or("", |part| &part.origin);
            Ok(Setting {
                key: Text::new(key.as_str())?,
                value: Text::new(value.to_string())?,
                origin: Text::cut(origin),
            })
        });
        let settings: Result<Vec<_>, TooLong> = settings.collect();
        Ok(Policy {
            layers: List::<_, MAX_LAYERS>::new(layers.collect())?,
            settings: List::new(settings?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::query::tests::facts;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn group(n: u128, name: &str, priority: u32, query: &str) -> Group {
        Group {
            id: Uuid::from_u128(n),
            tenant: "acme".parse().unwrap(),
            name: name.to_owned(),
            query: query.parse().unwrap(),
            priority,
            revision: 0,
        }
    }

    fn sets(settings: &[(&str, i64)], revision: u64) -> Current {
        let all = settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)));
        Current {
            revision,
            settings: Arc::new(all.collect()),
        }
    }

    #[test]
    fn the_most_special_one_wins_and_is_named() {
        let facts = facts("web-1");
        let (high, low, other) = (
            group(1, "web", 20, "name:web-*"),
            group(2, "all", 10, "name:*"),
            group(3, "db", 99, "name:db-*"),
        );
        let all = [
            (
                Subject::Site,
                sets(&[("a", 0), ("b", 0), ("c", 0), ("d", 0), ("e", 0)], 7),
            ),
            (Subject::Tenant(facts.tenant.clone()), sets(&[("b", 1)], 1)),
            (
                Subject::Tenant("other".parse().unwrap()),
                sets(&[("e", 9)], 1),
            ),
            (Subject::Group(low.id), sets(&[("c", 2), ("d", 2)], 1)),
            (Subject::Group(high.id), sets(&[("d", 3)], 4)),
            (Subject::Group(other.id), sets(&[("e", 4)], 1)),
            (Subject::Vm(facts.id), sets(&[("f", 5)], 1)),
        ];
        let book = Book::new(all, [high, low, other]);
        let effective = book.effective(&facts);
        let of = |key: &str| {
            let (value, at) = effective.settings.get(key)?;
            let part = effective.part(*at)?;
            Some(format!("{value} {} {}", part.origin, part.revision))
        };
        assert_eq!(of("a").unwrap(), "0 site 7");
        assert_eq!(of("b").unwrap(), "1 tenant acme 1");
        assert_eq!(of("c").unwrap(), "2 group all (priority 10) 1");
        assert_eq!(of("d").unwrap(), "3 group web (priority 20) 4");
        assert_eq!(of("e").unwrap(), "0 site 7");
        assert_eq!(of("f").unwrap(), "5 VM 1");
        assert_eq!(of("g"), None);
        assert_eq!(effective.parts.len(), 5);
        let document = effective.document().unwrap();
        assert_eq!(document.settings.len(), 6);
        assert_eq!(
            document.settings[3].origin.as_str(),
            "group web (priority 20)"
        );
    }

    #[test]
    fn of_groups_with_one_priority_the_first_name_wins() {
        let facts = facts("web-1");
        let (a, b) = (group(1, "a", 5, "name:*"), group(2, "b", 5, "name:*"));
        let pages = [
            (Subject::Group(a.id), sets(&[("x", 1)], 1)),
            (Subject::Group(b.id), sets(&[("x", 2)], 1)),
        ];
        for groups in [[a.clone(), b.clone()], [b, a]] {
            let effective = Book::new(pages.clone(), groups).effective(&facts);
            assert_eq!(effective.settings["x"].0, json!(1));
        }
    }

    #[test]
    fn an_agent_may_be_in_every_group_of_its_tenant() {
        let facts = facts("web-1");
        let name = |n: usize| format!("{n:0>63}");
        let groups: Vec<Group> = (0..MAX_GROUPS)
            .map(|n| group(n as u128, &name(n), 1_000_000, "name:*"))
            .collect();
        let mut subjects = vec![Subject::Site, Subject::Tenant(facts.tenant.clone())];
        subjects.extend(groups.iter().map(|group| Subject::Group(group.id)));
        subjects.push(Subject::Vm(facts.id));
        let pages = subjects.into_iter().map(|one| (one, sets(&[("a", 1)], 1)));
        let document = Book::new(pages, groups).effective(&facts).document();
        let document = document.unwrap();
        assert_eq!(document.layers.len(), MAX_GROUPS + 3);
        assert!(document.fingerprint().is_ok());
    }

    /// Layers as (has a policy, what it sets).
    fn layers() -> impl Strategy<Value = Vec<Option<Settings>>> {
        let key = prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
        let settings = prop::collection::btree_map(key, (0..9).prop_map(|n| json!(n)), 0..4);
        prop::collection::vec(prop::option::of(settings), 6)
    }

    proptest! {
        #[test]
        fn a_value_is_that_of_the_last_layer_that_sets_it(layers in layers()) {
            let facts = facts("web-1");
            let groups: Vec<Group> = (0..3).map(|n| group(n, &format!("g{n}"), n as u32, "name:*")).collect();
            let mut subjects = vec![Subject::Site, Subject::Tenant(facts.tenant.clone())];
            subjects.extend(groups.iter().map(|group| Subject::Group(group.id)));
            subjects.push(Subject::Vm(facts.id));
            let pages = subjects.iter().cloned().zip(layers.iter().cloned()).filter_map(|(subject, settings)| {
                Some((subject, Current { revision: 1, settings: Arc::new(settings?) }))
            });
            let effective = Book::new(pages, groups).effective(&facts);
            for key in ["a", "b", "c"] {
                let last = layers.iter().zip(&subjects).rev().find_map(|(settings, subject)| {
                    Some((settings.as_ref()?.get(key)?.clone(), subject.clone()))
                });
                let found = effective.settings.get(key).map(|(value, at)| {
                    (value.clone(), effective.part(*at).unwrap().subject.clone())
                });
                prop_assert_eq!(found, last);
            }
            let document = effective.document().unwrap();
            prop_assert!(document.settings.is_sorted_by(|a, b| a.key < b.key));
            prop_assert_eq!(document.settings.len(), effective.settings.len());
        }
    }
}
