//! Rules in YARA's language: each one's text, and that of the rules that it refers to.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use yara_x_parser::Parser;
use yara_x_parser::ast::{AST, RuleFlags, WithSpan as _};

use super::{Found, extension};

/// Largest file of rules, in bytes: the engine's program takes no larger one.
const MAX_FILE: u64 = 64 << 20;

pub(super) fn read(file: &Path, found: &mut Found<'_>) -> io::Result<()> {
    if !matches!(extension(file), "yar" | "yara") {
        return Ok(());
    }
    if std::fs::metadata(file)?.len() > MAX_FILE {
        return Err(io::Error::other("too large"));
    }
    for (name, definition) in definitions(&std::fs::read(file)?) {
        found.add(name.as_bytes(), definition.as_bytes())?;
    }
    Ok(())
}

/// Each rule's name, and a hash of all that decides when it matches: its own text, the
/// rules before it that its text names, and the global ones, without which none matches.
fn definitions(source: &[u8]) -> Vec<(String, blake3::Hash)> {
    let ast = AST::from(Parser::new(source));
    let mut known: HashMap<&str, blake3::Hash> = HashMap::new();
    let mut global = blake3::Hasher::new();
    let mut all = Vec::new();
    for rule in ast.rules() {
        let (from, to) = (rule.identifier.span().start(), rule.condition.span().end());
        let text = source.get(from..to).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[rule.flags.bits()]).update(text);
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        for word in text.split(|byte| !is_word(byte)) {
            let before = std::str::from_utf8(word)
                .ok()
                .and_then(|word| known.get(word));
            if let Some(before) = before {
                hasher.update(before.as_bytes());
            }
        }
        let definition = hasher.finalize();
        if rule.flags.contains(RuleFlags::Global) {
            global.update(definition.as_bytes());
        }
        known.insert(rule.identifier.name, definition);
        all.push((rule.identifier.name.to_owned(), definition));
    }
    let global = global.finalize();
    let whole = |(name, definition): (String, blake3::Hash)| {
        let both = [*definition.as_bytes(), *global.as_bytes()].concat();
        (name, blake3::hash(&both))
    };
    all.into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "rule one : tag {\n meta: a = \"rule x { } // \"\n strings: $a = /a{2}\\// condition: $a }\n";
    const TWO: &str =
        "private rule two { strings: $b = { 61 [1-2] 62 } condition: (any of them) and not one }\n";
    const THREE: &str = "rule three { condition: two or filesize == 7 }";

    fn of(source: &str) -> HashMap<String, blake3::Hash> {
        definitions(source.as_bytes()).into_iter().collect()
    }

    fn changed(before: &str, after: &str) -> Vec<String> {
        let (before, after) = (of(before), of(after));
        let mut names: Vec<String> = after
            .iter()
            .filter(|(name, definition)| before.get(*name) != Some(definition))
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_rule_changes_with_its_text_and_with_what_it_refers_to() {
        let all = format!("import \"pe\"\n// one\n{ONE}{TWO}{THREE}");
        assert_eq!(of(&all).len(), 3);
        let shuffled = format!("/* another\ncomment */ {ONE}\n\n{TWO}\n{THREE}");
        assert_eq!(changed(&all, &shuffled), [""; 0]);
        let more = format!("{all}\nrule four {{ condition: false }}");
        assert_eq!(changed(&all, &more), ["four"]);
        assert_eq!(
            changed(&all, &all.replace("filesize == 7", "filesize == 8")),
            ["three"]
        );
        assert_eq!(
            changed(&all, &all.replace("[1-2]", "[1-3]")),
            ["three", "two"]
        );
        assert_eq!(
            changed(&all, &all.replace("a{2}", "a{3}")),
            ["one", "three", "two"]
        );
        let global = format!("{all} global rule small {{ condition: filesize < 10 }}");
        assert_eq!(changed(&all, &global).len(), 4);
    }

    #[test]
    fn what_is_no_rule_has_none() {
        assert!(definitions(b"\xff\x00 rule { }}} \"").len() <= 1);
        assert!(definitions(b"").is_empty());
    }
}
