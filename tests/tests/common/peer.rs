//! An agent's end of a scan session, which says what a test wants said.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::content::{FRAGMENT_BYTES, Outline, OutlineBuilder};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{
    self, Fragment, FragmentRange, Hello, Known, Lookup, Named, ScanClass, ScanOptions,
    ScanRequest, ToAgent, ToSvm,
};
use palisade_protocol::tls::{self, Expect, Own};
use quinn::{Connection, RecvStream, SendStream};

/// A wait that only a defect exhausts.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The identity in an agent's state folder.
pub fn identity(state: &Path) -> Identity {
    Membership::load(state).unwrap().unwrap().identity
}

/// A session; ended when dropped.
pub struct Peer {
    pub connection: Connection,
    _endpoint: quinn::Endpoint,
}

impl Peer {
    /// Connects and says hello.
    pub async fn connect(svm: SocketAddr, identity: &Identity) -> Self {
        let peer = Self::dial(svm, identity).await;
        let hello = ToSvm::Hello(Hello {
            version: Text::cut("test"),
            notices: true,
        });
        let mut stream = peer.open().await.expect("a new session takes a stream");
        stream.say(&hello).await;
        let welcome = stream.hear().await;
        assert!(matches!(welcome, Some(ToAgent::Welcome(_))), "{welcome:?}");
        peer
    }

    /// Connects and says nothing.
    pub async fn dial(svm: SocketAddr, identity: &Identity) -> Self {
        let config = tls::client_config(
            Own::Enrolled(identity.clone()),
            identity.trust(),
            Expect::AnySvm,
            scan::ALPN,
        )
        .unwrap();
        let endpoint = endpoint::dialler("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = endpoint::client(config, Bounds::SCAN_AGENT).unwrap();
        let connection = endpoint
            .connect_with(config, svm, endpoint::SERVER_NAME)
            .unwrap()
            .await
            .unwrap();
        Self {
            connection,
            _endpoint: endpoint,
        }
    }

    /// A new stream; none when the session is over.
    pub async fn open(&self) -> Option<Stream> {
        let opened = tokio::time::timeout(PATIENCE, self.connection.open_bi()).await;
        let (send, receive) = opened
            .expect("a session neither takes a stream nor ends")
            .ok()?;
        Some(Stream { send, receive })
    }

    /// Asks as an agent should, and sends what is asked for.
    pub async fn scan(&self, bytes: &[u8]) -> Option<ToAgent> {
        let mut stream = self.open().await?;
        stream.begin(bytes).await;
        loop {
            match stream.hear().await? {
                ToAgent::Need(ranges) => {
                    for index in indices(&ranges) {
                        stream.say(&fragment(bytes, index)).await;
                    }
                }
                answer => return Some(answer),
            }
        }
    }

    /// Asks for many at once.
    pub async fn look_up(&self, contents: &[&[u8]]) -> Option<Known> {
        let mut stream = self.open().await?;
        stream.say(&lookup(contents)).await;
        match stream.hear().await? {
            ToAgent::Known(known) => Some(known),
            other => panic!("no Known but {other:?}"),
        }
    }
}

pub struct Stream {
    pub send: SendStream,
    pub receive: RecvStream,
}

impl Stream {
    /// Says it, unless the other side no longer listens: then it has answered.
    pub async fn say(&mut self, message: &ToSvm) {
        let _ = frame::write(&mut self.send, message).await;
    }

    /// Says what begins a request.
    pub async fn begin(&mut self, bytes: &[u8]) {
        let outline = outline(bytes);
        self.say(&request(&outline)).await;
        for part in outline.chaining_values().chunks(scan::MAX_OUTLINE_VALUES) {
            self.say(&ToSvm::Outline(List::cut(part.iter().copied())))
                .await;
        }
    }

    /// The next message; none when the stream or the session is over.
    pub async fn hear(&mut self) -> Option<ToAgent> {
        let heard = tokio::time::timeout(PATIENCE, frame::read(&mut self.receive)).await;
        heard.expect("neither answered nor ended").ok()?
    }
}

pub fn outline(bytes: &[u8]) -> Outline {
    let mut builder = OutlineBuilder::new();
    for part in bytes.chunks(FRAGMENT_BYTES as usize) {
        builder.push(part).unwrap();
    }
    builder.finish()
}

pub fn request(outline: &Outline) -> ToSvm {
    ToSvm::Scan(ScanRequest {
        content: outline.id(),
        size: outline.size(),
        class: ScanClass::OnDemand,
        deadline_ms: 0,
        options: ScanOptions::default(),
        max_age_s: 0,
    })
}

pub fn lookup(contents: &[&[u8]]) -> ToSvm {
    ToSvm::Lookup(Lookup {
        options: ScanOptions::default(),
        max_age_s: 0,
        contents: List::cut(contents.iter().map(|bytes| Named {
            content: outline(bytes).id(),
            size: bytes.len() as u64,
        })),
    })
}

pub fn fragment(bytes: &[u8], index: u32) -> ToSvm {
    let start = index as usize * FRAGMENT_BYTES as usize;
    let end = bytes.len().min(start + FRAGMENT_BYTES as usize);
    ToSvm::Fragment(Fragment {
        index,
        bytes: bytes[start..end].to_vec(),
    })
}

pub fn indices(ranges: &[FragmentRange]) -> Vec<u32> {
    ranges
        .iter()
        .flat_map(|range| range.first..range.first + range.count)
        .collect()
}
