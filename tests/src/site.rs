//! A whole site in one folder: server, one Protection Server, one agent.
//!
//! ```text
//! DIR/etc/*.toml        settings, made once, then the administrator's
//! DIR/var, run, log     state, run files, logs of the parts
//! DIR/definitions       the site's own signatures (built-in set, markers)
//! DIR/demo              what the agent protects, unless another folder was named
//! ```
//!
//! Parts start in the order in which they need each other, and each start waits
//! until the part really serves. A part that already runs is left alone, so that
//! a second start resumes the site.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::{self, Finished, wait_for};
use crate::definitions;
use crate::process::Process;

/// How long a part may take until it serves: engines load large databases.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a console command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// What a new site is made with.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Definitions besides the built-in test set.
    pub definitions: Option<PathBuf>,
    /// What the agent protects; the site's demo folder when none is named.
    pub protect: Option<PathBuf>,
}

/// The site in a folder.
#[derive(Debug, Clone)]
pub struct Site {
    dir: PathBuf,
}

/// The parts, in the order of their start.
pub const PARTS: [&str; 3] = ["server", "scanserver", "agent"];

impl Site {
    /// The site in `dir`, made if it is not there yet.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(dir: &Path, plan: &Plan) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        // Keys and tokens lie below it.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let site = Self { dir };
        for folder in ["etc", "log", "run", "definitions", "demo"] {
            fs::create_dir_all(site.dir.join(folder))?;
        }
        if !site.dir.join("etc/server.toml").exists() {
            site.write_server_settings()?;
        }
        if !site.dir.join("etc/scanserver.toml").exists() || plan.definitions.is_some() {
            site.write_scanserver_settings(plan)?;
        }
        if !site.dir.join("etc/agent.toml").exists() || plan.protect.is_some() {
            site.write_agent_settings(plan)?;
        }
        Ok(site)
    }

    /// The site that is in `dir`.
    ///
    /// # Errors
    /// When there is none.
    pub fn existing(dir: &Path) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| dir.display().to_string())?;
        ensure!(
            dir.join("etc/server.toml").exists(),
            "{} holds no site; `scripts/up --state {}` makes one",
            dir.display(),
            dir.display()
        );
        Ok(Self { dir })
    }

    /// The site's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the site's own signatures are.
    pub fn definitions(&self) -> PathBuf {
        self.dir.join("definitions")
    }

    /// What the agent protects on access.
    ///
    /// # Errors
    /// When the agent's settings cannot be read.
    pub fn protected(&self) -> Result<PathBuf> {
        let settings = self.settings("agent")?;
        settings
            .get("on_access")
            .and_then(|section| section.get("paths"))
            .and_then(|paths| paths.get(0))
            .and_then(toml::Value::as_str)
            .map(PathBuf::from)
            .context("etc/agent.toml names no path to protect")
    }

    /// The console's URL.
    ///
    /// # Errors
    /// When the server's settings cannot be read.
    pub fn url(&self) -> Result<String> {
        let settings = self.settings("server")?;
        let address = settings.get("listen_api").and_then(toml::Value::as_str);
        Ok(format!(
            "https://{}/",
            address.context("etc/server.toml names no listen_api")?
        ))
    }

    /// The file with the administrator's API token.
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("var/server/admin.token")
    }

    /// UDP address of the Protection Server.
    ///
    /// # Errors
    /// When its settings cannot be read.
    pub fn scan_address(&self) -> Result<std::net::SocketAddr> {
        let settings = self.settings("scanserver")?;
        let address = settings.get("listen").and_then(toml::Value::as_str);
        Ok(address
            .context("etc/scanserver.toml names no listen")?
            .parse()?)
    }

    /// Starts what does not run yet, in order.
    ///
    /// # Errors
    /// When a part does not come to serve; its log is named.
    pub fn start(&self) -> Result<()> {
        for part in PARTS {
            self.start_part(part)?;
        }
        Ok(())
    }

    /// Starts one part, unless it runs, and waits until it serves.
    ///
    /// # Errors
    /// When it does not; its log is named.
    pub fn start_part(&self, part: &str) -> Result<Process> {
        let process = match self.process(part)? {
            Some(process) => process,
            None => self.launch(part)?,
        };
        let log = self.log(part);
        wait_for(part, START_TIMEOUT, || {
            if process.is_running() {
                self.serving(part).map(Ok)
            } else {
                Ok(Err(()))
            }
        })
        .and_then(|outcome| outcome.map_err(|()| anyhow::anyhow!("it ended")))
        .with_context(|| format!("the {part} does not serve; its log ends:\n{}", tail(&log)))?;
        Ok(process)
    }

    fn launch(&self, part: &str) -> Result<Process> {
        if part != "server" {
            self.invite(part)?;
        }
        let mut command = Command::new(command::program(&format!("palisade-{part}"))?);
        let verb = if part == "agent" { "supervise" } else { "run" };
        command.arg("--site").arg(&self.dir).arg(verb);
        Process::start(part, &command, &self.dir.join("run"), &self.log(part))
    }

    /// The part's process, if it runs.
    ///
    /// # Errors
    /// When its pid file is damaged.
    pub fn process(&self, part: &str) -> Result<Option<Process>> {
        Process::find(part, &self.dir.join("run"))
    }

    /// The part's log.
    pub fn log(&self, part: &str) -> PathBuf {
        self.dir.join("log").join(format!("{part}.log"))
    }

    /// Stops every part, the last started first.
    ///
    /// # Errors
    /// When one cannot be ended; the others are ended all the same.
    pub fn stop(&self) -> Result<Vec<&'static str>> {
        let mut stopped = Vec::new();
        let mut failures = Vec::new();
        for part in PARTS.into_iter().rev() {
            match self
                .process(part)
                .and_then(|process| process.map_or(Ok(false), |p| p.stop().map(|()| true)))
            {
                Ok(true) => stopped.push(part),
                Ok(false) => {}
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        if failures.is_empty() {
            Ok(stopped)
        } else {
            bail!(failures.join("; "))
        }
    }

    /// Runs one of the site's programs with `--site` and these arguments.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self, program: &str, arguments: &[&str], deadline: Duration) -> Result<Finished> {
        let mut all = vec!["--site".into(), self.dir.clone().into_os_string()];
        all.extend(arguments.iter().map(Into::into));
        command::run(&command::program(program)?, all, deadline)
    }

    /// Runs a console command with `-o json` and gives what it says.
    ///
    /// # Errors
    /// When it fails.
    pub fn console(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["-o", "json"]].concat();
        self.run("palisade", &arguments, COMMAND_TIMEOUT)?
            .expect(&[0])?
            .json()
    }

    /// Scans paths on demand; gives the exit code and the result.
    ///
    /// # Errors
    /// When the scan says nothing.
    pub fn scan(&self, paths: &[&Path], deadline: Duration) -> Result<(i32, Value)> {
        let mut arguments = vec!["scan", "-o", "json"];
        for path in paths {
            arguments.push(path.to_str().context("a path that is not UTF-8")?);
        }
        let finished = self.run("palisade-agent", &arguments, deadline)?;
        let code = finished.code.context("the scan was killed")?;
        Ok((code, finished.json()?))
    }

    fn serving(&self, part: &str) -> Result<()> {
        match part {
            "server" => self.console(&["status"]).map(drop),
            "scanserver" => self.listed("svm").map(drop),
            _ => self.listed("agent").map(drop),
        }
    }

    /// The one connected component of a kind.
    fn listed(&self, noun: &str) -> Result<Value> {
        let list = self.console(&[noun, "list"])?;
        let all = list.as_array().context("a list is expected")?;
        let connected = all.iter().find(|item| {
            item["state"] == "connected" && (noun != "agent" || !item["svm"].is_null())
        });
        connected
            .cloned()
            .with_context(|| format!("no {noun} is connected: {list}"))
    }

    /// Gives a part its join token, unless it has its identity.
    fn invite(&self, part: &str) -> Result<()> {
        if self
            .dir
            .join("var")
            .join(part)
            .join("identity/chain.pem")
            .exists()
        {
            return Ok(());
        }
        let component = if part == "agent" { "agent" } else { "svm" };
        let token = self.join_token(component)?;
        write_private(&self.dir.join("etc").join(format!("{part}.token")), &token)
    }

    /// A new join token for one component.
    ///
    /// # Errors
    /// When the server gives none.
    pub fn join_token(&self, component: &str) -> Result<String> {
        let arguments = [
            "token",
            "create",
            "--component",
            component,
            "--expires",
            "1h",
        ];
        let finished = self
            .run("palisade", &arguments, COMMAND_TIMEOUT)?
            .expect(&[0])?;
        Ok(String::from_utf8(finished.stdout)?.trim().to_owned())
    }

    fn settings(&self, part: &str) -> Result<toml::Table> {
        let path = self.dir.join("etc").join(part).with_extension("toml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.parse()?)
    }

    fn write_server_settings(&self) -> Result<()> {
        let mut settings = toml::Table::new();
        settings.insert("listen_control".into(), free_udp()?.into());
        settings.insert("listen_api".into(), free_tcp()?.into());
        self.write_settings("server", &settings)
    }

    fn write_scanserver_settings(&self, plan: &Plan) -> Result<()> {
        definitions::write_builtin(&self.definitions())?;
        let listen = match self.settings("scanserver") {
            Ok(old) => old
                .get("listen")
                .cloned()
                .context("etc/scanserver.toml names no listen")?,
            Err(_) => free_udp()?.into(),
        };
        let mut definitions = toml::Table::new();
        let own = self.definitions().display().to_string();
        match &plan.definitions {
            Some(folder) => {
                let folder = folder
                    .canonicalize()
                    .with_context(|| folder.display().to_string())?;
                definitions.insert("source".into(), folder.display().to_string().into());
                definitions.insert("extra".into(), vec![own].into());
                fs::remove_file(self.definitions().join("palisade-builtin.ndb"))?;
            }
            None => {
                definitions.insert("source".into(), own.into());
            }
        }
        definitions.insert("poll_s".into(), 5.into());
        let mut settings = toml::Table::new();
        settings.insert("listen".into(), listen);
        settings.insert("join_token_file".into(), self.token_of("scanserver").into());
        settings.insert("definitions".into(), definitions.into());
        self.write_settings("scanserver", &settings)
    }

    fn write_agent_settings(&self, plan: &Plan) -> Result<()> {
        let protect = match &plan.protect {
            Some(folder) => folder
                .canonicalize()
                .with_context(|| folder.display().to_string())?,
            None => self.dir.join("demo"),
        };
        let mut on_access = toml::Table::new();
        on_access.insert("paths".into(), vec![protect.display().to_string()].into());
        // The Protection Server's workers, on this very machine, live in such.
        on_access.insert("other_namespaces".into(), false.into());
        let mut settings = toml::Table::new();
        settings.insert("join_token_file".into(), self.token_of("agent").into());
        settings.insert("on_access".into(), on_access.into());
        self.write_settings("agent", &settings)
    }

    /// Writes a part's settings; where they change, a running part is stopped, so
    /// that its next start uses them.
    fn write_settings(&self, part: &str, settings: &toml::Table) -> Result<()> {
        let path = self.dir.join("etc").join(part).with_extension("toml");
        let text = format!("# Made by scripts/up; yours to change.\n{settings}");
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        self.process(part)?.map_or(Ok(()), |process| process.stop())
    }

    fn token_of(&self, part: &str) -> String {
        self.dir
            .join("etc")
            .join(format!("{part}.token"))
            .display()
            .to_string()
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o600),
    )?)
}

fn free_udp() -> Result<String> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn free_tcp() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// The end of a log, for messages.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
