//! Answers to what members ask.

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    Denied, DeniedCode, Der, Enrolled, FromServer, Hello, MAX_CHAIN, Welcome,
};
use palisade_protocol::spiffe::SpiffeId;
use rustls::pki_types::CertificateDer;
use uuid::Uuid;

use super::Fleet;
use super::conversation::{Asked, Member};
use crate::ca::request::CertificateRequest;
use crate::store::StoreError;

/// The server's version, as peers are told it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A member that was let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Its name.
    pub name: String,
    /// The epoch of its session.
    pub epoch: u64,
}

impl Fleet {
    /// Lets a known, unrevoked member in.
    ///
    /// # Errors
    /// What the member is told instead.
    pub async fn admit(
        &self,
        member: &Member,
        hello: &Hello,
        now_ms: u64,
    ) -> Result<Admitted, Denied> {
        let unavailable = |error| {
            self.alarms.turned_away();
            unavailable(error)
        };
        let name = match member {
            Member::Agent { id, tenant } => {
                let record = self.store.agent(*id).await.map_err(unavailable)?;
                record
                    .filter(|record| !record.revoked && record.tenant == *tenant)
                    .map(|record| record.name)
            }
            Member::Svm(id) => {
                let record = self.store.svm(*id).await.map_err(unavailable)?;
                record
                    .filter(|record| !record.revoked)
                    .map(|record| record.name)
            }
        };
        let Some(name) = name else {
            return Err(denied(
                DeniedCode::NotAdmitted,
                "this component is unknown here or was revoked; let it join again with a new token",
            ));
        };
        let epoch = self.store.next_epoch(now_ms).await.map_err(unavailable)?;
        match member {
            Member::Agent { id, .. } => self.store.greet_agent(*id, hello, now_ms).await,
            Member::Svm(id) => self.store.greet_svm(*id, hello, now_ms).await,
        }
        .map_err(unavailable)?;
        Ok(Admitted { name, epoch })
    }

    /// The answer to a greeting.
    pub fn welcome(&self, epoch: u64, now_ms: u64) -> Welcome {
        let report_every_s = self.settings.report_every.get().as_secs();
        Welcome {
            version: Text::cut(VERSION),
            epoch,
            server_time_ms: now_ms,
            report_every_s: u32::try_from(report_every_s).unwrap_or(u32::MAX),
        }
    }

    /// Does what a member asks and gives the answer. Its session may not be the current one
    /// any more by the time that something is stored.
    pub async fn answer(
        &self,
        peer: &SpiffeId,
        product_uuid: Option<Uuid>,
        asked: Asked,
        now_ms: u64,
        is_current: impl Fn() -> bool,
    ) -> FromServer {
        let done = match asked {
            Asked::Hello(_) => Ok(not_now("a session has one Hello")),
            Asked::NotAllowed(denied) => Ok(FromServer::Denied(denied)),
            Asked::Svm(id, report) => {
                let stored = self.store.report_svm(id, &report, now_ms).await;
                stored.map(|()| {
                    if is_current() {
                        self.svm_reported(id, &report);
                    }
                    FromServer::Ack
                })
            }
            Asked::Answer(id, answer) => {
                self.orders.answered(id, answer.number, answer);
                Ok(FromServer::Ack)
            }
            Asked::PolicyReport(id, report) => {
                let stored = self.store.keep_policy_report(id, &report, now_ms).await;
                stored.map(|()| {
                    if let Some(refused) = &report.refused {
                        let (policy, why) = (refused.fingerprint, refused.why.escape_debug());
                        tracing::warn!(agent = %id, %policy, %why, "an agent refused its policy");
                    }
                    FromServer::Ack
                })
            }
            // The session's writer answers: in one order with what it pushes.
            Asked::Policy { .. } => Ok(not_now("the policy is sent by the session")),
            Asked::Choice(id, choice) => {
                self.choices.answered(id, choice.number, choice);
                Ok(FromServer::Ack)
            }
            Asked::Agent(id, report) => {
                let stored = self.store.report_agent(id, &report, now_ms).await;
                let ended = match self.alarms.in_force(id, report.maintenance) {
                    Some(grant) => self.given_back(&grant, now_ms).await,
                    None => Ok(()),
                };
                stored.and(ended).map(|()| FromServer::Ack)
            }
            Asked::Detections(id, detections) => {
                let stored = self.store.add_detections(id, &detections, now_ms).await;
                stored.map(|new| {
                    if new > 0 {
                        tracing::warn!(agent = %id, new, "detections");
                    }
                    FromServer::Ack
                })
            }
            Asked::KeepKey(id, key) => {
                let stored = self.store.keep_quarantine_key(id, &key, now_ms).await;
                stored.map(|()| {
                    tracing::info!(agent = %id, "keeps its quarantine key");
                    FromServer::Ack
                })
            }
            Asked::Key(id) => self.store.quarantine_key(id).await.map(|key| {
                if key.is_some() {
                    tracing::warn!(agent = %id, "was given the quarantine key of its guest");
                }
                FromServer::QuarantineKey(key)
            }),
            Asked::List { tenant, etag } => {
                let list = self.list_for(&tenant, product_uuid);
                Ok(if list.etag == etag {
                    FromServer::NotModified
                } else {
                    FromServer::SvmList(list)
                })
            }
            Asked::Renew { csr } => Ok(self.renew(peer, &csr, now_ms)),
        };
        done.unwrap_or_else(|error| FromServer::Denied(unavailable(error)))
    }

    fn renew(&self, peer: &SpiffeId, csr: &[u8], now_ms: u64) -> FromServer {
        let request = match CertificateRequest::from_der(csr) {
            Ok(request) => request,
            Err(error) => {
                return FromServer::Denied(denied(DeniedCode::BadRequest, &error.to_string()));
            }
        };
        match self.authority.issue(peer, &request, now_ms) {
            Ok(chain) => {
                tracing::info!(%peer, "certificate renewed");
                FromServer::Renewed(Enrolled {
                    chain: wire_chain(&chain),
                    name: Text::default(),
                })
            }
            Err(error) => {
                tracing::error!(%peer, %error, "a certificate cannot be renewed");
                not_now("the server cannot issue certificates now; it will be asked again")
            }
        }
    }
}

/// A chain as messages carry it.
pub fn wire_chain(chain: &[CertificateDer<'_>]) -> List<Der, MAX_CHAIN> {
    List::cut(chain.iter().map(|der| List::cut(der.iter().copied())))
}

/// A refusal.
pub fn denied(code: DeniedCode, message: &str) -> Denied {
    Denied {
        code,
        message: Text::cut(message),
    }
}

/// The store failed: the log says how, the peer only that it should come again.
pub fn unavailable(error: StoreError) -> Denied {
    tracing::error!(%error, "a request cannot be served");
    denied(
        DeniedCode::Unavailable,
        "the server cannot store this now; ask again later",
    )
}

fn not_now(message: &str) -> FromServer {
    FromServer::Denied(denied(DeniedCode::Unavailable, message))
}
