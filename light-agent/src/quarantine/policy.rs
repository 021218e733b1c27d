//! Whether a file may be moved without anybody having looked at it: pure.
//!
//! Owns the settings' words for what is done about malware, and the list of reasons
//! for which a file stays where it is, blocked. Does not own how a fact is found
//! ([`super::facts`]). What is not known counts as a reason: a file too many that
//! stays blocked is a nuisance, a guest that does not start any more is an outage.

use palisade_protocol::verdict::VerdictKind;
use serde::{Deserialize, Serialize};

/// What is done about a file that is malware, besides denying its opens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Remedy {
    /// Nothing more.
    #[default]
    Block,
    /// It is moved into the quarantine.
    Quarantine,
    /// It is removed, for good.
    Delete,
}

/// What is done about a file that is suspicious. There is one answer: a suspicion is
/// a guess, and a guess moves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSuspicion {
    /// Nothing more than what the failure table says.
    #[default]
    Block,
}

/// What is done with a file that may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Movement {
    /// Into the quarantine.
    Quarantine,
    /// Away, for good.
    Delete,
}

/// Whether a package installed the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// No package did.
    None,
    /// This one did.
    Package(String),
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// Whether the guest needs the file in order to run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Need {
    /// Not as far as is known.
    None,
    /// It does, for this reason.
    Vital(&'static str),
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// What is known of a file that was found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Facts {
    /// What was said of its content.
    pub verdict: VerdictKind,
    /// Whether opens are watched only, and nothing is ever denied.
    pub monitoring: bool,
    /// Whether it is a regular file.
    pub regular: bool,
    /// Whether it has a name, by which it can be moved.
    pub named: bool,
    /// Whether it is one of the agent's own files.
    pub own: bool,
    /// Whether it is certain that nobody has it open for writing.
    pub no_writer: bool,
    /// Whether the guest needs it.
    pub need: Need,
    /// Whose it is.
    pub owner: Owner,
}

/// Why a file stays where it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Kept {
    /// The settings do not ask for more.
    #[error("remediation.malware is \"block\"")]
    Policy,
    /// It is suspicious, which moves nothing.
    #[error("it is suspicious only")]
    Suspicious,
    /// It is not malware.
    #[error("it was not called malware")]
    NotMalware,
    /// The agent only watches.
    #[error("on_access.mode is \"monitor\"")]
    Monitoring,
    /// It is a device, a pipe, a folder.
    #[error("it is no regular file")]
    NotRegular,
    /// It was removed, or never had a name.
    #[error("it has no name by which it could be moved")]
    NoName,
    /// It belongs to the agent.
    #[error("it is a file of the agent itself")]
    Own,
    /// Somebody writes to it.
    #[error("it may be open for writing")]
    Writer,
    /// The guest needs it.
    #[error("this guest needs it: {0}")]
    Vital(&'static str),
    /// Nobody knows whether the guest needs it.
    #[error("it cannot be told whether this guest needs it: {0}")]
    NeedUnknown(String),
    /// A package installed it: that is replaced, and not moved.
    #[error("it belongs to the package {0}")]
    PackageOwned(String),
    /// Nobody knows whether a package installed it.
    #[error("it cannot be told whether a package owns it: {0}")]
    OwnerUnknown(String),
    /// The quarantine may hold no more files.
    #[error("the quarantine is full: {files} files of at most {max}")]
    FullOfFiles {
        /// Files there.
        files: usize,
        /// `quarantine.max_files`.
        max: usize,
    },
    /// The quarantine may hold no more bytes.
    #[error("the quarantine is full: {bytes} bytes and {more} more are above {max}")]
    FullOfBytes {
        /// Bytes there.
        bytes: u64,
        /// Bytes of the file.
        more: u64,
        /// `quarantine.max_bytes`.
        max: u64,
    },
    /// The key is lost, and what it sealed is still there.
    #[error("the quarantine's key is missing and it holds files; it is not given a new one")]
    NoKey,
    /// Too many findings at the same moment.
    #[error("too many files are being moved at this moment")]
    Busy,
    /// The file at its path is another by now.
    #[error("another file is at its path by now; that was put back")]
    Swapped,
    /// Its content is another than what was scanned.
    #[error("its content changed after it was scanned; it was put back")]
    Changed,
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// Whether the file may be moved by itself, and whereto.
///
/// # Errors
/// The first reason for which it stays.
pub fn judge(remedy: Remedy, facts: &Facts) -> Result<Movement, Kept> {
    let movement = match remedy {
        Remedy::Block => return Err(Kept::Policy),
        Remedy::Quarantine => Movement::Quarantine,
        Remedy::Delete => Movement::Delete,
    };
    match facts.verdict {
        VerdictKind::Malware => {}
        VerdictKind::Suspicious => return Err(Kept::Suspicious),
        _ => return Err(Kept::NotMalware),
    }
    let refused = [
        (facts.monitoring, Kept::Monitoring),
        (!facts.regular, Kept::NotRegular),
        (!facts.named, Kept::NoName),
        (facts.own, Kept::Own),
        (!facts.no_writer, Kept::Writer),
    ];
    if let Some((_, kept)) = refused.into_iter().find(|(holds, _)| *holds) {
        return Err(kept);
    }
    match &facts.need {
        Need::None => {}
        Need::Vital(why) => return Err(Kept::Vital(why)),
        Need::Unknown(why) => return Err(Kept::NeedUnknown(why.clone())),
    }
    match &facts.owner {
        Owner::None => Ok(movement),
        Owner::Package(name) => Err(Kept::PackageOwned(name.clone())),
        Owner::Unknown(why) => Err(Kept::OwnerUnknown(why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn movable() -> Facts {
        Facts {
            verdict: VerdictKind::Malware,
            monitoring: false,
            regular: true,
            named: true,
            own: false,
            no_writer: true,
            need: Need::None,
            owner: Owner::None,
        }
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let verdict = prop_oneof![
            Just(VerdictKind::Malware),
            Just(VerdictKind::Suspicious),
            Just(VerdictKind::Clean),
            Just(VerdictKind::NotScanned),
        ];
        let need = prop_oneof![
            3 => Just(Need::None),
            1 => Just(Need::Vital("x")),
            1 => Just(Need::Unknown("x".into())),
        ];
        let owner = prop_oneof![
            3 => Just(Owner::None),
            1 => Just(Owner::Package("x".into())),
            1 => Just(Owner::Unknown("x".into())),
        ];
        // Most are fine, so that each one that is not decides alone now and then.
        let fine = || prop::bool::weighted(0.85);
        (
            verdict,
            (fine(), fine(), fine(), fine(), fine()),
            need,
            owner,
        )
            .prop_map(|(verdict, fine, need, owner)| Facts {
                verdict,
                monitoring: !fine.0,
                regular: fine.1,
                named: fine.2,
                own: !fine.3,
                no_writer: fine.4,
                need,
                owner,
            })
    }

    fn remedy() -> impl Strategy<Value = Remedy> {
        prop_oneof![
            Just(Remedy::Block),
            Just(Remedy::Quarantine),
            Just(Remedy::Delete)
        ]
    }

    proptest! {
        /// There is one set of facts with which a file moves.
        #[test]
        fn only_what_nothing_speaks_against_is_moved(remedy in remedy(), facts in facts()) {
            let wanted = match remedy {
                Remedy::Block => None,
                _ if facts != movable() => None,
                Remedy::Quarantine => Some(Movement::Quarantine),
                Remedy::Delete => Some(Movement::Delete),
            };
            prop_assert_eq!(judge(remedy, &facts).ok(), wanted);
        }
    }

    #[test]
    fn each_reason_is_told_by_its_name() {
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = movable();
            change(&mut facts);
            judge(Remedy::Quarantine, &facts).unwrap_err()
        };
        assert_eq!(judge(Remedy::Block, &movable()), Err(Kept::Policy));
        assert_eq!(
            with(&|facts| facts.verdict = VerdictKind::Suspicious),
            Kept::Suspicious
        );
        assert_eq!(
            with(&|facts| facts.verdict = VerdictKind::Clean),
            Kept::NotMalware
        );
        assert_eq!(with(&|facts| facts.monitoring = true), Kept::Monitoring);
        assert_eq!(with(&|facts| facts.regular = false), Kept::NotRegular);
        assert_eq!(with(&|facts| facts.named = false), Kept::NoName);
        assert_eq!(with(&|facts| facts.own = true), Kept::Own);
        assert_eq!(with(&|facts| facts.no_writer = false), Kept::Writer);
        assert_eq!(
            with(&|facts| facts.need = Need::Vital("boot")),
            Kept::Vital("boot")
        );
        assert_eq!(
            with(&|facts| facts.need = Need::Unknown("x".into())),
            Kept::NeedUnknown("x".into())
        );
        assert_eq!(
            with(&|facts| facts.owner = Owner::Package("libc6".into())),
            Kept::PackageOwned("libc6".into())
        );
        assert_eq!(
            with(&|facts| facts.owner = Owner::Unknown("x".into())),
            Kept::OwnerUnknown("x".into())
        );
    }
}
