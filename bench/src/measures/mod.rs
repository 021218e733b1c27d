//! The measures: one table. Each runs both sides and gives its rows.

mod agent;
mod boot_storm;
mod changed_file;
mod echo;
mod first_open;
mod first_scan;
mod flood;
mod guarded;
mod limits;
mod memory;
mod second_guest;
mod tenants;
mod verdicts;

use std::time::Instant;

use anyhow::Result;

use crate::bench::Bench;
use crate::machine;
use crate::report::{Measured, Row};

/// A measure.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    run: fn(&mut Bench) -> Result<Vec<Row>>,
}

/// All of them, in the order in which they run.
pub const ALL: [Measure; 11] = [
    Measure {
        name: "first-scan",
        about: "the corpus, nothing cached",
        run: first_scan::run,
    },
    Measure {
        name: "second-guest",
        about: "the same files in another guest",
        run: second_guest::run,
    },
    Measure {
        name: "boot-storm",
        about: "many guests start from one image",
        run: boot_storm::run,
    },
    Measure {
        name: "memory",
        about: "Protection Server and workers, in rest, after a kill, in a reload",
        run: memory::run,
    },
    Measure {
        name: "changed-file",
        about: "bytes on the wire for a large file of which a part changed",
        run: changed_file::run,
    },
    Measure {
        name: "verdicts",
        about: "verdicts that the SharedCache holds, and a thousand agents",
        run: verdicts::run,
    },
    Measure {
        name: "flood",
        about: "one agent asks for ten times as much as the others",
        run: flood::run,
    },
    Measure {
        name: "tenants",
        about: "what the time of an answer tells one tenant of another",
        run: tenants::run,
    },
    Measure {
        name: "first-open",
        about: "opens of files whose content is known, on access",
        run: first_open::run,
    },
    Measure {
        name: "agent",
        about: "what an agent costs a guest",
        run: agent::run,
    },
    Measure {
        name: "limits",
        about: "what this machine could do at best",
        run: limits::run,
    },
];

impl Measure {
    /// The measure of that name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|measure| measure.name == name)
    }

    /// Runs it; what keeps it from being measured is part of the result.
    pub fn run(self, bench: &mut Bench) -> Measured {
        let started = Instant::now();
        let load = machine::load().unwrap_or(f64::NAN);
        let (rows, error) = match (self.run)(bench) {
            Ok(rows) => (rows, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        Measured {
            name: self.name,
            about: self.about,
            took_s: started.elapsed().as_secs_f64(),
            load,
            rows,
            error,
        }
    }
}
