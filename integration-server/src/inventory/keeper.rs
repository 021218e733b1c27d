//! The task that applies readings, stores what changed, and tells who waits.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::InfrastructurePath;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::sight::{self, Sight};
use super::{Change, DomainFacts, HostRecord, Inventory, Reading, Tags};
use crate::store::{Store, StoreError};

/// Readings that may wait to be applied; collectors wait beyond that.
pub const MAX_READINGS: usize = 64;

/// The inventory, shared: read by lists and the API, written by [`keep`] alone.
#[derive(Debug, Clone)]
pub struct View {
    inventory: Arc<RwLock<Inventory>>,
    changed: watch::Sender<u64>,
}

impl View {
    /// Shares an inventory.
    pub fn new(inventory: Inventory) -> Self {
        Self {
            inventory: Arc::new(RwLock::new(inventory)),
            changed: watch::Sender::new(0),
        }
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

    /// What can be said of each domain now; facts count for `max_age_ms`.
    pub fn sights(&self, now_ms: u64, max_age_ms: u64) -> HashMap<Uuid, Sight> {
        self.read(|inventory| sight::of(inventory.hosts(), now_ms, max_age_ms))
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

/// Applies readings until their senders are gone.
pub async fn keep(view: View, store: Arc<dyn Store>, mut readings: mpsc::Receiver<Reading>) {
    while let Some(reading) = readings.recv().await {
        let (changes, host) = view.apply(reading);
        let Some(host) = host.filter(|_| !changes.is_empty()) else {
            continue;
        };
        for change in &changes {
            log(&host, change);
        }
        view.changed.send_modify(|count| *count += 1);
        if let Err(error) = put(store.as_ref(), &host).await {
            // The facts are in memory and are read again with the next poll.
            tracing::error!(%error, uri = %host.uri, "the inventory cannot be stored");
        }
    }
}

async fn put(store: &dyn Store, host: &HostRecord) -> Result<(), StoreError> {
    store.put_host(host).await
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
