//! What can be set, by clamd's and clamscan's names: `--set max-recursion=10`.
//!
//! Defaults are libclamav's own, which are clamscan's too, with these exceptions: a
//! content may be as large as [`DEFAULT_MAX_SIZE`]; limits that are hit and
//! encrypted parts are reported (libclamav is silent about both); its cache of
//! clean files, keyed by MD5, is off and cannot be switched on.

use crate::ffi::{
    DB_BYTECODE, DB_PUA, DB_STANDARD, Field, GENERAL_HEURISTICS, RawEngine, ScanFlags,
};

/// Largest content that is scanned, and most bytes that are scanned in one content
/// (bytes).
pub const DEFAULT_MAX_SIZE: i64 = 512 << 20;

/// Numbers, with their units.
const NUMBERS: [(&str, Field, &str); 17] = [
    (
        "max-filesize",
        Field::MaxFileSize,
        "largest file or part, bytes",
    ),
    (
        "max-scansize",
        Field::MaxScanSize,
        "bytes scanned in one content, parts included",
    ),
    ("max-recursion", Field::MaxRecursion, "levels of nesting"),
    ("max-files", Field::MaxFiles, "parts of one content"),
    ("max-scantime", Field::MaxScanTime, "milliseconds"),
    ("max-embeddedpe", Field::MaxEmbeddedPe, "bytes"),
    ("max-htmlnormalize", Field::MaxHtmlNormalize, "bytes"),
    ("max-htmlnotags", Field::MaxHtmlNoTags, "bytes"),
    ("max-scriptnormalize", Field::MaxScriptNormalize, "bytes"),
    ("max-ziptypercg", Field::MaxZipTypeRcg, "bytes"),
    ("max-partitions", Field::MaxPartitions, "partitions"),
    ("max-iconspe", Field::MaxIconsPe, "icons"),
    ("max-rechwp3", Field::MaxRecHwp3, "levels"),
    ("pcre-match-limit", Field::PcreMatchLimit, "calls"),
    ("pcre-recmatch-limit", Field::PcreRecMatchLimit, "calls"),
    ("pcre-max-filesize", Field::PcreMaxFileSize, "bytes"),
    ("bytecode-timeout", Field::BytecodeTimeout, "milliseconds"),
];

/// Which of the flag words a switch is in.
#[derive(Clone, Copy)]
enum Word {
    General,
    Parse,
    Heuristic,
    Mail,
    Database,
}

/// Switches, by name, word and bit; on by default where `DEFAULTS` has the bit.
const SWITCHES: [(&str, Word, u32); 26] = [
    ("scan-archive", Word::Parse, 0x1),
    ("scan-elf", Word::Parse, 0x2),
    ("scan-pdf", Word::Parse, 0x4),
    ("scan-swf", Word::Parse, 0x8),
    ("scan-hwp3", Word::Parse, 0x10),
    ("scan-xmldocs", Word::Parse, 0x20),
    ("scan-mail", Word::Parse, 0x40),
    ("scan-ole2", Word::Parse, 0x80),
    ("scan-html", Word::Parse, 0x100),
    ("scan-pe", Word::Parse, 0x200),
    ("scan-onenote", Word::Parse, 0x400),
    ("scan-image", Word::Parse, 0x800),
    ("scan-image-fuzzy-hash", Word::Parse, 0x1000),
    ("heuristic-alerts", Word::General, GENERAL_HEURISTICS),
    ("alert-broken", Word::Heuristic, 0x2),
    ("alert-exceeds-max", Word::Heuristic, 0x4),
    ("alert-phishing-ssl", Word::Heuristic, 0x8),
    ("alert-phishing-cloak", Word::Heuristic, 0x10),
    ("alert-macros", Word::Heuristic, 0x20),
    ("alert-encrypted-archive", Word::Heuristic, 0x40),
    ("alert-encrypted-doc", Word::Heuristic, 0x80),
    ("alert-partition-intersection", Word::Heuristic, 0x100),
    ("alert-broken-media", Word::Heuristic, 0x2000),
    ("partial-message", Word::Mail, 0x1),
    ("detect-pua", Word::Database, DB_PUA),
    ("bytecode", Word::Database, DB_BYTECODE),
];

/// Switches that would make the engine call things clean that it did not look at.
const ALWAYS_ON: [&str; 4] = [
    "alert-exceeds-max",
    "alert-encrypted-archive",
    "alert-encrypted-doc",
    "heuristic-alerts",
];

/// The engine's configuration.
#[derive(Clone, Debug)]
pub struct Configuration {
    numbers: Vec<(Field, i64)>,
    /// Scan options.
    pub flags: ScanFlags,
    /// Options for loading databases.
    pub database: u32,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            numbers: vec![
                (Field::MaxFileSize, DEFAULT_MAX_SIZE),
                (Field::MaxScanSize, DEFAULT_MAX_SIZE),
                (Field::DisableCache, 1),
            ],
            flags: ScanFlags {
                general: GENERAL_HEURISTICS,
                parse: 0x1fff,
                heuristic: 0x4 | 0x40 | 0x80,
                mail: 0,
                dev: 0,
            },
            database: DB_STANDARD,
        }
    }
}

impl Configuration {
    /// Takes one `key=value`.
    ///
    /// # Errors
    /// In words that name the key.
    pub fn set(&mut self, setting: &str) -> Result<(), String> {
        let (key, value) = setting.split_once('=').ok_or("not of the form key=value")?;
        if let Some((_, field, unit)) = NUMBERS.iter().find(|(name, ..)| *name == key) {
            let number = value
                .parse::<u32>()
                .map_err(|_| format!("{key} is a whole number ({unit}), at most {}", u32::MAX))?;
            self.numbers.push((*field, i64::from(number)));
            return Ok(());
        }
        let (_, word, bit) = SWITCHES
            .iter()
            .find(|(name, ..)| *name == key)
            .ok_or_else(|| format!("{key} is not a setting of this engine"))?;
        let on = match value {
            "yes" | "true" => true,
            "no" | "false" => false,
            _ => return Err(format!("{key} is yes or no")),
        };
        if !on && ALWAYS_ON.contains(&key) {
            return Err(format!(
                "{key} cannot be switched off: what it reports would be \"clean\""
            ));
        }
        let word = match word {
            Word::General => &mut self.flags.general,
            Word::Parse => &mut self.flags.parse,
            Word::Heuristic => &mut self.flags.heuristic,
            Word::Mail => &mut self.flags.mail,
            Word::Database => &mut self.database,
        };
        if on {
            *word |= bit
        } else {
            *word &= !bit
        }
        Ok(())
    }

    /// Configures an engine.
    ///
    /// # Errors
    /// In libclamav's words.
    pub fn apply(&self, engine: &mut RawEngine) -> Result<(), String> {
        for (field, value) in &self.numbers {
            engine
                .set_number(*field, *value)
                .map_err(|code| format!("{field:?} = {value}: {}", code.text()))?;
        }
        Ok(())
    }

    /// Names of all settings, for the usage text.
    pub fn names() -> String {
        let numbers = NUMBERS.iter().map(|(name, ..)| *name);
        numbers
            .chain(SWITCHES.iter().map(|(name, ..)| *name))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_change_what_they_name() {
        let mut configuration = Configuration::default();
        configuration.set("max-recursion=3").unwrap();
        assert_eq!(
            configuration.numbers.last(),
            Some(&(Field::MaxRecursion, 3))
        );
        configuration.set("scan-pdf=no").unwrap();
        configuration.set("detect-pua=yes").unwrap();
        assert_eq!(configuration.flags.parse, 0x1fff & !0x4);
        assert_eq!(configuration.database, DB_STANDARD | DB_PUA);
    }

    #[test]
    fn mistakes_name_the_key() {
        let said = |setting: &str| Configuration::default().set(setting).unwrap_err();
        assert_eq!(
            said("nonsense=1"),
            "nonsense is not a setting of this engine"
        );
        assert_eq!(said("scan-pdf=perhaps"), "scan-pdf is yes or no");
        assert!(said("max-files=-1").contains("max-files is a whole number (parts"));
        assert!(said("alert-exceeds-max=no").contains("cannot be switched off"));
        assert_eq!(said("max-files"), "not of the form key=value");
    }
}
