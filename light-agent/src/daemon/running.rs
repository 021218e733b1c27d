//! What changes with the policy, and how: in place, or by a new start.
//!
//! ```text
//!   policy ─► laid over the guest's own ─► kept on disk ─┬─ on-access protection goes on by it
//!                                                        │    └─ cannot: refused, as before
//!                                                        ├─ all else that is made by settings
//!                                                        └─ [`start_anew`]: the agent ends
//! ```

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::policy::{Fingerprint, Policy};
use tokio::sync::mpsc;

use super::parts::Parts;
use crate::bypass::{Switched, To};
use crate::current::Current;
use crate::exposure::watch;
use crate::fanotify::group::{self, Group, Watched};
use crate::fanotify::places;
use crate::mode::Mode;
use crate::on_access::{Needs, OnAccess};
use crate::policy::board::Board;
use crate::policy::kept;
use crate::policy::overlay::{Laid, lay};
use crate::settings::{Base, Folders, Settings};
use crate::tasks::Tasks;
use crate::{maintenance, status};

/// What settings are made of.
pub struct Given {
    pub base: Base,
    pub kept: kept::Files,
    pub board: Board,
    /// What guest and policy ask for, whatever is switched.
    pub asked: Settings,
    pub switched: Option<Switched>,
    pub fallback: Option<String>,
}

impl Given {
    /// Settings as they are in force: an emergency switch and the supervisor's fallback go
    /// before whatever policy there is.
    pub fn switched(&self, asked: &Settings) -> Settings {
        let mut settings = asked.clone();
        match &self.switched {
            Some(switched) if switched.to == To::Off => settings.on_access.enabled = false,
            Some(_) => settings.on_access.mode = Mode::Monitor,
            None => {}
        }
        if self.fallback.is_some() {
            settings.on_access.mode = Mode::Monitor;
        }
        settings
    }
}

/// Whether settings can be changed only by starting anew: what threads, files or watchers
/// of the whole process are made by. What is protected by then has a gap of a moment, and
/// what is not protected has none.
pub fn start_anew(now: &Settings, next: &Settings) -> bool {
    watch::protects(now) != watch::protects(next)
        || now.scan.options() != next.scan.options()
        || (next.wants_packages() && !now.wants_packages())
}

/// What changes with the policy.
pub struct Running {
    pub settings: Settings,
    pub given: Given,
    pub parts: Parts,
    pub needs: Needs,
    pub tasks: Tasks,
    pub protection: OnAccess,
    pub source: Current<status::Source>,
}

/// What came of a policy.
pub enum Taken {
    /// All is as before.
    Not,
    /// It is in force; where on-access protection goes on by other settings, who tells of
    /// its end.
    InForce(Option<mpsc::Receiver<nix::Error>>),
    /// It is kept, and applied by starting anew.
    Anew,
}

impl Running {
    /// Takes a policy in: lays it over the guest's own settings, keeps it and applies it.
    pub async fn take(&mut self, policy: &Policy, folders: &Folders) -> Taken {
        let given = &self.given;
        let fingerprint = match policy.fingerprint() {
            Ok(fingerprint) => fingerprint,
            Err(error) => {
                tracing::error!(%error, "a policy has no fingerprint, and is not taken");
                return Taken::Not;
            }
        };
        // One that was tried in vain is not tried again: the next one has another
        // fingerprint, whatever it sets.
        if [given.board.in_force(), given.board.refused()].contains(&Some(fingerprint)) {
            return Taken::Not;
        }
        let Laid {
            settings: asked,
            not_applied,
        } = lay(&given.base, policy);
        for not in not_applied.iter() {
            tracing::warn!(setting = %not.key.escape_debug(), why = %not.why.escape_debug(), "a setting of the policy is not applied");
        }
        let next = given.switched(&asked);
        let anew = start_anew(&given.asked, &asked) || start_anew(&self.settings, &next);
        // Once it is started anew by them there is nothing to go back to.
        if anew && let Err(why) = can_be_protected(&asked).await {
            tracing::error!(%why, "the policy is refused; protection goes on as before");
            given.board.refuse(fingerprint, &why);
            return Taken::Not;
        }
        let note = match given.keep(policy, fingerprint, !anew).await {
            Ok(()) => None,
            Err(error) if anew => {
                let why = format!("it is applied by a new start, and cannot be kept: {error}");
                tracing::error!(%why, "the policy is refused");
                given.board.refuse(fingerprint, &why);
                return Taken::Not;
            }
            // Until the agent starts again it holds all the same.
            Err(error) => Some(format!("it cannot be kept on disk: {error}")),
        };
        if anew {
            return Taken::Anew;
        }
        let mut watched = None;
        if next != self.settings {
            let remedies = self.parts.remedies.get().changed(&next, folders);
            if watch::protects(&next) {
                let with = (&self.parts, &remedies);
                let changed = self.protection.change(&next, with, &self.needs);
                match changed.await {
                    Ok(failed) => watched = Some(failed),
                    Err(why) => {
                        tracing::error!(%why, "the policy is refused; protection goes on as before");
                        given.board.refuse(fingerprint, &why);
                        given.keep_former().await;
                        return Taken::Not;
                    }
                }
            }
            self.parts.change(&next, remedies);
            self.tasks.change(&next, &self.parts.remedies.get());
            let source = self.source.get();
            let shown = self.parts.shown(source.as_ref(), &next, &self.protection);
            self.source.set(shown);
            require_leave(next.maintenance.token_required);
        }
        tracing::info!(%fingerprint, settings = policy.settings.len(), "the policy is in force");
        self.settings = next;
        self.given.asked = asked;
        let board = &self.given.board;
        board.applied(policy.clone(), fingerprint, not_applied, note.as_deref());
        Taken::InForce(watched)
    }
}

impl Running {
    /// Whether the guest is protected as guest and policy ask: only then does it say
    /// anything for the policy that the agent runs.
    pub fn protects_as_asked(&self) -> bool {
        let given = &self.given;
        if !watch::protects(&given.asked) {
            return true;
        }
        let posture = self.parts.health.posture();
        let is_off = watch::is_off(&posture.borrow().protection);
        given.switched.is_none() && given.fallback.is_none() && !is_off
    }
}

/// Whether what settings have protected can be: one of the paths, and what can be is marked.
async fn can_be_protected(asked: &Settings) -> Result<(), String> {
    if !watch::protects(asked) || !group::has_capability() {
        return Ok(());
    }
    let (paths, excluded) = (
        asked.on_access.paths.clone(),
        asked.on_access.exclude_types.clone(),
    );
    // Disks are asked.
    let asking = tokio::task::spawn_blocking(move || {
        let found = places::survey(&paths, &excluded);
        if found.places.is_empty() {
            return Err(
                "none of the configured paths can be protected (on_access.paths)".to_owned(),
            );
        }
        // Holds nobody, and closes with its marks.
        let group = Group::open(Watched::Opens).map_err(|error| error.to_string())?;
        found.places.iter().try_for_each(|place| {
            group.mark(&place.path).map_err(|error| {
                let path = PathBytes::from_path(&place.path);
                format!("the file system of {path} cannot be marked: {error}")
            })
        })
    });
    asking.await.map_err(|error| error.to_string())?
}

impl Given {
    async fn keep(
        &self,
        policy: &Policy,
        fingerprint: Fingerprint,
        under_way: bool,
    ) -> std::io::Result<()> {
        let (kept, policy) = (self.kept.clone(), policy.clone());
        // It is a file.
        let keep = move || kept.keep(&policy, fingerprint, under_way);
        match tokio::task::spawn_blocking(keep).await {
            Ok(kept) => kept,
            Err(error) => Err(std::io::Error::other(error)),
        }
    }

    /// Keeps again what is in force: the one that came last was refused.
    async fn keep_former(&self) {
        let kept = match self.board.policy() {
            Some((policy, fingerprint)) => self.keep(&policy, fingerprint, true).await,
            None => self.kept.forget(),
        };
        if let Err(error) = kept {
            tracing::error!(%error, "the policy in force cannot be kept");
        }
    }

    /// The agent has run well with the policy in force.
    pub async fn note_proven(&self) {
        let Some(fingerprint) = self.board.in_force() else {
            return;
        };
        let kept = self.kept.clone();
        let noted = tokio::task::spawn_blocking(move || kept.proven(fingerprint)).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "that the agent runs well with its policy cannot be noted");
        }
    }
}

/// Has systemd let the service be stopped by hand, or not, where it is one.
fn require_leave(required: bool) {
    if maintenance::unit::is_service()
        && let Err(error) = maintenance::unit::refuse_stop(required)
    {
        tracing::error!(%error, "systemd cannot be told whether the service may be stopped by hand");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_would_leave_the_guest_unprotected_is_refused() {
        if !group::has_capability() {
            println!("skipped: what_would_leave_the_guest_unprotected_is_refused needs root");
            return;
        }
        let of = |paths: &str, enabled: bool| -> Settings {
            let text = format!("[on_access]\nenabled = {enabled}\npaths = {paths}");
            toml::from_str(&text).unwrap()
        };
        for none in ["['/proc']", "['/no/such/folder']"] {
            let why = can_be_protected(&of(none, true)).await.unwrap_err();
            assert!(why.contains("on_access.paths"), "{why}");
            assert_eq!(can_be_protected(&of(none, false)).await, Ok(()), "as asked");
        }
        assert_eq!(can_be_protected(&of("[]", true)).await, Ok(()));
    }

    #[test]
    fn only_what_the_whole_process_is_made_by_wants_a_new_start() {
        let of = |text: &str| -> Settings {
            let text = format!("[on_access]\npaths = ['/srv']\n{text}");
            toml::from_str(&text).unwrap()
        };
        let now = of("");
        for in_place in [
            "mode = 'monitor'",
            "deadline_ms = 900",
            "ignore_marks = 'off'\nafter_writes = true",
            "[failure]\nno_svm = 'deny'",
            "[scan]\nconcurrency = 3",
            "[tasks]\npriority = 'low'",
            "[[schedule]]\nkind = 'quick'\nat = '02:30'",
        ] {
            assert!(!start_anew(&now, &of(in_place)), "{in_place}");
            assert!(!start_anew(&of(in_place), &now), "{in_place}");
        }
        for anew in ["enabled = false", "[scan]\npua = true"] {
            assert!(
                start_anew(&now, &of(anew)) && start_anew(&of(anew), &now),
                "{anew}"
            );
        }
        let moves = of("[remediation]\nmalware = 'quarantine'");
        assert!(start_anew(&now, &moves) && !start_anew(&moves, &now));
        assert!(start_anew(&Settings::default(), &now));
    }
}
