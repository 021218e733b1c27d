//! All tasks: their numbers, their turns, and how many there may be; pure.

use std::collections::BTreeMap;

use super::saved::SavedPath;
use super::task::{Order, State, Task};
use crate::scan::hands::Priority;
use crate::scan::what::Kind;

/// Tasks that have not ended, at the most.
pub const MAX_OPEN: usize = 32;
/// Tasks that have, and are still shown; the oldest are forgotten.
pub const MAX_ENDED: usize = 50;
/// Paths of one task, at the most.
pub const MAX_PATHS: usize = 1000;

/// What somebody wants to be scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What.
    pub kind: Kind,
    /// The paths of a custom one, absolute.
    pub paths: Vec<SavedPath>,
    /// How much it gives way.
    pub priority: Priority,
    /// Which schedule wants it.
    pub schedule: Option<String>,
}

/// The tasks by number.
#[derive(Debug, Clone, Default)]
pub struct Book {
    tasks: BTreeMap<u64, Task>,
}

impl Book {
    /// Tasks as they were kept. One that ran goes on when it is its turn.
    pub fn of(kept: impl IntoIterator<Item = Task>) -> Self {
        let mut tasks: BTreeMap<u64, Task> = kept.into_iter().map(|task| (task.id, task)).collect();
        for task in tasks.values_mut() {
            if task.state == State::Running {
                task.state = State::Waiting;
            }
        }
        Self { tasks }
    }

    /// Takes a wish; gives the task's number.
    ///
    /// # Errors
    /// Why it is not taken, for people.
    pub fn add(&mut self, wish: Wish, now_ms: u64) -> Result<u64, String> {
        if wish.paths.len() > MAX_PATHS {
            return Err(format!("a task takes at most {MAX_PATHS} paths"));
        }
        if (wish.kind == Kind::Custom) == wish.paths.is_empty() {
            return Err("a custom task takes paths, and no other does".to_owned());
        }
        if let Some(path) = wish.paths.iter().find(|path| !path.0.is_absolute()) {
            return Err(format!("{path} is not an absolute path"));
        }
        let open = self.tasks.values().filter(|task| !task.state.has_ended());
        if open.count() >= MAX_OPEN {
            return Err(format!(
                "{MAX_OPEN} tasks wait already; cancel some of them, or wait"
            ));
        }
        let id = self.tasks.keys().next_back().map_or(1, |last| last + 1);
        let task = Task {
            id,
            kind: wish.kind,
            paths: wish.paths,
            priority: wish.priority,
            schedule: wish.schedule,
            state: State::Waiting,
            created_ms: now_ms,
            started_ms: None,
            ended_ms: None,
            running_ms: 0,
            files_total: None,
            counters: super::task::Counters::default(),
            findings: Vec::new(),
            problems: Vec::new(),
            upto: None,
            ahead: Vec::new(),
        };
        self.tasks.insert(id, task);
        Ok(id)
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn order(&mut self, id: u64, order: Order, now_ms: u64) -> Result<(), String> {
        let task = self
            .tasks
            .get_mut(&id)
            .ok_or_else(|| format!("there is no task {id}"))?;
        task.state = task.after(order)?;
        task.ended_ms = task.state.has_ended().then_some(now_ms);
        Ok(())
    }

    /// Gives the turn to the task that waits longest.
    pub fn begin(&mut self, now_ms: u64) -> Option<Task> {
        let task = self
            .tasks
            .values_mut()
            .find(|task| task.state == State::Waiting)?;
        task.state = State::Running;
        task.started_ms.get_or_insert(now_ms);
        Some(task.clone())
    }

    /// One task.
    pub fn get(&self, id: u64) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// One task, to be changed.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Task> {
        self.tasks.get_mut(&id)
    }

    /// All, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// Forgets a task.
    pub fn forget(&mut self, id: u64) {
        self.tasks.remove(&id);
    }

    /// Whether a schedule's last task has not ended.
    pub fn is_open(&self, schedule: &str) -> bool {
        self.tasks
            .values()
            .any(|task| task.schedule.as_deref() == Some(schedule) && !task.state.has_ended())
    }

    /// Forgets the oldest of those that ended; gives their numbers.
    pub fn shrink(&mut self) -> Vec<u64> {
        let ended: Vec<u64> = self
            .tasks
            .values()
            .filter(|task| task.state.has_ended())
            .map(|task| task.id)
            .collect();
        let old = ended.len().saturating_sub(MAX_ENDED);
        for id in &ended[..old] {
            self.tasks.remove(id);
        }
        ended[..old].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wish() -> Wish {
        Wish {
            kind: Kind::Quick,
            paths: vec![],
            priority: Priority::Idle,
            schedule: None,
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut book = Book::default();
        let custom = |paths: Vec<SavedPath>| Wish {
            kind: Kind::Custom,
            paths,
            ..wish()
        };
        assert!(book.add(custom(vec![]), 0).is_err());
        assert!(book.add(custom(vec![SavedPath("a".into())]), 0).is_err());
        assert!(
            book.add(custom(vec![SavedPath("/a".into()); MAX_PATHS + 1]), 0)
                .is_err()
        );
        assert_eq!(
            book.order(1, Order::Pause, 0).unwrap_err(),
            "there is no task 1"
        );
        for id in 1..=MAX_OPEN as u64 {
            assert_eq!(book.add(wish(), 0), Ok(id));
        }
        assert!(book.add(wish(), 0).unwrap_err().contains("wait already"));
        book.order(1, Order::Cancel, 5).unwrap();
        assert_eq!(book.get(1).unwrap().ended_ms, Some(5));
        assert!(book.order(1, Order::Resume, 6).is_err());
        assert!(book.add(wish(), 0).is_ok());
    }

    proptest! {
        /// Whatever is ordered: one task has the turn at the most, what is kept is
        /// bounded, and no number is used twice.
        #[test]
        fn the_book_holds_its_bounds(steps in prop::collection::vec((0..6_u8, 1..120_u64), 0..400)) {
            let mut book = Book::default();
            let mut used = 0;
            let mut turn: Option<u64> = None;
            for (step, id) in steps {
                match step {
                    0 | 1 => if let Ok(id) = book.add(wish(), 0) {
                        prop_assert!(id > used);
                        used = id;
                    },
                    2 => drop(book.order(id, Order::Pause, 0)),
                    3 => drop(book.order(id, Order::Resume, 0)),
                    4 => drop(book.order(id, Order::Cancel, 0)),
                    _ => match turn.and_then(|id| book.get_mut(id)) {
                        Some(task) if task.state == State::Running => {
                            task.state = State::Done;
                            turn = None;
                        }
                        _ => turn = book.begin(0).map(|task| task.id),
                    },
                }
                let running = book.all().filter(|task| task.state == State::Running).count();
                prop_assert!(running <= 1);
                book.shrink();
                prop_assert!(book.all().count() <= MAX_OPEN + MAX_ENDED);
            }
        }
    }
}
