//! How the facts are found out: the running agent is asked, and what it cannot say is
//! looked up. Nothing is changed, but for one file in the state folder that is made and
//! removed at once.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{FsFlags, statvfs};
use palisade_daemon::membership::Membership;
use serde_json::Value;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::InForce;
use super::facts::{Agent, Connection, Disk, Facts, Gap, Identity};
use super::holders;
use crate::control;
use crate::exposure::record::RecordFile;
use crate::fanotify::group::{self, Group, Unavailable, Watched};
use crate::fanotify::places;
use crate::list::ListFile;
use crate::mode::Mode;
use crate::selection::{Choice, LinkState, Source, keep};
use crate::spool::now_ms;
use crate::{daemon, status};

/// How long a server is waited for.
pub const PATIENCE: Duration = Duration::from_secs(8);
/// The reason before the first attempt to connect has ended.
const NOT_YET: &str = "not connected yet";

/// Finds out all there is.
///
/// # Errors
/// When the system gives no runtime to connect with.
pub fn gather(in_force: &InForce) -> std::io::Result<Facts> {
    let (settings, folders) = (&in_force.settings, &in_force.folders);
    let status = status::ask(&folders.run);
    let membership = Membership::load(&folders.state);
    let root = group::has_capability();
    let mut facts = Facts {
        settings: in_force.problem.clone(),
        now_s: now_ms() / 1000,
        root,
        protected_paths: settings
            .on_access
            .enabled
            .then_some(settings.on_access.paths.len()),
        last_written_s: RecordFile::new(&folders.state)
            .load()
            .map(|record| record.alive.at_ms / 1000),
        kernel: kernel(),
        state: disk(&folders.state),
        ..Facts::default()
    };
    facts.identity = match &membership {
        Ok(None) => Identity::None,
        Ok(Some(membership)) => validity(membership),
        // Another user's folder: that it is another's is said.
        Err(_) if !root => Identity::Unknown,
        Err(error) => Identity::Damaged(error.to_string()),
    };
    match status {
        Ok(status) => of_agent(&status, &mut facts),
        Err(error) => {
            let socket = status::socket(&folders.run);
            facts.no_agent = Some(format!("{}: {error}", socket.display()));
            facts.descriptors = getrlimit(Resource::RLIMIT_NOFILE)
                .ok()
                .map(|(_, hard)| hard);
            facts.gaps =
                places::survey(&settings.on_access.paths, &settings.on_access.exclude_types)
                    .gaps
                    .iter()
                    .filter(|_| settings.on_access.enabled)
                    .map(|gap| Gap {
                        path: gap.path().to_owned(),
                        reason: gap.reason().to_owned(),
                    })
                    .collect();
            if let Ok(Some(membership)) = &membership {
                try_to_connect(in_force, membership, &mut facts)?;
            }
        }
    }
    let own = facts_pids(&folders.run);
    facts.holders = holders::find(Path::new("/proc"), &own);
    Ok(facts)
}

/// The agent's own processes.
fn facts_pids(run: &Path) -> Vec<u32> {
    let mut own = vec![std::process::id()];
    let agent = status::ask(run).ok();
    own.extend(agent.and_then(|status| u32::try_from(status["agent"]["pid"].as_u64()?).ok()));
    own
}

fn of_agent(status: &Value, facts: &mut Facts) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let protection = &status["protection"];
    facts.agent = Some(Agent {
        protection: text(&protection["state"]).unwrap_or_default(),
        reason: text(&protection["reason"]),
        bypass: text(&protection["bypass"]),
        supervised: !status["supervisor"].is_null(),
        waiting: status["exposure"]["waiting"].as_u64().unwrap_or(0),
        policy: text(&status["policy"]["refused"][1]).or_else(|| text(&status["policy"]["note"])),
    });
    facts.svm = match text(&status["svm"]["id"]) {
        Some(_) => Connection::Up,
        None => Connection::Down(text(&status["svm"]["reason"]).unwrap_or_default()),
    };
    facts.server = match status["server"]["connected"].as_bool() {
        Some(true) => Connection::Up,
        _ => Connection::Down(text(&status["server"]["reason"]).unwrap_or_default()),
    };
    facts.clock_off_s = status["clock_off_ms"].as_i64().map(|ms| ms / 1000);
    facts.descriptors = status["agent"]["pid"].as_u64().and_then(descriptors_of);
    let gaps = protection["gaps"].as_array();
    facts.gaps = gaps
        .into_iter()
        .flatten()
        .filter_map(|gap| {
            Some(Gap {
                path: text(&gap["path"])?,
                reason: text(&gap["reason"])?,
            })
        })
        .collect();
}

/// The soft limit of descriptors of a process.
fn descriptors_of(pid: u64) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn validity(membership: &Membership) -> Identity {
    let Some(leaf) = membership.identity.chain().first() else {
        return Identity::Damaged("chain.pem holds no certificate".to_owned());
    };
    match X509Certificate::from_der(leaf) {
        Ok((_, certificate)) => {
            let validity = certificate.validity();
            Identity::Valid {
                from_s: validity.not_before.timestamp(),
                until_s: validity.not_after.timestamp(),
            }
        }
        Err(error) => Identity::Damaged(format!("chain.pem: {error}")),
    }
}

/// Whether the kernel gives permission events: a group is made, and closed.
fn kernel() -> Option<Result<(), String>> {
    match Group::open(Watched::opens(Mode::Block)) {
        Ok(_) => Some(Ok(())),
        Err(Unavailable::NoCapability) => None,
        Err(error) => Some(Err(error.to_string())),
    }
}

fn disk(state: &Path) -> Disk {
    // Before the first start the folder above says as much.
    let place = state
        .ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or(state);
    let system = statvfs(place).ok();
    let mut disk = Disk {
        path: state.display().to_string(),
        read_only: system.is_some_and(|system| system.flags().contains(FsFlags::ST_RDONLY)),
        free_bytes: system.map(|system| {
            #[allow(clippy::useless_conversion, reason = "their width is the platform's")]
            u64::from(system.blocks_available()).saturating_mul(u64::from(system.fragment_size()))
        }),
        refused: None,
    };
    if state.is_dir() && group::has_capability() {
        disk.refused = write(state).err().map(|error| error.to_string());
    }
    disk
}

fn write(state: &Path) -> std::io::Result<()> {
    let path = state.join(format!(".doctor-{}", uuid::Uuid::new_v4()));
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .open(&path)?;
    let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
    fs::remove_file(&path)?;
    written
}

/// As an agent would, which does not run.
fn try_to_connect(
    in_force: &InForce,
    membership: &Membership,
    facts: &mut Facts,
) -> std::io::Result<()> {
    let settings = &in_force.settings;
    let runtime = daemon::runtime()?;
    let (svm, server) = runtime.block_on(async {
        let host = settings.host_facts();
        let server = async {
            if membership.servers.is_empty() {
                return (Connection::Unknown, None);
            }
            let hello = control::hello(&host);
            let connect = palisade_daemon::control::Session::connect(membership, hello);
            match tokio::time::timeout(PATIENCE, connect).await {
                Ok(Ok((session, welcome, _))) => {
                    session.close();
                    (Connection::Up, Some(welcome.server_time_ms))
                }
                Ok(Err(error)) => (Connection::Down(error.to_string()), None),
                Err(_) => (Connection::Down(silent(&membership.servers)), None),
            }
        };
        tokio::join!(svm(in_force, membership), server)
    });
    facts.svm = svm;
    facts.server = server.0;
    facts.clock_off_s = server.1.and_then(|server_ms| {
        let off_ms = i128::from(server_ms) - i128::from(now_ms());
        i64::try_from(off_ms / 1000).ok()
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

fn silent(servers: &[std::net::SocketAddr]) -> String {
    let all: Vec<String> = servers.iter().map(ToString::to_string).collect();
    format!(
        "{}: no answer within {} s",
        all.join(", "),
        PATIENCE.as_secs()
    )
}

async fn svm(in_force: &InForce, membership: &Membership) -> Connection {
    let list = ListFile::new(&in_force.folders.state).load().map(Arc::new);
    let (_lists, listed) = watch::channel(list);
    let source = match in_force.settings.svm.is_empty() {
        true => Source::List(listed),
        false => Source::Static(in_force.settings.svm.clone()),
    };
    let choice = Choice {
        policy: in_force.settings.selection,
        spare: false,
        notices: false,
    };
    let mut link = keep(membership.identity.clone(), source, choice).state;
    let decided = |state: &LinkState| match state {
        LinkState::Up { .. } => true,
        LinkState::Down { reason, .. } => &**reason != NOT_YET,
    };
    let waited = tokio::time::timeout(PATIENCE, link.wait_for(decided)).await;
    match waited {
        Ok(Ok(state)) => match &*state {
            LinkState::Up { .. } => Connection::Up,
            LinkState::Down { reason, .. } => Connection::Down(reason.to_string()),
        },
        Ok(Err(_)) => Connection::Unknown,
        Err(_) => Connection::Down(format!("none answers within {} s", PATIENCE.as_secs())),
    }
}
