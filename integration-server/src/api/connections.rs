//! How many connections the API has, in all and from one address.
//!
//! Owns the count; does not own what is said on a connection, or for how long it may be
//! silent ([`listener`](super::listener)). One too many is closed before TLS costs anything:
//! whoever keeps connections open does not take the server's descriptors from its database
//! and its agents.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::accounts::lockout;

/// Connections at a time.
pub const MOST: usize = 1024;
/// Of one address, or of one IPv6 network. People share one behind a proxy.
pub const MOST_OF_ONE: usize = 256;

/// Those that are open, by where they come from. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    open: Arc<Mutex<HashMap<String, usize>>>,
}

/// One of them; whoever drops it makes room.
#[derive(Debug)]
struct Seat {
    source: String,
    open: Arc<Mutex<HashMap<String, usize>>>,
}

impl Connections {
    fn seat(&self, address: IpAddr) -> Option<Seat> {
        let source = lockout::source(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let own = open.get(&source).copied().unwrap_or_default();
        if all >= MOST || own >= MOST_OF_ONE {
            return None;
        }
        open.insert(source.clone(), own + 1);
        Some(Seat {
            source,
            open: Arc::clone(&self.open),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.source);
            }
        }
    }
}

impl<S> Accept<TcpStream, S> for Connections {
    type Stream = Counted;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Counted, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let seated = stream.peer_addr().and_then(|peer| {
            let seat = self.seat(peer.ip());
            seat.ok_or_else(|| io::Error::other("too many connections to the API"))
        });
        std::future::ready(seated.map(|seat| {
            let counted = Counted {
                stream,
                _seat: seat,
            };
            (counted, service)
        }))
    }
}

/// A connection that is counted for as long as it is open.
#[derive(Debug)]
pub struct Counted {
    stream: TcpStream,
    _seat: Seat,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_all_have_a_bound() {
        let connections = Connections::default();
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut seats: Vec<Seat> = Vec::new();
        for n in 0..4 {
            for _ in 0..MOST_OF_ONE {
                seats.push(connections.seat(from(n)).unwrap());
            }
            assert!(connections.seat(from(n)).is_none());
        }
        assert_eq!(seats.len(), MOST);
        assert!(connections.seat(from(9)).is_none());
        drop(seats);
        assert!(connections.open.lock().unwrap().is_empty());
        assert!(connections.seat(from(9)).is_some());
    }
}
