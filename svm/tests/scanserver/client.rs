//! An agent that does as it is told, right or wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES, Outline, OutlineBuilder};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{
    ALPN, Fragment, FragmentRange, Hello, Lookup, MAX_OUTLINE_VALUES, Named, RefusalCode,
    ScanClass, ScanOptions, ScanRequest, ScanResult, ToAgent, ToSvm, VerdictSource, Welcome,
};
use palisade_protocol::tls::{self, Expect, Own};
use palisade_protocol::verdict::{Verdict, VerdictKind};
use quinn::{Connection, RecvStream, SendStream};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::site::{Daemon, PATIENCE};

pub struct Client {
    pub connection: Connection,
    pub welcome: Welcome,
    _endpoint: quinn::Endpoint,
}

/// What one scan came to, and what was sent for it.
#[derive(Debug)]
pub struct Scanned {
    pub answer: ToAgent,
    pub fragments_sent: usize,
}

impl Scanned {
    pub fn result(self) -> ScanResult {
        match self.answer {
            ToAgent::Verdict(result) => result,
            other => panic!("no verdict but {other:?}"),
        }
    }

    pub fn refusal(self) -> RefusalCode {
        match self.answer {
            ToAgent::Refused(refusal) => refusal.code,
            other => panic!("no refusal but {other:?}"),
        }
    }
}

/// Connects without saying hello.
pub async fn dial(
    address: SocketAddr,
    identity: &Identity,
) -> Result<(quinn::Endpoint, Connection), String> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let endpoint = endpoint::dialler(local).unwrap();
    let connection = dial_from(&endpoint, address, identity).await?;
    Ok((endpoint, connection))
}

/// The same, from a socket that others use too.
pub async fn dial_from(
    endpoint: &quinn::Endpoint,
    address: SocketAddr,
    identity: &Identity,
) -> Result<Connection, String> {
    let config = tls::client_config(
        Own::Enrolled(identity.clone()),
        identity.trust(),
        Expect::AnySvm,
        ALPN,
    )
    .unwrap();
    endpoint
        .connect_with(
            endpoint::client(config, Bounds::SCAN_AGENT).unwrap(),
            address,
            endpoint::SERVER_NAME,
        )
        .unwrap()
        .await
        .map_err(|error| error.to_string())
}

/// Carries one client's datagrams to the daemon and back, until it is cut.
pub struct Cable {
    pub address: SocketAddr,
    carrying: [tokio::task::JoinHandle<()>; 2],
}

impl Cable {
    pub async fn to(daemon: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        far.connect(daemon).await.unwrap();
        let address = near.local_addr().unwrap();
        let (client, known) = watch::channel(None);
        let there = tokio::spawn({
            let (near, far) = (Arc::clone(&near), Arc::clone(&far));
            async move {
                let mut datagram = [0; 65_535];
                while let Ok((bytes, from)) = near.recv_from(&mut datagram).await {
                    client.send_replace(Some(from));
                    let _ = far.send(&datagram[..bytes]).await;
                }
            }
        });
        let back = tokio::spawn(async move {
            let mut datagram = [0; 65_535];
            while let Ok(bytes) = far.recv(&mut datagram).await {
                let to = *known.borrow();
                if let Some(to) = to {
                    let _ = near.send_to(&datagram[..bytes], to).await;
                }
            }
        });
        Self {
            address,
            carrying: [there, back],
        }
    }

    /// Nothing goes either way from here on.
    pub fn cut(&self) {
        self.carrying
            .iter()
            .for_each(tokio::task::JoinHandle::abort);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Client {
    pub async fn connect(daemon: &Daemon, identity: &Identity) -> Self {
        Self::connect_as(daemon, identity, true).await
    }

    /// Connects as a command does, which takes no notices.
    pub async fn connect_deaf(daemon: &Daemon, identity: &Identity) -> Self {
        Self::connect_as(daemon, identity, false).await
    }

    /// Connects by another address than the daemon's own.
    pub async fn connect_at(address: SocketAddr, identity: &Identity) -> Self {
        Self::connect_by(address, identity, true).await
    }

    async fn connect_as(daemon: &Daemon, identity: &Identity, notices: bool) -> Self {
        Self::connect_by(daemon.address, identity, notices).await
    }

    async fn connect_by(address: SocketAddr, identity: &Identity, notices: bool) -> Self {
        let (endpoint, connection) = dial(address, identity).await.unwrap();
        let mut stream = Stream::open(&connection).await;
        stream
            .say(&ToSvm::Hello(Hello {
                version: Text::cut("test"),
                notices,
            }))
            .await;
        let ToAgent::Welcome(welcome) = stream.hear().await else {
            panic!("no welcome")
        };
        Self {
            connection,
            welcome,
            _endpoint: endpoint,
        }
    }

    pub async fn stream(&self) -> Stream {
        Stream::open(&self.connection).await
    }

    /// Begins a request as its agent should.
    pub async fn begin(&self, bytes: &[u8]) -> Stream {
        let outline = outline(bytes);
        let mut stream = self.stream().await;
        stream
            .say(&ToSvm::Scan(request(outline.id(), outline.size())))
            .await;
        stream.say_outline(&outline).await;
        stream
    }

    /// Asks for a verdict and sends what is asked for.
    pub async fn scan(&self, bytes: &[u8]) -> Scanned {
        self.begin(bytes).await.finish(bytes).await
    }

    /// The same, with other options.
    pub async fn scan_with(&self, bytes: &[u8], options: ScanOptions) -> Scanned {
        let outline = outline(bytes);
        let mut stream = self.stream().await;
        let mut asked = request(outline.id(), outline.size());
        asked.options = options;
        stream.say(&ToSvm::Scan(asked)).await;
        stream.say_outline(&outline).await;
        stream.finish(bytes).await
    }

    /// The same of a daemon that may end at any moment: then there is no answer.
    pub async fn ask(&self, bytes: &[u8]) -> Option<ToAgent> {
        let (send, receive) = self.connection.open_bi().await.ok()?;
        let mut stream = Stream { send, receive };
        let outline = outline(bytes);
        stream
            .say(&ToSvm::Scan(request(outline.id(), outline.size())))
            .await;
        stream.say_outline(&outline).await;
        loop {
            let heard = tokio::time::timeout(PATIENCE, frame::read(&mut stream.receive));
            match heard.await.expect("neither an answer nor an end").ok()?? {
                ToAgent::Need(ranges) => {
                    for index in indices(&ranges) {
                        stream.say(&fragment(bytes, index)).await;
                    }
                }
                answer => return Some(answer),
            }
        }
    }

    /// Which of these are known to be clean.
    pub async fn look_up(&self, contents: &[&[u8]]) -> Vec<bool> {
        let mut stream = self.stream().await;
        let lookup = Lookup {
            options: ScanOptions::default(),
            max_age_s: 0,
            contents: List::cut(contents.iter().map(|bytes| Named {
                content: ContentId::of(bytes),
                size: bytes.len() as u64,
            })),
        };
        stream.say(&ToSvm::Lookup(lookup)).await;
        match stream.hear().await {
            ToAgent::Known(known) => known.clean.into_vec(),
            other => panic!("no Known but {other:?}"),
        }
    }

    pub async fn verdict(&self, bytes: &[u8]) -> Verdict {
        self.scan(bytes).await.result().verdict
    }

    pub async fn kind(&self, bytes: &[u8]) -> VerdictKind {
        self.verdict(bytes).await.kind()
    }

    pub async fn source(&self, bytes: &[u8]) -> VerdictSource {
        self.scan(bytes).await.result().source
    }
}

pub struct Stream {
    pub send: SendStream,
    pub receive: RecvStream,
}

impl Stream {
    pub async fn open(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { send, receive }
    }

    /// Says it, unless the other side no longer listens: then it has answered.
    pub async fn say(&mut self, message: &ToSvm) {
        let _ = frame::write(&mut self.send, message).await;
    }

    pub async fn say_outline(&mut self, outline: &Outline) {
        for part in outline.chaining_values().chunks(MAX_OUTLINE_VALUES) {
            self.say(&ToSvm::Outline(List::cut(part.iter().copied())))
                .await;
        }
    }

    pub async fn hear(&mut self) -> ToAgent {
        let heard = tokio::time::timeout(PATIENCE, frame::read(&mut self.receive));
        heard
            .await
            .expect("no answer in time")
            .unwrap()
            .expect("the stream ended without an answer")
    }

    /// Hears something within a moment, or not.
    pub async fn hear_soon(&mut self, within: Duration) -> Option<ToAgent> {
        tokio::time::timeout(within, frame::read(&mut self.receive))
            .await
            .ok()?
            .unwrap()
    }

    pub async fn need(&mut self) -> Vec<FragmentRange> {
        match self.hear().await {
            ToAgent::Need(ranges) => ranges.into_vec(),
            other => panic!("no Need but {other:?}"),
        }
    }

    /// Sends what is asked for until there is an answer.
    pub async fn finish(mut self, bytes: &[u8]) -> Scanned {
        let mut fragments_sent = 0;
        loop {
            match self.hear().await {
                ToAgent::Need(ranges) => {
                    for index in indices(&ranges) {
                        self.say(&fragment(bytes, index)).await;
                        fragments_sent += 1;
                    }
                }
                answer => {
                    return Scanned {
                        answer,
                        fragments_sent,
                    };
                }
            }
        }
    }
}

pub fn indices(ranges: &[FragmentRange]) -> Vec<u32> {
    ranges
        .iter()
        .flat_map(|range| range.first..range.first + range.count)
        .collect()
}

pub fn request(content: ContentId, size: u64) -> ScanRequest {
    ScanRequest {
        content,
        size,
        class: ScanClass::OnAccess,
        deadline_ms: 0,
        options: ScanOptions::default(),
        max_age_s: 0,
    }
}

pub fn outline(bytes: &[u8]) -> Outline {
    let mut builder = OutlineBuilder::new();
    for part in bytes.chunks(FRAGMENT_BYTES as usize) {
        builder.push(part).unwrap();
    }
    builder.finish()
}

pub fn fragment(bytes: &[u8], index: u32) -> ToSvm {
    let start = index as usize * FRAGMENT_BYTES as usize;
    let end = bytes.len().min(start + FRAGMENT_BYTES as usize);
    ToSvm::Fragment(Fragment {
        index,
        bytes: bytes[start..end].to_vec(),
    })
}

/// Content of some size that no other run has.
pub fn unique(size: usize) -> Vec<u8> {
    let seed = crate::site::marker();
    seed.bytes().cycle().take(size.max(seed.len())).collect()
}
