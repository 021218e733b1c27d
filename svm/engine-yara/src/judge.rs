//! What matching rules mean, and what they say of themselves.
//!
//! A rule says malware, unless it says of itself that it gives a reason for suspicion
//! and no more: by the tag `suspicious`; by the metadata `severity`, if that is
//! `suspicious`, `low`, `info` or `informational`; or by a `score` (0 to 100, as the
//! public rule sets have it) below [`MALWARE_SCORE`].

use palisade_worker::message::{MAX_METADATA, MAX_NAMES, Metadatum, Name, Outcome, ScanOptions};
use yara_x::{MetaValue, Rule, ScanResults};

/// Least score of a rule that says malware; below, LOKI and THOR give a notice.
const MALWARE_SCORE: i64 = 60;
const SUSPICIOUS: &str = "suspicious";
const LOW_SEVERITIES: [&str; 4] = [SUSPICIOUS, "low", "info", "informational"];
/// Metadata that goes with a finding, in this order.
const SHOWN: [&str; 6] = [
    "description",
    "author",
    "reference",
    "severity",
    "score",
    "date",
];

/// One rule that says malware outweighs any that merely suspect, and comes first.
pub fn judge(results: &ScanResults<'_, '_>, canary: &str, options: &ScanOptions) -> Outcome {
    let (mut malware, mut suspicious) = (Vec::new(), Vec::new());
    for rule in results.matching_rules() {
        if rule.namespace() == canary {
            continue;
        }
        if is_suspicion(&rule) {
            suspicious.push(rule);
        } else {
            malware.push(rule);
        }
    }
    let only_suspicious = malware.is_empty();
    let all: Vec<Rule<'_, '_>> = malware.into_iter().chain(suspicious).collect();
    match all.first() {
        None => Outcome::Clean,
        Some(_) if only_suspicious && !options.heuristics => Outcome::Clean,
        Some(shown) => Outcome::Found {
            names: all
                .iter()
                .take(MAX_NAMES)
                .map(|rule| Name::from(rule.identifier()))
                .collect(),
            member: Default::default(),
            metadata: metadata(shown),
            suspicious: only_suspicious,
        },
    }
}

fn is_suspicion(rule: &Rule<'_, '_>) -> bool {
    let tagged = |tag: &str| tag.eq_ignore_ascii_case(SUSPICIOUS);
    rule.tags().any(|tag| tagged(tag.identifier()))
        || rule.metadata().any(|(key, value)| is_low(key, &value))
}

fn is_low(key: &str, value: &MetaValue<'_>) -> bool {
    if key.eq_ignore_ascii_case("severity") {
        matches!(value, MetaValue::String(text)
            if LOW_SEVERITIES.iter().any(|low| text.eq_ignore_ascii_case(low)))
    } else if key.eq_ignore_ascii_case("score") {
        let score = match value {
            MetaValue::Integer(score) => Some(*score),
            MetaValue::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        score.is_some_and(|score: i64| score < MALWARE_SCORE)
    } else {
        false
    }
}

/// What the rule says of itself, as far as it is shown; of keys that come twice, the
/// first.
fn metadata(rule: &Rule<'_, '_>) -> Vec<Metadatum> {
    let said: Vec<(&str, MetaValue<'_>)> = rule.metadata().collect();
    let shown = SHOWN.iter().filter_map(|wanted| {
        let (_, value) = said
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(wanted))?;
        Some(Metadatum {
            key: (*wanted).into(),
            value: text(value).as_str().into(),
        })
    });
    shown.take(MAX_METADATA).collect()
}

fn text(value: &MetaValue<'_>) -> String {
    match value {
        MetaValue::Integer(number) => number.to_string(),
        MetaValue::Float(number) => number.to_string(),
        MetaValue::Bool(value) => value.to_string(),
        MetaValue::String(text) => (*text).to_owned(),
        MetaValue::Bytes(bytes) => bytes.to_string(),
    }
}
