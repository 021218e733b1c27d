//! What was changed, by whom, from where: entries of a chain. Pure.
//!
//! ```text
//!   entry 1 ─► hash 1 ─┐
//!   entry 2 ───────────┴─► hash 2 ─┐       the length is a counter of its own
//!   entry 3 ───────────────────────┴─► hash 3
//! ```
//!
//! Owns what an entry says, the bounds of its fields, and what of a chain is not as it
//! was written. The store keeps the rows, in the transaction of the change that they are
//! about, and gives the hash's key, without which nobody makes a chain that holds.
//!
//! What a chain alone cannot tell is that its end was taken off together with its counter:
//! the head that somebody noted elsewhere does ([`Head`]; each entry is in the server's
//! log with its head).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::access::Scope;
use crate::secret::Hash;

/// Longest name, address or action, in bytes.
pub const MAX_FIELD_BYTES: usize = 256;
/// Longest value before or after a change, in bytes: as many grants as an account may have.
pub const MAX_VALUE_BYTES: usize = 8192;
/// The name of the machine's own token, which is no account's.
pub const ADMIN_TOKEN: &str = "admin.token";
/// The name of commands on the server's own machine, which is no account's.
pub const LOCAL: &str = "palisade-server";
/// What ends a text that was cut.
const CUT: &str = "…";
/// Most problems that a verification lists; whoever has more has one cause.
const MAX_PROBLEMS: usize = 20;

/// How somebody proved who he is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// He is just logging in, or tries to.
    Login,
    /// A session.
    Session,
    /// An API token of an account.
    ApiToken,
    /// The machine's own token, `admin.token`.
    AdminToken,
    /// The one-time token for the first account.
    SetupToken,
    /// A command on the server's own machine.
    Local,
}

impl Via {
    /// Its name, as JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Session => "session",
            Self::ApiToken => "api_token",
            Self::AdminToken => "admin_token",
            Self::SetupToken => "setup_token",
            Self::Local => "local",
        }
    }
}

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The account's name, or what stands for it.
    pub name: String,
    /// The account.
    pub account: Option<Uuid>,
    /// How he proved it.
    pub via: Via,
    /// Which token or session it was.
    pub credential: Option<Uuid>,
    /// From which address; none on the server's own machine.
    pub address: Option<String>,
}

impl Actor {
    /// A command on the server's own machine.
    pub fn local() -> Self {
        Self {
            name: LOCAL.to_owned(),
            account: None,
            via: Via::Local,
            credential: None,
            address: None,
        }
    }
}

/// An entry, before it has its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub time_ms: u64,
    /// What it says.
    pub body: Body,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Who.
    pub actor: Actor,
    /// What: `account.create`, `agent.revoke`.
    pub action: String,
    /// To what: a name or an id.
    pub object: String,
    /// Where that is.
    pub place: Scope,
    /// Whether it was done, or refused.
    pub done: bool,
    /// What it was before, or why it was refused.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
}

impl Entry {
    /// Something that is done in the same transaction.
    pub fn done(actor: Actor, action: &'static str, object: impl ToString, time_ms: u64) -> Self {
        let body = Body {
            actor,
            action: action.to_owned(),
            object: cut(&object.to_string(), MAX_FIELD_BYTES),
            place: Scope::site(),
            done: true,
            before: None,
            after: None,
        };
        let mut entry = Self { time_ms, body };
        let actor = &mut entry.body.actor;
        actor.name = cut(&actor.name, MAX_FIELD_BYTES);
        actor.address = actor.address.take().map(|text| cut(&text, MAX_FIELD_BYTES));
        entry
    }

    /// Where the object is, if not at the site's own place.
    #[must_use]
    pub fn at(mut self, place: Scope) -> Self {
        self.body.place = place;
        self
    }

    /// What it was.
    #[must_use]
    pub fn before(mut self, value: impl ToString) -> Self {
        self.body.before = Some(cut(&value.to_string(), MAX_VALUE_BYTES));
        self
    }

    /// What it is now.
    #[must_use]
    pub fn after(mut self, value: impl ToString) -> Self {
        self.body.after = Some(cut(&value.to_string(), MAX_VALUE_BYTES));
        self
    }

    /// It was not done, and why.
    #[must_use]
    pub fn refused(mut self, why: impl ToString) -> Self {
        self.body.done = false;
        self.before(why)
    }
}

/// A text, or its beginning and [`CUT`]: whole characters, and no more bytes than these.
fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub(CUT.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned() + CUT
}

/// An entry of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 1 on.
    pub number: u64,
    /// When.
    pub time_ms: u64,
    /// What it says.
    pub body: Body,
    /// Its hash.
    pub hash: Hash,
}

/// A chain's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last entry's number; 0 for none.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Before the first entry.
    pub const NONE: Self = Self {
        number: 0,
        hash: [0; 32],
    };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, hex::encode(self.hash))
    }
}

impl FromStr for Head {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const BAD: &str = "a head is a number, a colon and 64 hexadecimal digits";
        let (number, hash) = text.split_once(':').ok_or(BAD)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(hash, &mut bytes).map_err(|_| BAD)?;
        Ok(Self {
            number: number.parse().map_err(|_| BAD)?,
            hash: bytes,
        })
    }
}

/// What the hash of the next entry is made of.
pub fn hashed(before: &Head, time_ms: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = before.hash.to_vec();
    bytes.extend((before.number + 1).to_be_bytes());
    bytes.extend(time_ms.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// What came of a look at a whole chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// The end that was found.
    pub head: Head,
    /// What is not as it was written; empty when all is.
    pub problems: Vec<String>,
}

/// Goes along a chain, row by row.
#[derive(Debug)]
pub struct Verifier {
    head: Head,
    /// A head that was noted elsewhere.
    noted: Option<Head>,
    problems: Vec<String>,
}

impl Verifier {
    /// From the beginning; a head that was noted must come by.
    pub fn new(noted: Option<Head>) -> Self {
        Self {
            head: Head::NONE,
            noted: noted.filter(|noted| noted.number > 0),
            problems: Vec::new(),
        }
    }

    /// The next row: its number, its hash, and the hash that it should have after the head
    /// so far, or why that cannot be said.
    pub fn row(
        &mut self,
        number: u64,
        hash: Hash,
        right: impl FnOnce(&Head) -> Result<Hash, String>,
    ) {
        let expected = self.head.number + 1;
        if number > expected {
            self.problem(match number - expected {
                1 => format!("entry {expected} is missing"),
                _ => format!("entries {expected} to {} are missing", number - 1),
            });
        }
        // After a gap, the chain goes on from a hash that nobody has.
        if number == expected {
            match right(&self.head) {
                Ok(right) if right == hash => {}
                Ok(_) => self.problem(format!(
                    "entry {number} or its order was changed: its hash does not follow"
                )),
                Err(why) => self.problem(format!("entry {number} does not open: {why}")),
            }
        }
        if let Some(noted) = self.noted.filter(|noted| noted.number == number) {
            self.noted = None;
            if noted.hash != hash {
                self.problem(format!(
                    "entry {number} is not the one that was noted: the chain was written anew"
                ));
            }
        }
        self.head = Head { number, hash };
    }

    /// A row that no server wrote.
    pub fn foreign(&mut self) {
        let last = self.head.number;
        self.problem(format!("a row after entry {last} is none of the log's"));
    }

    /// The end, and how many there should be.
    pub fn end(mut self, counted: u64) -> Verification {
        let last = self.head.number;
        if counted > last {
            self.problem(format!(
                "the last {} of {counted} entries are missing",
                counted - last
            ));
        } else if counted < last {
            self.problem(format!(
                "{last} entries are there, and {counted} were counted"
            ));
        }
        if let Some(noted) = self.noted.take() {
            self.problem(format!(
                "entry {} was noted and is not there: the chain's end was taken off",
                noted.number
            ));
        }
        Verification {
            head: self.head,
            problems: self.problems,
        }
    }

    fn problem(&mut self, text: String) {
        match self.problems.len() {
            MAX_PROBLEMS => self.problems.push("and more".to_owned()),
            count if count < MAX_PROBLEMS => self.problems.push(text),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::trust::sha256;
    use proptest::prelude::*;

    fn right(before: &Head, text: &str) -> Hash {
        sha256(&hashed(before, 7, text.as_bytes()))
    }

    fn chain(texts: &[String]) -> Vec<(u64, Hash, String)> {
        let mut head = Head::NONE;
        let mut rows = Vec::new();
        for text in texts {
            let hash = right(&head, text);
            head = Head {
                number: head.number + 1,
                hash,
            };
            rows.push((head.number, hash, text.clone()));
        }
        rows
    }

    fn verified(rows: &[(u64, Hash, String)], counted: u64, noted: Option<Head>) -> Verification {
        let mut verifier = Verifier::new(noted);
        for (number, hash, text) in rows {
            verifier.row(*number, *hash, |head| Ok(right(head, text)));
        }
        verifier.end(counted)
    }

    #[test]
    fn long_fields_are_cut_at_a_character() {
        let long = "ä".repeat(MAX_FIELD_BYTES);
        let mut actor = Actor::local();
        actor.name = long.clone();
        let entry = Entry::done(actor, "x", &long, 1).before(&long).after(&long);
        for cut in [&entry.body.object, &entry.body.actor.name] {
            assert!(cut.len() <= MAX_FIELD_BYTES && cut.len() + 4 > MAX_FIELD_BYTES);
            assert!(cut.ends_with(CUT));
        }
        assert_eq!(entry.body.before.unwrap(), long);
        assert_eq!(cut("aäää", 6), "aä…");
        assert_eq!(cut("aä", 3), "aä");
    }

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = Head {
            number: 7,
            hash: [9; 32],
        };
        assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
        for bad in ["", "7", "7:", "x:00", "7:zz"] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_chain_holds_and_any_change_of_it_is_found(texts in prop::collection::vec("[a-z]{0,4}", 1..12), at in 0_usize..12, how in 0_u8..6) {
            let rows = chain(&texts);
            let counted = rows.len() as u64;
            let whole = verified(&rows, counted, None);
            prop_assert!(whole.problems.is_empty());
            let noted = Some(whole.head);
            prop_assert!(verified(&rows, counted, noted).problems.is_empty());

            let at = at % rows.len();
            let mut changed = rows.clone();
            let (mut counted, mut noted) = (counted, noted);
            match how {
                0 => changed[at].2.push('x'),
                1 => drop(changed.remove(at)),
                2 => changed[at].1[0] ^= 1,
                3 if changed.len() > 1 => {
                    // Two change places, with their numbers or without.
                    let other = (at + 1) % changed.len();
                    let texts = (changed[at].2.clone(), changed[other].2.clone());
                    prop_assume!(texts.0 != texts.1);
                    changed[at].2 = texts.1;
                    changed[other].2 = texts.0;
                }
                4 => {
                    // The end, its counter too: the noted head tells.
                    changed.truncate(at);
                    counted = at as u64;
                }
                _ => {
                    // All of it anew, by somebody who had the key.
                    let mut texts = texts.clone();
                    texts[at].push('x');
                    changed = chain(&texts);
                    prop_assert!(verified(&changed, counted, None).problems.is_empty());
                    noted = noted.take();
                }
            }
            prop_assert!(!verified(&changed, counted, noted).problems.is_empty());
        }
    }
}
