//! The attempts that are under way. One that panics is one that failed, and no other
//! attempt is harmed by it.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

use crate::link::Target;

/// Attempts, each for a target, that come to a `T` or a reason.
#[derive(Debug)]
pub struct Connecting<T> {
    tasks: JoinSet<Result<T, String>>,
    /// As many as there are tasks.
    targets: HashMap<Id, Target>,
}

impl<T> Default for Connecting<T> {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            targets: HashMap::new(),
        }
    }
}

impl<T: Send + 'static> Connecting<T> {
    /// Begins an attempt.
    pub fn begin(
        &mut self,
        target: Target,
        attempt: impl Future<Output = Result<T, String>> + Send + 'static,
    ) {
        let task = self.tasks.spawn(attempt).id();
        self.targets.insert(task, target);
    }

    /// Waits for the end of one; for ever, if there is none.
    pub async fn next(&mut self) -> (Target, Result<T, String>) {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else {
                return std::future::pending().await;
            };
            let (task, outcome) = match ended {
                Ok((task, outcome)) => (task, outcome),
                Err(error) => {
                    tracing::error!(%error, "an attempt to connect ended badly");
                    (error.id(), Err(format!("the attempt ended badly: {error}")))
                }
            };
            if let Some(target) = self.targets.remove(&task) {
                return (target, outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Target {
        Target {
            id: None,
            name: name.to_owned(),
            addresses: Vec::new(),
        }
    }

    /// Each attempt has its own end, whatever became of the others, and the next ones too.
    #[tokio::test]
    async fn an_attempt_that_panics_is_one_that_failed() {
        let mut connecting = Connecting::default();
        for round in 0..3 {
            connecting.begin(target("bad"), async { panic!("as it must") });
            connecting.begin(target("good"), async move {
                tokio::task::yield_now().await;
                Ok(round)
            });
            let mut ends = [connecting.next().await, connecting.next().await];
            ends.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
            let [(bad, failed), (good, done)] = ends;
            assert_eq!((bad.name.as_str(), good.name.as_str()), ("bad", "good"));
            assert!(failed.unwrap_err().contains("panic"));
            assert_eq!(done, Ok(round));
        }
    }
}
