//! `[engines.…]`: what the engines' own programs can be told.
//!
//! Owns the keys and their bounds; what they do and their defaults are the engines'.
//! A key that is not set is not passed on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ByteSize;

/// Settings of the engines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engines {
    /// libclamav's.
    pub clamav: Clamav,
}

/// libclamav's limits and options, by clamd's and clamscan's names. Whatever limit is
/// hit, the content is not scanned, and the limit is named; encrypted archives and
/// documents are always reported as such. Neither can be switched off, and libclamav's
/// cache of clean files cannot be switched on.
///
/// A limit of 0 is none, but where it says otherwise. A request's own options can only
/// narrow what is set here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clamav {
    /// Largest file or part; by default `scan.max_scan_size`.
    pub max_filesize: Option<ByteSize>,
    /// Bytes scanned in one content, parts included; by default `scan.max_scan_size`, and
    /// 512 MiB at the least.
    pub max_scansize: Option<ByteSize>,
    /// Levels of nesting, 3 to 100; by default 17.
    pub max_recursion: Option<u32>,
    /// Parts of one content, 3 at the least; by default 10,000.
    pub max_files: Option<u32>,
    /// Milliseconds for one content; by default 120,000. `scan.timeout_s` holds as well.
    pub max_scantime: Option<u32>,
    /// Largest file in which embedded programs are looked for; by default 40 MiB.
    pub max_embeddedpe: Option<ByteSize>,
    /// Largest HTML file that is normalised; by default 40 MiB.
    pub max_htmlnormalize: Option<ByteSize>,
    /// Largest HTML file whose tags are taken out; by default 8 MiB.
    pub max_htmlnotags: Option<ByteSize>,
    /// Largest script that is normalised; by default 20 MiB.
    pub max_scriptnormalize: Option<ByteSize>,
    /// Largest zip archive that is looked at once more for other types; by default 1 MiB.
    pub max_ziptypercg: Option<ByteSize>,
    /// Partitions of a disk image; by default 50.
    pub max_partitions: Option<u32>,
    /// Icons of a program; by default 100.
    pub max_iconspe: Option<u32>,
    /// Levels of an HWP3 document; by default 16.
    pub max_rechwp3: Option<u32>,
    /// Calls of a regular expression's matcher; by default 100,000.
    pub pcre_match_limit: Option<u32>,
    /// Recursive calls of it; by default 2,000.
    pub pcre_recmatch_limit: Option<u32>,
    /// Largest file for regular expressions; by default 100 MiB.
    pub pcre_max_filesize: Option<ByteSize>,
    /// Milliseconds for one bytecode signature; by default 60,000.
    pub bytecode_timeout: Option<u32>,
    /// Look into archives and disk images; by default yes.
    pub scan_archive: Option<bool>,
    /// Parse ELF programs; by default yes.
    pub scan_elf: Option<bool>,
    /// Parse PDF documents; by default yes.
    pub scan_pdf: Option<bool>,
    /// Parse Flash; by default yes.
    pub scan_swf: Option<bool>,
    /// Parse HWP3 documents; by default yes.
    pub scan_hwp3: Option<bool>,
    /// Parse XML documents; by default yes.
    pub scan_xmldocs: Option<bool>,
    /// Parse mail; by default yes.
    pub scan_mail: Option<bool>,
    /// Parse OLE2 containers, such as Office documents; by default yes.
    pub scan_ole2: Option<bool>,
    /// Parse HTML; by default yes.
    pub scan_html: Option<bool>,
    /// Parse Windows programs; by default yes.
    pub scan_pe: Option<bool>,
    /// Parse OneNote documents; by default yes.
    pub scan_onenote: Option<bool>,
    /// Parse images; by default yes.
    pub scan_image: Option<bool>,
    /// Compare images by fuzzy hashes; by default yes.
    pub scan_image_fuzzy_hash: Option<bool>,
    /// Join the parts of messages that came in parts; by default no.
    pub partial_message: Option<bool>,
    /// Heuristics at all; by default yes.
    pub heuristic_alerts: Option<bool>,
    /// Suspect broken programs; by default no.
    pub alert_broken: Option<bool>,
    /// Suspect broken images; by default no.
    pub alert_broken_media: Option<bool>,
    /// Suspect links in mail whose text names another host over TLS; by default no.
    pub alert_phishing_ssl: Option<bool>,
    /// Suspect links in mail that hide their host; by default no.
    pub alert_phishing_cloak: Option<bool>,
    /// Suspect documents with macros; by default no.
    pub alert_macros: Option<bool>,
    /// Suspect disk images whose partitions overlap; by default no.
    pub alert_partition_intersection: Option<bool>,
    /// Suspect credit card and social security numbers; by default no.
    pub structured_data: Option<bool>,
    /// Credit card numbers that it takes; by default 3.
    pub structured_cc_count: Option<u32>,
    /// Social security numbers that it takes; by default 3.
    pub structured_ssn_count: Option<u32>,
    /// Social security numbers as `xxx-yy-zzzz`; by default no.
    pub structured_ssn_normal: Option<bool>,
    /// Social security numbers as `xxxyyzzzz`; by default no.
    pub structured_ssn_stripped: Option<bool>,
    /// Credit cards alone, no other cards; by default no.
    pub structured_cc_only: Option<bool>,
    /// Load signatures of potentially unwanted applications, for requests that ask for
    /// them; by default no.
    pub detect_pua: Option<bool>,
    /// Load these categories of them alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include_pua: Vec<String>,
    /// Load all categories but these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_pua: Vec<String>,
    /// Load bytecode signatures; by default yes.
    pub bytecode: Option<bool>,
    /// Load signatures of phishing mail; by default yes.
    pub phishing_sigs: Option<bool>,
    /// Look at the links of mail; by default yes.
    pub phishing_scan_urls: Option<bool>,
    /// Do not trust programs by their certificates; by default no.
    pub disable_cert_check: Option<bool>,
}

impl Clamav {
    /// What is set, as `key=value` in the words of the engine's program.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for (key, value) in self.set() {
            let key = key.replace('_', "-");
            match value {
                Value::Bool(on) => {
                    let word = if on { "yes" } else { "no" };
                    arguments.push(format!("{key}={word}"));
                }
                Value::Array(items) => arguments.extend(
                    items
                        .iter()
                        .filter_map(Value::as_str)
                        .map(|item| format!("{key}={item}")),
                ),
                other => arguments.push(format!("{key}={other}")),
            }
        }
        arguments
    }

    /// The first key that breaks a bound: its name, its value, and the rule.
    pub fn broken_bound(&self) -> Option<(String, String, String)> {
        let broken = |key: &str, value: &Value, rule: &str| {
            let key = format!("engines.clamav.{key}");
            Some((key, value.to_string(), rule.to_owned()))
        };
        for (key, value) in self.set() {
            let Some(number) = value.as_u64() else {
                continue;
            };
            let fits = match key.as_str() {
                // The canary, without which no worker serves, is a part of a content.
                "max_recursion" => (3..=100).contains(&number),
                "max_files" => number == 0 || number >= 3,
                _ => true,
            };
            if !fits {
                return broken(&key, &value, "3 are needed, and 100 levels are possible");
            }
            if number > u64::from(u32::MAX) {
                return broken(&key, &value, "less than 4 GiB are possible");
            }
        }
        let (included, excluded) = (&self.include_pua, &self.exclude_pua);
        if !included.is_empty() && !excluded.is_empty() {
            let value = Value::from(excluded.clone());
            return broken(
                "exclude_pua",
                &value,
                "either some categories are included, or some excluded",
            );
        }
        None
    }

    fn set(&self) -> Vec<(String, Value)> {
        match serde_json::to_value(self) {
            Ok(Value::Object(all)) => all
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect(),
            // It is a struct of plain values.
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Clamav, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_set_is_passed_on_and_nothing_else() {
        assert!(Clamav::default().arguments().is_empty());
        let text = "max_filesize = '1 MiB'\nscan_pdf = false\nexclude_pua = ['A', 'B']";
        let mut arguments = read(text).unwrap().arguments();
        arguments.sort();
        assert_eq!(
            arguments,
            [
                "exclude-pua=A",
                "exclude-pua=B",
                "max-filesize=1048576",
                "scan-pdf=no"
            ]
        );
        let unknown = read("alert_exceeds_max = false").unwrap_err();
        assert!(unknown.contains("alert_exceeds_max"), "{unknown}");
    }

    #[test]
    fn bounds_name_the_key() {
        let said = |text: &str| read(text).unwrap().broken_bound().map(|(key, ..)| key);
        assert_eq!(said("max_files = 0"), None);
        assert_eq!(said("max_recursion = 17"), None);
        for (text, key) in [
            ("max_files = 2", "max_files"),
            ("max_recursion = 0", "max_recursion"),
            ("max_recursion = 101", "max_recursion"),
            ("max_scansize = '4 GiB'", "max_scansize"),
            ("include_pua = ['A']\nexclude_pua = ['B']", "exclude_pua"),
        ] {
            assert_eq!(said(text), Some(format!("engines.clamav.{key}")));
        }
    }
}
