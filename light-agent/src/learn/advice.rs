//! Which folders may be worth an exclusion: pure, but for the question who may write.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::tally::Row;

/// With fewer opens nothing is known yet.
const ENOUGH_OPENS: u64 = 1000;
/// The share of all cost, in percent, from which on a folder is worth a thought.
const SHARE: u64 = 20;
/// In this many of a hundred opens somebody had to be asked: what is remembered costs
/// nothing, and needs no exclusion.
const ASKED: u64 = 50;
/// Suggestions, at the most.
const MOST: usize = 5;
/// Never these, nor what is above them.
const NEVER: [&str; 12] = [
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/root", "/run", "/sbin", "/tmp", "/usr",
    "/var/tmp",
];
/// Users from this number on are people: what they own, they can make costly.
const FIRST_PERSON: u32 = 1000;

/// A folder that may be worth an exclusion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// Which.
    pub folder: String,
    /// Its share of the time that verdicts took, in percent.
    pub share: u64,
}

/// What may be worth an exclusion. `guarded` says whether nobody but the system or a
/// service may write to a folder.
pub fn advise(rows: &[Row], guarded: impl Fn(&Path) -> bool) -> Vec<Advice> {
    let opens: u64 = rows.iter().map(|row| row.opens - row.error).sum();
    let took: u64 = rows.iter().map(|row| row.took_us).sum();
    if opens < ENOUGH_OPENS || took == 0 {
        return Vec::new();
    }
    let worth = |row: &&Row| {
        let path = Path::new(&row.name);
        row.took_us.saturating_mul(100) / took >= SHARE
            && row.asked.saturating_mul(100) >= row.opens.saturating_mul(ASKED)
            && path.components().count() >= 3
            && !NEVER.iter().any(|never| path.starts_with(never))
            && guarded(path)
    };
    rows.iter()
        .filter(worth)
        .take(MOST)
        .map(|row| Advice {
            folder: row.name.clone(),
            share: row.took_us.saturating_mul(100) / took,
        })
        .collect()
}

/// Whether nobody but its owner may write to a folder, as it is now, and the owner is the
/// system or a service.
pub fn is_guarded(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir() && found.mode() & 0o022 == 0 && found.uid() < FIRST_PERSON
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, opens: u64, asked: u64) -> Row {
        Row {
            name: name.to_owned(),
            opens,
            error: 0,
            asked,
            took_us: 10 * asked,
        }
    }

    #[test]
    fn what_costs_much_and_is_asked_about_each_time_is_suggested() {
        let rows = [
            row("/var/lib/postgresql/base", 900, 900),
            row("/usr/lib/x", 900, 900),
            row("/home/a/b", 900, 900),
            row("/srv", 900, 900),
            row("/srv/remembered/x", 90_000, 900),
            row("/srv/shared/x", 900, 900),
        ];
        let advice = advise(&rows, |path| !path.ends_with("shared/x"));
        assert_eq!(advice, [], "none has a fifth of the cost");
        let rows = [
            row("/var/lib/postgresql/base", 2000, 2000),
            row("/srv/remembered/x", 90_000, 900),
        ];
        let advice = advise(&rows, |_| true);
        assert_eq!(advice.len(), 1);
        assert_eq!(
            (advice[0].folder.as_str(), advice[0].share),
            ("/var/lib/postgresql/base", 68)
        );
        assert_eq!(advise(&rows, |_| false), []);
        assert_eq!(advise(&[row("/var/lib/x", 10, 10)], |_| true), []);
    }
}
