//! Notices that wait until their agent can be told: pure, and bounded.

use std::collections::{HashMap, VecDeque};

use palisade_protocol::bounded::List;
use palisade_protocol::content::ContentId;
use palisade_protocol::ids::AgentId;
use palisade_protocol::notice::{MAX_CONTENTS, Notice};

/// Most contents that wait for one agent; the first are dropped then.
pub const MAX_PER_AGENT: usize = 1024;
/// Most contents that wait for all.
pub const MAX_WAITING: usize = 100_000;

/// Contents that agents are to be told of.
#[derive(Debug, Default)]
pub struct Pending {
    agents: HashMap<AgentId, VecDeque<ContentId>>,
    waiting: usize,
    dropped: u64,
}

impl Pending {
    /// An agent is to be told of a content.
    pub fn add(&mut self, agent: AgentId, content: ContentId) {
        if self.waiting >= MAX_WAITING {
            self.dropped += 1;
            return;
        }
        let contents = self.agents.entry(agent).or_default();
        if contents.contains(&content) {
            return;
        }
        if contents.len() >= MAX_PER_AGENT {
            contents.pop_front();
            self.dropped += 1;
            self.waiting -= 1;
        }
        contents.push_back(content);
        self.waiting += 1;
    }

    /// The next notice for an agent.
    pub fn take(&mut self, agent: AgentId) -> Option<Notice> {
        let contents = self.agents.get_mut(&agent)?;
        let count = contents.len().min(MAX_CONTENTS);
        let notice = Notice {
            contents: List::cut(contents.drain(..count)),
        };
        self.waiting -= count;
        if contents.is_empty() {
            self.agents.remove(&agent);
        }
        Some(notice)
    }

    /// Contents that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Contents that agents were not told of, for want of room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(n: usize) -> ContentId {
        ContentId::of(&n.to_le_bytes())
    }

    #[test]
    fn each_content_is_told_once_in_notices_of_bounded_size() {
        let mut pending = Pending::default();
        let (a, b) = (AgentId::random(), AgentId::random());
        for n in 0..MAX_CONTENTS + 10 {
            pending.add(a, content(n));
            pending.add(a, content(n));
        }
        pending.add(b, content(0));
        let sizes: Vec<usize> = std::iter::from_fn(|| pending.take(a))
            .map(|notice| notice.contents.len())
            .collect();
        assert_eq!(sizes, [MAX_CONTENTS, 10]);
        assert_eq!((pending.waiting(), pending.dropped()), (1, 0));
    }

    #[test]
    fn what_waits_is_bounded_for_one_and_for_all() {
        let mut pending = Pending::default();
        let agent = AgentId::random();
        for n in 0..MAX_PER_AGENT + 5 {
            pending.add(agent, content(n));
        }
        assert_eq!((pending.waiting(), pending.dropped()), (MAX_PER_AGENT, 5));
        assert_eq!(pending.take(agent).unwrap().contents[0], content(5));
        let mut pending = Pending::default();
        for _ in 0..MAX_WAITING / 1000 + 1 {
            let agent = AgentId::random();
            (0..1000).for_each(|n| pending.add(agent, content(n)));
        }
        assert_eq!((pending.waiting(), pending.dropped()), (MAX_WAITING, 1000));
    }
}
