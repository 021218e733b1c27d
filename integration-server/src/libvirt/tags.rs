//! A domain's tags, from the element that whoever administers its host put into it:
//!
//! ```text
//! virsh metadata DOMAIN --uri urn:palisade:domain:1 --key palisade \
//!     --set '<domain><tag>web</tag><tag>dmz</tag></domain>' --config --live
//! ```
//!
//! Pure: the element's text is an argument. A guest cannot write it; who can define the
//! domain can.

use std::collections::BTreeSet;

use palisade_protocol::bounded::List;
use palisade_protocol::control::{MAX_TAGS, Name};

use crate::inventory::Tags;

/// The XML namespace of Palisade's element in a domain's metadata.
pub const NAMESPACE: &str = "urn:palisade:domain:1";
/// Longest element that is read, in bytes.
const MAX_ELEMENT_BYTES: usize = 16 * 1024;

/// Why an element is not used, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTags {
    /// It is too long.
    #[error("the element of {NAMESPACE} has {0} bytes; {MAX_ELEMENT_BYTES} are possible")]
    TooLong(usize),
    /// It is no XML.
    #[error("the element of {NAMESPACE} is no XML: {0}")]
    NoXml(String),
    /// A tag is not usable.
    #[error("a tag in the element of {NAMESPACE} is empty or over 255 bytes; set it anew")]
    NoName,
    /// There are too many.
    #[error("there are {0} tags in the element of {NAMESPACE}; {MAX_TAGS} are possible")]
    TooMany(usize),
}

/// The tags within `<tag>` elements, whatever is around them, each once and in order.
///
/// # Errors
/// [`BadTags`]: then none of them counts, since one that is left out would be missed
/// without a word.
pub fn parse(element: &str) -> Result<Tags, BadTags> {
    if element.len() > MAX_ELEMENT_BYTES {
        return Err(BadTags::TooLong(element.len()));
    }
    let document =
        roxmltree::Document::parse(element).map_err(|error| BadTags::NoXml(error.to_string()))?;
    let mut tags = BTreeSet::new();
    for node in document.descendants() {
        if node.is_element() && node.tag_name().name() == "tag" {
            let text = node.text().unwrap_or_default().trim();
            let name = Name::new(text).ok().filter(|name| !name.is_empty());
            tags.insert(name.ok_or(BadTags::NoName)?);
        }
    }
    match tags.len() {
        0..=MAX_TAGS => Ok(List::cut(tags)),
        many => Err(BadTags::TooMany(many)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(element: &str) -> Vec<String> {
        let tags = parse(element).unwrap();
        tags.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tags_are_read_as_libvirt_hands_them_out() {
        // `virsh metadata` strips the prefix; a domain that was defined whole keeps it.
        assert_eq!(
            read("<domain>\n  <tag>web</tag>\n  <tag> dmz </tag><tag>web</tag>\n</domain>"),
            ["dmz", "web"]
        );
        let whole = format!("<p:domain xmlns:p='{NAMESPACE}'><p:tag>a &amp; b</p:tag></p:domain>");
        assert_eq!(read(&whole), ["a & b"]);
        assert!(read("<domain/>").is_empty());
        assert!(read("<domain><title>x</title></domain>").is_empty());
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let many: String = (0..=MAX_TAGS).map(|n| format!("<tag>{n}</tag>")).collect();
        let long = "x".repeat(256);
        for (element, says) in [
            ("web".to_owned(), "no XML"),
            ("<domain><tag></tag></domain>".to_owned(), "empty"),
            (format!("<d><tag>{long}</tag></d>"), "255 bytes"),
            (format!("<d>{many}</d>"), "17 tags"),
            (format!("<d>{}</d>", " ".repeat(MAX_ELEMENT_BYTES)), "bytes"),
        ] {
            let error = parse(&element).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        // Entities that unfold are no way to take memory.
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><d><tag>&b;</tag></d>";
        assert!(matches!(parse(bomb), Err(BadTags::NoXml(_))));
    }

    proptest! {
        #[test]
        fn nothing_that_a_host_says_panics(element in ".{0,200}", inner in "[<>a-z/&;\"= ]{0,60}") {
            let _ = parse(&element);
            let _ = parse(&format!("<domain><tag>{inner}</tag></domain>"));
        }
    }
}
