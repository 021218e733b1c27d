//! Our side: a real site on loopback with a Protection Server of its own settings,
//! and agents with identities of their own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use palisade_daemon::enrol::enrol;
use palisade_daemon::host;
use palisade_protocol::control::Component;
use palisade_protocol::identity::Identity;
use palisade_protocol::token::JoinToken;
use palisade_tests::process::Process;
use palisade_tests::site::{Plan, Site};

use crate::pass::{self, Pass};

/// How long a scan may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(900);
/// How long enrolling may take.
const ENROL_TIMEOUT: Duration = Duration::from_secs(60);

/// The site, without an agent on its own.
#[derive(Debug)]
pub struct OwnSite {
    site: Site,
    folder: PathBuf,
    /// A small content that warms up what the first scan starts.
    warm: PathBuf,
    /// Where the Protection Server tells its numbers.
    metrics: SocketAddr,
}

/// An agent of the site: its settings, and a state folder with an identity.
#[derive(Debug, Clone)]
pub struct Agent {
    settings: PathBuf,
}

impl OwnSite {
    /// Starts server and Protection Server in `folder`, with the definitions in
    /// `definitions` and `lanes` scans at a time.
    ///
    /// # Errors
    /// When a part does not come to serve.
    pub fn start(folder: &Path, definitions: &Path, lanes: usize) -> Result<Self> {
        let plan = Plan {
            definitions: Some(definitions.to_owned()),
            protect: None,
        };
        let site = Site::open(&folder.join("site"), &plan)?;
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let settings = site.dir().join("etc/scanserver.conf.d");
        fs::create_dir_all(&settings)?;
        // A restart empties the SharedCache, as it empties clamd's.
        fs::write(
            settings.join("bench.toml"),
            format!(
                "[scan]\nworkers = {lanes}\n[cache]\npersist = false\n\
                 [definitions]\npoll_s = 3600\n[limits]\nsessions_per_agent = 64\n\
                 [metrics]\nlisten = '{metrics}'\n"
            ),
        )?;
        let warm = folder.join("warm");
        fs::create_dir_all(&warm)?;
        fs::write(warm.join("small"), "a small content")?;
        // From here on its end stops what has been started.
        let own = Self {
            site,
            folder: folder.to_owned(),
            warm,
            metrics,
        };
        for part in ["server", "scanserver"] {
            own.site.start_part(part)?;
        }
        Ok(own)
    }

    /// A new agent, enrolled.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn agent(&self, name: &str) -> Result<Agent> {
        self.agent_with(name, "[on_access]\nenabled = false\n")
    }

    /// A new agent with further settings, enrolled.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn agent_with(&self, name: &str, further: &str) -> Result<Agent> {
        let folder = self.folder.join("agents").join(name);
        fs::create_dir_all(&folder)?;
        let settings = folder.join("agent.toml");
        let text = format!(
            "name = '{name}'\nstate_dir = '{0}/var'\nrun_dir = '{0}/run'\n{further}",
            folder.display()
        );
        fs::write(&settings, text)?;
        let agent = Agent { settings };
        let token = self.site.join_token("agent")?;
        let token_file = folder.join("token");
        fs::write(&token_file, &token)?;
        fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600))?;
        self.run_agent(&agent, &["enrol", &token], ENROL_TIMEOUT)?;
        Ok(agent)
    }

    /// Identities of `count` more agents, of the default tenant or a named one, for
    /// clients within this process.
    ///
    /// # Errors
    /// When they cannot be had.
    pub async fn identities(&self, tenant: Option<&str>, count: usize) -> Result<Vec<Identity>> {
        let uses = count.to_string();
        let mut arguments = vec!["token", "create", "--component", "agent", "--uses", &uses];
        if let Some(tenant) = tenant {
            arguments.extend(["--tenant", tenant]);
        }
        let finished = self
            .site
            .run("palisade", &arguments, ENROL_TIMEOUT)?
            .expect(&[0])?;
        let token: JoinToken = String::from_utf8(finished.stdout)?.trim().parse()?;
        let mut identities = Vec::new();
        for _ in 0..count {
            let membership = enrol(&token, Component::Agent, host::facts()).await?;
            identities.push(membership.identity);
        }
        Ok(identities)
    }

    /// Ends the Protection Server and starts it anew, with an empty SharedCache and
    /// whatever definitions there are now; a small scan has warmed it up then.
    ///
    /// # Errors
    /// When it does not come to serve.
    pub fn restart(&self, agent: &Agent) -> Result<()> {
        if let Some(process) = self.site.process("scanserver")? {
            process.stop()?;
        }
        self.site.start_part("scanserver")?;
        self.warm_up(agent)
    }

    /// A small scan: the session's way is known and the workers have been forked.
    ///
    /// # Errors
    /// When it fails.
    pub fn warm_up(&self, agent: &Agent) -> Result<()> {
        self.scan(agent, &self.warm).map(drop)
    }

    /// Scans all files below a folder with `palisade-agent scan`.
    ///
    /// # Errors
    /// When it cannot be run, or could not do it.
    pub fn scan(&self, agent: &Agent, path: &Path) -> Result<Pass> {
        pass::measure(self.scanserver()?.pid, || {
            let path = path.to_str().context("a path that is not UTF-8")?;
            let finished = self.run_agent(agent, &["scan", "-o", "json", path], SCAN_TIMEOUT)?;
            Pass::of_agent(&finished.json()?)
        })
    }

    fn run_agent(
        &self,
        agent: &Agent,
        arguments: &[&str],
        deadline: Duration,
    ) -> Result<palisade_tests::command::Finished> {
        let settings = agent
            .settings
            .to_str()
            .context("a path that is not UTF-8")?;
        let all = [&["--config", settings], arguments].concat();
        // 1: something was found; 4: some files were not scanned.
        self.site
            .run("palisade-agent", &all, deadline)?
            .expect(&[0, 1, 4])
    }

    /// Starts an agent's daemon, with its supervisor.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_daemon(&self, agent: &Agent) -> Result<Process> {
        let folder = agent.settings.parent().context("an agent's folder")?;
        let mut command =
            std::process::Command::new(palisade_tests::command::program("palisade-agent")?);
        command.arg("--site").arg(self.site.dir());
        command
            .arg("--config")
            .arg(&agent.settings)
            .arg("supervise");
        Process::start("agent", &command, folder, &folder.join("agent.log"))
    }

    /// The state of an agent's daemon, as it says itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn daemon_status(&self, agent: &Agent) -> Result<serde_json::Value> {
        self.run_agent(agent, &["status", "-o", "json"], ENROL_TIMEOUT)?
            .json()
    }

    /// The Protection Server's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn scanserver(&self) -> Result<Process> {
        self.site
            .process("scanserver")?
            .context("the Protection Server does not run")
    }

    /// Contents that the Protection Server's engines scanned since it started, by its
    /// own count.
    ///
    /// # Errors
    /// When it does not say.
    pub fn scans(&self) -> Result<u64> {
        let mut stream =
            TcpStream::connect(self.metrics).context("the Protection Server's metrics")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let counts = text
            .lines()
            .filter(|line| line.starts_with("palisade_svm_scans_total{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        ensure!(
            text.contains("palisade_svm_scans"),
            "no such metric: {text}"
        );
        Ok(counts.sum())
    }

    /// Where the Protection Server listens.
    ///
    /// # Errors
    /// When its settings cannot be read.
    pub fn scan_address(&self) -> Result<SocketAddr> {
        self.site.scan_address()
    }

    /// What the Integration Server knows of the Protection Server.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn scanserver_report(&self) -> Result<serde_json::Value> {
        let list = self.site.console(&["svm", "list"])?;
        list.get(0)
            .cloned()
            .context("no Protection Server is listed")
    }
}

impl Drop for OwnSite {
    fn drop(&mut self) {
        if let Err(error) = self.site.stop() {
            eprintln!("palisade-bench: the site is still running: {error:#}");
        }
    }
}
