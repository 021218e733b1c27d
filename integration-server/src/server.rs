//! The server as a whole: composed, started, stopped.
//!
//! ```text
//!   lock the state folder ─► database ─► deployment ─► CA ─► own certificates
//!     ─► inventory + libvirt ─► fleet ─► control listener ─► API ─► ready
//!   stop signal ─► API drains, sessions end, database closes
//! ```

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum_server::Handle;
use palisade_daemon::cli::Common;
use palisade_daemon::{host, lifecycle};
use palisade_protocol::identity::write_atomic;
use palisade_protocol::ids::DeploymentId;
use palisade_protocol::spiffe::SpiffeId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::accounts::setup;
use crate::api::listener::ApiListener;
use crate::api::pace::Paces;
use crate::api::{self, Api, auth};
use crate::ca::Authority;
use crate::ca::renewal::OwnCertificates;
use crate::definitions::{self, Repository};
use crate::fleet::Fleet;
use crate::fleet::listener::Listener;
use crate::inventory::Inventory;
use crate::inventory::keeper::{self, View};
use crate::libvirt;
use crate::settings::{COMPONENT, Settings};
use crate::store::Store;
use crate::time::{now_ms, steady_ms};

/// How long requests and sessions may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the server looks whether its certificates are due.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// A running server.
#[derive(Debug)]
pub struct Server {
    fleet: Arc<Fleet>,
    store: Arc<dyn Store>,
    listener: Arc<Listener>,
    api: Handle<SocketAddr>,
    serving: JoinHandle<std::io::Result<()>>,
    watching: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    control_address: SocketAddr,
    api_address: SocketAddr,
    run_file: PathBuf,
    // Held open, and so locked, until the server is gone.
    _lock: File,
}

impl Server {
    /// Starts everything; when it returns, the server serves.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub async fn start(settings: Settings, common: &Common) -> anyhow::Result<Self> {
        let now_ms = now_ms();
        let (deployment, name) = (settings.deployment()?, settings.server_name()?);
        let state = settings.state(common);
        let lock = lock(&state)?;
        let place = settings.place(&state).map_err(anyhow::Error::msg)?;
        let store = place.open().await?;
        let shared = Arc::clone(&store);
        fix_deployment(shared.as_ref(), &deployment, &state).await?;
        let authority = Authority::open(&state.join("ca"), &deployment, now_ms)?;
        let authority = Arc::new(authority);
        auth::ensure_admin_token(shared.as_ref(), &state, now_ms).await?;
        if let Some(file) = setup::ensure(shared.as_ref(), &state, now_ms).await? {
            tracing::warn!(
                file = %file.display(),
                "there is no account yet: `palisade setup NAME` makes the first one with the token in this file"
            );
        }

        let names = settings.certificate_names(&host::facts().hostname);
        let id = SpiffeId::server(&deployment, &name);
        let own = Arc::new(OwnCertificates::new(
            Arc::clone(&authority),
            id,
            names,
            now_ms,
        )?);

        let uris: Vec<String> = settings
            .libvirt
            .iter()
            .map(|source| source.uri.clone())
            .collect();
        shared.keep_hosts(&uris).await?;
        let inventory = Inventory::new(&settings.libvirt, shared.hosts().await?);
        let facts_age = keeper::facts_age(settings.inventory.poll);
        let view = View::new(inventory, facts_age, steady_ms());
        let (readings, read) = mpsc::channel(keeper::MAX_READINGS);

        let definitions =
            Repository::open(&state, Arc::clone(&shared), settings.definitions.clone())?;
        let fleet = Fleet::load(
            Arc::clone(&shared),
            authority,
            Arc::clone(&own),
            view.clone(),
            Arc::clone(&definitions),
            settings.fleet.clone(),
            now_ms,
        );
        let fleet = Arc::new(fleet.await?);
        let listener = Listener::bind(settings.listen_control, Arc::clone(&fleet))?;
        let control_address = listener.local_address()?;
        let api_listener = ApiListener::bind(settings.listen_api, &own)?;
        let api_address = api_listener.address();
        let router = api::router(Arc::new(Api {
            fleet: Arc::clone(&fleet),
            server: name.to_string(),
            advertised: settings.advertised(control_address),
            started_ms: now_ms,
            state: state.clone(),
            sessions: settings.accounts,
            admin_noted_ms: auth::Noted::default(),
            paces: Paces::default(),
        }));

        libvirt::start(&settings.libvirt, settings.inventory.poll, &readings)?;
        let api = Handle::new();
        let serving = tokio::spawn(api_listener.serve(router, api.clone()));
        let (following, watched) = (Arc::clone(&fleet), Arc::clone(&fleet));
        let watching = tokio::spawn(async move { watched.alarms.run().await });
        let tasks = vec![
            tokio::spawn(keeper::keep(view, shared, read)),
            tokio::spawn(async move { following.run().await }),
            tokio::spawn(Arc::clone(&listener).run()),
            tokio::spawn(renew(own)),
            tokio::spawn(definitions::watch::run(definitions)),
        ];
        let run_file = url_file(common);
        write_atomic(
            &run_file,
            format!("{}\n", url_of(api_address)).as_bytes(),
            0o644,
        )?;
        Ok(Self {
            fleet,
            store,
            listener,
            api,
            serving,
            watching,
            tasks,
            control_address,
            api_address,
            run_file,
            _lock: lock,
        })
    }

    /// Where agents and Protection Servers connect.
    pub fn control_address(&self) -> SocketAddr {
        self.control_address
    }

    /// Where the API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// The fleet: for tests and for what is composed on top.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// Serves until SIGTERM or SIGINT, or until the API's listener fails.
    ///
    /// # Errors
    /// The listener's, or that of the signals.
    pub async fn run(mut self) -> anyhow::Result<()> {
        tracing::info!(
            control = %self.control_address,
            api = %self.api_address,
            url = %url_of(self.api_address),
            deployment = %self.fleet.authority.deployment(),
            "ready"
        );
        lifecycle::ready();
        let failed = tokio::select! {
            stop = lifecycle::stop_requested() => stop.err().map(anyhow::Error::from),
            served = &mut self.serving => Some(match served {
                Ok(Ok(())) => anyhow::anyhow!("the API's listener ended"),
                Ok(Err(error)) => error.into(),
                Err(error) => error.into(),
            }),
        };
        lifecycle::stopping();
        tracing::info!("stopping");
        self.stop().await;
        failed.map_or(Ok(()), Err)
    }

    /// Ends requests and sessions, then the database.
    pub async fn stop(self) {
        // Agents whose sessions this server ends are not lost.
        self.watching.abort();
        // Gone already is as good as removed.
        let _ = std::fs::remove_file(&self.run_file);
        self.api.graceful_shutdown(Some(DRAIN));
        self.listener.stop(DRAIN).await;
        let _ = tokio::time::timeout(DRAIN * 2, self.serving).await;
        for task in self.tasks {
            task.abort();
            // Aborted is what it should be.
            let _ = task.await;
        }
        self.store.close().await;
    }
}

/// The file that says where the API of a running server is, on its own machine.
pub fn url_file(common: &Common) -> PathBuf {
    common.site().run(COMPONENT).join("api.url")
}

/// The URL of the API on the server's own machine.
pub fn url_of(address: SocketAddr) -> String {
    let mut own = address;
    if address.ip().is_unspecified() {
        own.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("https://{own}")
}

/// Makes the state folder (mode 0700) and takes it for this process.
///
/// # Errors
/// Another process has it, or it cannot be made.
pub fn lock(state: &Path) -> anyhow::Result<File> {
    crate::store::private_folder(state).with_context(|| {
        format!(
            "the state folder {} cannot be made; create it for this user",
            state.display()
        )
    })?;
    let path = state.join("lock");
    let file = File::create(&path)
        .with_context(|| format!("{} cannot be written; check its owner", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another palisade-server uses {}; stop it first, or give this one its own --site or state_dir",
            state.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} cannot be locked", path.display()))
        }
    }
}

async fn fix_deployment(
    store: &dyn Store,
    wanted: &DeploymentId,
    state: &Path,
) -> anyhow::Result<()> {
    let fixed = store.fix_deployment(wanted).await?;
    if fixed != wanted.as_str() {
        bail!(
            "the deployment of {} is {fixed:?}, and the settings say {:?}; it is fixed at first start: \
             set deployment = {fixed:?}, or begin a new site in an empty state folder",
            state.display(),
            wanted.as_str()
        );
    }
    Ok(())
}

async fn renew(own: Arc<OwnCertificates>) {
    loop {
        tokio::time::sleep(RENEWAL_CHECK).await;
        match own.renew_if_due(now_ms()) {
            Ok(true) => tracing::info!("the server's own certificates were renewed"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the server's own certificates are due"),
        }
    }
}
