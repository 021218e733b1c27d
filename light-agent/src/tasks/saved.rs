//! Paths in JSON: readable, and the same bytes when they are read again.
//!
//! Written as logs have them (`palisade_protocol::bounded::PathBytes`): what is not
//! printable, and the backslash, is `\xNN`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use palisade_protocol::bounded::PathBytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SavedPath(pub PathBuf);

impl SavedPath {
    /// A path as the kernel names it.
    pub fn from_bytes(path: &[u8]) -> Self {
        Self(PathBuf::from(OsString::from_vec(path.to_vec())))
    }
}

impl From<&Path> for SavedPath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl std::fmt::Display for SavedPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        PathBytes::from_path(&self.0).fmt(f)
    }
}

impl Serialize for SavedPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SavedPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = decoded(&text)
            .ok_or_else(|| serde::de::Error::custom("a backslash without xNN in a path"))?;
        Ok(Self(PathBuf::from(OsString::from_vec(bytes))))
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.strip_prefix('x')?;
        let (code, rest) = digits.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt as _;

    proptest! {
        #[test]
        fn a_path_is_the_same_again(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let path = Path::new(std::ffi::OsStr::from_bytes(&bytes));
            let text = serde_json::to_string(&SavedPath::from(path)).unwrap();
            let again: SavedPath = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(again.0.as_os_str().as_bytes(), &bytes[..]);
        }

        #[test]
        fn whatever_it_reads_is_a_path_or_refused(text: String) {
            let json = serde_json::to_string(&text).unwrap();
            let _ = serde_json::from_str::<SavedPath>(&json);
        }
    }
}
