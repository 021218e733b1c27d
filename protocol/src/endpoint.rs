//! The QUIC endpoint that every part uses: one place for the transport's bounds.
//!
//! Owns quinn's configuration; does not own what travels. Bounds that quinn
//! leaves unlimited or huge are set here, by name and unit.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;

use crate::tls::{self, Peer};
use crate::trust::TrustError;

/// A session with nothing heard for this long is over.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a quiet session says that it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// As [`IDLE_TIMEOUT`], of an agent's scan session. A sign of life that is sent restarts
/// the time once, so that the loss is noticed after this and [`SCAN_KEEP_ALIVE`] at the
/// latest. Live migration can black a guest out for 9 s.
pub const SCAN_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// As [`KEEP_ALIVE`], of an agent's scan session.
pub const SCAN_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// As [`IDLE_TIMEOUT`], of a control session. An agent that is gone without a word must be
/// an alarm within 30 s, whatever ended it. In the worst case its last datagram came just
/// before: the sign of life that the server then sends after [`CONTROL_KEEP_ALIVE`] restarts
/// the time once, so that the loss is noticed after 5 s + 15 s = 20 s at the latest; the
/// server then waits 5 s for a new session and looks once a second: 26 s. Two signs of life
/// may be lost in a row, and live migration may black a guest out for 9 s.
pub const CONTROL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// As [`KEEP_ALIVE`], of a control session.
pub const CONTROL_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest datagram's payload, in bytes: a jumbo frame of 9,000 without its IP and UDP
/// headers. What a path really takes is probed.
pub const MAX_UDP_PAYLOAD: u16 = 8972;
/// The same, of what a connecting side takes: it is sent verdicts, not contents, and
/// quinn sets room aside for 2,048 datagrams of this size.
pub const MAX_UDP_PAYLOAD_TO_DIALLER: u16 = 1472;
/// Bytes of datagrams that a listener's socket holds until they are read.
pub const LISTEN_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Connection attempts that wait for a listener to take or refuse them. How many handshakes
/// are under way after that is the listener's to bound.
pub const MAX_INCOMING: usize = 1024;
/// Bytes of connection attempts that are buffered before they are accepted.
pub const MAX_INCOMING_BUFFER_BYTES: u64 = 16 * 1024 * 1024;

/// The bounds of one session, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bidirectional streams that the peer may have open.
    pub peer_streams: u32,
    /// Unidirectional streams that the peer may have open: notices.
    pub peer_notices: u32,
    /// Bytes that the peer may have on its way on one stream.
    pub stream_window: u32,
    /// Bytes that the peer may have on its way in all.
    pub receive_window: u32,
    /// Bytes that we keep for what the peer has not acknowledged.
    pub send_window: u64,
    /// How long nothing may be heard. The shorter of both ends' counts.
    pub idle: Duration,
    /// How often a quiet session says that it lives.
    pub keep_alive: Duration,
}

impl Bounds {
    /// The Protection Server's end of a scan session: many streams with content.
    pub const SCAN_SERVER: Self = Self {
        peer_streams: 128,
        peer_notices: 0,
        stream_window: 1024 * 1024,
        receive_window: 8 * 1024 * 1024,
        send_window: 1024 * 1024,
        idle: IDLE_TIMEOUT,
        keep_alive: KEEP_ALIVE,
    };
    /// The agent's end of a scan session: it receives verdicts, and is light.
    pub const SCAN_AGENT: Self = Self {
        peer_streams: 0,
        peer_notices: 2,
        stream_window: 64 * 1024,
        receive_window: 256 * 1024,
        send_window: 1024 * 1024,
        idle: SCAN_IDLE_TIMEOUT,
        keep_alive: SCAN_KEEP_ALIVE,
    };
    /// Either end of a control session.
    pub const CONTROL: Self = Self {
        peer_streams: 4,
        peer_notices: 0,
        stream_window: 1024 * 1024,
        receive_window: 1024 * 1024,
        send_window: 2 * 1024 * 1024,
        idle: CONTROL_IDLE_TIMEOUT,
        keep_alive: CONTROL_KEEP_ALIVE,
    };
}

/// Why an endpoint cannot be opened, or a peer cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be bound.
    #[error("cannot open UDP {address}: {source}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The TLS configuration is unusable for QUIC.
    #[error("the TLS configuration is unusable: {0}")]
    Tls(String),
    /// The peer is not who it should be.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The session has no TLS identity.
    #[error("the session carries no certificates")]
    NoIdentity,
}

fn transport(bounds: Bounds) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_UDP_PAYLOAD);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(bounds.peer_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(bounds.peer_notices))
        .stream_receive_window(VarInt::from_u32(bounds.stream_window))
        .receive_window(VarInt::from_u32(bounds.receive_window))
        .send_window(bounds.send_window)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(bounds.idle).ok())
        .keep_alive_interval(Some(bounds.keep_alive))
        .mtu_discovery_config(Some(mtu))
        // Some virtio devices answer segmentation offload with EIO: quinn-udp then does
        // without it from there on, and what was lost is sent again.
        .enable_segmentation_offload(true);
    transport
}

/// Asks for a receive buffer that holds what many peers send at once. Past the system's
/// bound (`net.core.rmem_max`) only a privileged process gets it; with less, datagrams
/// are dropped under load and sent again, which costs time and nothing else.
fn enlarge(socket: &UdpSocket) {
    let bytes = LISTEN_BUFFER_BYTES;
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
    }
}

/// What a datagram may hold that we receive.
fn endpoint_config(max_payload: u16) -> Result<EndpointConfig, EndpointError> {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(max_payload)
        .map_err(|error| EndpointError::Tls(error.to_string()))?;
    Ok(config)
}

/// Binds, as quinn's own constructors do, with our bound on datagrams.
fn bind(address: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint, EndpointError> {
    let failed = |source| EndpointError::Bind { address, source };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    let max_payload = match &server {
        Some(_) => {
            enlarge(&socket);
            MAX_UDP_PAYLOAD
        }
        None => MAX_UDP_PAYLOAD_TO_DIALLER,
    };
    Endpoint::new(
        endpoint_config(max_payload)?,
        server,
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(failed)
}

/// Opens a listening endpoint.
///
/// # Errors
/// [`EndpointError::Bind`] or [`EndpointError::Tls`].
pub fn listen(
    address: SocketAddr,
    tls: rustls::ServerConfig,
    bounds: Bounds,
) -> Result<Endpoint, EndpointError> {
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport(bounds)))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size_total(MAX_INCOMING_BUFFER_BYTES)
        .migration(true);
    bind(address, Some(config))
}

/// Opens a connecting endpoint on a free port.
///
/// # Errors
/// [`EndpointError::Bind`].
pub fn dialler(local: SocketAddr) -> Result<Endpoint, EndpointError> {
    bind(local, None)
}

/// A connecting side's QUIC configuration.
///
/// # Errors
/// [`EndpointError::Tls`].
pub fn client(tls: rustls::ClientConfig, bounds: Bounds) -> Result<ClientConfig, EndpointError> {
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(bounds)));
    Ok(config)
}

/// The name that is sent as SNI: peers are told apart by SPIFFE id, not by name.
pub const SERVER_NAME: &str = "palisade.invalid";

/// Who is at the other end.
///
/// # Errors
/// [`EndpointError::NoIdentity`] or [`EndpointError::Trust`].
pub fn peer(connection: &quinn::Connection) -> Result<Peer, EndpointError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(EndpointError::NoIdentity)?;
    Ok(tls::peer_of(&chain)?)
}
