//! Which files the kernel may be told to ask no more about: pure.
//!
//! An ignore mark hides every later open, also one for writing, and a store through a
//! shared mapping does not clear it. So it is only for files that nobody may write to
//! whom the agent protects from: root's own in `balanced`, in `strict` only what the
//! kernel itself keeps unchanged.

use serde::Deserialize;

/// How far ignore marks go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(
    rename_all = "lowercase",
    expecting = "on_access.ignore_marks is \"balanced\", \"strict\" or \"off\""
)]
pub enum Level {
    /// For files of root that nobody else may write.
    #[default]
    Balanced,
    /// For files that the kernel keeps unchanged: immutable, with fs-verity, or on a
    /// file system that cannot be written.
    Strict,
    /// For none: every open is seen.
    Off,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its owner, as seen through its mount.
    pub owner: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Whether it has an access control list, or that is not known.
    pub acl: bool,
    /// Whether the owner that is seen is the owner that is: its mount is one of the
    /// agent's own mount namespace and maps no ids.
    pub plain_mount: bool,
    /// Whether the kernel keeps it unchanged.
    pub unchangeable: bool,
}

/// Group and others may write.
const OTHERS_WRITE: u32 = 0o022;

impl Level {
    /// Whether a file that was found clean and has no writer may be marked.
    pub fn allows(self, facts: &Facts) -> bool {
        let only_root_writes =
            facts.plain_mount && facts.owner == 0 && facts.mode & OTHERS_WRITE == 0 && !facts.acl;
        match self {
            Self::Balanced => facts.unchangeable || only_root_writes,
            Self::Strict => facts.unchangeable,
            Self::Off => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_somebody_else_may_write_is_marked(
            owner in 0_u32..2, mode in 0_u32..0o10000, acl: bool, plain_mount: bool, unchangeable: bool,
        ) {
            let facts = Facts { owner, mode, acl, plain_mount, unchangeable };
            let others = owner != 0 || mode & 0o20 != 0 || mode & 0o2 != 0 || acl || !plain_mount;
            prop_assert_eq!(Level::Balanced.allows(&facts), unchangeable || !others);
            prop_assert_eq!(Level::Strict.allows(&facts), unchangeable);
            prop_assert!(!Level::Off.allows(&facts));
        }
    }
}
