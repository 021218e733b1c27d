//! A daemon in a folder of its own, and the site's certificates.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_daemon::membership::Membership;
use palisade_protocol::identity::{Identity, new_key};
use palisade_protocol::ids::{AgentId, DeploymentId, SvmId, TenantId};
use palisade_protocol::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

/// A wait that only a defect exhausts.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Root and issuing CA of a deployment.
pub struct Ca {
    pub deployment: DeploymentId,
    root: CertificateDer<'static>,
    issuing: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new(deployment: &str) -> Self {
        let params = |name: &str, below| {
            let mut params = CertificateParams::default();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let root = CertifiedIssuer::self_signed(params("root", 1), new_key().unwrap()).unwrap();
        let issuing =
            CertifiedIssuer::signed_by(params("issuing", 0), new_key().unwrap(), &root).unwrap();
        Self {
            deployment: deployment.parse().unwrap(),
            root: root.der().clone(),
            issuing,
        }
    }

    pub fn agent(&self, tenant: &str) -> Identity {
        let tenant: TenantId = tenant.parse().unwrap();
        self.issue(&SpiffeId::agent(
            &self.deployment,
            &tenant,
            AgentId::random(),
        ))
    }

    pub fn svm(&self) -> Identity {
        self.issue(&SpiffeId::svm(&self.deployment, SvmId::random()))
    }

    pub fn issue(&self, id: &SpiffeId) -> Identity {
        let key = new_key().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let leaf = params.signed_by(&key, &*self.issuing).unwrap();
        let chain = vec![
            leaf.der().clone(),
            self.issuing.der().clone(),
            self.root.clone(),
        ];
        Identity::new(&key, chain).unwrap()
    }
}

/// A site's folder: settings, definitions, an identity.
pub struct Site {
    pub dir: TempDir,
    pub ca: Ca,
    /// Sections and keys of the settings file after the common ones.
    pub settings: String,
    /// Keys of its section `definitions`. Checks of new ones read no files, unless a
    /// test is about that.
    pub definitions: String,
}

impl Site {
    /// A site whose definitions are these files.
    pub fn new(definitions: &[(&str, &str)]) -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
            ca: Ca::new("test-site"),
            settings: String::new(),
            definitions: "poll_s = 3600\nclean_corpus = []\n".to_owned(),
        };
        std::fs::create_dir_all(site.source()).unwrap();
        for (name, text) in definitions {
            site.define(name, text);
        }
        let servers = vec![SocketAddr::from(([127, 0, 0, 1], 1))];
        site.enrol(servers);
        site
    }

    pub fn enrol(&self, servers: Vec<SocketAddr>) {
        let membership = Membership {
            identity: self.ca.svm(),
            servers,
            name: "svm".to_owned(),
        };
        membership.save(&self.state()).unwrap();
    }

    /// Writes a file of definitions whole, as an updater does.
    pub fn define(&self, name: &str, text: &str) {
        let new = self.dir.path().join("definition.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.source().join(name)).unwrap();
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("var/scanserver")
    }

    /// Puts the planted engine in the place of the engine programs named. Its version is
    /// what the file `version` beside them holds when it is started.
    pub fn plant(&mut self, programs: &[&str]) {
        let helpers = self.dir.path().join("helpers");
        std::fs::create_dir_all(&helpers).unwrap();
        for name in ["palisade-engine-clamav", "palisade-engine-yara"] {
            let to = helpers.join(name);
            if programs.contains(&name) {
                let planted = beside("palisade-planted-engine");
                let script = format!(
                    "#!/bin/sh\nwhile [ $# -gt 0 ]; do\n  [ \"$1\" = --scratch ] && scratch=$2\n  \
                     shift 2\ndone\nexec {} --scratch \"$scratch\" \
                     --says-version \"$(cat {}/version 2>/dev/null)\"\n",
                    planted.display(),
                    helpers.display()
                );
                std::fs::write(&to, script).unwrap();
                std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
            } else {
                std::os::unix::fs::symlink(beside(name), to).unwrap();
            }
        }
        let setting = format!("helpers_dir = {:?}\n", helpers);
        self.settings.insert_str(0, &setting);
    }

    /// Has the engine programs started by a shell command, which gets the program and
    /// its arguments as its own.
    pub fn start_engines_by(&mut self, command: &str) {
        let helpers = self.dir.path().join("helpers");
        std::fs::create_dir_all(&helpers).unwrap();
        for name in ["palisade-engine-clamav", "palisade-engine-yara"] {
            let (to, program) = (helpers.join(name), beside(name));
            let script = format!(
                "#!/bin/sh\nset -- {} \"$@\"\n{command}\n",
                program.display()
            );
            std::fs::write(&to, script).unwrap();
            std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
        }
        self.settings
            .insert_str(0, &format!("helpers_dir = {helpers:?}\n"));
    }

    /// Has an engine program not start any more, if it is started by
    /// `[ ! -e "$0.broken" ] && exec "$@"`; or start again.
    pub fn break_engine(&self, name: &str, is_broken: bool) {
        let broken = self
            .dir
            .path()
            .join("helpers")
            .join(format!("{name}.broken"));
        if is_broken {
            std::fs::write(broken, "").unwrap();
        } else {
            std::fs::remove_file(broken).unwrap();
        }
    }

    /// Makes all kept generations of definitions older by that.
    pub fn age_definitions(&self, by: Duration) {
        for folder in std::fs::read_dir(self.state().join("definitions")).unwrap() {
            let file = folder.unwrap().path().join("manifest.json");
            let Ok(text) = std::fs::read_to_string(&file) else {
                continue;
            };
            let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
            let added = manifest["added_ms"].as_u64().unwrap() - by.as_millis() as u64;
            manifest["added_ms"] = added.into();
            std::fs::write(file, manifest.to_string()).unwrap();
        }
    }

    fn write_settings(&self) {
        let path = self.dir.path().join("etc/scanserver.toml");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Either it or a source.
        let source = match self.definitions.contains("repository = true") {
            true => String::new(),
            false => format!("source = {:?}\n", self.source()),
        };
        let text = format!(
            "listen = '127.0.0.1:0'\n{}\n[definitions]\n{source}{}",
            self.settings, self.definitions
        );
        std::fs::write(path, text).unwrap();
    }

    fn command(&self) -> Command {
        self.write_settings();
        for engine in ["palisade-engine-clamav", "palisade-engine-yara"] {
            beside(engine);
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade-scanserver"));
        command
            .arg("--site")
            .arg(self.dir.path())
            .env("PALISADE_LOG", "info,palisade_svm=debug")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `palisade-scanserver definitions …`; gives its exit code, and what it said
    /// on either output.
    pub fn definitions(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self
            .command()
            .arg("definitions")
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// As [`Self::definitions`] with `-o json`, for what is to succeed.
    pub fn definitions_json(&self, arguments: &[&str]) -> serde_json::Value {
        let (code, said, errors) = self.definitions(&[arguments, &["-o", "json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {errors}");
        serde_json::from_str(&said).unwrap()
    }

    /// What `status -o json` says.
    pub fn status_json(&self) -> serde_json::Value {
        let output = self
            .program()
            .args(["status", "-o", "json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// As [`Self::definitions`], for what is to fail; gives what it said.
    pub fn definitions_fail(&self, arguments: &[&str]) -> String {
        let (code, said, errors) = self.definitions(arguments);
        assert_eq!((code, said.as_str()), (3, ""), "{arguments:?}: {errors}");
        errors
    }

    /// A directory of definitions beside the source.
    pub fn directory(&self, name: &str, files: &[(&str, &str)]) -> String {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            std::fs::write(folder.join(file), text).unwrap();
        }
        folder.to_str().unwrap().to_owned()
    }

    /// The daemon's command, to be started with other arguments.
    pub fn program(&self) -> Command {
        self.command()
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        let mut child = self.command().spawn().unwrap();
        let log = Log::of(&mut child);
        let mut daemon = Daemon {
            child,
            log,
            address: ([0, 0, 0, 0], 0).into(),
        };
        let ready = daemon.log.wait_for("ready address=");
        daemon.address = field(&ready, "address").parse().unwrap();
        daemon
    }

    /// Runs the daemon, which is to give up; gives its exit code and what it said.
    pub fn start_fails(&self) -> (i32, String) {
        let output = self.command().output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

/// A program beside the daemon, in the build's folder.
fn beside(name: &str) -> PathBuf {
    let daemon = Path::new(env!("CARGO_BIN_EXE_palisade-scanserver"));
    let path = daemon.with_file_name(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p palisade-engine-clamav -p palisade-engine-yara -p palisade-worker`",
        path.display()
    );
    path
}

/// The value of `name=value` in a log line.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let start = line.find(&format!("{name}=")).unwrap() + name.len() + 1;
    line[start..].split(' ').next().unwrap()
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub log: Log,
    pub address: SocketAddr,
}

impl Daemon {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the daemon's own end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the daemon, in KiB.
    pub fn resident_kib(&self) -> u64 {
        resident_kib(self.pid())
    }

    /// Processes below the daemon: engines and their workers.
    pub fn descendants(&self) -> Vec<u32> {
        let engines = self.engines();
        let workers = engines.iter().flat_map(|engine| children(*engine));
        engines.iter().copied().chain(workers).collect()
    }

    /// The engines' processes.
    pub fn engines(&self) -> Vec<u32> {
        children(self.child.id())
    }

    /// The process of the engine whose program is named.
    pub fn engine(&self, program: &str) -> u32 {
        let is = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == program))
        };
        self.engines().into_iter().find(is).unwrap()
    }

    /// The workers' processes of the engine whose program is named.
    pub fn workers_of(&self, program: &str) -> Vec<u32> {
        children(self.engine(program))
    }

    /// The workers' processes.
    pub fn workers(&self) -> Vec<u32> {
        self.engines().into_iter().flat_map(children).collect()
    }

    /// Contents that were given to the engines so far; waits until the log, which
    /// lags, has these many.
    pub fn scans(&self, expected: usize) -> usize {
        wait_until("so many scans are in the log", || {
            self.logged_scans() >= expected
        });
        self.logged_scans()
    }

    fn logged_scans(&self) -> usize {
        self.log
            .lines()
            .iter()
            .filter(|line| line.contains(" scanned content="))
            .count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for line in self.log.lines() {
                eprintln!("    {line}");
            }
        }
    }
}

/// Resident memory of a process, in KiB; 0 when it is gone.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn children(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut after_name = stat.rsplit(')').next().unwrap_or_default().split(' ');
        if after_name.nth(2).and_then(|parent| parent.parse().ok()) == Some(of) {
            found.push(pid);
        }
    }
    found
}

pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process is gone, or only waits for its parent to look.
pub fn is_gone(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z")),
        Err(_) => true,
    }
}

/// What a daemon said so far.
#[derive(Clone)]
pub struct Log(Arc<(Mutex<LogState>, Condvar)>);

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn of(child: &mut Child) -> Self {
        let log = Self(Arc::default());
        let (shared, stderr) = (log.clone(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                shared.0.0.lock().unwrap().lines.push(line);
                shared.0.1.notify_all();
            }
            shared.0.0.lock().unwrap().ended = true;
            shared.0.1.notify_all();
        });
        log
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    pub fn has(&self, part: &str) -> bool {
        self.lines().iter().any(|line| line.contains(part))
    }

    /// Waits for a line that holds `part`.
    pub fn wait_for(&self, part: &str) -> String {
        self.wait_for_after(0, part)
    }

    /// Waits for such a line after the first `skip` lines.
    pub fn wait_for_after(&self, skip: usize, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        loop {
            let lines = state.lines.iter().skip(skip);
            if let Some(line) = lines.clone().find(|line| line.contains(part)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let said = state.lines.join("\n");
                drop(state);
                panic!("never said: {part}\n{said}");
            }
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// Text that no other run has.
pub fn marker() -> String {
    format!("marker-{:032x}", rand::random::<u128>())
}

/// A rule that finds `marker`.
pub fn rule(name: &str, marker: &str) -> String {
    format!("rule {name} {{\n  strings:\n    $m = \"{marker}\"\n  condition:\n    $m\n}}\n")
}

/// A line of a ClamAV `.ndb` that finds `marker`.
pub fn ndb(name: &str, marker: &str) -> String {
    format!("{name}:0:*:{}\n", hex::encode(marker))
}
