//! A whole server in a temporary folder, within the test's process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_daemon::cli::{Common, LogFormat};
use palisade_daemon::enrol::{EnrolError, enrol};
use palisade_daemon::membership::Membership;
use palisade_integration_server::api::auth::admin_token_file;
use palisade_integration_server::cli::client::Client;
use palisade_integration_server::cli::target::{Credential, Target};
use palisade_integration_server::server::Server;
use palisade_integration_server::settings::Settings;
use palisade_protocol::bounded::Text;
use palisade_protocol::control::{Component, HostFacts};
use palisade_protocol::token::JoinToken;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server and its folder.
pub struct Site {
    pub dir: TempDir,
    pub server: Server,
}

/// The options that name a folder's site.
pub fn common(dir: &Path) -> Common {
    Common {
        site: Some(dir.to_owned()),
        config: None,
        log_format: LogFormat::Human,
    }
}

/// Settings on free ports of the loopback.
pub fn settings(more: &str) -> Settings {
    let text = format!("listen_control = '127.0.0.1:0'\nlisten_api = '127.0.0.1:0'\n{more}");
    toml::from_str(&text).unwrap()
}

impl Site {
    pub async fn start(more: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more).await
    }

    pub async fn start_in(dir: TempDir, more: &str) -> Self {
        let server = Server::start(settings(more), &common(dir.path()))
            .await
            .unwrap();
        Self { dir, server }
    }

    pub fn control(&self) -> SocketAddr {
        self.server.control_address()
    }

    pub fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("var/server")
    }

    pub fn admin_token(&self) -> String {
        std::fs::read_to_string(admin_token_file(&self.state()))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// How the command line would reach this server.
    pub fn target(&self) -> Target {
        let root_file = self.state().join("ca/root.pem");
        Target {
            url: format!("https://{}", self.server.api_address()),
            credential: Credential::Token(self.admin_token()),
            root: CertificateDer::from_pem_slice(&std::fs::read(&root_file).unwrap()).unwrap(),
            root_file,
        }
    }

    /// Calls the API; blocking work stays off the runtime's threads.
    pub async fn api<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let client = Client::new(self.target())?;
        tokio::task::spawn_blocking(move || call(&client))
            .await
            .unwrap()
    }

    pub async fn get(&self, path: &'static str) -> Value {
        self.api(move |client| client.get(path)).await.unwrap()
    }

    /// A new join token.
    pub async fn token(&self, component: &str, uses: u32, expires_in: &str) -> JoinToken {
        let new = json!({"component": component, "uses": uses, "expires_in": expires_in});
        let made: Value = self
            .api(move |client| client.post("tokens", &new))
            .await
            .unwrap();
        made["token"].as_str().unwrap().parse().unwrap()
    }

    /// A component that has joined.
    pub async fn join(&self, component: Component, host: HostFacts) -> Membership {
        let kind = match component {
            Component::Agent => "agent",
            Component::Svm => "svm",
        };
        enrol(&self.token(kind, 1, "1h").await, component, host)
            .await
            .unwrap()
    }

    /// An agent of this tenant that has joined.
    pub async fn join_of(&self, tenant: &str, host: HostFacts) -> Membership {
        let new = json!({"component": "agent", "tenant": tenant, "uses": 1, "expires_in": "1h"});
        let made: Value = self
            .api(move |client| client.post("tokens", &new))
            .await
            .unwrap();
        let token: JoinToken = made["token"].as_str().unwrap().parse().unwrap();
        enrol(&token, Component::Agent, host).await.unwrap()
    }

    pub async fn try_enrol(&self, token: &JoinToken) -> Result<Membership, EnrolError> {
        enrol(token, token.component, host("guest", None)).await
    }
}

/// A machine's facts.
pub fn host(name: &str, product_uuid: Option<Uuid>) -> HostFacts {
    HostFacts {
        hostname: Text::cut(name),
        product_uuid,
        ..Default::default()
    }
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
