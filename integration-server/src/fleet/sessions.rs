//! Who is connected, and cutting who must not be.

use dashmap::DashMap;
use quinn::Connection;
use uuid::Uuid;

/// Why a session was ended by this side, as QUIC's close carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server stops.
    Stopping,
    /// The same component opened another session.
    Replaced,
    /// The component is revoked.
    Revoked,
    /// The component does not take what it is sent.
    Slow,
    /// The component said nothing for too long.
    Silent,
    /// The component broke the protocol.
    Refused,
    /// All was said.
    Done,
}

impl Cut {
    /// Ends a connection for this reason.
    pub fn close(self, connection: &Connection) {
        let (code, reason): (u32, &[u8]) = match self {
            Self::Done => (0, b"done"),
            Self::Stopping => (1, b"the server stops"),
            Self::Replaced => (2, b"another session of this component began"),
            Self::Revoked => (3, b"revoked"),
            Self::Slow => (4, b"too slow"),
            Self::Silent => (5, b"silent"),
            Self::Refused => (6, b"refused"),
        };
        connection.close(code.into(), reason);
    }
}

/// Open sessions by component.
#[derive(Debug, Default)]
pub struct Sessions(DashMap<Uuid, Connection>);

impl Sessions {
    /// A component's session began; the one before, if it is still there, ends:
    /// a component that comes back knows that the old one is dead first.
    pub fn begin(&self, id: Uuid, connection: &Connection) {
        if let Some(old) = self.0.insert(id, connection.clone()) {
            Cut::Replaced.close(&old);
        }
    }

    /// A session ended; false when another one of the component goes on.
    pub fn end(&self, id: Uuid, connection: &Connection) -> bool {
        let same = |_: &Uuid, open: &Connection| open.stable_id() == connection.stable_id();
        self.0.remove_if(&id, same).is_some()
    }

    /// Whether a component is connected.
    pub fn is_connected(&self, id: Uuid) -> bool {
        self.0.contains_key(&id)
    }

    /// How many components are connected.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Ends a component's session because it is revoked.
    pub fn cut(&self, id: Uuid) {
        if let Some(connection) = self.0.get(&id) {
            Cut::Revoked.close(&connection);
        }
    }
}
