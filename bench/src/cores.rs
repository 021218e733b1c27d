//! Which cores a side runs on: what a thread starts, threads and processes, runs where it
//! does.
//!
//! Two sides on the same cores take them from each other: a client that falls behind
//! sends everything again, and so takes more, until neither is measured.

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The cores that this process may use, in two parts.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    all: CpuSet,
    one: CpuSet,
    others: CpuSet,
}

impl Parts {
    /// One core, and the others.
    ///
    /// # Errors
    /// When there is one only.
    pub fn one_and_the_others() -> Result<Self> {
        let all = sched_getaffinity(this_thread()).context("the cores that may be used")?;
        let (mut one, mut others) = (CpuSet::new(), CpuSet::new());
        let mut numbers = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false));
        one.set(numbers.next().context("no core")?)?;
        let mut count = 0;
        for number in numbers {
            others.set(number)?;
            count += 1;
        }
        ensure!(count > 0, "two sides need two cores");
        Ok(Self { all, one, others })
    }

    /// Does something on one core alone.
    ///
    /// # Errors
    /// The system's.
    pub fn on_one<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.on(&self.one, work)
    }

    /// Does something on the other cores.
    ///
    /// # Errors
    /// The system's.
    pub fn on_the_others<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.on(&self.others, work)
    }

    fn on<T>(&self, cores: &CpuSet, work: impl FnOnce() -> T) -> Result<T> {
        sched_setaffinity(this_thread(), cores).context("this thread's cores")?;
        let done = work();
        sched_setaffinity(this_thread(), &self.all).context("this thread's cores")?;
        Ok(done)
    }
}

fn this_thread() -> Pid {
    Pid::from_raw(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_runs_where_its_starter_does() {
        let Ok(parts) = Parts::one_and_the_others() else {
            println!("one core: nothing to divide");
            return;
        };
        let cores = || std::thread::available_parallelism().map_or(0, usize::from);
        let all = cores();
        assert_eq!(parts.on_one(cores).unwrap(), 1);
        let within = parts.on_the_others(|| std::thread::spawn(cores).join().ok());
        assert_eq!(within.unwrap(), Some(all - 1));
        assert_eq!(cores(), all);
    }
}
