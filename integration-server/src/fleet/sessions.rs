//! Who is connected, and cutting who must not be.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::{DashMap, Entry};
use quinn::Connection;
use uuid::Uuid;

use super::clones::{Clones, Held, Machine};

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

/// Another machine with this identity has a session, and keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken;

#[derive(Debug)]
struct Open {
    connection: Connection,
    machine: Machine,
}

/// Open sessions by component.
#[derive(Debug, Default)]
pub struct Sessions {
    open: DashMap<Uuid, Open>,
    clones: Mutex<Clones>,
}

impl Sessions {
    /// A component's session began; the one before, if it is still there, ends:
    /// a component that comes back knows that the old one is dead first.
    ///
    /// # Errors
    /// [`Taken`] where two machines have taken turns at this; nothing began then.
    pub fn begin(
        &self,
        id: Uuid,
        connection: &Connection,
        machine: Machine,
        now_ms: u64,
    ) -> Result<(), Taken> {
        let new = Open {
            connection: connection.clone(),
            machine,
        };
        match self.open.entry(id) {
            Entry::Vacant(place) => drop(place.insert(new)),
            Entry::Occupied(mut place) => {
                let open = place.get();
                let dead = open.connection.close_reason().is_some();
                if !dead && !self.lock().may_replace(id, open.machine, machine, now_ms) {
                    return Err(Taken);
                }
                Cut::Replaced.close(&place.insert(new).connection);
            }
        }
        Ok(())
    }

    /// A session ended; false when another one of the component goes on.
    pub fn end(&self, id: Uuid, connection: &Connection) -> bool {
        let same = |_: &Uuid, open: &Open| is_same(open, connection);
        self.open.remove_if(&id, same).is_some()
    }

    /// Whether this is the component's session, and was not replaced.
    pub fn is_current(&self, id: Uuid, connection: &Connection) -> bool {
        self.open
            .get(&id)
            .is_some_and(|open| is_same(&open, connection))
    }

    /// Whether a component is connected.
    pub fn is_connected(&self, id: Uuid) -> bool {
        self.open.contains_key(&id)
    }

    /// How many components are connected.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// Machines that are not let in, since another one has their identity.
    pub fn held(&self, now_ms: u64) -> Vec<Held> {
        self.lock().held(now_ms)
    }

    /// Ends a component's session because it is revoked.
    pub fn cut(&self, id: Uuid) {
        if let Some(open) = self.open.get(&id) {
            Cut::Revoked.close(&open.connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clones> {
        self.clones.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same(open: &Open, connection: &Connection) -> bool {
    open.connection.stable_id() == connection.stable_id()
}
