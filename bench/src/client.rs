//! Connected agents within this process: they ask for verdicts by content id, and
//! hold no files. What is measured with them is the Protection Server.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use palisade_protocol::bounded::Text;
use palisade_protocol::content::ContentId;
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{
    self, Hello, ScanClass, ScanOptions, ScanRequest, ScanResult, ToAgent, ToSvm,
};
use palisade_protocol::tls::{self, Expect, Own};
use quinn::{Connection, Endpoint};

/// A session with the Protection Server.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects and greets.
    ///
    /// # Errors
    /// When the Protection Server does not take it.
    pub async fn connect(
        endpoint: &Endpoint,
        address: SocketAddr,
        identity: &Identity,
    ) -> Result<Self> {
        let own = Own::Enrolled(identity.clone());
        let config = tls::client_config(own, identity.trust(), Expect::AnySvm, scan::ALPN)?;
        let config = endpoint::client(config, Bounds::SCAN_AGENT)?;
        let connection = endpoint
            .connect_with(config, address, endpoint::SERVER_NAME)?
            .await?;
        let client = Self { connection };
        let hello = Hello {
            version: Text::cut("bench"),
            notices: false,
        };
        match client.exchange(&ToSvm::Hello(hello)).await? {
            ToAgent::Welcome(_) => Ok(client),
            other => bail!("a Welcome is expected, not {other:?}"),
        }
    }

    /// Asks for a verdict of a content that is known.
    ///
    /// # Errors
    /// When another answer comes than a verdict.
    pub async fn ask(&self, content: ContentId, size: u64) -> Result<ScanResult> {
        match self.exchange(&request(content, size)).await? {
            ToAgent::Verdict(result) => Ok(result),
            other => bail!("a verdict is expected, not {other:?}"),
        }
    }

    /// Asks for a verdict of a content that is not known, and sends nothing of it.
    ///
    /// # Errors
    /// When another answer comes than that content is needed.
    pub async fn is_asked_for(&self, content: ContentId, size: u64) -> Result<()> {
        let (mut send, mut receive) = self.connection.open_bi().await?;
        frame::write(&mut send, &request(content, size)).await?;
        let answer = frame::read::<ToAgent>(&mut receive).await?;
        // The request is given up.
        send.reset(0_u32.into())?;
        receive.stop(0_u32.into())?;
        ensure!(
            matches!(answer, Some(ToAgent::Need(_))),
            "content is expected to be asked for: {answer:?}"
        );
        Ok(())
    }

    async fn exchange(&self, message: &ToSvm) -> Result<ToAgent> {
        let (mut send, mut receive) = self.connection.open_bi().await?;
        frame::write(&mut send, message).await?;
        send.finish()?;
        let answer = frame::read::<ToAgent>(&mut receive).await?;
        frame::take_end(&mut receive).await;
        answer.context("the stream ended without an answer")
    }
}

fn request(content: ContentId, size: u64) -> ToSvm {
    ToSvm::Scan(ScanRequest {
        content,
        size,
        class: ScanClass::OnAccess,
        deadline_ms: 0,
        options: ScanOptions::default(),
        max_age_s: 0,
    })
}

/// An endpoint for such sessions.
///
/// # Errors
/// When no port can be had.
pub fn dialler(server: SocketAddr) -> Result<Endpoint> {
    Ok(endpoint::dialler(palisade_daemon::control::any_address(
        server,
    ))?)
}
