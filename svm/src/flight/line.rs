//! Who waits for a flight's lead, and who gave it up to others before: pure.
//!
//! Whoever leads and is silent or slow gives way to an agent that waits and has done so no
//! more often than itself; and one whose turn it is lets those go first that have given way
//! less often. So an agent costs those who are better than it one turn, however many
//! requests it has in line; and of agents that are all slow, one is left in peace.

use std::collections::HashMap;

use palisade_protocol::ids::AgentId;

/// Most agents of which it is remembered that they gave way, in one flight.
pub const MAX_REMEMBERED: usize = 1024;

/// The line.
#[derive(Debug, Default)]
pub struct Line {
    /// Requests in line, by agent.
    waiting: HashMap<AgentId, usize>,
    /// How often each agent gave way.
    gave_way: HashMap<AgentId, u32>,
}

impl Line {
    /// One more request of the agent waits.
    pub fn joined(&mut self, agent: AgentId) {
        *self.waiting.entry(agent).or_default() += 1;
    }

    /// One that waited does no more.
    pub fn left(&mut self, agent: AgentId) {
        if let Some(count) = self.waiting.get_mut(&agent) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&agent);
            }
        }
    }

    /// The agent led, and gave way.
    pub fn gave_way(&mut self, agent: AgentId) {
        if self.gave_way.len() < MAX_REMEMBERED || self.gave_way.contains_key(&agent) {
            let times = self.gave_way.entry(agent).or_default();
            *times = times.saturating_add(1);
        }
    }

    /// Whether there is one whom the agent, if it leads, has to give way to.
    pub fn has_rival(&self, agent: AgentId) -> bool {
        let own = self.times(agent);
        self.best_but(agent).is_some_and(|times| times <= own)
    }

    /// Whether the agent, whose turn it is, lets another go first.
    pub fn lets_pass(&self, agent: AgentId) -> bool {
        let own = self.times(agent);
        self.best_but(agent).is_some_and(|times| times < own)
    }

    fn best_but(&self, agent: AgentId) -> Option<u32> {
        let others = self.waiting.keys().filter(|other| **other != agent);
        others.map(|other| self.times(*other)).min()
    }

    fn times(&self, agent: AgentId) -> u32 {
        self.gave_way.get(&agent).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agent(n: u8) -> AgentId {
        AgentId(uuid::Uuid::from_u128(n.into()))
    }

    #[test]
    fn an_agents_many_requests_cost_another_one_turn() {
        let (mut line, bad, good) = (Line::default(), agent(1), agent(2));
        for _ in 0..64 {
            line.joined(bad);
        }
        line.left(bad);
        assert!(!line.has_rival(bad), "its own do not count");
        line.joined(good);
        assert!(line.has_rival(bad));
        line.gave_way(bad);
        // Each of the others, as its turn comes.
        for _ in 0..63 {
            line.left(bad);
            assert!(line.lets_pass(bad));
        }
        line.left(good);
        line.joined(bad);
        assert!(!line.has_rival(good) && !line.lets_pass(good));
    }

    /// Each is hurried by those who were not yet; the last of a round is by nobody, and gets
    /// done what it has to do.
    #[test]
    fn of_agents_that_are_all_slow_one_is_left_in_peace() {
        let mut line = Line::default();
        for n in 0..3 {
            line.joined(agent(n));
        }
        let mut hurried = Vec::new();
        for turn in 0..6 {
            let now = agent(turn % 3);
            line.left(now);
            assert!(!line.lets_pass(now));
            hurried.push(line.has_rival(now));
            line.gave_way(now);
            line.joined(now);
        }
        assert_eq!(hurried, [true, true, false, true, true, false]);
    }

    proptest! {
        /// Somebody in line always leads: the lead is not passed round for ever.
        #[test]
        fn one_of_those_in_line_lets_nobody_pass(
            waiting in prop::collection::vec(0..8_u8, 1..20),
            gave_way in prop::collection::vec(0..8_u8, 0..40),
        ) {
            let mut line = Line::default();
            waiting.iter().for_each(|n| line.joined(agent(*n)));
            gave_way.iter().for_each(|n| line.gave_way(agent(*n)));
            prop_assert!(waiting.iter().any(|n| !line.lets_pass(agent(*n))));
            waiting.iter().for_each(|n| line.left(agent(*n)));
            prop_assert!(line.waiting.is_empty());
        }

        /// Whoever gave way more often than all others in line is not given way to.
        #[test]
        fn nobody_gives_way_to_one_that_is_worse(times in 1..20_u32) {
            let (mut line, bad, good) = (Line::default(), agent(1), agent(2));
            (0..times).for_each(|_| line.gave_way(bad));
            line.joined(bad);
            prop_assert!(!line.has_rival(good));
            line.left(bad);
            line.joined(good);
            prop_assert!(line.has_rival(bad));
        }
    }
}
