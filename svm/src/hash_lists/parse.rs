//! The lists' names and lines: pure.
//!
//! ```text
//! # a comment                                    nothing
//! 9f86d081…0a08                                  a hash
//! 9f86d081…0a08  setup.exe                       a hash and a name, as sha256sum writes it
//! 9f86d081…0a08:4096:Win.Trojan.Example          as ClamAV's .hsb and .hdb: size or *, name
//! ```

use std::path::Path;

use palisade_protocol::verdict::MAX_NAME_BYTES;

/// What a list says of its hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The content is fine, whatever engines say.
    Allow,
    /// The content is malware.
    Deny,
}

/// Which hash a list holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// 64 hexadecimal digits.
    Sha256,
    /// 32 hexadecimal digits.
    Md5,
}

/// What a file is, by its name; none if it is no list. A list says in its name what
/// it does: `main.cvd.sha256` is a checksum, and `site.allow.sha256` a list.
pub fn kind_of(path: &Path) -> Option<(Effect, Hash)> {
    let name = path.file_name()?.to_str()?;
    let (rest, hash) = name.rsplit_once('.')?;
    let hash = match hash {
        "sha256" => Hash::Sha256,
        "md5" => Hash::Md5,
        _ => return None,
    };
    match rest.rsplit_once('.')?.1 {
        "allow" => Some((Effect::Allow, hash)),
        "deny" => Some((Effect::Deny, hash)),
        _ => None,
    }
}

/// One line that holds a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a, const N: usize> {
    /// The hash's bytes.
    pub hash: [u8; N],
    /// The content's size in bytes, if it must have this one.
    pub size: Option<u64>,
    /// What the list calls it.
    pub name: Option<&'a str>,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The hash is no hash, or one of another kind.
    #[error("{digits} hexadecimal digits are expected, then nothing, a name, or :size:name")]
    Hash {
        /// How many.
        digits: usize,
    },
    /// Between the colons stands no size.
    #[error("the size between the colons must be a number of bytes, or *")]
    Size,
    /// The name is too long to be shown.
    #[error("the name has {0} bytes, and {MAX_NAME_BYTES} are possible")]
    Name(usize),
}

/// One line without its end; none where it holds nothing.
///
/// # Errors
/// [`LineError`].
pub fn line<const N: usize>(text: &str) -> Result<Option<Line<'_, N>>, LineError> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let digits = N * 2;
    let expected = LineError::Hash { digits };
    let end = text
        .find(|c: char| !c.is_ascii_hexdigit())
        .unwrap_or(text.len());
    let (hash, rest) = text.split_at(end);
    let mut bytes = [0; N];
    hex::decode_to_slice(hash, &mut bytes).map_err(|_| expected.clone())?;
    let (size, name) = match rest.strip_prefix(':') {
        Some(rest) => {
            let (size, name) = rest.split_once(':').unwrap_or((rest, ""));
            let size = match size {
                "*" => None,
                size => Some(size.parse().map_err(|_| LineError::Size)?),
            };
            // What follows the name is for ClamAV: the level of its engine.
            (size, name.split(':').next().unwrap_or_default())
        }
        None if rest.is_empty() || rest.starts_with([' ', '\t']) => {
            // sha256sum marks a file that it read as binary with an asterisk.
            let name = rest.trim_start();
            (None, name.strip_prefix('*').unwrap_or(name))
        }
        None => return Err(expected),
    };
    if name.len() > MAX_NAME_BYTES {
        return Err(LineError::Name(name.len()));
    }
    Ok(Some(Line {
        hash: bytes,
        size,
        name: (!name.is_empty() && !name.starts_with('#')).then_some(name),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn md5(text: &str) -> Result<Option<Line<'_, 16>>, LineError> {
        line(text)
    }

    const HASH: &str = "900150983CD24fb0d6963f7d28e17f72";

    #[test]
    fn names_say_what_a_list_does() {
        let of = |name: &str| kind_of(Path::new(name));
        assert_eq!(of("/d/a.allow.sha256"), Some((Effect::Allow, Hash::Sha256)));
        assert_eq!(of("a.b.deny.md5"), Some((Effect::Deny, Hash::Md5)));
        for other in [
            "allow.sha256",
            "main.cvd.sha256",
            "a.allow.sha1",
            "a.deny",
            "md5",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn every_form_and_every_mistake() {
        let hash: [u8; 16] = hex::decode(HASH).unwrap().try_into().unwrap();
        let with = |size, name| Ok(Some(Line { hash, size, name }));
        assert_eq!(md5(""), Ok(None));
        assert_eq!(md5("  # nothing"), Ok(None));
        assert_eq!(md5(HASH), with(None, None));
        for (rest, size, name) in [
            ("\r", None, None),
            ("  a b.exe", None, Some("a b.exe")),
            (" *a.exe", None, Some("a.exe")),
            (" # why", None, None),
            (":68:A.B-1", Some(68), Some("A.B-1")),
            (":*:A.B-1:73", None, Some("A.B-1")),
        ] {
            assert_eq!(md5(&format!("{HASH}{rest}")), with(size, name), "{rest}");
        }
        let wrong = Err(LineError::Hash { digits: 32 });
        let (longer, other) = (format!("{HASH}0"), format!("{HASH}-a"));
        for text in ["xyz", &HASH[1..], &longer, &other, "ü"] {
            assert_eq!(md5(text), wrong, "{text}");
        }
        assert_eq!(md5(&format!("{HASH}:x:A")), Err(LineError::Size));
        assert_eq!(
            md5(&format!("{HASH} {}", "n".repeat(300))),
            Err(LineError::Name(300))
        );
    }

    proptest! {
        #[test]
        fn no_line_panics(text in "\\PC{0,200}", hash in "[0-9a-fA-F:* ]{0,90}") {
            let _ = line::<32>(&text);
            let _ = line::<16>(&hash);
            let _ = line::<32>(&hash);
        }

        #[test]
        fn what_is_written_is_read(hash: [u8; 32], size: Option<u64>, name in "[A-Za-z0-9._-]{1,80}", upper: bool) {
            let shown = if upper { hex::encode_upper(hash) } else { hex::encode(hash) };
            let sized = size.map_or("*".to_owned(), |size| size.to_string());
            let expected = Line { hash, size, name: Some(name.as_str()) };
            let text = format!("{shown}:{sized}:{name}");
            prop_assert_eq!(line(&text).unwrap(), Some(expected.clone()));
            let plain = Line { size: None, ..expected };
            let text = format!("{shown}  {name}");
            prop_assert_eq!(line(&text).unwrap(), Some(plain));
        }
    }
}
