//! The task that applies readings, stores what changed, and tells who waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::InfrastructurePath;
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::sight::{self, Sight};
use super::{Change, DomainFacts, HostRecord, HostState, Inventory, Reading, Tags};
use crate::interval::Interval;
use crate::store::{Store, StoreError};
use crate::time::{millis, wall_ms};

/// Readings that may wait to be applied; collectors wait beyond that.
pub const MAX_READINGS: usize = 64;
/// The longest that a reading may take beyond the poll, or five times the poll, if that is
/// less: a host that hangs is given up by then.
const READING_TAKES: Duration = Duration::from_secs(30);
/// How long until it is tried again to store what could not be.
const STORE_AGAIN: Duration = Duration::from_secs(5);

/// The inventory, shared: read by lists and the API, written by [`keep`] alone.
#[derive(Debug, Clone)]
pub struct View {
    inventory: Arc<RwLock<Inventory>>,
    changed: watch::Sender<u64>,
    facts_age_ms: u64,
    began_ms: u64,
}

/// A host that has not been read for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Which connection.
    pub uri: String,
    /// Its name; empty if it was never read.
    pub host: String,
    /// Why, where libvirt says.
    pub error: Option<String>,
    /// Since when.
    pub since_ms: u64,
    /// When that became too long.
    pub raised_ms: u64,
}

/// How old a host's facts may be to count: at most one poll was missed.
pub fn facts_age(poll: Interval) -> Duration {
    let poll = poll.get();
    let takes = poll.saturating_mul(5).min(READING_TAKES);
    poll.saturating_mul(2).saturating_add(takes)
}

impl View {
    /// Shares an inventory whose facts count for so long, of hosts that are tried from now.
    pub fn new(inventory: Inventory, facts_age: Duration, now_ms: u64) -> Self {
        Self {
            inventory: Arc::new(RwLock::new(inventory)),
            changed: watch::Sender::new(0),
            facts_age_ms: millis(facts_age),
            began_ms: now_ms,
        }
    }

    /// Whether a host's facts are current.
    pub fn state_of(&self, host: &HostRecord, now_ms: u64) -> HostState {
        host.state(now_ms, self.facts_age_ms, self.began_ms)
    }

    /// Hosts that have not been read for too long, whether they say why or hang: what runs
    /// there cannot be told.
    pub fn unread(&self, now_ms: u64) -> Vec<Unread> {
        let hosts = self.hosts().into_iter();
        let all = hosts.map(|host| {
            let since_ms = host.unread_since_ms(self.began_ms);
            Unread {
                uri: host.uri,
                host: host.host,
                error: host.error,
                since_ms,
                raised_ms: since_ms.saturating_add(self.facts_age_ms),
            }
        });
        all.filter(|host| host.raised_ms < now_ms).collect()
    }

    /// All hosts, by URI.
    pub fn hosts(&self) -> Vec<HostRecord> {
        self.read(|inventory| inventory.hosts().cloned().collect())
    }

    /// Where the domain with this UUID is.
    pub fn place_of(&self, uuid: Uuid) -> Option<InfrastructurePath> {
        self.read(|inventory| inventory.place_of(uuid))
    }

    /// Where the domain with this UUID is, and its tags.
    pub fn seat_of(&self, uuid: Uuid) -> Option<(InfrastructurePath, Tags)> {
        self.read(|inventory| {
            let tags = inventory.domain(uuid)?.tags.clone();
            Some((inventory.place_of(uuid)?, tags))
        })
    }

    /// What is known of the domain with this UUID.
    pub fn domain(&self, uuid: Uuid) -> Option<DomainFacts> {
        self.read(|inventory| inventory.domain(uuid).cloned())
    }

    /// What can be said of each domain now.
    pub fn sights(&self, now_ms: u64) -> HashMap<Uuid, Sight> {
        self.read(|inventory| sight::of(inventory.hosts(), now_ms, self.facts_age_ms))
    }

    /// Counts up with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn read<T>(&self, read: impl FnOnce(&Inventory) -> T) -> T {
        read(
            &self
                .inventory
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn apply(&self, reading: Reading) -> (Vec<Change>, Option<HostRecord>) {
        let mut inventory = self
            .inventory
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let uri = reading.uri.clone();
        let changes = inventory.apply(reading);
        (changes, inventory.host(&uri).cloned())
    }
}

/// Applies readings until their senders are gone. What changed is stored beside that, so
/// that no store holds up what lists and alarms go by.
pub async fn keep(view: View, store: Arc<dyn Store>, readings: mpsc::Receiver<Reading>) {
    let pending = Pending::default();
    let put = |host: HostRecord| {
        let store = Arc::clone(&store);
        async move { store.put_host(&host).await }
    };
    tokio::select! {
        () = apply_all(&view, readings, &pending) => {}
        () = store_all(&pending, put) => {}
    }
}

/// Hosts that changed and are not stored yet: the latest record of each.
#[derive(Debug, Default)]
struct Pending {
    hosts: Mutex<BTreeMap<String, HostRecord>>,
    more: Notify,
}

impl Pending {
    fn add(&self, host: HostRecord) {
        self.lock().insert(host.uri.clone(), host);
        self.more.notify_one();
    }

    /// Gives one back that could not be stored, unless there is a later record.
    fn again(&self, host: HostRecord) {
        self.lock().entry(host.uri.clone()).or_insert(host);
        self.more.notify_one();
    }

    async fn next(&self) -> HostRecord {
        loop {
            if let Some((_, host)) = self.lock().pop_first() {
                return host;
            }
            self.more.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, HostRecord>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn apply_all(view: &View, mut readings: mpsc::Receiver<Reading>, pending: &Pending) {
    while let Some(reading) = readings.recv().await {
        let (changes, host) = view.apply(reading);
        let Some(host) = host.filter(|_| !changes.is_empty()) else {
            continue;
        };
        for change in &changes {
            log(&host, change);
        }
        view.changed.send_modify(|count| *count += 1);
        pending.add(host);
    }
}

/// Stores what is pending, for ever.
async fn store_all<F>(pending: &Pending, put: impl Fn(HostRecord) -> F)
where
    F: Future<Output = Result<(), StoreError>>,
{
    loop {
        let host = pending.next().await;
        // As people, and a later start of this server, read it.
        let stored = HostRecord {
            read_ms: host.read_ms.map(wall_ms),
            tried_ms: host.tried_ms.map(wall_ms),
            ..host.clone()
        };
        if let Err(error) = put(stored).await {
            tracing::error!(%error, uri = %host.uri, "the inventory cannot be stored");
            pending.again(host);
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }
}

fn log(host: &HostRecord, change: &Change) {
    let uri = &host.uri;
    let name = |uuid: &Uuid| {
        let name = host.domains.get(uuid).map_or("", |facts| &facts.name);
        PathBytes::from_path(std::path::Path::new(name)).to_string()
    };
    match change {
        Change::HostUp => tracing::info!(%uri, host = %host.host, "host is up"),
        Change::HostDown { error } => {
            tracing::warn!(%uri, %error, "host cannot be read; its last facts are kept");
        }
        Change::HostRenamed => tracing::info!(%uri, host = %host.host, "host name"),
        Change::Appeared { uuid } => {
            tracing::info!(%uri, %uuid, name = %name(uuid), "domain appeared");
        }
        Change::Vanished { uuid } => tracing::info!(%uri, %uuid, "domain vanished"),
        Change::Renamed { uuid } => {
            tracing::info!(%uri, %uuid, name = %name(uuid), "domain renamed");
        }
        Change::StateChanged { uuid, from, to } => {
            tracing::info!(%uri, %uuid, name = %name(uuid), %from, %to, "domain state");
        }
        Change::Began { uuid } => {
            tracing::info!(%uri, %uuid, name = %name(uuid), "domain started, resumed or restarted");
        }
        Change::Tagged { uuid } => {
            let tags = host.domains.get(uuid).map(|facts| &facts.tags);
            tracing::info!(%uri, %uuid, name = %name(uuid), ?tags, "domain tags");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DomainState, HostFacts};
    use crate::settings::LibvirtSource;

    const DOMAIN: Uuid = Uuid::from_u128(7);
    const AGE: Duration = Duration::from_secs(100);

    fn view(now_ms: u64) -> View {
        let source = LibvirtSource {
            uri: "qemu:///system".to_owned(),
            host: None,
            datacenter: String::new(),
            cluster: String::new(),
        };
        View::new(Inventory::new(&[source], Vec::new()), AGE, now_ms)
    }

    fn reading(at_ms: u64, state: DomainState) -> Reading {
        let facts = DomainFacts {
            name: "vm".to_owned(),
            state,
            ..DomainFacts::default()
        };
        Reading {
            uri: "qemu:///system".to_owned(),
            at_ms,
            outcome: Ok(HostFacts {
                hostname: "hv1".to_owned(),
                domains: [(DOMAIN, facts)].into(),
            }),
        }
    }

    /// A reading is what is so now, whatever any clock said at the one before.
    #[test]
    fn no_clock_freezes_the_inventory() {
        let view = view(0);
        view.apply(reading(90_000, DomainState::Running));
        let (changes, _) = view.apply(reading(10_000, DomainState::ShutOff));
        assert_eq!(changes.len(), 1);
        assert_eq!(view.sights(10_000)[&DOMAIN], Sight::Off);
    }

    /// A libvirt that hangs gives no error, and no reading either.
    #[test]
    fn a_host_that_is_silent_is_down_and_unread() {
        let view = view(5_000);
        let state = |now_ms| view.state_of(&view.hosts()[0], now_ms);
        assert_eq!(state(105_000), HostState::Unknown);
        assert!(view.unread(105_000).is_empty());
        assert_eq!(state(105_001), HostState::Down, "never read");
        let unread = &view.unread(105_001)[0];
        assert_eq!((unread.since_ms, unread.raised_ms), (5_000, 105_000));
        view.apply(reading(200_000, DomainState::Running));
        assert_eq!(state(300_000), HostState::Up);
        assert!(view.unread(300_000).is_empty());
        assert_eq!(state(300_001), HostState::Down);
        assert_eq!(view.unread(300_001)[0].since_ms, 200_000);
        assert_eq!(view.sights(300_001)[&DOMAIN], Sight::Unknown);
        // One that says why is down at once, and an alert as soon as one that hangs.
        view.apply(Reading {
            outcome: Err("refused".to_owned()),
            ..reading(400_000, DomainState::Running)
        });
        view.apply(reading(500_000, DomainState::Running));
        view.apply(Reading {
            outcome: Err("refused".to_owned()),
            ..reading(550_000, DomainState::Running)
        });
        assert_eq!(state(550_000), HostState::Down);
        assert!(view.unread(600_000).is_empty());
        assert_eq!(view.unread(600_001)[0].error.as_deref(), Some("refused"));
    }

    /// What lists and alarms go by waits for no store, and that gets the last word.
    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_holds_up_nothing() {
        let (view, pending) = (view(0), Pending::default());
        let (readings, read) = mpsc::channel(MAX_READINGS);
        let mut changes = view.changes();
        let (open, opened) = watch::channel(false);
        let stored = Mutex::new(Vec::new());
        let put = |host: HostRecord| {
            let (mut opened, stored) = (opened.clone(), &stored);
            async move {
                // As long as nobody opens it.
                let _ = opened.wait_for(|open| *open).await;
                let mut stored = stored.lock().unwrap();
                stored.push(host.domains[&DOMAIN].state);
                match stored.len() {
                    1 => Err(StoreError::Password("as the test has it".to_owned())),
                    _ => Ok(()),
                }
            }
        };
        let test = async {
            for (at_ms, state) in (1..).zip([
                DomainState::Running,
                DomainState::Paused,
                DomainState::Running,
                DomainState::ShutOff,
            ]) {
                readings.send(reading(at_ms, state)).await.unwrap();
                changes.changed().await.unwrap();
                assert_eq!(view.domain(DOMAIN).unwrap().state, state);
            }
            open.send_replace(true);
            tokio::time::sleep(STORE_AGAIN * 2).await;
        };
        tokio::select! {
            () = apply_all(&view, read, &pending) => {}
            () = store_all(&pending, put) => {}
            () = test => {}
        }
        let stored = stored.into_inner().unwrap();
        assert_eq!(stored, [DomainState::Running, DomainState::ShutOff]);
    }
}
