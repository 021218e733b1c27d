//! The faults that facts amount to, each with what it means and what helps: pure.
//!
//! A fault is what keeps files from being scanned, or will soon. A notice is what an
//! administrator may want to know. The order is that in which they should be mended.

use std::fmt;

use serde::Serialize;

use super::facts::{Connection, Facts, Identity};

/// A clock that is off by more than this is a fault: signed messages expire within
/// minutes.
pub const CLOCK_OFF_S: i64 = 120;
/// A certificate that expires within this time is said.
const EXPIRES_SOON_S: i64 = 3 * 86_400;
/// With fewer descriptors, opens are let through when many wait.
const FEW_DESCRIPTORS: u64 = 1024;
/// With fewer free bytes, what must be kept may not be.
const FEW_BYTES: u64 = 16 << 20;
/// Gaps and programs that are named, at the most.
const NAMED: usize = 5;

/// Which fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The settings cannot be used.
    Settings,
    /// It is not root who asks, or the agent that runs is not.
    Capability,
    /// The guest is in no site.
    NotEnrolled,
    /// The identity cannot be used.
    Identity,
    /// The certificate has expired, or will soon.
    Certificate,
    /// The clock is off.
    Clock,
    /// The kernel lacks what on-access protection needs.
    Kernel,
    /// No agent runs.
    NotRunning,
    /// No supervisor runs it.
    NotSupervised,
    /// It holds no opens, since it failed again and again.
    Fallback,
    /// An administrator has switched protection.
    Bypass,
    /// The site's policy is not in force.
    Policy,
    /// No Protection Server is connected.
    NoSvm,
    /// No Integration Server is connected.
    NoServer,
    /// The self-test has failed.
    SelfTest,
    /// The settings protect nothing.
    Nothing,
    /// Protected paths are not covered.
    Gaps,
    /// The state folder takes nothing.
    Disk,
    /// Too few descriptors.
    Descriptors,
    /// Another program holds opens, too.
    OtherHolder,
    /// Files were let through and wait.
    Waiting,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Files are not scanned, or will not be.
    Fault,
    /// It works.
    Notice,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which.
    pub fault: Fault,
    /// How bad it is.
    pub weight: Weight,
    /// What is so.
    pub what: String,
    /// What helps.
    pub remedy: String,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which it should be mended.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether there is no fault.
    pub fn is_fine(&self) -> bool {
        let mut all = self.findings.iter();
        all.all(|finding| finding.weight == Weight::Notice)
    }

    fn add(&mut self, weight: Weight, fault: Fault, what: impl Into<String>, remedy: &str) {
        self.findings.push(Finding {
            fault,
            weight,
            what: what.into(),
            remedy: remedy.to_owned(),
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let weight = match finding.weight {
                Weight::Fault => "FAULT ",
                Weight::Notice => "notice",
            };
            writeln!(f, "{weight}  {}", finding.what)?;
            writeln!(f, "        > {}", finding.remedy)?;
        }
        match (self.findings.is_empty(), self.is_fine()) {
            (true, _) => writeln!(f, "no fault was found"),
            (false, true) => writeln!(f, "no fault was found, besides what is noticed above"),
            (false, false) => Ok(()),
        }
    }
}

/// What the facts amount to.
pub fn examine(facts: &Facts) -> Report {
    let mut report = Report {
        findings: Vec::new(),
    };
    settings(facts, &mut report);
    may(facts, &mut report);
    identity(facts, &mut report);
    clock(facts, &mut report);
    running(facts, &mut report);
    connections(facts, &mut report);
    coverage(facts, &mut report);
    machine(facts, &mut report);
    report
}

fn settings(facts: &Facts, report: &mut Report) {
    if let Some(problem) = &facts.settings {
        report.add(
            Weight::Fault,
            Fault::Settings,
            format!("the settings cannot be used: {problem}"),
            "correct what is named and run `palisade-agent check-config`; until then an agent \
             that starts anew does not run, and what follows is about the default settings",
        );
    }
}

fn may(facts: &Facts, report: &mut Report) {
    if !facts.root {
        report.add(
            Weight::Fault,
            Fault::Capability,
            "this is not root (CAP_SYS_ADMIN): an agent that runs like this protects no opens, \
             and this command does not see everything",
            "run it as root: `sudo palisade-agent doctor`; the agent as the system's service",
        );
    }
    if let Some(Err(why)) = &facts.kernel {
        report.add(
            Weight::Fault,
            Fault::Kernel,
            format!("on-access protection cannot work here: {why}"),
            "boot a kernel that has CONFIG_FANOTIFY_ACCESS_PERMISSIONS (Linux 5.0 or later); in a \
             container, protect the machine that it runs on; on-demand scans work as they are",
        );
    }
}

fn identity(facts: &Facts, report: &mut Report) {
    match &facts.identity {
        Identity::Unknown => {}
        Identity::None => report.add(
            Weight::Fault,
            Fault::NotEnrolled,
            "this guest has joined no site, so that nobody scans for it",
            "`palisade token create --component agent` on the Integration Server gives a token; \
             `palisade-agent enrol TOKEN` joins with it",
        ),
        Identity::Damaged(why) => report.add(
            Weight::Fault,
            Fault::Identity,
            format!("the identity cannot be used: {why}"),
            "remove the folder `identity` in the state folder and enrol again",
        ),
        Identity::Valid { from_s, until_s } => {
            let now = i64::try_from(facts.now_s).unwrap_or(i64::MAX);
            if now < *from_s {
                report.add(
                    Weight::Fault,
                    Fault::Clock,
                    format!(
                        "the certificate is valid from {} on, and this clock says {}",
                        date(*from_s),
                        date(now)
                    ),
                    CLOCK_REMEDY,
                );
            } else if now >= *until_s {
                report.add(
                    Weight::Fault,
                    Fault::Certificate,
                    format!(
                        "the certificate has expired on {} (this clock says {})",
                        date(*until_s),
                        date(now)
                    ),
                    "if the clock is right, enrol again with a new token: `palisade-agent enrol TOKEN`",
                );
            } else if now + EXPIRES_SOON_S >= *until_s {
                report.add(
                    Weight::Notice,
                    Fault::Certificate,
                    format!("the certificate expires on {}", date(*until_s)),
                    "it must be able to reach the Integration Server before that, or be enrolled again",
                );
            }
        }
    }
}

const CLOCK_REMEDY: &str =
    "set the clock (`timedatectl set-ntp true`, or the hypervisor's clock) and restart the agent";

fn clock(facts: &Facts, report: &mut Report) {
    if let Some(off) = facts.clock_off_s.filter(|off| off.abs() > CLOCK_OFF_S) {
        let way = match off > 0 {
            true => "behind",
            false => "ahead of",
        };
        report.add(
            Weight::Fault,
            Fault::Clock,
            format!(
                "this clock is {} s {way} the Integration Server's",
                off.abs()
            ),
            CLOCK_REMEDY,
        );
    }
    let put_back = |last: &u64| *last > facts.now_s + CLOCK_OFF_S.unsigned_abs();
    if let Some(last) = facts.last_written_s.filter(put_back) {
        report.add(
            Weight::Fault,
            Fault::Clock,
            format!(
                "this clock was put back: it says {}, and the agent has run at {}",
                date(i64::try_from(facts.now_s).unwrap_or(i64::MAX)),
                date(i64::try_from(last).unwrap_or(i64::MAX))
            ),
            CLOCK_REMEDY,
        );
    }
}

fn running(facts: &Facts, report: &mut Report) {
    let Some(agent) = &facts.agent else {
        let why = facts.no_agent.as_deref().unwrap_or("unknown");
        report.add(
            Weight::Fault,
            Fault::NotRunning,
            format!("no agent runs, so that nothing is scanned when it is opened ({why})"),
            "`systemctl start palisade-agent`; if it ends again, `journalctl -u palisade-agent` says why",
        );
        return;
    };
    if !agent.supervised {
        report.add(
            Weight::Notice,
            Fault::NotSupervised,
            "no supervisor runs the agent: if it hangs, opens wait until somebody ends it",
            "let the service run it (`palisade-agent supervise`)",
        );
    }
    if let Some(reason) = &agent.bypass {
        report.add(
            Weight::Fault,
            Fault::Bypass,
            format!("protection is switched to {}: {reason}", agent.protection),
            "`palisade-agent bypass --end` has it protect again at once; the kernel's parameter \
             `palisade=` is taken away in the boot loader, and counts until the next boot",
        );
    }
    let reason = agent.reason.as_deref().unwrap_or_default();
    match agent.protection.as_str() {
        // Said above.
        _ if agent.bypass.as_deref().is_some_and(|bypass| bypass == reason) => {}
        "monitoring" if !reason.is_empty() => report.add(
            Weight::Fault,
            Fault::Fallback,
            format!("opens are not held, although the settings ask for it: {reason}"),
            "mend the cause (the log names it), then `palisade-agent supervise --reset` and restart the service",
        ),
        // Said below, or wanted so.
        "off" if matches!(facts.svm, Connection::Down(_)) => {}
        "off" if facts.protected_paths.is_none() => {}
        "off" if reason.contains("CAP_SYS_ADMIN") => report.add(
            Weight::Fault,
            Fault::Capability,
            format!("the agent protects no opens: {reason}"),
            "run the agent as root, as the system's service does",
        ),
        "off" => report.add(
            Weight::Fault,
            Fault::SelfTest,
            format!("on-access protection is off: {reason}"),
            "mend what is named; the agent tests itself again by itself, and at a restart",
        ),
        _ => {}
    }
    if let Some(why) = &agent.policy {
        report.add(
            Weight::Fault,
            Fault::Policy,
            format!("the site's policy is not in force here: {why}"),
            "`palisade-agent policy` says what is in force, and `palisade policy effective NAME` at \
             the server what should be; a new revision of the policy is tried again",
        );
    }
    if agent.waiting > 0 {
        report.add(
            Weight::Notice,
            Fault::Waiting,
            format!(
                "{} files were let through without a verdict and wait to be scanned",
                agent.waiting
            ),
            "nothing, while a Protection Server is connected; `palisade-agent status` shows them getting fewer",
        );
    }
}

fn connections(facts: &Facts, report: &mut Report) {
    if let Connection::Down(tried) = &facts.svm {
        report.add(
            Weight::Fault,
            Fault::NoSvm,
            format!("no Protection Server can be reached: {tried}"),
            "check that it runs (`palisade svm list` on the Integration Server) and that UDP 7443 \
             is open to it; until then opens are answered by the failure table \
             (`palisade-agent status --failures`)",
        );
    }
    if let Connection::Down(tried) = &facts.server {
        report.add(
            Weight::Notice,
            Fault::NoServer,
            format!("no Integration Server is connected: {tried}"),
            "check that it runs and that UDP 7444 is open to it; the agent goes on with the list \
             of Protection Servers that it has, and keeps its detections",
        );
    }
}

fn coverage(facts: &Facts, report: &mut Report) {
    if facts.protected_paths == Some(0) {
        report.add(
            Weight::Notice,
            Fault::Nothing,
            "no path is protected on access",
            "name some in agent.toml: `[on_access]`, `paths = [\"/home\", \"/srv\"]`",
        );
    }
    if !facts.gaps.is_empty() {
        let named: Vec<String> = facts
            .gaps
            .iter()
            .take(NAMED)
            .map(|gap| format!("{} ({})", gap.path, gap.reason))
            .collect();
        report.add(
            Weight::Fault,
            Fault::Gaps,
            format!(
                "{} places below protected paths are not covered: {}{}",
                facts.gaps.len(),
                named.join("; "),
                and_more(facts.gaps.len())
            ),
            "files there are scanned on demand only: `palisade-agent scan PATH`, or a schedule; \
             take the place out of on_access.paths if that is meant",
        );
    }
}

fn machine(facts: &Facts, report: &mut Report) {
    let disk = &facts.state;
    let full = disk.free_bytes.is_some_and(|free| free < FEW_BYTES);
    let problem = match (&disk.refused, disk.read_only, full) {
        (_, true, _) => Some("is on a file system that is mounted read-only".to_owned()),
        (_, _, true) => Some(format!(
            "has {} KiB left",
            disk.free_bytes.unwrap_or(0) / 1024
        )),
        (Some(why), ..) => Some(format!("takes nothing: {why}")),
        _ => None,
    };
    if let Some(problem) = problem {
        report.add(
            Weight::Fault,
            Fault::Disk,
            format!("the state folder {} {problem}", disk.path),
            "make room or make it writable: detections, the quarantine and remembered verdicts are \
             kept there; until then they live in memory, or are lost",
        );
    }
    if let Some(few) = facts.descriptors.filter(|few| *few < FEW_DESCRIPTORS) {
        report.add(
            Weight::Fault,
            Fault::Descriptors,
            format!("the agent may have {few} file descriptors: with many opens at once, some are let through unscanned"),
            "`LimitNOFILE=8192` in the service, or `ulimit -n 8192` before it is started",
        );
    }
    if !facts.holders.is_empty() {
        let named: Vec<String> = facts
            .holders
            .iter()
            .take(NAMED)
            .map(|holder| format!("{} (pid {})", holder.name, holder.pid))
            .collect();
        report.add(
            Weight::Notice,
            Fault::OtherHolder,
            format!(
                "other programs may hold opens by fanotify, too: {}{}",
                named.join(", "),
                and_more(facts.holders.len())
            ),
            "two scanners slow each other down, and may wait for each other: end the other's \
             on-access scanning, or exclude each other's folders",
        );
    }
}

fn and_more(all: usize) -> String {
    match all.saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("{seconds} s after 1970"),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

#[cfg(test)]
mod tests;
