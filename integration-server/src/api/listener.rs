//! HTTPS: TLS 1.3 with the certificate that the server renews itself.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use palisade_protocol::tls;
use rustls::ServerConfig;

use super::connections::Connections;
use crate::ca::renewal::OwnCertificates;

/// How long a connection may take to ask for the first time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(60);
/// How long an HTTP/2 connection that was silent may take to say that it is there.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;

/// The API's listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("cannot open TCP {address} for the API: {source}; set listen_api to a free address")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The TLS configuration is unusable.
    #[error("the API's TLS configuration is unusable: {0}")]
    Tls(#[from] rustls::Error),
}

/// A bound listener.
#[derive(Debug)]
pub struct ApiListener {
    socket: TcpListener,
    tls: RustlsConfig,
    address: SocketAddr,
}

impl ApiListener {
    /// Binds the address.
    ///
    /// # Errors
    /// [`ListenError`] naming the address.
    pub fn bind(address: SocketAddr, own: &OwnCertificates) -> Result<Self, ListenError> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(own.api());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        let at = |source| ListenError::Bind { address, source };
        let socket = TcpListener::bind(address).map_err(at)?;
        socket.set_nonblocking(true).map_err(at)?;
        let address = socket.local_addr().map_err(at)?;
        Ok(Self {
            socket,
            tls: RustlsConfig::from_config(Arc::new(config)),
            address,
        })
    }

    /// The address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the handle says stop.
    ///
    /// # Errors
    /// The socket's.
    pub async fn serve(self, router: Router, handle: Handle<SocketAddr>) -> std::io::Result<()> {
        let counted = RustlsAcceptor::new(self.tls).acceptor(Connections::default());
        let mut server = axum_server::from_tcp(self.socket)?
            .acceptor(counted)
            .handle(handle)
            .first_request_timeout(FIRST_REQUEST_TIMEOUT);
        let http = server.http_builder();
        // Between requests, too.
        http.http1().header_read_timeout(IDLE);
        http.http2()
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Some(IDLE))
            .keep_alive_timeout(KEEP_ALIVE_ANSWER);
        server
            .serve(router.into_make_service_with_connect_info::<SocketAddr>())
            .await
    }
}
