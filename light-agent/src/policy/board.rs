//! The policy that is in force now, for whoever reports or shows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::policy::{
    Fingerprint, MAX_SETTINGS, NotApplied, Policy, PolicyReport, Refused, Why,
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::kept::Choice;

/// What is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct InForce {
    policy: Option<(Arc<Policy>, Fingerprint)>,
    refused: Option<Refused>,
    not_applied: List<NotApplied, MAX_SETTINGS>,
    note: Option<Why>,
}

/// The board. Clones share it.
#[derive(Debug, Clone)]
pub struct Board(watch::Sender<InForce>);

/// What status says of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Shown {
    /// Its fingerprint; none where the guest's own settings alone are in force.
    pub fingerprint: Option<String>,
    /// What it is made of, the most general first, each with its revision.
    pub layers: Vec<ShownLayer>,
    /// What it sets, and where from.
    pub settings: BTreeMap<String, ShownSetting>,
    /// What of it is not applied, and why.
    pub not_applied: BTreeMap<String, String>,
    /// The fingerprint of the last one that was refused, and why.
    pub refused: Option<(String, String)>,
    /// What is wrong with what was kept.
    pub note: Option<String>,
}

/// A place whose policy has a part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownLayer {
    /// Which.
    pub origin: String,
    /// Its policy's revision.
    pub revision: u64,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownSetting {
    /// Its value.
    pub value: Value,
    /// Which place's policy says so.
    pub origin: String,
}

impl Board {
    /// What an agent begins with.
    pub fn new(choice: Choice, not_applied: List<NotApplied, MAX_SETTINGS>) -> Self {
        Self(watch::Sender::new(InForce {
            policy: choice
                .policy
                .map(|(policy, print)| (Arc::new(policy), print)),
            refused: choice.refused,
            not_applied,
            note: choice.note,
        }))
    }

    /// The fingerprint of the policy in force.
    pub fn in_force(&self) -> Option<Fingerprint> {
        self.0.borrow().policy.as_ref().map(|(_, print)| *print)
    }

    /// The policy in force.
    pub fn policy(&self) -> Option<(Arc<Policy>, Fingerprint)> {
        self.0.borrow().policy.clone()
    }

    /// The fingerprint of the one that was refused last.
    pub fn refused(&self) -> Option<Fingerprint> {
        let now = self.0.borrow();
        now.refused.as_ref().map(|refused| refused.fingerprint)
    }

    /// Told of each change.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// Another policy is in force.
    pub fn applied(
        &self,
        policy: Policy,
        fingerprint: Fingerprint,
        not_applied: List<NotApplied, MAX_SETTINGS>,
        note: Option<&str>,
    ) {
        self.0.send_replace(InForce {
            policy: Some((Arc::new(policy), fingerprint)),
            refused: None,
            not_applied,
            note: note.map(Text::cut),
        });
    }

    /// A policy was refused; what was in force is.
    pub fn refuse(&self, fingerprint: Fingerprint, why: &str) {
        self.0.send_modify(|now| {
            now.refused = Some(Refused {
                fingerprint,
                why: Text::cut(why),
            });
        });
    }

    /// What is reported.
    pub fn report(&self) -> PolicyReport {
        let now = self.0.borrow();
        PolicyReport {
            in_force: now.policy.as_ref().map(|(_, print)| *print),
            refused: now.refused.clone(),
            not_applied: now.not_applied.clone(),
            note: now.note.clone(),
        }
    }

    /// What is shown.
    pub fn shown(&self) -> Shown {
        let now = self.0.borrow();
        let policy = now.policy.as_ref().map(|(policy, _)| Arc::clone(policy));
        let policy = policy.unwrap_or_default();
        let not_applied = |key: &str| now.not_applied.iter().any(|not| not.key.as_str() == key);
        Shown {
            fingerprint: now.policy.as_ref().map(|(_, print)| print.to_string()),
            layers: policy
                .layers
                .iter()
                .map(|layer| ShownLayer {
                    origin: layer.origin.to_string(),
                    revision: layer.revision,
                })
                .collect(),
            settings: policy
                .settings
                .iter()
                .filter(|setting| !not_applied(&setting.key))
                .map(|setting| {
                    let shown = ShownSetting {
                        value: serde_json::from_str(&setting.value).unwrap_or(Value::Null),
                        origin: setting.origin.to_string(),
                    };
                    (setting.key.to_string(), shown)
                })
                .collect(),
            not_applied: now
                .not_applied
                .iter()
                .map(|not| (not.key.to_string(), not.why.to_string()))
                .collect(),
            refused: now
                .refused
                .as_ref()
                .map(|refused| (refused.fingerprint.to_string(), refused.why.to_string())),
            note: now.note.as_ref().map(ToString::to_string),
        }
    }
}

/// Tells of changes.
#[derive(Debug)]
pub struct Changes(watch::Receiver<InForce>);

impl Changes {
    /// Waits for the next one. Where nothing changes any more, for ever.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::overlay::tests::policy;
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn it_says_what_is_in_force_and_what_was_refused() {
        let board = Board::new(Choice::default(), List::default());
        assert_eq!(board.shown(), Shown::default());
        assert_eq!(board.report(), PolicyReport::default());
        let mut changes = board.changes();
        let one = policy(&[("scan.pua", json!(true)), ("x.y", json!(1))]);
        let print = one.fingerprint().unwrap();
        let not_applied = List::cut([NotApplied {
            key: Text::cut("x.y"),
            why: Text::cut("unknown"),
        }]);
        board.refuse(print, "no");
        changes.next().await;
        assert_eq!((board.refused(), board.in_force()), (Some(print), None));
        board.applied(one, print, not_applied, None);
        changes.next().await;
        assert_eq!((board.refused(), board.in_force()), (None, Some(print)));
        let shown = board.shown();
        assert_eq!(
            shown.settings.len(),
            1,
            "what is not applied is not in force"
        );
        assert_eq!(shown.settings["scan.pua"].origin, "site");
        assert_eq!(shown.not_applied["x.y"], "unknown");
    }
}
