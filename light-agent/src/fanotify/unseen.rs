//! What this kernel asks nobody about, whatever is marked, and what an administrator can
//! do about it. For `status`: it is so with the default settings of most distributions,
//! and no fault of the agent's.

use std::fs;

use serde::Serialize;

/// Whether files in memory can be executed: 2 where never (Linux 6.3).
const MEMFD_NOEXEC: &str = "/proc/sys/vm/memfd_noexec";

/// One of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// What is not seen.
    pub what: &'static str,
    /// What helps.
    pub remedy: &'static str,
}

/// As the kernel is set now.
pub fn now() -> Vec<Unseen> {
    let set = fs::read_to_string(MEMFD_NOEXEC).ok();
    of(set.as_deref()).into_iter().collect()
}

fn of(memfd_noexec: Option<&str>) -> Option<Unseen> {
    let remedy = match memfd_noexec.map(str::trim) {
        Some("2") => return None,
        Some(_) => "set vm.memfd_noexec = 2 (sysctl) where no program needs them",
        None => "Linux 6.3 and later can forbid them (vm.memfd_noexec)",
    };
    Some(Unseen {
        what: "programs that run from memory alone (memfd_create)",
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_unless_it_is_forbidden() {
        let remedy = |set| of(set).map(|unseen| unseen.remedy);
        assert_eq!(remedy(Some("2\n")), None);
        assert!(remedy(Some("1\n")).unwrap().starts_with("set vm"));
        assert!(remedy(None).unwrap().starts_with("Linux 6.3"));
    }
}
