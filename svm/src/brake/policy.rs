//! When a signature turns report-only: pure; time is an argument.
//!
//! ```text
//!             a hit                    more than 5 guests in 10 minutes
//!  unseen ───────────► watched (new) ────────────────────────────────► braked
//!                         │ a day after it came into force                 │ confirm
//!                         ▼                                                ▼
//!                       acts, and is not counted                       confirmed: acts
//! ```
//!
//! A signature is new for a day from the moment in which it came into force here: it, and
//! not the set that it came with, which is new every day. What is old has shown that it is
//! good, and what spreads with an old signature is an outbreak: it is never braked. A
//! signature is its name and what it says: one that was edited is another, and what was
//! confirmed of it before counts no more.
//!
//! Guests are counted within their tenant, and a signature is braked for that tenant
//! alone: what one tenant's guests hold must change no other's verdicts, and must not be
//! learnt from them. What somebody confirms is confirmed for all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use palisade_protocol::content::ContentId;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::verdict::{EngineName, SignatureName};
use serde::{Deserialize, Serialize};

/// Most signatures that are watched, each for a tenant; the one whose last hit is oldest is
/// dropped.
pub const MAX_WATCHED: usize = 4096;
/// Most signatures that are kept as braked, each for a tenant.
pub const MAX_BRAKED: usize = 1024;
/// Most of them of one tenant.
pub const MAX_BRAKED_PER_TENANT: usize = 256;
/// Most signatures that are kept as confirmed.
pub const MAX_CONFIRMED: usize = 1024;
/// Most contents that are remembered of one guest that a watched signature hit.
pub const MAX_CONTENTS: usize = 16;

/// The rule's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// So many guests may be hit; one more, and the signature is braked.
    pub guests: usize,
    /// Within this time, in milliseconds.
    pub within_ms: u64,
    /// How long a signature is new, in milliseconds.
    pub new_for_ms: u64,
}

impl Rule {
    /// The rule in force for so many guests.
    pub fn new(guests: usize) -> Self {
        Self {
            guests,
            within_ms: 10 * 60 * 1000,
            new_for_ms: 24 * 3600 * 1000,
        }
    }
}

/// A signature: as verdicts name it, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Signature {
    /// Whose.
    pub engine: EngineName,
    /// Its name.
    pub name: SignatureName,
    /// What it says, hashed.
    pub definition: u64,
}

/// A signature, for a tenant.
pub type Braked = (TenantId, Signature);

/// What a hit comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is malware.
    Act,
    /// It is reported and no more.
    ReportOnly,
    /// The same, from this hit on.
    Braked,
}

#[derive(Debug)]
struct Watched {
    /// The last hit of each guest with each content, as far as it is within the rule's
    /// time; the oldest first.
    hits: Vec<Hit>,
    last_ms: u64,
}

#[derive(Debug)]
struct Hit {
    guest: AgentId,
    content: ContentId,
    at_ms: u64,
}

impl Watched {
    /// One more; gives how many guests there are.
    fn add(&mut self, hit: Hit, within_ms: u64) -> usize {
        self.last_ms = self.last_ms.max(hit.at_ms);
        self.hits.retain(|other| {
            (other.guest, other.content) != (hit.guest, hit.content)
                && hit.at_ms.saturating_sub(other.at_ms) < within_ms
        });
        let own = self.hits.iter().filter(|other| other.guest == hit.guest);
        if own.count() >= MAX_CONTENTS
            && let Some(oldest) = self.hits.iter().position(|one| one.guest == hit.guest)
        {
            self.hits.remove(oldest);
        }
        self.hits.push(hit);
        let guests: BTreeSet<AgentId> = self.hits.iter().map(|hit| hit.guest).collect();
        guests.len()
    }

    /// Forgets the guest whose hits began first.
    fn forget_one(&mut self) {
        if let Some(first) = self.hits.first().map(|hit| hit.guest) {
            self.hits.retain(|hit| hit.guest != first);
        }
    }
}

/// All signatures' states.
#[derive(Debug)]
pub struct Policy {
    rule: Rule,
    watched: HashMap<Braked, Watched>,
    /// With the moment in which each was braked, in milliseconds since 1970.
    braked: BTreeMap<Braked, u64>,
    confirmed: BTreeSet<Signature>,
    /// Who was told that a content is malware by the signature that was braked last.
    told: Vec<(AgentId, ContentId)>,
}

impl Policy {
    /// Nothing was seen yet, but what was braked or confirmed before.
    pub fn new(
        rule: Rule,
        braked: impl IntoIterator<Item = (Braked, u64)>,
        confirmed: impl IntoIterator<Item = Signature>,
    ) -> Self {
        Self {
            rule,
            watched: HashMap::new(),
            braked: braked.into_iter().take(MAX_BRAKED).collect(),
            confirmed: confirmed.into_iter().take(MAX_CONFIRMED).collect(),
            told: Vec::new(),
        }
    }

    /// A guest is hit by a signature that came into force at `since_ms`, in this content.
    pub fn hit(
        &mut self,
        signature: &Signature,
        tenant: &TenantId,
        (guest, content): (AgentId, ContentId),
        since_ms: u64,
        now_ms: u64,
    ) -> Effect {
        if self.rule.guests == 0 || self.confirmed.contains(signature) {
            return Effect::Act;
        }
        let own = (tenant.clone(), signature.clone());
        if self.braked.contains_key(&own) {
            return Effect::ReportOnly;
        }
        if now_ms.saturating_sub(since_ms) >= self.rule.new_for_ms {
            self.watched.remove(&own);
            return Effect::Act;
        }
        if !self.watched.contains_key(&own) {
            self.make_room();
        }
        let watched = self.watched.entry(own.clone()).or_insert_with(|| Watched {
            hits: Vec::new(),
            last_ms: now_ms,
        });
        let hit = Hit {
            guest,
            content,
            at_ms: now_ms,
        };
        if watched.add(hit, self.rule.within_ms) <= self.rule.guests {
            return Effect::Act;
        }
        let of_tenant = self.braked.keys().filter(|(braked, _)| braked == tenant);
        if self.braked.len() >= MAX_BRAKED || of_tenant.count() >= MAX_BRAKED_PER_TENANT {
            // It stays watched, where its guests are as many as a bad set makes them.
            watched.forget_one();
            return Effect::ReportOnly;
        }
        let hits = self.watched.remove(&own).map(|watched| watched.hits);
        self.told = hits
            .unwrap_or_default()
            .into_iter()
            .map(|hit| (hit.guest, hit.content))
            .collect();
        self.braked.insert(own, now_ms);
        Effect::Braked
    }

    /// Which guests were told that which contents are malware by the signature that was just
    /// [braked](Effect::Braked): they remember it, and are to ask again.
    pub fn take_told(&mut self) -> Vec<(AgentId, ContentId)> {
        std::mem::take(&mut self.told)
    }

    /// A guest is hit by a signature of which it is not known what it says: what is braked of
    /// that name stays so, and all else acts.
    pub fn hit_of_unknown(
        &self,
        tenant: &TenantId,
        engine: &EngineName,
        name: &SignatureName,
    ) -> Effect {
        let is = |one: &Signature| one.engine == *engine && one.name == *name;
        let mut braked = self.braked.keys();
        if self.rule.guests > 0 && braked.any(|(of, one)| of == tenant && is(one)) {
            Effect::ReportOnly
        } else {
            Effect::Act
        }
    }

    /// Somebody looked, and the signature is right: it acts from here on, for all tenants.
    /// Gives how many of this name were braked.
    pub fn confirm(&mut self, name: &str) -> usize {
        let named: Vec<Braked> = self
            .braked
            .keys()
            .filter(|(_, signature)| signature.name.as_str() == name)
            .cloned()
            .collect();
        for own in &named {
            self.braked.remove(own);
            if self.confirmed.len() >= MAX_CONFIRMED {
                self.confirmed.pop_first();
            }
            self.confirmed.insert(own.1.clone());
        }
        named.len()
    }

    /// What is braked, for whom, and since when.
    pub fn braked(&self) -> impl Iterator<Item = (&Braked, u64)> {
        self.braked.iter().map(|(own, since)| (own, *since))
    }

    /// What is confirmed.
    pub fn confirmed(&self) -> impl Iterator<Item = &Signature> {
        self.confirmed.iter()
    }

    fn make_room(&mut self) {
        if self.watched.len() < MAX_WATCHED {
            return;
        }
        let oldest = self
            .watched
            .iter()
            .min_by_key(|(_, watched)| watched.last_ms);
        if let Some(oldest) = oldest.map(|(own, _)| own.clone()) {
            self.watched.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::Text;
    use proptest::prelude::*;

    const CONTENT: ContentId = ContentId([7; 32]);
    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;

    fn signature(name: &str) -> Signature {
        Signature {
            engine: Text::cut("yara-x"),
            name: Text::cut(name),
            definition: 1,
        }
    }

    fn guest(n: u8) -> AgentId {
        AgentId(uuid::Uuid::from_u128(n.into()))
    }

    fn policy() -> Policy {
        Policy::new(Rule::new(5), [], [])
    }

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    impl Policy {
        fn hits(&mut self, signature: &Signature, n: u8, since_ms: u64, now_ms: u64) -> Effect {
            self.hit(
                signature,
                &tenant("a"),
                (guest(n), CONTENT),
                since_ms,
                now_ms,
            )
        }
    }

    #[test]
    fn the_sixth_guest_within_ten_minutes_brakes_until_somebody_confirms() {
        let (mut policy, bad) = (policy(), signature("Bad"));
        for n in 0..5 {
            assert_eq!(policy.hits(&bad, n, 0, MINUTE), Effect::Act);
            // Again the same guest.
            assert_eq!(policy.hits(&bad, n, 0, MINUTE), Effect::Act);
        }
        assert_eq!(policy.hits(&bad, 5, 0, 2 * MINUTE), Effect::Braked);
        assert_eq!(policy.hits(&bad, 0, 0, 50 * HOUR), Effect::ReportOnly);
        assert_eq!(policy.hits(&signature("Other"), 9, 0, MINUTE), Effect::Act);
        assert_eq!(policy.confirm("Nothing"), 0);
        assert_eq!(policy.confirm("Bad"), 1);
        for n in 0..9 {
            assert_eq!(policy.hits(&bad, n, 0, 3 * MINUTE), Effect::Act);
        }
        // Another of that name is not confirmed.
        let edited = Signature {
            definition: 2,
            ..bad
        };
        let effects: Vec<_> = (0..6)
            .map(|n| policy.hits(&edited, n, 0, 3 * MINUTE))
            .collect();
        assert_eq!(effects[..5], [Effect::Act; 5]);
        assert_eq!(effects[5], Effect::Braked);
    }

    /// Those who were told that it is malware before it was braked are to ask again, about
    /// whatever they were told of.
    #[test]
    fn who_was_told_before_it_was_braked_is_named() {
        let (mut policy, bad, a) = (policy(), signature("Bad"), tenant("a"));
        let content = |n: u8| ContentId([n; 32]);
        for n in 0..20 {
            policy.hit(&bad, &a, (guest(0), content(n)), 0, MINUTE);
        }
        for n in 1..5 {
            policy.hit(&bad, &a, (guest(n), content(0)), 0, MINUTE);
        }
        assert!(policy.take_told().is_empty());
        let braked = policy.hit(&bad, &a, (guest(5), content(0)), 0, MINUTE);
        assert_eq!(braked, Effect::Braked);
        let told = policy.take_told();
        let of = |n| told.iter().filter(|(agent, _)| *agent == guest(n)).count();
        assert_eq!([0, 1, 4, 5].map(of), [MAX_CONTENTS, 1, 1, 1]);
        assert!(told.contains(&(guest(0), content(19))));
        assert!(policy.take_told().is_empty());
    }

    #[test]
    fn slow_spread_and_old_signatures_act() {
        let (mut policy, slow, old) = (policy(), signature("Slow"), signature("Old"));
        for n in 0..50 {
            let now_ms = u64::from(n) * 2 * MINUTE;
            assert_eq!(policy.hits(&slow, n, 0, now_ms), Effect::Act);
            let later = 24 * HOUR + u64::from(n);
            assert_eq!(policy.hits(&old, n, 0, later), Effect::Act);
        }
        assert!(policy.watched.keys().all(|(_, one)| *one != old));
    }

    #[test]
    fn what_one_tenant_holds_changes_no_other_tenants_verdicts() {
        let (mut policy, bad) = (policy(), signature("Bad"));
        let (a, b) = (tenant("a"), tenant("b"));
        for n in 0..20 {
            policy.hit(&bad, &a, (guest(n), CONTENT), 0, MINUTE);
        }
        assert_eq!(
            policy.hit(&bad, &a, (guest(0), CONTENT), 0, MINUTE),
            Effect::ReportOnly
        );
        for n in 100..105 {
            assert_eq!(
                policy.hit(&bad, &b, (guest(n), CONTENT), 0, MINUTE),
                Effect::Act
            );
        }
        assert_eq!(
            policy.hit(&bad, &b, (guest(105), CONTENT), 0, MINUTE),
            Effect::Braked
        );
        assert_eq!(policy.confirm("Bad"), 2);
        assert_eq!(policy.confirmed().count(), 1);
        assert_eq!(
            policy.hit(&bad, &a, (guest(0), CONTENT), 0, MINUTE),
            Effect::Act
        );
    }

    #[test]
    fn everything_is_bounded() {
        let mut policy = policy();
        for n in 0..MAX_WATCHED + 100 {
            policy.hits(&signature(&n.to_string()), 0, 0, n as u64);
        }
        assert_eq!(policy.watched.len(), MAX_WATCHED);
        for own in 0..6 {
            let own = tenant(&format!("tenant-{own}"));
            for n in 0..MAX_BRAKED_PER_TENANT + 10 {
                let bad = signature(&format!("bad{n}"));
                for g in 0..6 {
                    policy.hit(&bad, &own, (guest(g), CONTENT), 0, MINUTE);
                }
                let effect = policy.hit(&bad, &own, (guest(6), CONTENT), 0, MINUTE);
                assert_ne!(effect, Effect::Act, "{n}");
            }
            let braked = policy.braked.keys().filter(|(of, _)| *of == own);
            assert!(braked.count() <= MAX_BRAKED_PER_TENANT);
        }
        assert_eq!(policy.braked.len(), MAX_BRAKED);
        assert!(policy.watched.len() <= MAX_WATCHED);
    }

    proptest! {
        /// Against the rule by its words, over all hits that ever were.
        #[test]
        fn a_signature_is_braked_when_the_rule_says_so(
            hits in prop::collection::vec((0..12_u8, 0..4 * MINUTE), 1..120),
            introduced_h in 0..30_u64,
        ) {
            let rule = Rule::new(5);
            let (mut policy, bad) = (policy(), signature("Bad"));
            let introduced_ms = introduced_h * HOUR;
            let mut now_ms = 30 * HOUR;
            let mut all: Vec<(u8, u64)> = Vec::new();
            let mut braked = false;
            for (g, step) in hits {
                now_ms += step;
                all.push((g, now_ms));
                let is_new = now_ms - introduced_ms < rule.new_for_ms;
                let recent: BTreeSet<u8> = all
                    .iter()
                    .filter(|(_, at)| now_ms - at < rule.within_ms)
                    .map(|(g, _)| *g)
                    .collect();
                let effect = policy.hits(&bad, g, introduced_ms, now_ms);
                let wanted = if braked {
                    Effect::ReportOnly
                } else if is_new && recent.len() > rule.guests {
                    braked = true;
                    Effect::Braked
                } else {
                    Effect::Act
                };
                prop_assert_eq!(effect, wanted);
            }
        }
    }
}
