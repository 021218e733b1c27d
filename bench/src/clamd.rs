//! The peer: a clamd of our own, with the same signatures, options, limits and
//! number of threads; and clamdscan as its client.
//!
//! It listens on a socket in the bench's folder and on a free loopback port, and
//! ends with the bench; Debian's own service is neither used nor started.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use palisade_tests::command::{self, wait_for};
use palisade_tests::process::Process;

use crate::pass::{self, Pass};

/// How long it may take to load its signatures, and to load them again.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a scan may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(900);
/// How long it may take to answer anything else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a stream's part.
const CHUNK: usize = 256 * 1024;
/// Where Debian's packages put it.
const PROGRAM: &str = "/usr/sbin/clamd";

/// How clamdscan gives clamd the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By descriptor, on the same machine only.
    Descriptor,
    /// By their bytes, as a guest has to.
    Stream,
}

impl Way {
    /// The command that a report names.
    pub fn command(self) -> &'static str {
        match self {
            Self::Descriptor => "clamdscan --fdpass -m",
            Self::Stream => "clamdscan --stream -m",
        }
    }
}

/// A running clamd.
#[derive(Debug)]
pub struct Clamd {
    folder: PathBuf,
    process: Process,
    /// The loopback port of [`Self::configuration_by_network`].
    pub port: u16,
}

impl Clamd {
    /// Starts it with the databases in `definitions`, `threads` scans at a time, and
    /// contents of up to `max_bytes`; waits until it answers.
    ///
    /// # Errors
    /// When it does not come to answer; its log is named.
    pub fn start(
        folder: &Path,
        definitions: &Path,
        threads: usize,
        max_bytes: u64,
    ) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "clamd is not installed; scripts/bench installs it (clamav-daemon, clamdscan)"
        );
        fs::create_dir_all(folder)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // What is not named here is alike by default: both have libclamav's defaults.
        let common = format!(
            "StreamMaxLength {max_bytes}\nMaxFileSize {max_bytes}\nMaxScanSize {max_bytes}\n\
             MaxThreads {threads}\nMaxQueue 200\nAlertExceedsMax yes\nAlertEncrypted yes\n\
             MaxScanTime 108000\nForeground yes\nLogClean yes\nSelfCheck 86400\nDatabaseDirectory {}\n\
             LogFile {}\nTemporaryDirectory {}\n",
            definitions.display(),
            folder.join("clamd.log").display(),
            folder.display(),
        );
        let network = format!("TCPSocket {port}\nTCPAddr 127.0.0.1\n");
        let socket = format!("LocalSocket {}\n", folder.join("clamd.sock").display());
        fs::write(
            folder.join("clamd.conf"),
            format!("{common}{socket}{network}"),
        )?;
        fs::write(folder.join("local.conf"), format!("{common}{socket}"))?;
        fs::write(folder.join("network.conf"), format!("{common}{network}"))?;
        let process = launch(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            process,
            port,
        })
    }

    /// Ends it and starts it anew: its cache is empty then.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.process = launch(&self.folder)?;
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// The local configuration, for clamonacc.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("local.conf")
    }

    /// The configuration of a client that reaches it by the network.
    pub fn configuration_by_network(&self) -> PathBuf {
        self.folder.join("network.conf")
    }

    /// Its version.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn version(&self) -> Result<String> {
        self.ask("VERSION")
    }

    /// Scans all files below a folder with clamdscan.
    ///
    /// # Errors
    /// When clamdscan cannot be run or fails.
    pub fn scan(&self, way: Way, path: &Path) -> Result<Pass> {
        let how = match way {
            Way::Descriptor => "--fdpass",
            Way::Stream => "--stream",
        };
        self.clamdscan(&self.configuration(), &[how, "-m"], path)
    }

    /// Scans all files below a folder by the network.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn scan_by_network(&self, path: &Path) -> Result<Pass> {
        self.clamdscan(&self.configuration_by_network(), &["--stream", "-m"], path)
    }

    fn clamdscan(&self, configuration: &Path, options: &[&str], path: &Path) -> Result<Pass> {
        // With -m clamdscan is silent about clean files; clamd's log names them.
        let logged = self.log()?.len();
        let mut pass = pass::measure(self.pid(), || {
            let mut command = Command::new("clamdscan");
            command
                .arg("--config-file")
                .arg(configuration)
                .arg("--no-summary")
                .args(options)
                .arg(path);
            // 1: something was found; 2: some files could not be scanned.
            let finished = command::finish(command, SCAN_TIMEOUT)?.expect(&[0, 1, 2])?;
            Ok(Pass::of_clamdscan(&String::from_utf8_lossy(
                &finished.stdout,
            )))
        })?;
        let log = self.log()?;
        let clean = log
            .get(logged..)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.ends_with(": OK"));
        pass.files = pass.findings.len() as u64 + clean.count() as u64;
        Ok(pass)
    }

    fn log(&self) -> Result<String> {
        let path = self.folder.join("clamd.log");
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Has it scan bytes by stream, as a guest without a copy of it would.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn scan_bytes(&self, bytes: &[u8]) -> Result<String> {
        let mut stream = self.connect()?;
        stream.write_all(b"zINSTREAM\0")?;
        for part in bytes.chunks(CHUNK) {
            stream.write_all(&u32::try_from(part.len())?.to_be_bytes())?;
            stream.write_all(part)?;
        }
        stream.write_all(&0_u32.to_be_bytes())?;
        answer(stream)
    }

    /// Has it load its signatures anew, as freshclam does; returns when it has.
    ///
    /// # Errors
    /// When it does not, in time.
    pub fn reload(&self) -> Result<()> {
        let reloads =
            || -> Result<usize> { Ok(self.log()?.matches("Database correctly reloaded").count()) };
        let before = reloads()?;
        self.ask("RELOAD")?;
        wait_for("clamd's reload", START_TIMEOUT, || {
            ensure!(reloads()? > before, "its log does not say so");
            Ok(())
        })
    }

    fn connect(&self) -> Result<UnixStream> {
        connect(&self.folder)
    }

    fn ask(&self, what: &str) -> Result<String> {
        ask(&self.folder, what)
    }
}

impl Drop for Clamd {
    fn drop(&mut self) {
        if let Err(error) = self.process.stop() {
            eprintln!("palisade-bench: clamd is still running: {error:#}");
        }
    }
}

fn launch(folder: &Path) -> Result<Process> {
    let mut command = Command::new(PROGRAM);
    command.arg("--config-file").arg(folder.join("clamd.conf"));
    let log = folder.join("output.log");
    let process = Process::start("clamd", &command, folder, &log)?;
    let answered = wait_for("clamd", START_TIMEOUT, || {
        if !process.is_running() {
            return Ok(None);
        }
        ask(folder, "PING").map(Some)
    });
    match answered {
        Ok(Some(_)) => Ok(process),
        Ok(None) => {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("clamd ended: {}", said.trim())
        }
        Err(error) => {
            process.stop()?;
            Err(error)
        }
    }
}

fn connect(folder: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(folder.join("clamd.sock"))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn ask(folder: &Path, what: &str) -> Result<String> {
    let mut stream = connect(folder)?;
    stream.write_all(format!("z{what}\0").as_bytes())?;
    answer(stream)
}

fn answer(mut stream: UnixStream) -> Result<String> {
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said.trim_end_matches('\0').to_owned())
}
