//! What lasts as long as the process, whatever settings are in force: sessions, what is
//! remembered, counted and spooled, and who is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::PathBytes;
use palisade_protocol::ids::TenantId;
use tokio::sync::{Notify, watch as watched};

use crate::accounts::Accounts;
use crate::again::{self, Again};
use crate::cache::Cache;
use crate::cache::kept::Kept;
use crate::cache::writer::Keeper;
use crate::control::{Control, Policies};
use crate::current::Current;
use crate::deferred::Deferred;
use crate::deferred::drain::Drain;
use crate::exposure::watch::{self, Files};
use crate::exposure::windows::Cause;
use crate::fanotify::places::Place;
use crate::health::Health;
use crate::index::Index;
use crate::link::Link;
use crate::list::ListFile;
use crate::maintenance::TokenFile;
use crate::on_access::OnAccess;
use crate::policy::board::Board;
use crate::private::Private;
use crate::quarantine::escrow::Escrow;
use crate::quarantine::remedies::Remedies;
use crate::quarantine::rescan::Rescan;
use crate::scanner::Scanner;
use crate::selection::explained::Explanation;
use crate::selection::{Choice, LinkState, Source, keep};
use crate::settings::{Folders, Settings};
use crate::spool::{self, Spool};
use crate::status;

/// How often an agent asks which definitions are in force: where nothing is opened that
/// it does not know, no verdict says it.
const ASK_DEFINITIONS: Duration = Duration::from_secs(300);

/// What on-access and on-demand protection share.
pub struct Parts {
    /// Whose guest this is.
    pub tenant: TenantId,
    /// Where every permission event went.
    pub accounts: Arc<Accounts>,
    /// Where every file went that was closed after writing.
    pub writes: Arc<Accounts>,
    /// What the agent says of itself.
    pub health: Health,
    /// Remembered verdicts.
    pub cache: Arc<Cache>,
    /// Files whose content was clean.
    pub index: Arc<Index>,
    /// What was let through without a verdict.
    pub deferred: Deferred,
    /// The session with a Protection Server.
    pub link: watched::Receiver<LinkState>,
    /// Why with this one.
    pub explanation: watched::Receiver<Arc<Explanation>>,
    /// Detections that wait.
    pub spool: Spool,
    /// Told when some were added.
    pub spooled: Arc<Notify>,
    /// Takes detections.
    pub detections: spool::Sender,
    /// What is done about malware, besides denying its opens.
    pub remedies: Current<Remedies>,
    /// Asks about files once more.
    pub again: Current<Again>,
    /// Looks at the quarantine again.
    pub rescan: Current<Rescan>,
    /// What the site has set.
    pub board: Board,
    /// Largest content that is scanned; 0 while no Protection Server is connected.
    pub max_scan_bytes: Arc<AtomicU64>,
}

impl Parts {
    pub(super) fn start(
        settings: &Settings,
        folders: &Folders,
        membership: &Membership,
        deferred: Deferred,
        (policies, board): (Policies, Board),
    ) -> Self {
        let accounts = Arc::new(Accounts::default());
        let health = Health::new(Arc::clone(&accounts));
        let spool = Spool::new(&folders.state);
        let spooled = Arc::new(Notify::new());
        let file = ListFile::new(&folders.state);
        let lists = watched::Sender::new(file.load().map(Arc::new));
        let source = if settings.svm.is_empty() {
            Source::List(lists.subscribe())
        } else {
            Source::Static(settings.svm.clone())
        };
        let remedies = Remedies::new(settings, folders);
        let choice = Choice {
            policy: settings.selection,
            spare: true,
            notices: true,
        };
        let kept = keep(membership.identity.clone(), source, choice);
        let control = Control {
            membership: membership.clone(),
            host: settings.host_facts(),
            lists,
            file,
            spool: spool.clone(),
            spooled: Arc::clone(&spooled),
            health: health.clone(),
            escrow: Escrow::new(remedies.vault()),
            token: TokenFile::new(&folders.state),
            deferred: deferred.clone(),
            explanation: kept.explanation.clone(),
            policies,
            board: board.clone(),
        };
        tokio::spawn(control.run());
        let tenant = membership.identity.id().role.tenant().cloned();
        let tenant = tenant.unwrap_or_else(TenantId::default_tenant);
        let detections = spool::start(&spool, Arc::clone(&spooled));
        let again = Again {
            scanner: scanner(&kept.state, settings),
            detections: detections.clone(),
            remedies: remedies.clone(),
            tenant: tenant.clone(),
        };
        let files = settings.on_access.cache_files;
        let keeper = match settings.on_access.enabled && files > 0 {
            true => {
                let age_s = settings.on_access.max_verdict_age_s;
                let kept = Kept::new(files, settings.scan.options(), age_s);
                Keeper::start(&folders.state, &membership.identity, kept)
            }
            false => Keeper::default(),
        };
        Self {
            tenant,
            cache: Arc::new(Cache::new(files).keeping(keeper)),
            index: Arc::default(),
            deferred,
            rescan: Current::new(rescan_of(&kept.state, settings, &remedies)),
            again: Current::new(again),
            link: kept.state,
            explanation: kept.explanation,
            detections,
            remedies: Current::new(remedies),
            board,
            max_scan_bytes: Arc::default(),
            accounts,
            writes: Arc::default(),
            health,
            spool,
            spooled,
        }
    }

    /// Other settings are in force.
    pub(super) fn change(&self, settings: &Settings, remedies: Remedies) {
        let scanner = scanner(&self.link, settings);
        self.again.set(Again {
            scanner,
            detections: self.detections.clone(),
            remedies: remedies.clone(),
            tenant: self.tenant.clone(),
        });
        self.rescan.set(rescan_of(&self.link, settings, &remedies));
        let age_s = settings.on_access.max_verdict_age_s;
        self.cache.keeper().believe_for(age_s);
        self.remedies.set(remedies);
    }

    /// Whoever hears of contents that turned out to be malware.
    pub(super) fn listener(&self, folders: &Folders) -> again::Listener {
        let (cache, index) = (Arc::clone(&self.cache), Arc::clone(&self.index));
        again::start(self.again.clone(), cache, index, folders.state.clone())
    }

    /// Scans later what was let through without a verdict, and keeps account of it.
    pub(super) fn watch_exposure(&self, files: &Files, standing: BTreeSet<Cause>) {
        let drain = Drain {
            deferred: self.deferred.clone(),
            link: self.link.clone(),
            again: self.again.clone(),
            index: Arc::clone(&self.index),
        };
        tokio::spawn(drain.run());
        let (link, posture) = (self.link.clone(), self.health.posture());
        let (files, deferred) = (files.clone(), self.deferred.clone());
        tokio::spawn(watch::watch(files, deferred, link, posture, standing));
    }

    pub(super) fn status_source(
        &self,
        membership: &Membership,
        settings: &Settings,
        protection: &OnAccess,
    ) -> status::Source {
        let show = |path: &std::path::PathBuf| PathBytes::from_path(path).to_string();
        status::Source {
            identity: (
                membership.identity.id().to_string(),
                membership.name.clone(),
            ),
            health: self.health.clone(),
            writes: Arc::clone(&self.writes),
            link: self.link.clone(),
            explanation: self.explanation.clone(),
            spool: self.spool.clone(),
            table: settings.failure_table(),
            cache: Arc::clone(&self.cache),
            deferred: self.deferred.clone(),
            learned: protection.learned.clone(),
            paths: protection
                .places
                .places
                .iter()
                .map(|place| show(&place.path))
                .collect(),
            coverage: protection.coverage.clone(),
            fallback: None,
            bypass: None,
            marks: protection.marks.clone(),
            supervised: None,
            board: self.board.clone(),
        }
    }

    /// What status says once other settings are in force.
    pub(super) fn shown(
        &self,
        before: &status::Source,
        settings: &Settings,
        protection: &OnAccess,
    ) -> status::Source {
        let shown = |place: &Place| PathBytes::from_path(&place.path).to_string();
        status::Source {
            table: settings.failure_table(),
            learned: protection.learned.clone(),
            paths: protection.places.places.iter().map(shown).collect(),
            coverage: protection.coverage.clone(),
            marks: protection.marks.clone(),
            ..before.clone()
        }
    }
}

/// Asks about one file at a time, for nobody who waits.
fn scanner(link: &watched::Receiver<LinkState>, settings: &Settings) -> Scanner {
    Scanner::new(link.clone(), 1, settings.scan.options()).keeping(Private::new(&settings.private))
}

fn rescan_of(
    link: &watched::Receiver<LinkState>,
    settings: &Settings,
    remedies: &Remedies,
) -> Rescan {
    let vault = remedies.vault().clone();
    let restore_clean = settings.quarantine.restore_clean;
    Rescan::new(
        vault,
        &scanner(link, settings),
        &settings.private,
        restore_clean,
    )
}

/// Keeps what depends on the Protection Server true: the size bound, the definitions
/// that remembered verdicts need, and who is heard: the one that stands by may know of
/// contents, too.
pub(super) async fn follow_link(
    mut link: watched::Receiver<LinkState>,
    health: Health,
    cache: Arc<Cache>,
    listener: again::Listener,
    max_scan_bytes: Arc<AtomicU64>,
) {
    let mut heard: Vec<Arc<Link>> = Vec::new();
    let mut current: Option<Arc<Link>> = None;
    loop {
        {
            let state = link.borrow_and_update();
            health.set_link(&state);
            let now = state.link();
            let is_new =
                |now: &&Arc<Link>| !current.as_ref().is_some_and(|old| Arc::ptr_eq(old, now));
            // What an older session was welcomed with may be long over.
            if let Some(link) = now.filter(is_new) {
                cache.use_generations(&link.welcome.generations);
                max_scan_bytes.store(link.welcome.max_scan_bytes, Ordering::Relaxed);
            }
            current = now.map(Arc::clone);
            heard.retain(|link| !link.is_closed());
            for link in state.link().into_iter().chain(state.spare()) {
                if !heard.iter().any(|known| Arc::ptr_eq(known, link)) {
                    // Ends with its session.
                    tokio::spawn(take_notices(Arc::clone(link), listener.clone()));
                    heard.push(Arc::clone(link));
                }
            }
        }
        match tokio::time::timeout(ASK_DEFINITIONS, link.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                if let Some(link) = &current
                    && let Ok(generations) = link.definitions().await
                {
                    cache.use_generations(&generations);
                }
            }
        }
    }
}

/// Hears what the Protection Server says unasked, until the session ends.
async fn take_notices(link: Arc<Link>, listener: again::Listener) {
    while let Some(notice) = link.notice().await {
        listener.hear(&notice);
    }
}
