//! Control sessions below the client: envelopes that no client would send.

use palisade_daemon::membership::Membership;
use palisade_protocol::control::{self, Component, ControlFrame, DeniedCode, FromServer, ToServer};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::envelope::{Opener, Sealer};
use palisade_protocol::frame;
use palisade_protocol::tls::{self, Expect, Own, Peer};

use crate::site::{Site, host};
use crate::talk::{PATIENCE, blocking, hello};

/// The connection below the client's session, to send what no client would.
pub struct Raw {
    pub send: quinn::SendStream,
    receive: quinn::RecvStream,
    pub sealer: Sealer,
    opener: Opener,
    pub connection: quinn::Connection,
}

impl Raw {
    pub async fn connect(member: &Membership) -> Self {
        let identity = &member.identity;
        let config = tls::client_config(
            Own::Enrolled(identity.clone()),
            identity.trust(),
            Expect::Server,
            control::ALPN,
        )
        .unwrap();
        let connection = endpoint::dialler(([127, 0, 0, 1], 0).into())
            .unwrap()
            .connect_with(
                endpoint::client(config, Bounds::CONTROL).unwrap(),
                member.servers[0],
                endpoint::SERVER_NAME,
            )
            .unwrap()
            .await
            .unwrap();
        let Ok(Peer::Enrolled(server)) = endpoint::peer(&connection) else {
            panic!()
        };
        let (send, receive) = connection.open_bi().await.unwrap();
        let sealer = Sealer::new(identity.clone(), server.clone(), 0).unwrap();
        let opener = Opener::new(identity.trust(), server, identity.id().clone(), 0);
        Self {
            send,
            receive,
            sealer,
            opener,
            connection,
        }
    }

    pub fn seal(&mut self, message: &ToServer) -> ControlFrame {
        let now_ms = palisade_integration_server::time::now_ms();
        ControlFrame::Envelope(self.sealer.seal(message, None, now_ms).unwrap().0)
    }

    pub async fn send(&mut self, frame: &ControlFrame) {
        frame::write(&mut self.send, frame).await.unwrap();
    }

    pub async fn greet(&mut self) {
        let frame = self.seal(&ToServer::Hello(hello(None)));
        self.send(&frame).await;
        let Some(FromServer::Welcome(welcome)) = self.answer().await else {
            panic!()
        };
        self.sealer.set_epoch(welcome.epoch);
    }

    /// The next answer; none for a refusal of the whole session.
    pub async fn answer(&mut self) -> Option<FromServer> {
        match frame::read(&mut self.receive).await.unwrap().unwrap() {
            ControlFrame::Envelope(envelope) => {
                let now_ms = palisade_integration_server::time::now_ms();
                Some(
                    self.opener
                        .open::<FromServer>(&envelope, now_ms)
                        .unwrap()
                        .message,
                )
            }
            ControlFrame::Denied(denied) => {
                assert_eq!(denied.code, DeniedCode::BadEnvelope);
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// The session was refused, and is over.
    pub async fn refused(mut self) {
        assert_eq!(self.answer().await, None);
        tokio::time::timeout(PATIENCE, self.connection.closed())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn replayed_forged_and_disordered_envelopes_end_the_session() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let other = site.join(Component::Agent, host("other", None)).await;

    let mut replay = Raw::connect(&member).await;
    replay.greet().await;
    let once = replay.seal(&blocking(None));
    replay.send(&once).await;
    assert_eq!(replay.answer().await, Some(FromServer::Ack));
    replay.send(&once).await;
    replay.refused().await;

    // The same envelope in a later session of the same component.
    let mut later = Raw::connect(&member).await;
    later.greet().await;
    later.send(&once).await;
    later.refused().await;

    // Another component's envelope, well signed.
    let mut borrowed = Raw::connect(&member).await;
    borrowed.greet().await;
    let mut theirs = Raw::connect(&other).await;
    theirs.greet().await;
    let frame = theirs.seal(&blocking(None));
    borrowed.send(&frame).await;
    borrowed.refused().await;

    let mut altered = Raw::connect(&member).await;
    altered.greet().await;
    let ControlFrame::Envelope(mut envelope) = altered.seal(&blocking(None)) else {
        panic!()
    };
    let last = envelope.body.len() - 1;
    envelope.body[last] ^= 1;
    altered.send(&ControlFrame::Envelope(envelope)).await;
    altered.refused().await;

    let mut hasty = Raw::connect(&member).await;
    let frame = hasty.seal(&blocking(None));
    hasty.send(&frame).await;
    hasty.refused().await;

    let mut twice = Raw::connect(&member).await;
    twice.greet().await;
    let frame = twice.seal(&ToServer::Hello(hello(None)));
    twice.send(&frame).await;
    twice.refused().await;

    // A frame that announces more than any message may have.
    let mut huge = Raw::connect(&member).await;
    huge.greet().await;
    huge.send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    huge.refused().await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_cut() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let mut deaf = Raw::connect(&member).await;
    deaf.greet().await;
    let end = loop {
        let frame = deaf.seal(&ToServer::GetSvmList { etag: 0 });
        tokio::select! {
            end = deaf.connection.closed() => break end,
            // It asks on while it may, and reads nothing.
            sent = frame::write(&mut deaf.send, &frame) => drop(sent),
        }
        tokio::task::yield_now().await;
    };
    let quinn::ConnectionError::ApplicationClosed(close) = end else {
        panic!("{end:?}")
    };
    assert_eq!(close.reason.as_ref(), b"too slow");
}
