//! What can be set, by clamd's and clamscan's names: `--set max-recursion=10`.
//!
//! Defaults are libclamav's own, which are clamscan's too, with these exceptions: a
//! content may be as large as [`DEFAULT_MAX_SIZE`]; limits that are hit and
//! encrypted parts are reported (libclamav is silent about both); its cache of
//! clean files, keyed by MD5, is off and cannot be switched on. What a request asks
//! for narrows what is set here, and never widens it; see [`ScanFlags::for_scan`].

use crate::ffi::{
    DB_BYTECODE, DB_PHISHING, DB_PHISHING_URLS, DB_PUA, DB_PUA_EXCLUDE, DB_PUA_INCLUDE,
    DB_STANDARD, Field, GENERAL_ALL_MATCHES, GENERAL_HEURISTICS, RawEngine, ScanFlags,
};
use palisade_worker::message::ScanOptions;

/// Largest content that is scanned, and most bytes that are scanned in one content
/// (bytes).
pub const DEFAULT_MAX_SIZE: i64 = 512 << 20;

/// Numbers, with their units.
const NUMBERS: [(&str, Field, &str); 19] = [
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
    (
        "structured-cc-count",
        Field::MinCreditCards,
        "credit card numbers that alert",
    ),
    (
        "structured-ssn-count",
        Field::MinSocialSecurityNumbers,
        "social security numbers that alert",
    ),
];

/// Which of the flag words a switch is in.
#[derive(Clone, Copy)]
enum Word {
    General,
    Parse,
    Heuristic,
    Mail,
    Database,
    /// A number of the engine: 1 for on.
    Number(Field),
}

/// `CL_SCAN_PARSE_ARCHIVE`
const PARSE_ARCHIVE: u32 = 0x1;
/// `CL_SCAN_PARSE_MAIL`
const PARSE_MAIL: u32 = 0x40;
/// What a request without archives does not look into.
const CONTAINERS: u32 = PARSE_ARCHIVE | PARSE_MAIL;
/// `CL_SCAN_HEURISTIC_EXCEEDS_MAX`
const EXCEEDS_MAX: u32 = 0x4;
/// `CL_SCAN_HEURISTIC_ENCRYPTED_ARCHIVE` and `…_DOC`
const ENCRYPTED: u32 = 0x40 | 0x80;

/// Switches, by name, word and bit; on by default where `DEFAULTS` has the bit.
const SWITCHES: [(&str, Word, u32); 33] = [
    ("scan-archive", Word::Parse, PARSE_ARCHIVE),
    ("scan-elf", Word::Parse, 0x2),
    ("scan-pdf", Word::Parse, 0x4),
    ("scan-swf", Word::Parse, 0x8),
    ("scan-hwp3", Word::Parse, 0x10),
    ("scan-xmldocs", Word::Parse, 0x20),
    ("scan-mail", Word::Parse, PARSE_MAIL),
    ("scan-ole2", Word::Parse, 0x80),
    ("scan-html", Word::Parse, 0x100),
    ("scan-pe", Word::Parse, 0x200),
    ("scan-onenote", Word::Parse, 0x400),
    ("scan-image", Word::Parse, 0x800),
    ("scan-image-fuzzy-hash", Word::Parse, 0x1000),
    ("heuristic-alerts", Word::General, GENERAL_HEURISTICS),
    ("alert-broken", Word::Heuristic, 0x2),
    ("alert-exceeds-max", Word::Heuristic, EXCEEDS_MAX),
    ("alert-phishing-ssl", Word::Heuristic, 0x8),
    ("alert-phishing-cloak", Word::Heuristic, 0x10),
    ("alert-macros", Word::Heuristic, 0x20),
    ("alert-encrypted-archive", Word::Heuristic, 0x40),
    ("alert-encrypted-doc", Word::Heuristic, 0x80),
    ("alert-partition-intersection", Word::Heuristic, 0x100),
    ("alert-broken-media", Word::Heuristic, 0x2000),
    ("structured-data", Word::Heuristic, 0x200),
    ("structured-ssn-normal", Word::Heuristic, 0x400),
    ("structured-ssn-stripped", Word::Heuristic, 0x800),
    ("structured-cc-only", Word::Heuristic, 0x1000),
    ("partial-message", Word::Mail, 0x1),
    ("detect-pua", Word::Database, DB_PUA),
    ("bytecode", Word::Database, DB_BYTECODE),
    ("phishing-sigs", Word::Database, DB_PHISHING),
    ("phishing-scan-urls", Word::Database, DB_PHISHING_URLS),
    (
        "disable-cert-check",
        Word::Number(Field::DisablePeCertificates),
        1,
    ),
];

/// Switches that would make the engine call things clean that it did not look at.
const ALWAYS_ON: [&str; 3] = [
    "alert-exceeds-max",
    "alert-encrypted-archive",
    "alert-encrypted-doc",
];

/// Lists of categories of unwanted applications; each may be set more than once.
const PUA_LISTS: [(&str, u32); 2] = [
    ("include-pua", DB_PUA_INCLUDE),
    ("exclude-pua", DB_PUA_EXCLUDE),
];

/// The engine's configuration.
#[derive(Clone, Debug)]
pub struct Configuration {
    numbers: Vec<(Field, i64)>,
    /// Scan options.
    pub flags: ScanFlags,
    /// Options for loading databases.
    pub database: u32,
    /// Categories of unwanted applications, each between dots.
    pua_categories: String,
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
                general: GENERAL_ALL_MATCHES | GENERAL_HEURISTICS,
                parse: 0x1fff,
                heuristic: EXCEEDS_MAX | ENCRYPTED,
                mail: 0,
                dev: 0,
            },
            database: DB_STANDARD,
            pua_categories: String::new(),
        }
    }
}

impl ScanFlags {
    /// The flags for one request. What says that something was not looked at stays on:
    /// without it, it would be clean.
    pub fn for_scan(mut self, options: &ScanOptions) -> Self {
        if !options.archives {
            self.parse &= !CONTAINERS;
        }
        if !options.heuristics {
            self.general &= !GENERAL_HEURISTICS;
            self.heuristic &= EXCEEDS_MAX | ENCRYPTED;
        }
        self
    }

    /// The same flags, but with archives looked into: the canary is in one.
    pub fn for_canary(mut self) -> Self {
        self.parse |= PARSE_ARCHIVE;
        self
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
        if let Some((_, list)) = PUA_LISTS.iter().find(|(name, _)| *name == key) {
            return self.set_pua_category(key, *list, value);
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
            Word::Number(field) => {
                self.numbers.push((*field, i64::from(on)));
                return Ok(());
            }
        };
        if on {
            *word |= bit
        } else {
            *word &= !bit
        }
        Ok(())
    }

    fn set_pua_category(&mut self, key: &str, list: u32, category: &str) -> Result<(), String> {
        let other = (DB_PUA_INCLUDE | DB_PUA_EXCLUDE) & !list;
        if self.database & other != 0 {
            return Err(format!(
                "{key}: either some categories are included, or some excluded"
            ));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if category.is_empty() || !category.chars().all(plain) {
            return Err(format!("{key} is one category, such as NetTool"));
        }
        self.database |= list | DB_PUA;
        if self.pua_categories.is_empty() {
            self.pua_categories.push('.');
        }
        self.pua_categories.push_str(category);
        self.pua_categories.push('.');
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
        if !self.pua_categories.is_empty() {
            engine.set_pua_categories(&self.pua_categories)?;
        }
        Ok(())
    }

    /// Names of all settings, for the usage text.
    pub fn names() -> String {
        let numbers = NUMBERS.iter().map(|(name, ..)| *name);
        numbers
            .chain(SWITCHES.iter().map(|(name, ..)| *name))
            .chain(PUA_LISTS.iter().map(|(name, _)| *name))
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
        configuration.set("disable-cert-check=yes").unwrap();
        let last = configuration.numbers.last();
        assert_eq!(last, Some(&(Field::DisablePeCertificates, 1)));
        configuration.set("exclude-pua=NetTool").unwrap();
        configuration.set("exclude-pua=Packed").unwrap();
        assert_eq!(configuration.pua_categories, ".NetTool.Packed.");
        assert!(configuration.set("include-pua=Spy").is_err());
        assert!(configuration.set("exclude-pua=a.b").is_err());
    }

    #[test]
    fn a_request_narrows_and_keeps_what_was_not_looked_at_visible() {
        let flags = Configuration::default().flags;
        let all = ScanOptions::default();
        assert_eq!(flags.for_scan(&all), flags);
        let none = flags.for_scan(&ScanOptions {
            archives: false,
            heuristics: false,
            ..all
        });
        assert_eq!(none.parse, 0x1fff & !0x41);
        assert_eq!(none.general, GENERAL_ALL_MATCHES);
        assert_eq!(none.heuristic, EXCEEDS_MAX | ENCRYPTED);
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
