//! A PostgreSQL of a test's own: in a temporary folder, on a socket in there alone,
//! ended with the test however that ends.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use palisade_integration_server::store::postgres::Address;
use palisade_integration_server::store::{Database, Place};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tempfile::TempDir;
use uuid::Uuid;

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who it runs as when the test is root, which PostgreSQL refuses to be.
const USER: &str = "nobody";
const GROUP: &str = "nogroup";

/// A running PostgreSQL.
pub struct Postgres {
    dir: TempDir,
    programs: PathBuf,
    more: Vec<String>,
    child: Option<Child>,
}

impl Postgres {
    /// Starts one; says why not where the machine has none.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, |_| Vec::new())
    }

    /// The same with more settings, which may need files in its folder.
    pub fn start_with(test: &str, more: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        let Some(programs) = programs() else {
            println!("skipped: {test}: PostgreSQL is absent; install postgresql");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        if geteuid().is_root() {
            run(Command::new("chown")
                .arg(format!("{USER}:{GROUP}"))
                .arg(dir.path()));
        }
        run(unprivileged(&programs.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args([
                "-U",
                "palisade",
                "--auth=trust",
                "--no-sync",
                "--no-instructions",
            ])
            .args(["--encoding=UTF8", "--locale=C.UTF-8"])
            .stdout(Stdio::null()));
        let access = "local all locked scram-sha-256\nlocal all all trust\n\
                      hostssl all all 127.0.0.1/32 trust\n";
        std::fs::write(data.join("pg_hba.conf"), access).unwrap();
        let more = more(dir.path());
        let mut postgres = Self {
            dir,
            programs,
            more,
            child: None,
        };
        postgres.go();
        Some(postgres)
    }

    /// Starts it, again too.
    pub fn go(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = unprivileged(&self.programs.join("postgres"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-c", "listen_addresses="])
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            .args(["-c", "wal_level=minimal", "-c", "max_wal_senders=0"])
            .args(["-c", "shared_buffers=16MB", "-c", "max_connections=90"])
            .args(["-c", "autovacuum=off", "-c", "jit=off"])
            .args(self.more.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let end = Instant::now() + PATIENCE;
        while !self.is_ready() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(ended.is_none(), "PostgreSQL ended: {}", log());
            assert!(Instant::now() < end, "PostgreSQL is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it at once, as if its machine were gone; what was committed stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGQUIT);
            let _ = child.wait();
        }
    }

    /// Sends a signal to each of its processes: stopped ones answer nobody.
    pub fn signal_all(&self, signal: Signal) {
        for (pid, _) in self.children() {
            kill(pid, signal).unwrap();
        }
        kill(self.pid(), signal).unwrap();
    }

    /// Sends a signal to those that serve connections, and to no other: new ones are
    /// served.
    pub fn signal_connections(&self, signal: Signal) -> usize {
        let mut connections = self.children();
        connections.retain(|(_, title)| title.contains("[local]"));
        for (pid, _) in &connections {
            kill(*pid, signal).unwrap();
        }
        connections.len()
    }

    /// How many connections do what this says.
    pub fn waiting(&self, title: &str) -> usize {
        let connections = self.children().into_iter();
        connections.filter(|(_, own)| own.contains(title)).count()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().cast_signed())
    }

    fn children(&self) -> Vec<(Pid, String)> {
        let own = self.pid();
        let list = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        list.split_whitespace()
            .map(|pid| {
                let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let pid = Pid::from_raw(pid.parse().unwrap());
                (pid, String::from_utf8_lossy(&title).into_owned())
            })
            .collect()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The address of one of its databases.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!(
            "postgres://{user}@localhost/{database}?host={}",
            self.dir.path().display()
        )
    }

    /// The name of a new database, with nothing in it.
    pub async fn new_database(&self) -> String {
        let name = format!("test_{}", Uuid::new_v4().simple());
        self.execute("postgres", &format!("CREATE DATABASE {name}"))
            .await;
        name
    }

    /// A new database for a store.
    pub async fn place(&self) -> Place {
        place(&self.url("palisade", &self.new_database().await))
    }

    /// Does something in a database, as an administrator would.
    pub async fn execute(&self, database: &str, statements: &str) {
        let mut connection = self.connect(database).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    }

    pub async fn connect(&self, database: &str) -> PgConnection {
        PgConnection::connect(&self.url("palisade", database))
            .await
            .unwrap()
    }

    /// The last line of its pid file says so.
    fn is_ready(&self) -> bool {
        std::fs::read_to_string(self.dir.path().join("data/postmaster.pid")).is_ok_and(|text| {
            text.lines()
                .last()
                .is_some_and(|line| line.trim() == "ready")
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A store's place by its address.
pub fn place(url: &str) -> Place {
    Place {
        database: Database::Postgres(Address::parse(url).unwrap().into(), None),
        master: crate::store::master(),
    }
}

/// Hands a file to whom PostgreSQL runs as, readable for it alone.
pub fn give(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if geteuid().is_root() {
        run(Command::new("chown")
            .arg(format!("{USER}:{GROUP}"))
            .arg(path));
    }
}

/// Debian keeps each version in a folder of its own; elsewhere they are in the path.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut folders: Vec<PathBuf> = versions.flatten().map(|v| v.path().join("bin")).collect();
    folders.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders
        .into_iter()
        .rev()
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}

/// A program that is not root, and that ends when the thread which started it does:
/// a test that is killed leaves no server behind.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if geteuid().is_root() {
        command.args(["--reuid", USER, "--regid", GROUP, "--clear-groups"]);
    }
    command
        .arg(program)
        .current_dir("/")
        .env("LC_ALL", "C.UTF-8");
    command
}

fn run(command: &mut Command) {
    let done = command.status().unwrap();
    assert!(done.success(), "{command:?}: {done}");
}
