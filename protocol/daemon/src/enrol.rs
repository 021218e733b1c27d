//! Getting an identity with a join token.
//!
//! The component makes its own key; the server is authenticated by the root's
//! hash in the token before the token's secret is sent; what comes back is
//! checked against that root and that key before it is kept.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use palisade_protocol::bounded::List;
use palisade_protocol::control::{
    self, Component, ControlFrame, DeniedCode, EnrolRequest, Enrolled, HostFacts,
};
use palisade_protocol::endpoint::{self, Bounds, EndpointError};
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::identity::{self, Identity, IdentityError};
use palisade_protocol::tls::{self, Expect, Own};
use palisade_protocol::token::{BadToken, JoinToken, MAX_TEXT_BYTES};
use palisade_protocol::trust::{Anchor, ExpiryGrace, Trust, sha256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::membership::Membership;

/// How long one server may take over an enrolment.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no join token. The token itself is never shown: it is a secret.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the join token in {from}: {source}", from = from.display())]
    Read {
        /// Where from.
        from: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none.
    #[error("{from}: {source}", from = from.display())]
    InFile {
        /// The file.
        from: PathBuf,
        /// What is wrong.
        source: BadToken,
    },
    /// It is none.
    #[error(transparent)]
    Given(#[from] BadToken),
}

/// Reads a join token as a command line gives it: the text, or `-` for standard input.
///
/// # Errors
/// A [`TokenError`].
pub fn read_token(given: &str) -> Result<JoinToken, TokenError> {
    if given != "-" {
        return Ok(given.parse()?);
    }
    let text = bounded(io::stdin()).map_err(|source| TokenError::Read {
        from: "standard input".into(),
        source,
    })?;
    Ok(text.parse()?)
}

/// Reads a join token from a file.
///
/// # Errors
/// A [`TokenError`] that names the file.
pub fn read_token_file(path: &Path) -> Result<JoinToken, TokenError> {
    let text = File::open(path)
        .and_then(bounded)
        .map_err(|source| TokenError::Read {
            from: path.to_owned(),
            source,
        })?;
    text.parse().map_err(|source| TokenError::InFile {
        from: path.to_owned(),
        source,
    })
}

/// White space around a token is no matter; what is far too long is none.
fn bounded(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(2 * MAX_TEXT_BYTES as u64)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Why a component could not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token is for the other kind of component.
    #[error(
        "the join token {token} is for {is}, and this is {wanted}; create one with `palisade token create --component {flag}`"
    )]
    WrongComponent {
        /// The token's id.
        token: uuid::Uuid,
        /// What it is for.
        is: &'static str,
        /// What this is.
        wanted: &'static str,
        /// What to pass to `--component`.
        flag: &'static str,
    },
    /// The token's time is over, by this machine's clock.
    #[error(
        "the join token {0} has expired; create a new one with `palisade token create` (and check this machine's clock)"
    )]
    Expired(uuid::Uuid),
    /// The token names no server.
    #[error("the join token {0} names no server; create a new one")]
    NoServer(uuid::Uuid),
    /// No server of the token could be reached or would talk.
    #[error("no Integration Server of the join token enrols this machine: {0}")]
    Unreachable(String),
    /// The server refused.
    #[error("the Integration Server {server} refused to enrol this machine: {message}")]
    Denied {
        /// Which server.
        server: SocketAddr,
        /// The kind.
        code: DeniedCode,
        /// What it said.
        message: String,
    },
    /// Keys or certificates are unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Asks the token's servers, one after the other, for an identity.
///
/// # Errors
/// An [`EnrolError`] that says what helps. A refusal ends the attempt: another
/// server of the site would say the same.
pub async fn enrol(
    token: &JoinToken,
    component: Component,
    host: HostFacts,
) -> Result<Membership, EnrolError> {
    check(token, component)?;
    let key = identity::new_key()?;
    let mut failures = Vec::new();
    for &server in token.servers.iter() {
        let attempt = ask(token, component, &host, &key, server);
        match tokio::time::timeout(ENROL_TIMEOUT, attempt).await {
            Ok(Ok(enrolled)) => return keep(token, &key, enrolled),
            Ok(Err(Failure::Denied(denied))) => {
                return Err(EnrolError::Denied {
                    server,
                    code: denied.code,
                    message: denied.message.as_str().to_owned(),
                });
            }
            Ok(Err(Failure::Talk(detail))) => failures.push(format!("{server}: {detail}")),
            Err(_) => failures.push(format!(
                "{server}: no answer within {} s",
                ENROL_TIMEOUT.as_secs()
            )),
        }
    }
    Err(EnrolError::Unreachable(failures.join("; ")))
}

fn check(token: &JoinToken, component: Component) -> Result<(), EnrolError> {
    if token.component != component {
        let (wanted, flag) = named(component);
        return Err(EnrolError::WrongComponent {
            token: token.id,
            is: named(token.component).0,
            wanted,
            flag,
        });
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    if u128::from(token.expires_ms) < now.as_millis() {
        return Err(EnrolError::Expired(token.id));
    }
    if token.servers.is_empty() {
        return Err(EnrolError::NoServer(token.id));
    }
    Ok(())
}

fn named(component: Component) -> (&'static str, &'static str) {
    match component {
        Component::Agent => ("a Light Agent", "agent"),
        Component::Svm => ("a Protection Server", "svm"),
    }
}

enum Failure {
    Denied(control::Denied),
    Talk(String),
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        Self::Talk(error.to_string())
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Self::Talk(error.to_string())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::Talk(error.to_string())
    }
}

async fn ask(
    token: &JoinToken,
    component: Component,
    host: &HostFacts,
    key: &rcgen::KeyPair,
    server: SocketAddr,
) -> Result<Enrolled, Failure> {
    let trust = Trust {
        anchor: Anchor::RootHash(token.root_sha256),
        deployment: Some(token.deployment.clone()),
        grace: ExpiryGrace::default(),
    };
    let own = Own::Enrolling {
        certificate: identity::enrolment_certificate(key)?,
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    };
    let talk = |error: &dyn std::fmt::Display| Failure::Talk(error.to_string());
    let config = tls::client_config(own, trust, Expect::Server, control::ALPN)
        .map_err(|error| talk(&error))?;
    let dialler = endpoint::dialler(crate::control::any_address(server))?;
    let connection = dialler
        .connect_with(
            endpoint::client(config, Bounds::CONTROL)?,
            server,
            endpoint::SERVER_NAME,
        )
        .map_err(|error| talk(&error))?
        .await
        .map_err(|error| talk(&error))?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| talk(&error))?;
    let csr = identity::certificate_request(key)?;
    let request = ControlFrame::Enrol(EnrolRequest {
        component,
        token_id: token.id,
        secret: token.secret,
        csr: List::new(csr).map_err(|error| talk(&error))?,
        host: host.clone(),
    });
    frame::write(&mut send, &request).await?;
    let answer = frame::read::<ControlFrame>(&mut receive).await?;
    connection.close(0_u32.into(), b"enrolled");
    dialler.wait_idle().await;
    match answer {
        Some(ControlFrame::Enrolled(enrolled)) => Ok(enrolled),
        Some(ControlFrame::Denied(denied)) => Err(Failure::Denied(denied)),
        Some(_) | None => Err(Failure::Talk(
            "it gave no answer to the enrolment".to_owned(),
        )),
    }
}

fn keep(
    token: &JoinToken,
    key: &rcgen::KeyPair,
    enrolled: Enrolled,
) -> Result<Membership, EnrolError> {
    let chain: Vec<CertificateDer<'static>> = enrolled
        .chain
        .iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect();
    let identity = Identity::new(key, chain)?;
    if sha256(identity.root()) != token.root_sha256 {
        return Err(IdentityError::Chain("its root is not the join token's".to_owned()).into());
    }
    Ok(Membership {
        identity,
        servers: token.servers.to_vec(),
        name: enrolled.name.as_str().to_owned(),
    })
}
