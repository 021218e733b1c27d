//! Which agents a group has: a query over what is known of them, on one line.
//!
//! ```text
//!   name:web-*,db-* tag:prod !host:hv9 share:20%
//!   └ one of these    └ and   └ and not  └ and of the fifth of agents that goes first
//! ```
//!
//! All terms must hold; a term holds when one of its values does. `*` stands for any
//! text, `?` for one character, upper and lower case are the same, quotes hold spaces and
//! commas together. What is not known of an agent is no value: `tag:*` is for agents with
//! a tag, `!tag:*` for all others.
//!
//! `share` takes the part of agents by a hash of their ids, so that a roll-out to 5 % and
//! then to 20 % reaches the same ones first.
//!
//! Pure and bounded: what a query costs grows with its length alone, and the sum of those
//! of a tenant has a bound ([`MAX_TENANT_QUERY_CHARS`]), since each of them is asked for
//! each of its agents whenever something may have changed.

use std::fmt;
use std::str::FromStr;

use palisade_protocol::ids::{AgentId, TenantId};

/// Longest query, in bytes.
pub const MAX_QUERY_BYTES: usize = 1024;
/// Terms of a query, at the most.
pub const MAX_TERMS: usize = 32;
/// Values of a term, at the most.
pub const MAX_VALUES: usize = 64;

/// Characters of all patterns of a tenant's groups, at the most.
pub const MAX_TENANT_QUERY_CHARS: usize = 32 * 1024;

/// What is known of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its id.
    pub id: AgentId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its name.
    pub name: String,
    /// Its program's version.
    pub version: String,
    /// The domain that it says it runs in, if the inventory has it.
    pub domain: Option<String>,
    /// That domain's tags.
    pub tags: Vec<String>,
    /// The hypervisor that it is on.
    pub host: Option<String>,
    /// That one's cluster.
    pub cluster: Option<String>,
    /// And data centre.
    pub datacenter: Option<String>,
}

/// What a term looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The agent's id.
    Id,
    /// Its name.
    Name,
    /// Its version.
    Version,
    /// Its domain's name.
    Domain,
    /// Its domain's tags.
    Tag,
    /// Its hypervisor.
    Host,
    /// Its cluster.
    Cluster,
    /// Its data centre.
    Datacenter,
    /// Its place among all, in percent.
    Share,
}

const FIELDS: [(&str, Field); 9] = [
    ("id", Field::Id),
    ("name", Field::Name),
    ("version", Field::Version),
    ("domain", Field::Domain),
    ("tag", Field::Tag),
    ("host", Field::Host),
    ("cluster", Field::Cluster),
    ("datacenter", Field::Datacenter),
    ("share", Field::Share),
];

/// A query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    not: bool,
    field: Field,
    values: Vec<Pattern>,
}

/// A text that may have wildcards, and the same as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    folded: Vec<char>,
}

impl Pattern {
    fn new(text: String) -> Self {
        let folded = fold(&text);
        Self { text, folded }
    }
}

/// What is known of an agent, as it is compared.
#[derive(Debug, Clone)]
pub struct Folded {
    place: u32,
    id: Vec<char>,
    name: Vec<char>,
    version: Vec<char>,
    domain: Option<Vec<char>>,
    tags: Vec<Vec<char>>,
    host: Option<Vec<char>>,
    cluster: Option<Vec<char>>,
    datacenter: Option<Vec<char>>,
}

impl Facts {
    /// For many queries: what they compare is made once.
    pub fn folded(&self) -> Folded {
        let maybe = |text: &Option<String>| text.as_deref().map(fold);
        Folded {
            place: place(self.id),
            id: fold(&self.id.to_string()),
            name: fold(&self.name),
            version: fold(&self.version),
            domain: maybe(&self.domain),
            tags: self.tags.iter().map(|tag| fold(tag)).collect(),
            host: maybe(&self.host),
            cluster: maybe(&self.cluster),
            datacenter: maybe(&self.datacenter),
        }
    }
}

/// Upper and lower case are the same.
fn fold(text: &str) -> Vec<char> {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// A text is no query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// There is nothing in it.
    #[error("the query is empty; name:* has all agents of the tenant")]
    Empty,
    /// It is too long.
    #[error(
        "a query has at most {MAX_QUERY_BYTES} bytes, {MAX_TERMS} terms and {MAX_VALUES} values each"
    )]
    TooLong,
    /// A term is none.
    #[error("{0:?} is no term: one is like name:web-* or !tag:test")]
    Term(String),
    /// A term looks at something that is not there.
    #[error(
        "{0:?} is nothing that is known of agents; id, name, version, domain, tag, host, cluster, datacenter and share are"
    )]
    Field(String),
    /// A quote has no end.
    #[error("a quote in the query has no end")]
    Quote,
    /// A share is no percentage.
    #[error("{0:?} is no share of the agents: 1% to 100% are")]
    Share(String),
    /// There is a control character in it.
    #[error("a query has no control characters")]
    Control,
}

impl Query {
    /// One that no agent is in.
    pub const fn nobody() -> Self {
        Self { terms: Vec::new() }
    }

    /// Whether it looks at a field.
    pub fn looks_at(&self, field: Field) -> bool {
        self.terms.iter().any(|term| term.field == field)
    }

    /// Whether an agent is in the group.
    pub fn holds(&self, facts: &Facts) -> bool {
        self.has(&facts.folded())
    }

    /// The same, of facts that many queries are asked about.
    pub fn has(&self, facts: &Folded) -> bool {
        !self.terms.is_empty() && self.terms.iter().all(|term| term.has(facts))
    }

    /// Characters of all its patterns: what it costs to ask.
    pub fn chars(&self) -> usize {
        let values = self.terms.iter().flat_map(|term| &term.values);
        values.map(|value| value.folded.len()).sum()
    }
}

impl Term {
    fn has(&self, facts: &Folded) -> bool {
        let any = |text: &Vec<char>| {
            let mut values = self.values.iter();
            values.any(|value| matches(&value.folded, text))
        };
        let maybe = |text: &Option<Vec<char>>| text.as_ref().is_some_and(any);
        let holds = match self.field {
            Field::Id => any(&facts.id),
            Field::Name => any(&facts.name),
            Field::Version => any(&facts.version),
            Field::Domain => maybe(&facts.domain),
            Field::Tag => facts.tags.iter().any(any),
            Field::Host => maybe(&facts.host),
            Field::Cluster => maybe(&facts.cluster),
            Field::Datacenter => maybe(&facts.datacenter),
            Field::Share => {
                let percent = self.values.first().and_then(|value| percent(&value.text));
                percent.is_some_and(|percent| facts.place < percent)
            }
        };
        holds != self.not
    }
}

/// An agent's place among all, from 0 to 99.
fn place(id: AgentId) -> u32 {
    let hash = blake3::hash(id.0.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]) % 100
}

fn percent(value: &str) -> Option<u32> {
    let number = value.strip_suffix('%').unwrap_or(value);
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse().ok().filter(|_| digits)?;
    (1..=100).contains(&number).then_some(number)
}

/// Whether a text is as a pattern has it, both folded. Each `*` is tried again from where it stood
/// last, so that the work is the product of both lengths at the most.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(at) {
        match pattern.get(of) {
            Some('*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(p) if *p == '?' || p == c => {
                at += 1;
                of += 1;
            }
            _ => {
                let Some((star_of, star_at)) = star else {
                    return false;
                };
                star = Some((star_of, star_at + 1));
                at = star_at + 1;
                of = star_of + 1;
            }
        }
    }
    pattern.iter().skip(of).all(|p| *p == '*')
}

impl FromStr for Query {
    type Err = BadQuery;
    fn from_str(text: &str) -> Result<Self, BadQuery> {
        if text.len() > MAX_QUERY_BYTES {
            return Err(BadQuery::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(BadQuery::Control);
        }
        let mut rest = text.trim_start();
        let mut terms = Vec::new();
        while !rest.is_empty() {
            if terms.len() == MAX_TERMS {
                return Err(BadQuery::TooLong);
            }
            let (term, after) = term(rest)?;
            terms.push(term);
            rest = after.trim_start();
        }
        match terms.is_empty() {
            true => Err(BadQuery::Empty),
            false => Ok(Self { terms }),
        }
    }
}

/// The first term of a text, and what follows it.
fn term(text: &str) -> Result<(Term, &str), BadQuery> {
    let shown = || text.split_whitespace().next().unwrap_or(text);
    let bad = || BadQuery::Term(shown().chars().take(64).collect());
    let (not, body) = match text.strip_prefix('!') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let (name, mut rest) = body
        .split_once(':')
        .filter(|(name, _)| !name.contains(char::is_whitespace))
        .ok_or_else(bad)?;
    let field = FIELDS.iter().find(|(known, _)| *known == name);
    let field = field.map(|(_, field)| *field);
    let field = field.ok_or_else(|| BadQuery::Field(name.chars().take(64).collect()))?;
    let mut values = Vec::new();
    loop {
        let (value, after) = value(rest)?;
        if value.is_empty() {
            return Err(bad());
        }
        if values.len() == MAX_VALUES {
            return Err(BadQuery::TooLong);
        }
        values.push(value);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() || after.starts_with(char::is_whitespace) => {
                rest = after;
                break;
            }
            None => return Err(bad()),
        }
    }
    if field == Field::Share && (values.len() != 1 || percent(&values[0]).is_none()) {
        return Err(BadQuery::Share(values.join(",")));
    }
    let values = values.into_iter().map(Pattern::new).collect();
    Ok((Term { not, field, values }, rest))
}

/// The value that a text begins with, and what follows it.
fn value(text: &str) -> Result<(String, &str), BadQuery> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c == '"' || c.is_whitespace());
        let (value, rest) = text.split_at(end.unwrap_or(text.len()));
        return Ok((value.to_owned(), rest));
    };
    let (value, rest) = quoted.split_once('"').ok_or(BadQuery::Quote)?;
    Ok((value.to_owned(), rest))
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, term) in self.terms.iter().enumerate() {
            if number > 0 {
                f.write_str(" ")?;
            }
            if term.not {
                f.write_str("!")?;
            }
            let name = FIELDS.iter().find(|(_, field)| *field == term.field);
            f.write_str(name.map_or("", |(name, _)| name))?;
            for (number, value) in term.values.iter().enumerate() {
                f.write_str(if number == 0 { ":" } else { "," })?;
                let text = &value.text;
                match text.contains(|c: char| c == ',' || c.is_whitespace()) {
                    true => write!(f, "\"{text}\"")?,
                    false => f.write_str(text)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    pub fn facts(name: &str) -> Facts {
        Facts {
            id: AgentId(Uuid::from_u128(7)),
            tenant: "acme".parse().unwrap(),
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            domain: Some("vm-1".to_owned()),
            tags: vec!["prod".to_owned(), "gold".to_owned()],
            host: Some("hv1".to_owned()),
            cluster: None,
            datacenter: Some("dc one".to_owned()),
        }
    }

    fn holds(query: &str) -> bool {
        query.parse::<Query>().unwrap().holds(&facts("Web-1"))
    }

    #[test]
    fn all_terms_hold_and_one_of_each_ones_values() {
        for yes in [
            "name:web-1",
            "name:*",
            "name:web-?",
            "name:db-*,web-*",
            "tag:gold",
            "tag:prod tag:gold",
            "!tag:test",
            "!cluster:*",
            "datacenter:\"dc one\"",
            "datacenter:dc*",
            "host:HV1 version:0.1.*",
            "domain:vm-1",
            "id:00000000-0000-0000-0000-000000000007",
            "share:100%",
            "  name:web-1   tag:prod ",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            "name:web",
            "name:web-??",
            "name:db-*",
            "tag:test",
            "tag:prod tag:test",
            "!tag:prod",
            "cluster:*",
            "host:hv",
            "!share:100%",
            "name:web-1 !host:hv1",
        ] {
            assert!(!holds(no), "{no}");
        }
        assert!(!Query::nobody().holds(&facts("x")));
    }

    #[test]
    fn what_is_no_query_says_why() {
        for (text, says) in [
            ("", "empty"),
            ("   ", "empty"),
            ("web", "\"web\" is no term"),
            ("name:", "no term"),
            ("name:a,", "no term"),
            ("name:\"a\"b", "no term"),
            ("name:\"a", "no end"),
            ("colour:red", "\"colour\""),
            ("NAME:a", "\"NAME\""),
            ("share:0%", "no share"),
            ("share:101", "no share"),
            ("share:+5%", "no share"),
            ("share:5%,6%", "no share"),
            ("name:a\nname:b", "control"),
        ] {
            let error = text.parse::<Query>().unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let many = |n: usize, text: &str| vec![text; n].join(" ").parse::<Query>();
        assert!(many(MAX_TERMS, "name:a").is_ok());
        assert_eq!(many(MAX_TERMS + 1, "name:a"), Err(BadQuery::TooLong));
        let values = |n: usize| format!("name:{}", vec!["a"; n].join(",")).parse::<Query>();
        assert!(values(MAX_VALUES).is_ok());
        assert_eq!(values(MAX_VALUES + 1), Err(BadQuery::TooLong));
        let long = format!("name:{}", "a".repeat(MAX_QUERY_BYTES));
        assert_eq!(long.parse::<Query>(), Err(BadQuery::TooLong));
    }

    /// By every way there is.
    fn slowly(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                slowly(rest, text)
                    || text
                        .split_first()
                        .is_some_and(|(_, text)| slowly(pattern, text))
            }
            (Some((p, rest)), Some((c, text))) if *p == '?' || p == c => slowly(rest, text),
            _ => false,
        }
    }

    fn queries() -> impl Strategy<Value = String> {
        let value = "[a-z*?]{1,4}|\"[a-z ,]{1,4}\"";
        let field = prop::sample::select(FIELDS[..8].to_vec());
        let term = (any::<bool>(), field, prop::collection::vec(value, 1..4)).prop_map(
            |(not, (name, _), values)| {
                let not = if not { "!" } else { "" };
                format!("{not}{name}:{}", values.join(","))
            },
        );
        prop::collection::vec(term, 1..5).prop_map(|terms| terms.join(" "))
    }

    proptest! {
        #[test]
        fn a_pattern_is_what_it_says(pattern in "[ab*?]{0,7}", text in "[ab]{0,9}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let (pattern, text) = (chars(&pattern), chars(&text));
            prop_assert_eq!(matches(&pattern, &text), slowly(&pattern, &text));
        }

        #[test]
        fn a_query_is_read_as_it_is_written(text in queries()) {
            let query: Query = text.parse().unwrap();
            prop_assert_eq!(query.to_string().parse::<Query>(), Ok(query));
        }

        #[test]
        fn no_text_is_too_much(text in any::<String>(), name in any::<String>()) {
            if let Ok(query) = text.parse::<Query>() {
                query.holds(&facts(&name));
            }
        }

        #[test]
        fn a_larger_share_has_whom_a_smaller_one_has(id: u128, small in 1..=100_u32, more in 0..100_u32) {
            let of = |percent: u32| {
                let query: Query = format!("share:{}%", percent.min(100)).parse().unwrap();
                query.holds(&Facts { id: AgentId(Uuid::from_u128(id)), ..facts("x") })
            };
            prop_assert!(!of(small) || of(small + more));
        }
    }

    #[test]
    fn a_share_is_about_as_many_as_it_says() {
        let query: Query = "share:20%".parse().unwrap();
        let of = |n: u128| Facts {
            id: AgentId(Uuid::from_u128(n * 0x9E37_79B9_7F4A_7C15)),
            ..facts("x")
        };
        let count = (0..1000).filter(|n| query.holds(&of(*n))).count();
        assert!((150..250).contains(&count), "{count}");
    }
}
