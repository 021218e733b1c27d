//! Names: of metadata files, which are asked for, and of files of definitions, which are
//! written to a folder. What is not in here is no name.

/// Longest name of a file, in bytes.
pub const MAX_NAME_BYTES: usize = 200;
/// Longest name of a metadata file, in bytes.
pub const MAX_METADATA_NAME_BYTES: usize = 64;

/// Whether it names a metadata file: `timestamp.json`, `3.root.json`, `7.snapshot.json`, …
pub fn is_metadata_name(name: &str) -> bool {
    if name == "timestamp.json" || name == "root.json" {
        return true;
    }
    let Some((version, rest)) = name.split_once('.') else {
        return false;
    };
    name.len() <= MAX_METADATA_NAME_BYTES
        && !version.is_empty()
        && version.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(rest, "root.json" | "snapshot.json" | "targets.json")
}

/// Whether a file of a generation may be called so: one piece, nothing hidden, nothing
/// that drives a terminal.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0'])
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in [
            "timestamp.json",
            "root.json",
            "1.root.json",
            "20.targets.json",
        ] {
            assert!(is_metadata_name(good), "{good}");
        }
        for bad in [
            "../x",
            "x.root.json",
            ".root.json",
            "1.key.json",
            "targets.json",
            "",
        ] {
            assert!(!is_metadata_name(bad), "{bad}");
        }
        for good in ["daily.cld", "sub__rules.yar", "a b.yar", "ü.ndb"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in ["", "..", ".x.yar", "a/b.yar", "a\nb.yar", "a\0"] {
            assert!(!is_file_name(bad), "{bad:?}");
        }
        assert!(!is_file_name(&"x".repeat(MAX_NAME_BYTES + 1)));
    }
}
