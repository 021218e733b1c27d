//! Text that came from somewhere else: bounded, and safe to print.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A string of at most `MAX` bytes of UTF-8 without control characters.
///
/// Archive members, signature names and libraries' messages end up in logs and on
/// terminals: what cannot be shown is replaced, what is too long is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const MAX: usize>(String);

/// Text that another process sent and that breaks the rules of [`Text`].
#[derive(Debug, thiserror::Error)]
#[error("text of {len} bytes is too long or holds control characters (at most {max} bytes)")]
pub struct TextError {
    len: usize,
    max: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// Makes text of any bytes: control characters and broken UTF-8 become U+FFFD,
    /// and what goes over `MAX` bytes is cut at a character's border.
    pub fn lossy(bytes: &[u8]) -> Self {
        // A byte becomes at most three (U+FFFD), so nothing after this can matter.
        let head = bytes.get(..MAX.saturating_add(4)).unwrap_or(bytes);
        let mut text = String::new();
        for c in String::from_utf8_lossy(head).chars() {
            let c = shown(c);
            if text.len() + c.len_utf8() > MAX {
                break;
            }
            text.push(c);
        }
        Self(text)
    }

    /// As [`Self::lossy`], but of text that is too long the end stays: of a path, the
    /// file's own name.
    pub fn lossy_end(bytes: &[u8]) -> Self {
        let tail = bytes
            .get(bytes.len().saturating_sub(MAX)..)
            .unwrap_or(bytes);
        let text: String = String::from_utf8_lossy(tail).chars().map(shown).collect();
        let mut start = text.len().saturating_sub(MAX);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        Self(text[start..].to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The character, or what stands for one that cannot be shown.
fn shown(c: char) -> char {
    if c.is_control() {
        char::REPLACEMENT_CHARACTER
    } else {
        c
    }
}

impl<const MAX: usize> From<&str> for Text<MAX> {
    fn from(text: &str) -> Self {
        Self::lossy(text.as_bytes())
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        if text.len() > MAX || text.chars().any(char::is_control) {
            return Err(TextError {
                len: text.len(),
                max: MAX,
            });
        }
        Ok(Self(text))
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_a_border_and_replaces_what_cannot_be_shown() {
        assert_eq!(Text::<8>::lossy(b"plain").as_str(), "plain");
        assert_eq!(Text::<5>::lossy("aäöü".as_bytes()).as_str(), "aäö");
        assert_eq!(
            Text::<64>::lossy(b"a\x1b[31m\n").as_str(),
            "a\u{fffd}[31m\u{fffd}"
        );
        assert_eq!(Text::<64>::lossy(b"\xff\xfe").as_str(), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn the_end_of_what_is_too_long_may_be_kept() {
        assert_eq!(Text::<9>::lossy_end(b"a/b/c.exe").as_str(), "a/b/c.exe");
        assert_eq!(Text::<5>::lossy_end(b"a/b/c.exe").as_str(), "c.exe");
        assert_eq!(Text::<3>::lossy_end("öö".as_bytes()).as_str(), "ö");
        assert_eq!(Text::<4>::lossy_end(b"\xff\xff\n").as_str(), "\u{fffd}");
        assert_eq!(Text::<4>::lossy_end(b"").as_str(), "");
    }

    #[test]
    fn a_peer_cannot_send_what_lossy_would_not_make() {
        assert!(Text::<4>::try_from("12345".to_owned()).is_err());
        assert!(Text::<4>::try_from("\u{1b}".to_owned()).is_err());
        assert!(Text::<4>::try_from("1234".to_owned()).is_ok());
    }
}
