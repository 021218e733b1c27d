//! Members that share lane time: whoever used least goes next.
//!
//! Start-time fair queueing. Each member has a meter, in microseconds: what it used, on
//! a scale that all members of one [`Shares`] have in common. The floor is where the
//! meter stood of the one that began last.
//!
//! ```text
//!  absent ──put──► member: max(its meter, the floor) ──least──► begins ──► charged … ends
//!     ▲                                                                        │
//!     └── the floor is above its meter ◄── rested: its meter alone ◄── nothing ┘ left
//! ```
//!
//! Who asks for nothing gains nothing by it: it comes back at the floor, beside those
//! who are next, and not below. Who used more than its share and goes is remembered
//! while its meter is above the floor, or coming back would be a pardon; at most
//! [`MAX_RESTED`] of them, and nobody once nobody is left to compete with.
//!
//! Owns the meters and who is next; what a member holds is its own. [`super::class`] has
//! shares of tenants, each with shares of agents, each with its entries.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Most members that are remembered while they have nothing; those with the least to
/// their debit are forgotten first.
pub(super) const MAX_RESTED: usize = 4096;
/// Fewer than this many are not looked through for those that can be forgotten.
const SWEEP_FROM: usize = 64;

/// What a member holds.
pub(super) trait Holds {
    /// How much waits.
    fn count(&self) -> usize;
}

impl<T> Holds for VecDeque<T> {
    fn count(&self) -> usize {
        self.len()
    }
}

/// The members, and their meters.
#[derive(Debug)]
pub(super) struct Shares<K, V> {
    members: HashMap<K, Member<V>>,
    rested: HashMap<K, u64>,
    sweep_at: usize,
    floor: u64,
    turn: u64,
    count: usize,
}

#[derive(Debug)]
struct Member<V> {
    held: V,
    used: u64,
    /// Among equals, who had its turn first goes first.
    turn: u64,
    running: usize,
}

impl<K, V> Default for Shares<K, V> {
    fn default() -> Self {
        Self {
            members: HashMap::new(),
            rested: HashMap::new(),
            sweep_at: SWEEP_FROM,
            floor: 0,
            turn: 0,
            count: 0,
        }
    }
}

impl<K, V> Holds for Shares<K, V> {
    fn count(&self) -> usize {
        self.count
    }
}

impl<K: Clone + Eq + Hash, V: Holds + Default> Shares<K, V> {
    /// Puts one thing to a member.
    pub(super) fn put(&mut self, key: &K, put: impl FnOnce(&mut V)) {
        self.count += 1;
        if let Some(member) = self.members.get_mut(key) {
            put(&mut member.held);
            return;
        }
        self.turn += 1;
        let mut member = Member {
            held: V::default(),
            used: self
                .rested
                .remove(key)
                .map_or(self.floor, |used| used.max(self.floor)),
            turn: self.turn,
            running: 0,
        };
        put(&mut member.held);
        self.members.insert(key.clone(), member);
    }

    /// What a member holds.
    pub(super) fn of(&self, key: &K) -> Option<&V> {
        self.members.get(key).map(|member| &member.held)
    }

    /// Whether anybody `may` go who holds anything.
    pub(super) fn any(&self, may: impl Fn(&K, &V) -> bool) -> bool {
        self.members
            .iter()
            .any(|(key, member)| member.held.count() > 0 && may(key, &member.held))
    }

    /// Who is next, of those who hold anything and `may` go.
    pub(super) fn least(&self, may: impl Fn(&K, &V) -> bool) -> Option<&K> {
        self.members
            .iter()
            .filter(|(key, member)| member.held.count() > 0 && may(key, &member.held))
            .min_by_key(|(_, member)| (member.used, member.turn))
            .map(|(key, _)| key)
    }

    /// Something of a member begins; `take` takes it.
    pub(super) fn begin<R>(
        &mut self,
        key: &K,
        take: impl FnOnce(&mut V) -> Option<R>,
    ) -> Option<R> {
        let member = self.members.get_mut(key)?;
        let taken = take(&mut member.held)?;
        self.count -= 1;
        self.turn += 1;
        member.turn = self.turn;
        member.running += 1;
        self.floor = self.floor.max(member.used);
        Some(taken)
    }

    /// Takes something back that is not to begin.
    pub(super) fn withdraw<R>(
        &mut self,
        key: &K,
        take: impl FnOnce(&mut V) -> Option<R>,
    ) -> Option<R> {
        let taken = take(&mut self.members.get_mut(key)?.held)?;
        self.count -= 1;
        self.settle(key);
        Some(taken)
    }

    /// What began of a member took so many microseconds more; fewer, where more had been
    /// charged than it took. `inner` charges within.
    pub(super) fn charge(&mut self, key: &K, micros: i64, inner: impl FnOnce(&mut V)) {
        if let Some(member) = self.members.get_mut(key) {
            member.used = member.used.saturating_add_signed(micros);
            inner(&mut member.held);
        }
    }

    /// What began of a member ended. `inner` ends it within.
    pub(super) fn end(&mut self, key: &K, inner: impl FnOnce(&mut V)) {
        if let Some(member) = self.members.get_mut(key) {
            member.running = member.running.saturating_sub(1);
            inner(&mut member.held);
            self.settle(key);
        }
    }

    /// Things that are served before one that has `turns` - 1 of its own before it, if
    /// nothing else comes and each takes `scan_us`.
    pub(super) fn ahead_of(&self, key: &K, turns: usize, scan_us: u64) -> usize {
        let used = match self.members.get(key) {
            Some(member) => member.used,
            None => self
                .rested
                .get(key)
                .map_or(self.floor, |used| *used.max(&self.floor)),
        };
        let others = self.members.iter().filter(|(member, _)| *member != key);
        let theirs: usize = others
            .map(|(_, other)| {
                // Who used less than this one has so many turns more, who used more fewer.
                let gap = i128::from(used) - i128::from(other.used);
                let turns = turns as i128 + gap.div_euclid(i128::from(scan_us.max(1)));
                usize::try_from(turns.max(0))
                    .unwrap_or(usize::MAX)
                    .min(other.held.count())
            })
            .sum();
        theirs + turns.saturating_sub(1)
    }

    /// Lets go of a member that has nothing any more.
    fn settle(&mut self, key: &K) {
        let idle = |member: &&Member<V>| member.running == 0 && member.held.count() == 0;
        let Some(used) = self.members.get(key).filter(idle).map(|member| member.used) else {
            return;
        };
        self.members.remove(key);
        if self.members.is_empty() {
            // Nobody is kept from anything by what others had.
            *self = Self::default();
        } else if used > self.floor {
            self.rested.insert(key.clone(), used);
            self.sweep();
        }
    }

    /// Forgets whose meter the floor has reached.
    fn sweep(&mut self) {
        if self.rested.len() < self.sweep_at {
            return;
        }
        let floor = self.floor;
        self.rested.retain(|_, used| *used > floor);
        while self.rested.len() > MAX_RESTED {
            let least = self.rested.iter().min_by_key(|(_, used)| **used);
            match least.map(|(key, _)| key.clone()) {
                Some(key) => self.rested.remove(&key),
                None => break,
            };
        }
        self.sweep_at = (self.rested.len() * 2).clamp(SWEEP_FROM, MAX_RESTED + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Own = Shares<u32, VecDeque<()>>;

    fn put(shares: &mut Own, key: u32) {
        shares.put(&key, |held| held.push_back(()));
    }

    fn run(shares: &mut Own, key: u32, micros: i64) {
        shares.begin(&key, VecDeque::pop_front).unwrap();
        shares.charge(&key, micros, |_| ());
        shares.end(&key, |_| ());
    }

    #[test]
    fn nothing_is_gained_by_staying_away_and_nothing_pardoned() {
        let mut shares = Own::default();
        for key in [1, 1, 1, 1, 2] {
            put(&mut shares, key);
        }
        run(&mut shares, 2, 1000);
        for _ in 0..3 {
            assert_eq!(shares.least(|_, _| true), Some(&1));
            run(&mut shares, 1, 100);
        }
        // 3 was never here: beside the one that is next, not before all that was.
        put(&mut shares, 3);
        assert_eq!(shares.members[&3].used, 200);
        // 2 was: what it used stays used.
        put(&mut shares, 2);
        assert_eq!(shares.members[&2].used, 1000);
    }

    #[test]
    fn who_is_remembered_is_bounded() {
        let mut shares = Own::default();
        put(&mut shares, 0);
        for key in 1..=6000 {
            put(&mut shares, key);
            run(&mut shares, key, i64::from(key));
            assert!(shares.rested.len() <= MAX_RESTED);
        }
        assert!(!shares.rested.contains_key(&1) && shares.rested.contains_key(&6000));
        run(&mut shares, 0, 1);
        assert!(shares.members.is_empty() && shares.rested.is_empty());
    }
}
