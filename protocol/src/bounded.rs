//! Values that cannot outgrow their bound.
//!
//! Owns [`Text`], [`List`] and [`PathBytes`]: what peers may send in free length.
//! A value over its bound cannot be built here and is refused when it is decoded,
//! so that neither side has to remember a check.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value was longer than its type allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} has {length} {unit}, and {max} are allowed")]
pub struct TooLong {
    what: &'static str,
    unit: &'static str,
    length: usize,
    max: usize,
}

/// UTF-8 text of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Default)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Takes the text whole.
    ///
    /// # Errors
    /// [`TooLong`] when it has more than `MAX` bytes.
    pub fn new(text: impl Into<String>) -> Result<Self, TooLong> {
        let text = text.into();
        if text.len() > MAX {
            return Err(TooLong {
                what: "text",
                unit: "bytes",
                length: text.len(),
                max: MAX,
            });
        }
        Ok(Self(text))
    }

    /// Takes as much of the text as fits, cut at a character's border: for
    /// messages to people, never for names that are compared.
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A list of at most `MAX` items.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> List<T, MAX> {
    /// Takes the items whole.
    ///
    /// # Errors
    /// [`TooLong`] when there are more than `MAX`.
    pub fn new(items: Vec<T>) -> Result<Self, TooLong> {
        if items.len() > MAX {
            return Err(TooLong {
                what: "list",
                unit: "items",
                length: items.len(),
                max: MAX,
            });
        }
        Ok(Self(items))
    }

    /// Takes the first `MAX` items.
    pub fn cut(items: impl IntoIterator<Item = T>) -> Self {
        Self(items.into_iter().take(MAX).collect())
    }

    /// The items.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::<T>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Longest path that is carried, in bytes: Linux's `PATH_MAX`.
pub const MAX_PATH_BYTES: usize = 4096;

/// A path as the kernel knows it: bytes, not necessarily UTF-8. It is carried
/// unchanged and escaped only where a person or a log reads it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PathBytes(Vec<u8>);

impl PathBytes {
    /// Takes a path; one longer than [`MAX_PATH_BYTES`] keeps its end, which
    /// names the file.
    pub fn from_path(path: &Path) -> Self {
        let bytes = path.as_os_str().as_bytes();
        Self(bytes[bytes.len().saturating_sub(MAX_PATH_BYTES)..].to_vec())
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

/// Printable everywhere: invalid UTF-8, control characters and the backslash
/// are written as `\xNN`, so that a name can neither forge a log line nor
/// drive a terminal.
impl fmt::Display for PathBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || is_bidi_control(c) || c == '\\' {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        write!(f, "\\x{byte:02x}")?;
                    }
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Characters that reorder what a reader sees (UAX #9).
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Debug for PathBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for PathBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for PathBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(deserializer)?;
        if bytes.len() > MAX_PATH_BYTES {
            return Err(D::Error::custom(TooLong {
                what: "path",
                unit: "bytes",
                length: bytes.len(),
                max: MAX_PATH_BYTES,
            }));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(Text::<3>::cut("aéé").as_str(), "aé");
        assert!(Text::<3>::new("aéé").is_err());
    }

    #[test]
    fn hostile_names_print_on_one_line() {
        let path = PathBytes(b"/tmp/a\nb\x1b[2J\xff\\c".to_vec());
        assert_eq!(path.to_string(), r"/tmp/a\x0ab\x1b[2J\xff\x5cc");
    }

    #[test]
    fn a_long_path_keeps_its_file_name() {
        let long = format!("/{}/evil.exe", "d".repeat(5000));
        let path = PathBytes::from_path(Path::new(&long));
        assert_eq!(path.as_bytes().len(), MAX_PATH_BYTES);
        assert!(path.to_string().ends_with("/evil.exe"));
    }
}
