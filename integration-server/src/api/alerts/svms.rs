//! Alerts about Protection Servers: those that are gone, and what those that are there
//! report of themselves ([`palisade_protocol::problem`]): nobody can log in to an SVM.

use palisade_protocol::ids::SvmId;
use palisade_protocol::problem::{Problem, ProblemKind};

use super::{Alert, id_of};
use crate::fleet::roster::Absent;
use crate::store::SvmRecord;
use crate::time::{rfc3339, wall_ms};

/// A Protection Server is gone, and so many others are there.
pub(super) fn gone(absent: &Absent, others: usize) -> Alert {
    let (name, since) = (&absent.name, rfc3339(wall_ms(absent.since_ms)));
    let (severity, guests) = match others {
        0 => (
            "critical",
            "no other one is connected: guests may have no verdicts".to_owned(),
        ),
        1 => (
            "warning",
            "one other is connected and may serve its guests".to_owned(),
        ),
        _ => (
            "warning",
            format!("{others} others are connected and may serve its guests"),
        ),
    };
    Alert {
        severity: severity.to_owned(),
        text: format!(
            "The Protection Server {name} has had no session with this server since {since}; \
             {guests}."
        ),
        remedy: format!(
            "See on its hypervisor whether the virtual machine runs (`virsh list --all`), and \
             start it if it does not; if it does, the network from it to this server is cut. If \
             it was removed for good, `palisade svm revoke {}` ends this.",
            absent.id
        ),
        ..about(
            absent.id,
            name,
            "svm_lost",
            (wall_ms(absent.since_ms), wall_ms(absent.alert_ms)),
            "",
        )
    }
}

/// What a connected Protection Server says is wrong with it.
pub(super) fn problem(svm: &SvmRecord, problem: &Problem) -> Alert {
    let name = &svm.name;
    let (severity, text, remedy) = said(name, &problem.kind);
    // Of these there may be several at a time.
    let which = match &problem.kind {
        ProblemKind::EngineDown { engine } => engine.as_str(),
        ProblemKind::SignatureBraked { signature, .. } => signature.as_str(),
        _ => "",
    };
    Alert {
        severity: severity.to_owned(),
        text,
        remedy,
        ..about(
            svm.id,
            name,
            &format!("svm_{}", problem.kind.as_str()),
            (problem.since_ms, problem.since_ms),
            which,
        )
    }
}

/// Severity, what happened and what to do.
fn said(name: &str, kind: &ProblemKind) -> (&'static str, String, String) {
    let logs = format!("On the Protection Server {name}, the log of palisade-scanserver");
    match kind {
        ProblemKind::EngineDown { engine } => (
            "critical",
            format!(
                "The engine {engine} of the Protection Server {name} cannot scan: contents that \
                 need it are answered as not scanned."
            ),
            format!(
                "{logs} says why. `palisade svm definitions {name} rollback` helps if new definitions are the reason."
            ),
        ),
        ProblemKind::DefinitionsUnattended => (
            "critical",
            format!("The Protection Server {name} takes no new definitions any more."),
            format!(
                "Restart it: guests use another one meanwhile. {logs} has what broke, which is a bug to report."
            ),
        ),
        ProblemKind::DefinitionsSource { why } => (
            "warning",
            format!(
                "The Protection Server {name} cannot use its source of definitions, and goes on \
                 with those in force: {why}"
            ),
            format!(
                "When the source is mended, `palisade svm definitions {name} refresh` looks at once."
            ),
        ),
        ProblemKind::DefinitionsRepository { why } => (
            "critical",
            format!(
                "The Protection Server {name} does not take what this site's repository of \
                 definitions offers, and goes on with those in force: {why}"
            ),
            "Unless the disk or the network is the reason, somebody may have changed what this \
             server publishes: docs/definitions.md says how to tell, and what to do when a key \
             is lost or stolen."
                .to_owned(),
        ),
        ProblemKind::DefinitionsOld { added_ms } => (
            "warning",
            format!(
                "The definitions in force on the Protection Server {name} are of {}: new malware \
                 is not found.",
                rfc3339(*added_ms)
            ),
            "See whether what fills their source (freshclam, say) still runs. A source that \
             rarely changes wants another `definitions.stale_after_days`."
                .to_owned(),
        ),
        ProblemKind::SignatureBraked { engine, signature } => (
            "warning",
            format!(
                "The new signature {signature} of {engine} hit many guests at once. The \
                 Protection Server {name} reports it only, and blocks nothing for it."
            ),
            format!(
                "If the files are malware, `palisade svm definitions {name} confirm {signature}` \
                 lets it act; if they are not, `palisade svm definitions {name} rollback` takes the \
                 definitions back that brought it. `palisade detection list` has the files."
            ),
        ),
        ProblemKind::ContentsPoisoned { contents } => (
            "warning",
            format!(
                "{contents} contents killed the engine's workers of the Protection Server {name} \
                 twice, and are answered as not scanned until definitions change."
            ),
            format!(
                "{logs} names them by content id. Whoever sent them may be attacking the engine: keep a copy for its makers."
            ),
        ),
        ProblemKind::CacheUnsafe => (
            "warning",
            format!(
                "The disk of the Protection Server {name} does not answer: after a restart, it \
                 may call a content clean that it knows to be malware now."
            ),
            "See to its disk. Before the next restart, remove the folder `cache` in its state \
             folder: what is in it is scanned again."
                .to_owned(),
        ),
    }
}

fn about(
    id: SvmId,
    name: &str,
    kind: &str,
    (since_ms, raised_ms): (u64, u64),
    which: &str,
) -> Alert {
    Alert {
        id: id_of(id.0, since_ms, &format!("{kind} {which}")),
        kind: kind.to_owned(),
        severity: String::new(),
        agent: None,
        agent_name: None,
        svm: Some(id.0),
        svm_name: Some(name.to_owned()),
        domain: None,
        domain_name: None,
        since: rfc3339(since_ms),
        raised: rfc3339(raised_ms),
        text: String::new(),
        remedy: String::new(),
    }
}
