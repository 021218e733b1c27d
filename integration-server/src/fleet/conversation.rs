//! The order of a session's messages, and who may say what. No sockets, no
//! clock, no store: envelopes and time are arguments.
//!
//! ```text
//!   Greeting ── Hello ──► (admitted by the desk) ── greeted(epoch) ──► Open
//!      │                                                                │
//!      └── anything else: refused, the session ends                     ├── request: asked
//!                                                                       ├── a message of another role: denied
//!                                                                       └── bad envelope or second Hello: refused
//! ```

use palisade_protocol::bounded::Text;
use palisade_protocol::choice::Choice;
use palisade_protocol::codec;
use palisade_protocol::control::{
    AgentReport, Denied, DeniedCode, Detection, Hello, QuarantineKey, SvmReport, ToServer,
};
use palisade_protocol::definitions::DefinitionsAnswer;
use palisade_protocol::envelope::{Body, Envelope, EnvelopeError, Opener};
use palisade_protocol::ids::{AgentId, SvmId, TenantId};
use palisade_protocol::policy::{Fingerprint, PolicyReport};
use palisade_protocol::spiffe::{Role, SpiffeId};
use palisade_protocol::trust::Trust;

/// Who is at the other end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A Light Agent.
    Agent {
        /// Its tenant.
        tenant: TenantId,
        /// Which.
        id: AgentId,
    },
    /// A Protection Server.
    Svm(SvmId),
}

impl Member {
    /// The member that a certificate names; none for a server.
    pub fn of(id: &SpiffeId) -> Option<Self> {
        match &id.role {
            Role::Agent { tenant, id } => Some(Self::Agent {
                tenant: tenant.clone(),
                id: *id,
            }),
            Role::Svm(id) => Some(Self::Svm(*id)),
            Role::Server(_) => None,
        }
    }

    /// Its id, of whichever kind.
    pub fn uuid(&self) -> uuid::Uuid {
        match self {
            Self::Agent { id, .. } => id.0,
            Self::Svm(id) => id.0,
        }
    }
}

/// What a member asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// To begin.
    Hello(Hello),
    /// A Protection Server's report.
    Svm(SvmId, SvmReport),
    /// An agent's report.
    Agent(AgentId, AgentReport),
    /// An agent's detections, all of its own tenant.
    Detections(AgentId, Vec<Detection>),
    /// The list, unless it is the one that the agent has.
    List {
        /// Whose agent it is.
        tenant: TenantId,
        /// The version that the agent has.
        etag: u64,
    },
    /// An agent's policy, unless it is the one that it has.
    Policy {
        /// The one that it has.
        held: Option<Fingerprint>,
    },
    /// What an agent made of its policy.
    PolicyReport(AgentId, PolicyReport),
    /// A new certificate.
    Renew {
        /// For the key in this request.
        csr: Vec<u8>,
    },
    /// To keep its quarantine key.
    KeepKey(AgentId, QuarantineKey),
    /// For the quarantine key that its guest had kept.
    Key(AgentId),
    /// A Protection Server's answer to an order.
    Answer(SvmId, DefinitionsAnswer),
    /// An agent's answer about its choice.
    Choice(AgentId, Choice),
    /// What this member may not ask: answered, and the session goes on.
    NotAllowed(Denied),
}

/// A session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// An envelope is not acceptable.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A message came out of order.
    #[error("{0}")]
    Order(&'static str),
}

impl Refused {
    /// What the peer is told.
    pub fn denied(&self) -> Denied {
        Denied {
            code: DeniedCode::BadEnvelope,
            message: Text::cut(&self.to_string()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Greeted,
    Open,
}

/// One session's receiving side.
#[derive(Debug)]
pub struct Conversation {
    member: Member,
    opener: Opener,
    phase: Phase,
}

impl Conversation {
    /// A session of `peer`, as TLS named it, with `server`.
    pub fn new(member: Member, peer: SpiffeId, server: SpiffeId, trust: Trust) -> Self {
        Self {
            member,
            opener: Opener::new(trust, peer, server, 0),
            phase: Phase::Greeting,
        }
    }

    /// Takes an envelope in; gives what is asked, and the sequence to answer.
    ///
    /// # Errors
    /// [`Refused`] ends the session.
    pub fn take(&mut self, envelope: &Envelope, now_ms: u64) -> Result<(Asked, u64), Refused> {
        let now_ms = match self.phase {
            Phase::Greeting => hello_time(envelope, now_ms),
            Phase::Greeted | Phase::Open => now_ms,
        };
        let opened = self.opener.open::<ToServer>(envelope, now_ms)?;
        let asked = match (&self.phase, opened.message) {
            (Phase::Greeting, ToServer::Hello(hello)) => {
                self.phase = Phase::Greeted;
                Asked::Hello(hello)
            }
            (Phase::Greeting, _) => return Err(Refused::Order("a session begins with Hello")),
            (Phase::Greeted, _) => return Err(Refused::Order("Welcome was not sent yet")),
            (Phase::Open, ToServer::Hello(_)) => {
                return Err(Refused::Order("a session has one Hello"));
            }
            (Phase::Open, request) => self.request(request),
        };
        Ok((asked, opened.sequence))
    }

    /// The member was admitted: its next envelopes are of this epoch.
    pub fn greeted(&mut self, epoch: u64) {
        self.opener.expect_epoch(epoch);
        self.phase = Phase::Open;
    }

    fn request(&self, request: ToServer) -> Asked {
        match (&self.member, request) {
            (Member::Svm(id), ToServer::SvmReport(report)) => Asked::Svm(*id, report),
            (Member::Svm(id), ToServer::Definitions(answer)) => Asked::Answer(*id, answer),
            (Member::Agent { id, .. }, ToServer::AgentReport(report)) => Asked::Agent(*id, report),
            (Member::Agent { tenant, id }, ToServer::Detections(detections)) => {
                match detections
                    .iter()
                    .find(|detection| detection.tenant != *tenant)
                {
                    None => Asked::Detections(*id, detections.into_vec()),
                    Some(other) => not_allowed(&format!(
                        "a detection names tenant {}, and this agent is of {tenant}",
                        other.tenant
                    )),
                }
            }
            (Member::Agent { id, .. }, ToServer::KeepQuarantineKey(key)) => {
                Asked::KeepKey(*id, key)
            }
            (Member::Agent { id, .. }, ToServer::GetQuarantineKey) => Asked::Key(*id),
            (Member::Agent { tenant, .. }, ToServer::GetSvmList { etag }) => Asked::List {
                tenant: tenant.clone(),
                etag,
            },
            (Member::Agent { id, .. }, ToServer::Choice(choice)) => Asked::Choice(*id, choice),
            (Member::Agent { .. }, ToServer::GetPolicy { held }) => Asked::Policy { held },
            (Member::Agent { id, .. }, ToServer::PolicyReport(report)) => {
                Asked::PolicyReport(*id, report)
            }
            (_, ToServer::Renew { csr }) => Asked::Renew {
                csr: csr.into_vec(),
            },
            (Member::Svm(_), _) => not_allowed("this is a Light Agent's message"),
            (Member::Agent { .. }, _) => not_allowed("this is a Protection Server's message"),
        }
    }
}

/// The moment by which a greeting is judged. Its expiry is by the peer's clock,
/// which was not compared yet and may be behind; the TLS session that it is bound
/// to has just been opened.
fn hello_time(envelope: &Envelope, now_ms: u64) -> u64 {
    codec::decode::<Body>(&envelope.body).map_or(now_ms, |body| body.expires_ms.min(now_ms))
}

fn not_allowed(why: &str) -> Asked {
    Asked::NotAllowed(Denied {
        code: DeniedCode::BadRequest,
        message: Text::cut(why),
    })
}
