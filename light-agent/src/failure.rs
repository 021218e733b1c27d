//! What the kernel is told when there is no verdict: one table on one screen.
//!
//! Pure. Owns the reasons, the answers and their defaults; does not own counting
//! ([`accounts`](crate::accounts)) or answering ([`fanotify`](crate::fanotify)).
//!
//! Malware is always denied and clean content always allowed; neither is in the
//! table. Suspicious content has a row, since it is a verdict and a policy.

use palisade_protocol::verdict::NotScanned;
use serde::Deserialize;

/// How a file is being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `open` and its relatives.
    Open,
    /// Opened to be executed.
    Exec,
}

/// What the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The open goes on.
    Allow,
    /// The open fails with EPERM.
    Deny,
}

impl Answer {
    /// The name that settings and JSON use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

macro_rules! failures {
    ($($(#[$doc:meta])* $variant:ident, $key:ident, $open:ident, $exec:ident, $text:literal;)*) => {
        /// Why there is no verdict.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Failure {
            $(#[doc = $text] $variant,)*
        }

        impl Failure {
            /// Every reason, in the table's order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name that settings, JSON and counters use.
            pub fn key(self) -> &'static str {
                match self { $(Self::$variant => stringify!($key),)* }
            }

            /// What it means, for people.
            pub fn explain(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        /// Differences from the built-in table, as settings give them.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Overrides {
            $(#[doc = $text] pub $key: Option<Cell>,)*
            /// An engine calls it suspicious.
            pub suspicious: Option<Cell>,
        }

        impl Table {
            /// The built-in table with the settings' differences.
            pub fn with(overrides: &Overrides) -> Self {
                Self {
                    rows: vec![$(row(Answer::$open, Answer::$exec, overrides.$key),)*],
                    suspicious: row(Answer::Allow, Answer::Allow, overrides.suspicious),
                }
            }
        }
    };
}

// The table. Columns: reason, key, answer to open, answer to exec, meaning.
failures! {
    NoSvm,        no_svm,        Allow, Allow, "no Protection Server is connected";
    Deadline,     deadline,      Allow, Allow, "the verdict did not come in time";
    Busy,         busy,          Allow, Allow, "the Protection Server has no capacity";
    Limit,        limit,         Allow, Allow, "a limit of an engine was reached";
    Encrypted,    encrypted,     Allow, Allow, "the content is encrypted";
    TooLarge,     too_large,     Allow, Allow, "the file is larger than what is scanned";
    EngineFailed, engine_failed, Allow, Allow, "an engine failed on the content";
    ReadError,    read_error,    Allow, Allow, "the file cannot be read";
    OutOfFds,     out_of_fds,    Allow, Allow, "the agent has too few file descriptors left";
    Changed,      changed,       Allow, Allow, "the file changed while it was scanned";
    Private,      private,       Allow, Allow, "the content must not leave the guest, and is not known";
    QueueFull,    queue_full,    Allow, Allow, "too many opens wait for a verdict";
    Stopping,     stopping,      Allow, Allow, "the agent stops, or gave the event up";
}

/// One cell pair as settings give it: one answer for both, or one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "the failure table takes \"allow\", \"deny\" or { open = …, exec = … } with one of them each"
)]
pub enum Cell {
    /// For opens and for execs.
    Both(Answer),
    /// One each; what is left out keeps its default.
    Each(Pair),
}

/// One answer each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// For opens.
    pub open: Option<Answer>,
    /// For execs.
    pub exec: Option<Answer>,
}

/// The table in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    rows: Vec<[Answer; 2]>,
    suspicious: [Answer; 2],
}

fn row(open: Answer, exec: Answer, cell: Option<Cell>) -> [Answer; 2] {
    match cell {
        None => [open, exec],
        Some(Cell::Both(both)) => [both, both],
        Some(Cell::Each(pair)) => [pair.open.unwrap_or(open), pair.exec.unwrap_or(exec)],
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::with(&Overrides::default())
    }
}

impl Table {
    /// What the kernel is told for a reason.
    pub fn answer(&self, failure: Failure, access: Access) -> Answer {
        self.rows[failure as usize][access as usize]
    }

    /// What the kernel is told for suspicious content.
    pub fn suspicious(&self, access: Access) -> Answer {
        self.suspicious[access as usize]
    }
}

impl From<&NotScanned> for Failure {
    fn from(reason: &NotScanned) -> Self {
        match reason {
            NotScanned::TooLarge { .. } => Self::TooLarge,
            NotScanned::Encrypted => Self::Encrypted,
            NotScanned::LimitHit { .. } => Self::Limit,
            NotScanned::TimedOut => Self::Deadline,
            NotScanned::EngineFailed { .. } => Self::EngineFailed,
            NotScanned::Overloaded => Self::Busy,
            NotScanned::Changed => Self::Changed,
            NotScanned::ReadError { .. } => Self::ReadError,
            NotScanned::NoSvm => Self::NoSvm,
            NotScanned::Private => Self::Private,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![Just(Answer::Allow), Just(Answer::Deny)]
    }

    #[test]
    fn every_reason_has_its_own_row_and_key() {
        let table = Table::default();
        assert_eq!(table.rows.len(), Failure::ALL.len());
        let keys: std::collections::HashSet<_> = Failure::ALL.iter().map(|f| f.key()).collect();
        assert_eq!(keys.len(), Failure::ALL.len());
        for (index, failure) in Failure::ALL.iter().enumerate() {
            assert_eq!(*failure as usize, index);
        }
    }

    proptest! {
        #[test]
        fn an_override_changes_its_own_row_only(open in answers(), exec in answers()) {
            let pair = Pair { open: Some(open), exec: Some(exec) };
            let overrides = Overrides { busy: Some(Cell::Each(pair)), ..Overrides::default() };
            let (before, after) = (Table::default(), Table::with(&overrides));
            for &failure in Failure::ALL {
                for access in [Access::Open, Access::Exec] {
                    let want = match (failure, access) {
                        (Failure::Busy, Access::Open) => open,
                        (Failure::Busy, Access::Exec) => exec,
                        _ => before.answer(failure, access),
                    };
                    prop_assert_eq!(after.answer(failure, access), want);
                }
            }
        }
    }
}
