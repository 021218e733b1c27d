//! What the machine could do at best: named beside the figures, so that it is seen
//! how much of a time is ours to lose.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use palisade_light_agent::content::{Content, hash};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use serde::Serialize;
use std::sync::Arc;
use tokio::runtime::Runtime;

use crate::corpus::Corpus;
use crate::stats::{Summary, percentile};

/// Bytes that are hashed and copied.
const BLOCK: usize = 64 << 20;
/// Bytes that are sent.
const SENT: u64 = 256 << 20;
/// Repetitions.
const REPEATS: usize = 5;
/// Times that a file is opened.
const OPENS: usize = 5_000;
/// Bytes of that file.
const OPENED_BYTES: usize = 100 << 10;
/// Times that another thread is woken.
const WAKES: usize = 5_000;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// BLAKE3 on one core, bytes a second.
    pub blake3: Summary,
    /// A copy in memory, bytes a second.
    pub copy: Summary,
    /// quinn on loopback, TLS included, bytes a second.
    pub quinn: Summary,
    /// Reading and hashing the corpus' files on one core, in seconds.
    pub hash_corpus: Summary,
    /// An open and close that nobody watches: median, in microseconds.
    pub open_p50: f64,
    /// The same: of a hundred, all but one are quicker.
    pub open_p99: f64,
    /// A thread on another core is woken, and wakes this one: median, in microseconds.
    pub wake_p50: f64,
    /// The same: of a hundred, all but one are quicker.
    pub wake_p99: f64,
}

impl Limits {
    /// Measures them.
    ///
    /// # Errors
    /// When loopback or files cannot be used.
    pub fn measure(corpus: &Corpus, runtime: &Runtime) -> Result<Self> {
        let block = vec![0x5a_u8; BLOCK];
        let mut target = vec![0_u8; BLOCK];
        let rate = |took: Duration, bytes: usize| bytes as f64 / took.as_secs_f64();
        let blake3 = repeat(|| {
            let took = timed(|| {
                black_box(blake3::hash(black_box(&block)));
            });
            Ok(rate(took, BLOCK))
        })?;
        let copy = repeat(|| {
            let took = timed(|| black_box(&mut target).copy_from_slice(black_box(&block)));
            Ok(rate(took, BLOCK))
        })?;
        let quinn = repeat(|| runtime.block_on(bulk()))?;
        let hash_corpus = repeat(|| {
            let started = Instant::now();
            for path in &corpus.files {
                let file = File::open(path).with_context(|| path.display().to_string())?;
                hash(&Content::File(Arc::new(file)), u64::MAX)
                    .map_err(|reason| anyhow::anyhow!("{}: {reason}", path.display()))?;
            }
            Ok(started.elapsed().as_secs_f64())
        })?;
        let (opens, wakes) = (opens()?, wakes()?);
        Ok(Self {
            blake3,
            copy,
            quinn,
            hash_corpus,
            open_p50: percentile(&opens, 500).unwrap_or_default(),
            open_p99: percentile(&opens, 990).unwrap_or_default(),
            wake_p50: percentile(&wakes, 500).unwrap_or_default(),
            wake_p99: percentile(&wakes, 990).unwrap_or_default(),
        })
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Once to warm up, then for the summary.
fn repeat(mut once: impl FnMut() -> Result<f64>) -> Result<Summary> {
    once()?;
    let samples: Vec<f64> = (0..REPEATS).map(|_| once()).collect::<Result<_>>()?;
    Summary::of(&samples).context("no samples")
}

/// Sends many bytes over one stream of a session on loopback, with quinn's own bounds.
async fn bulk() -> Result<f64> {
    let (server, client) = endpoints()?;
    let address = server.local_addr()?;
    let receiving = tokio::spawn(async move {
        let connection = server
            .accept()
            .await
            .context("the endpoint is closed")?
            .await?;
        let mut receive = connection.accept_uni().await?;
        let mut total = 0;
        while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
            total += chunk.bytes.len() as u64;
        }
        Ok::<u64, anyhow::Error>(total)
    });
    let connection = client
        .connect(address, palisade_protocol::endpoint::SERVER_NAME)?
        .await?;
    let mut send = connection.open_uni().await?;
    let part = vec![0x5a; 256 << 10];
    let started = Instant::now();
    let mut left = SENT;
    while left > 0 {
        let length = left.min(part.len() as u64);
        send.write_all(&part[..usize::try_from(length)?]).await?;
        left -= length;
    }
    send.finish()?;
    let total = receiving.await??;
    Ok(total as f64 / started.elapsed().as_secs_f64())
}

fn endpoints() -> Result<(Endpoint, Endpoint)> {
    let name = palisade_protocol::endpoint::SERVER_NAME;
    let own = rcgen::generate_simple_self_signed([name.to_owned()])?;
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let certificate = own.cert.der().clone();
    let local = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Endpoint::server(
        ServerConfig::with_single_cert(vec![certificate.clone()], key)?,
        local,
    )?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let mut client = Endpoint::client(local)?;
    client.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots))?);
    Ok((server, client))
}

/// Opens and closes a file that nobody watches; each in microseconds.
fn opens() -> Result<Vec<f64>> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&vec![0x5a; OPENED_BYTES])?;
    let mut samples = Vec::with_capacity(OPENS);
    for _ in 0..OPENS {
        let started = Instant::now();
        drop(File::open(file.path())?);
        samples.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(samples)
}

/// A byte to a thread on another core and back, by pipes; each in microseconds.
/// Whoever answers an open in another process is woken, and wakes the opener.
fn wakes() -> Result<Vec<f64>> {
    let (mut asked, mut ask) = std::io::pipe()?;
    let (mut answered, mut answer) = std::io::pipe()?;
    let other = std::thread::spawn(move || {
        keep_to_core(0)?;
        let mut byte = [0];
        while asked.read_exact(&mut byte).is_ok() && answer.write_all(&byte).is_ok() {}
        Ok(())
    });
    let this = std::thread::spawn(move || {
        keep_to_core(1)?;
        let mut samples = Vec::with_capacity(WAKES);
        let mut byte = [0];
        for _ in 0..WAKES {
            let started = Instant::now();
            ask.write_all(&byte)?;
            answered.read_exact(&mut byte)?;
            samples.push(started.elapsed().as_secs_f64() * 1e6);
        }
        Ok(samples)
    });
    let ended = |_| anyhow::anyhow!("a thread panicked");
    let samples = this.join().map_err(ended)?;
    other.join().map_err(ended).flatten()?;
    samples
}

/// Keeps this thread to one of the cores that it may use.
fn keep_to_core(number: usize) -> Result<()> {
    let this = nix::unistd::Pid::from_raw(0);
    let usable = sched_getaffinity(this)?;
    let cores: Vec<usize> = (0..CpuSet::count())
        .filter(|core| usable.is_set(*core).unwrap_or(false))
        .collect();
    let core = cores.get(number % cores.len().max(1));
    let mut only = CpuSet::new();
    only.set(*core.context("no core")?)?;
    Ok(sched_setaffinity(this, &only)?)
}
