//! Who may have an identity: a component with a join token that is valid.
//!
//! ```text
//!   EnrolRequest ─► rate ─► request's signature ─► secret ─► joined before? ─yes─► same id
//!                    │             │                 │             │no
//!               TooMany…      BadRequest     Unknown/Expired/…   use the token once, keep
//! ```
//!
//! Everything that can fail is tried before the token is used. A component whose
//! answer was lost asks again with the same key and is given the same identity.

use palisade_protocol::bounded::Text;
use palisade_protocol::control::{
    Component, Denied, DeniedCode, EnrolRequest, Enrolled, HostFacts,
};
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::spiffe::SpiffeId;
use uuid::Uuid;

use super::Fleet;
use super::desk::{denied, unavailable, wire_chain};
use crate::ca::request::CertificateRequest;
use crate::secret;
use crate::store::{JoinTokenRecord, NewComponent, Spent};

impl Fleet {
    /// Decides about a request that the rate limits let through.
    ///
    /// # Errors
    /// What the component is told instead.
    pub async fn enrol(&self, request: EnrolRequest, now_ms: u64) -> Result<Enrolled, Denied> {
        let csr = CertificateRequest::from_der(&request.csr)
            .map_err(|error| denied(DeniedCode::BadRequest, &error.to_string()))?;
        let token = self.token_of(&request).await?;
        let key_sha256 = csr.key_sha256();
        let joined = self
            .store
            .joined(token.id, &key_sha256)
            .await
            .map_err(unavailable)?;
        let (id, name) = match joined {
            Some(joined) if joined.revoked => {
                return Err(denied(
                    DeniedCode::NotAdmitted,
                    "this component was revoked",
                ));
            }
            Some(joined) => (joined.id, joined.name),
            None => {
                self.join(&request, token.clone(), key_sha256, now_ms)
                    .await?
            }
        };
        let deployment = self.authority.deployment();
        let spiffe = match token.component {
            Component::Agent => SpiffeId::agent(deployment, &token.tenant, AgentId(id)),
            Component::Svm => SpiffeId::svm(deployment, SvmId(id)),
        };
        let chain = self
            .authority
            .issue(&spiffe, &csr, now_ms)
            .map_err(|error| {
                tracing::error!(%error, "a certificate cannot be issued");
                denied(
                    DeniedCode::Unavailable,
                    "the server cannot issue certificates now",
                )
            })?;
        tracing::info!(component = %spiffe, %name, token = %token.id, "enrolled");
        Ok(Enrolled {
            chain: wire_chain(&chain),
            name: Text::cut(&name),
        })
    }

    async fn token_of(&self, request: &EnrolRequest) -> Result<JoinTokenRecord, Denied> {
        let found = self
            .store
            .join_token(request.token_id)
            .await
            .map_err(unavailable)?;
        // An unknown id takes as long as a wrong secret, and gives the same answer.
        let hash = found.as_ref().map_or([0; 32], |token| token.secret_sha256);
        let right = secret::matches(&request.secret, &hash);
        match found {
            Some(token) if right && token.component == request.component => Ok(token),
            Some(_) if right => Err(denied(
                DeniedCode::BadRequest,
                "the join token is for the other kind of component",
            )),
            _ => Err(denied(
                DeniedCode::UnknownToken,
                "this server does not know the join token; create one with `palisade token create`",
            )),
        }
    }

    async fn join(
        &self,
        request: &EnrolRequest,
        token: JoinTokenRecord,
        key_sha256: secret::Hash,
        now_ms: u64,
    ) -> Result<(Uuid, String), Denied> {
        let id = Uuid::new_v4();
        let component = NewComponent {
            id,
            token,
            name: name_of(request.component, &request.host, id),
            key_sha256,
            host: request.host.clone(),
        };
        match self
            .store
            .join(&component, now_ms)
            .await
            .map_err(unavailable)?
        {
            Spent::Joined(name) => {
                if component.token.component == Component::Agent {
                    let domain = component.host.product_uuid;
                    self.alarms.add(AgentId(id), name.clone(), domain);
                    self.claimed(AgentId(id), &component.token.tenant, domain);
                }
                Ok((id, name))
            }
            Spent::NotUsable => Err(why_not(&component.token, now_ms)),
        }
    }
}

fn why_not(token: &JoinTokenRecord, now_ms: u64) -> Denied {
    if token.revoked_ms.is_some() {
        return denied(
            DeniedCode::UnknownToken,
            "the join token was revoked; create another one",
        );
    }
    if token.expires_ms <= now_ms {
        return denied(
            DeniedCode::ExpiredToken,
            "the join token has expired; create another one with `palisade token create`",
        );
    }
    denied(
        DeniedCode::SpentToken,
        "the join token was used as often as it may be; create another one with `palisade token create --uses N`",
    )
}

/// A name for people: the host's, made of characters that are safe everywhere.
fn name_of(component: Component, host: &HostFacts, id: Uuid) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = host.hostname.chars().take(63).map(safe).collect();
    if name.chars().any(|c| c.is_ascii_alphanumeric()) {
        return name;
    }
    let kind = match component {
        Component::Agent => "agent",
        Component::Svm => "svm",
    };
    format!("{kind}-{}", &id.simple().to_string()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_cannot_carry_anything_into_a_terminal() {
        let named = |name: &str| {
            let host = HostFacts {
                hostname: Text::cut(name),
                ..Default::default()
            };
            name_of(Component::Agent, &host, Uuid::from_u128(0x1234 << 112))
        };
        assert_eq!(named("web-1.example"), "web-1.example");
        assert_eq!(named("a\x1b[2J\nb"), "a--2J-b");
        assert_eq!(named(""), "agent-12340000");
        assert_eq!(named("\u{202e}"), "agent-12340000");
    }
}
