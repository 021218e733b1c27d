//! A Protection Server of a few lines: verifies contents, knows one marker and
//! EICAR, and misbehaves when told to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES, Outline, fragment_count, has_outline};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::SvmId;
use palisade_protocol::scan::{
    self, FragmentRange, Known, LoadHint, Named, Refusal, RefusalCode, ScanRequest, ScanResult,
    ToAgent, ToSvm, VerdictSource, Welcome,
};
use palisade_protocol::tls::{self, Accept};
use palisade_protocol::verdict::{EngineGeneration, Generation, Generations, NotScanned, Verdict};
use tokio::sync::oneshot;

use super::{MARKER, MARKER_NAME};

/// Contents above this many bytes are counted and not kept: they are clean.
const KEPT: u64 = 64 << 20;

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    Serve,
    /// Takes requests and says nothing.
    Hang,
    /// Waits this long before each verdict.
    Slow(Duration),
    /// Takes this long for each fragment.
    Trickle(Duration),
    /// Says that it is busy this many times.
    Busy(u32),
    /// Says this many times that the content does not fit.
    Mismatch(u32),
    /// Gives this verdict for everything.
    Encrypted,
    /// Calls everything clean by earlier definitions, if the request allows any age, and
    /// asks for a re-check.
    Older,
    /// Ends the session with each request.
    Cut,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub requests: u32,
    pub lookups: u32,
    pub content_bytes: u64,
    pub known: HashMap<ContentId, Verdict>,
}

struct Shared {
    mode: Mutex<Mode>,
    counts: Mutex<Counts>,
    max_scan_bytes: u64,
    definitions: Mutex<Definitions>,
}

/// Which definitions it has.
#[derive(Debug, Clone, Copy)]
struct Definitions {
    generation: u64,
    /// Whether the marker is malware by them.
    know_marker: bool,
}

pub struct Svm {
    pub id: SvmId,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    identity: Identity,
    running: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Svm {
    pub fn start(site: &super::site::Site) -> Self {
        Self::with_max(site, 64 * 1024 * 1024)
    }

    pub fn with_max(site: &super::site::Site, max_scan_bytes: u64) -> Self {
        let id = SvmId::random();
        let shared = Shared {
            mode: Mutex::new(Mode::Serve),
            counts: Mutex::default(),
            max_scan_bytes,
            definitions: Mutex::new(Definitions {
                generation: 1,
                know_marker: true,
            }),
        };
        let mut svm = Self {
            id,
            address: "127.0.0.1:0".parse().unwrap(),
            shared: Arc::new(shared),
            identity: site.svm(id),
            running: None,
        };
        svm.resume();
        svm
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
    }

    /// Gets other definitions; connected agents are not told.
    pub fn definitions(&self, generation: u64, know_marker: bool) {
        *self.shared.definitions.lock().unwrap() = Definitions {
            generation,
            know_marker,
        };
        self.shared.counts.lock().unwrap().known.clear();
    }

    pub fn requests(&self) -> u32 {
        self.shared.counts.lock().unwrap().requests
    }

    /// Whether it scanned this content.
    pub fn knows(&self, content: &ContentId) -> bool {
        let counts = self.shared.counts.lock().unwrap();
        counts.known.contains_key(content)
    }

    pub fn content_bytes(&self) -> u64 {
        self.shared.counts.lock().unwrap().content_bytes
    }

    /// Ends it as a killed process does: without a word. What it knew stays.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    /// Starts it again at the same address.
    pub fn resume(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let (started, address) = std::sync::mpsc::channel();
        let (shared, identity, at) = (
            Arc::clone(&self.shared),
            self.identity.clone(),
            self.address,
        );
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let accept = Accept {
                    agents: true,
                    svms: false,
                    unenrolled: false,
                };
                let tls =
                    tls::server_config(&identity, identity.trust(), accept, scan::ALPN).unwrap();
                let endpoint = endpoint::listen(at, tls, Bounds::SCAN_SERVER).unwrap();
                started.send(endpoint.local_addr().unwrap()).unwrap();
                tokio::select! {
                    _ = stopped => {}
                    () = accept_all(&endpoint, &shared) => {}
                }
                // Dropping the runtime sends no close, as a kill does not.
            });
        });
        self.address = address.recv().unwrap();
        self.running = Some((stop, thread));
    }
}

impl Drop for Svm {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept_all(endpoint: &quinn::Endpoint, shared: &Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((send, receive)) = connection.accept_bi().await {
                let (shared, connection) = (Arc::clone(&shared), connection.clone());
                tokio::spawn(async move {
                    // A cancelled stream or a lost session is the agent's business.
                    let _ = stream(&shared, &connection, send, receive).await;
                });
            }
        });
    }
}

fn generations(shared: &Shared) -> Generations {
    List::cut([EngineGeneration {
        engine: Text::cut("test"),
        generation: Generation(shared.definitions.lock().unwrap().generation),
        fingerprint: [1; 16],
    }])
}

type Any = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn stream(
    shared: &Shared,
    connection: &quinn::Connection,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Any {
    match frame::read::<ToSvm>(&mut receive).await? {
        Some(ToSvm::Hello(_)) => {
            let welcome = Welcome {
                version: Text::cut("test"),
                max_scan_bytes: shared.max_scan_bytes,
                max_requests: 32,
                generations: generations(shared),
                load: LoadHint::default(),
            };
            frame::write(&mut send, &ToAgent::Welcome(welcome)).await?;
        }
        Some(ToSvm::Lookup(lookup)) => {
            let known = {
                let mut counts = shared.counts.lock().unwrap();
                counts.lookups += 1;
                let clean =
                    |named: &Named| counts.known.get(&named.content) == Some(&Verdict::Clean);
                Known {
                    clean: List::cut(lookup.contents.iter().map(clean)),
                    generations: generations(shared),
                    load: LoadHint::default(),
                }
            };
            frame::write(&mut send, &ToAgent::Known(known)).await?;
        }
        Some(ToSvm::Scan(request)) => {
            shared.counts.lock().unwrap().requests += 1;
            let answer = answer(shared, connection, &request, &mut send, &mut receive).await?;
            frame::write(&mut send, &answer).await?;
        }
        _ => return Ok(()),
    }
    send.finish()?;
    let _ = send.stopped().await;
    Ok(())
}

async fn answer(
    shared: &Shared,
    connection: &quinn::Connection,
    request: &ScanRequest,
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
) -> Result<ToAgent, Box<dyn std::error::Error + Send + Sync>> {
    let mode = {
        let mut mode = shared.mode.lock().unwrap();
        let now = *mode;
        *mode = match now {
            Mode::Busy(1) | Mode::Mismatch(1) => Mode::Serve,
            Mode::Busy(n) => Mode::Busy(n - 1),
            Mode::Mismatch(n) => Mode::Mismatch(n - 1),
            other => other,
        };
        now
    };
    match mode {
        Mode::Serve | Mode::Trickle(_) => {}
        Mode::Hang => std::future::pending().await,
        Mode::Slow(wait) => tokio::time::sleep(wait).await,
        Mode::Busy(_) => return Ok(ToAgent::Busy { retry_after_ms: 20 }),
        Mode::Mismatch(_) => return Ok(mismatch()),
        Mode::Encrypted => {
            return Ok(verdict(
                shared,
                Verdict::NotScanned(NotScanned::Encrypted),
                VerdictSource::Scanned,
            ));
        }
        Mode::Older if request.max_age_s > 0 => {
            let ToAgent::Verdict(mut result) =
                verdict(shared, Verdict::Clean, VerdictSource::SharedCache)
            else {
                unreachable!("a verdict is a verdict");
            };
            (result.older, result.recheck) = (true, true);
            return Ok(ToAgent::Verdict(result));
        }
        Mode::Older => {}
        Mode::Cut => {
            connection.close(1_u32.into(), b"cut");
            return Ok(mismatch());
        }
    }
    let known = shared
        .counts
        .lock()
        .unwrap()
        .known
        .get(&request.content)
        .cloned();
    if let Some(known) = known {
        return Ok(verdict(shared, known, VerdictSource::SharedCache));
    }
    let count = fragment_count(request.size)?;
    let mut values = Vec::new();
    while has_outline(request.size) && values.len() < count {
        match frame::read::<ToSvm>(receive).await? {
            Some(ToSvm::Outline(more)) => values.extend(more.iter().copied()),
            other => panic!("an outline was expected: {other:?}"),
        }
    }
    let outline = Outline::verify(request.content, request.size, values).expect("a true outline");
    if count > 0 {
        let all = FragmentRange {
            first: 0,
            count: u32::try_from(count)?,
        };
        frame::write(send, &ToAgent::Need(List::cut([all]))).await?;
    }
    let mut content = Vec::new();
    for index in 0..count {
        let Some(ToSvm::Fragment(fragment)) = frame::read::<ToSvm>(receive).await? else {
            return Err("no fragment came".into());
        };
        assert_eq!(fragment.index as usize, index);
        assert!(fragment.bytes.len() as u64 <= FRAGMENT_BYTES);
        if outline
            .verify_fragment(fragment.index, &fragment.bytes)
            .is_err()
        {
            return Ok(mismatch());
        }
        if let Mode::Trickle(wait) = mode {
            tokio::time::sleep(wait).await;
        }
        shared.counts.lock().unwrap().content_bytes += fragment.bytes.len() as u64;
        if request.size <= KEPT {
            content.extend(fragment.bytes);
        }
    }
    let know_marker = shared.definitions.lock().unwrap().know_marker;
    // A large one takes its time, in which the session must answer.
    let found = tokio::task::spawn_blocking(move || judge(&content, know_marker)).await?;
    shared
        .counts
        .lock()
        .unwrap()
        .known
        .insert(request.content, found.clone());
    Ok(verdict(shared, found, VerdictSource::Scanned))
}

fn judge(content: &[u8], know_marker: bool) -> Verdict {
    let holds = |what: &[u8]| content.windows(what.len()).any(|window| window == what);
    let malware = |name: &str| Verdict::Malware {
        name: Text::cut(name),
        engine: Text::cut("test"),
    };
    if know_marker && holds(MARKER) {
        malware(MARKER_NAME)
    } else if holds(&palisade_light_agent::selftest::eicar()) {
        malware("Eicar-Test-Signature")
    } else {
        Verdict::Clean
    }
}

fn verdict(shared: &Shared, verdict: Verdict, source: VerdictSource) -> ToAgent {
    ToAgent::Verdict(ScanResult {
        verdict,
        details: Default::default(),
        source,
        engines: Default::default(),
        sha256: Some([0x5a; 32]),
        generations: generations(shared),
        older: false,
        recheck: false,
        load: LoadHint::default(),
    })
}

fn mismatch() -> ToAgent {
    ToAgent::Refused(Refusal {
        code: RefusalCode::ContentMismatch,
        message: Text::cut("the bytes do not fit"),
    })
}
