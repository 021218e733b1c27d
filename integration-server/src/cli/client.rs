//! Requests to the API, and what an error means for the person who asked.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use palisade_protocol::tls;
use rustls::CertificateError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::request::Builder;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, Error};

use super::target::{CA, Credential, TOKEN, Target, URL};
use crate::accounts::sessions::{COOKIE, CSRF_HEADER};
use crate::api::page::Page;
use crate::api::problem::Problem;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 256 * 1024 * 1024;

/// What the server did not do, and why.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    kind: String,
    detail: String,
}

/// Whether an error is a refusal of this kind.
pub fn is_refusal(error: &anyhow::Error, kind: &str) -> bool {
    let refusal = error.downcast_ref::<Refusal>();
    refusal.is_some_and(|refusal| refusal.kind.strip_prefix("urn:palisade:problem:") == Some(kind))
}

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    target: Target,
}

impl Client {
    /// A client that trusts the target's root and no other.
    ///
    /// # Errors
    /// None is known; the result leaves room for one.
    pub fn new(target: Target) -> anyhow::Result<Self> {
        let root = Certificate::from_der(&target.root).to_owned();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(tls::provider())
            .root_certs(RootCerts::Specific(Arc::new(vec![root])))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            // A server that refuses before it has read a body may close the connection, and
            // the next request must not meet that.
            .max_idle_connections(0)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, target })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let mut answer = self.send::<()>("GET", path, None)?;
        self.read(&mut answer)
    }

    /// Reads a list, page after page, up to a number of items.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        page_size: Option<usize>,
        most: usize,
    ) -> anyhow::Result<Vec<T>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let left = most - items.len();
            let mut query = Vec::new();
            if let Some(size) = page_size {
                query.push(format!("limit={}", size.min(left)));
            }
            if let Some(cursor) = &cursor {
                query.push(format!("cursor={cursor}"));
            }
            let separator = if query.is_empty() { "" } else { "?" };
            let page: Page<T> = self.get(&format!("{path}{separator}{}", query.join("&")))?;
            items.extend(page.items.into_iter().take(left));
            cursor = page.next;
            if cursor.is_none() || items.len() >= most {
                return Ok(items);
            }
        }
    }

    /// Makes an object.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let mut answer = self.send("POST", path, Some(body))?;
        self.read(&mut answer)
    }

    /// Puts an object in place.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let mut answer = self.send("PUT", path, Some(body))?;
        self.read(&mut answer)
    }

    /// Puts bytes in place.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn put_bytes<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> anyhow::Result<T> {
        let request = self.request("PUT", path);
        let request = request.header("content-type", "application/octet-stream");
        let answer = self.agent.run(request.body(bytes)?);
        let mut answer = self.check(answer)?;
        self.read(&mut answer)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send::<()>("DELETE", path, None).map(drop)
    }

    /// Changes an object that is at a revision; gives what the server answers.
    ///
    /// # Errors
    /// What is in the way, and what helps: that it was changed meanwhile, too.
    pub fn change<B: Serialize + ?Sized>(
        &self,
        method: &str,
        path: &str,
        revision: u64,
        body: Option<&B>,
    ) -> anyhow::Result<Response<Body>> {
        self.confirmed(|| self.ask(method, path, Some(revision), body))
    }

    /// The same, where it answers with what is there now.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub fn changed<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        revision: u64,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let mut answer = self.change(method, path, revision, Some(body))?;
        self.read(&mut answer)
    }

    /// Which server is asked.
    pub fn server(&self) -> &str {
        &self.target.url
    }

    /// Asks for anything; the answer is one of success. Where the server wants the
    /// password once more, so does this.
    ///
    /// # Errors
    /// What is in the way, and what helps; a [`Refusal`] where the server says it.
    pub fn send<B: Serialize + ?Sized>(
        &self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<Response<Body>> {
        self.confirmed(|| self.send_once(method, path, body))
    }

    fn confirmed(
        &self,
        ask: impl Fn() -> anyhow::Result<Response<Body>>,
    ) -> anyhow::Result<Response<Body>> {
        match ask() {
            Err(error) if is_refusal(&error, "unconfirmed") => {
                super::login::confirm(self, error)?;
                ask()
            }
            other => other,
        }
    }

    /// The same, whatever the server says.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_once<B: Serialize + ?Sized>(
        &self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<Response<Body>> {
        self.ask(method, path, None, body)
    }

    fn ask<B: Serialize + ?Sized>(
        &self,
        method: &str,
        path: &str,
        revision: Option<u64>,
        body: Option<&B>,
    ) -> anyhow::Result<Response<Body>> {
        let mut request = self.request(method, path);
        if let Some(revision) = revision {
            request = request.header("if-match", format!("\"{revision}\""));
        }
        let answer = match body {
            Some(body) => {
                let text = serde_json::to_vec(body)?;
                let request = request.header("content-type", "application/json");
                self.agent.run(request.body(text)?)
            }
            None => self.agent.run(request.body(Vec::new())?),
        };
        self.check(answer)
    }

    fn request(&self, method: &str, path: &str) -> Builder {
        let url = format!("{}/api/v1/{path}", self.target.url);
        let request = Request::builder().method(method).uri(url);
        match &self.target.credential {
            Credential::None => request,
            Credential::Token(token) => request.header("authorization", format!("Bearer {token}")),
            Credential::Session(kept) => request
                .header("cookie", format!("{COOKIE}={}", kept.token))
                .header(CSRF_HEADER, &kept.csrf),
        }
    }

    fn read<T: DeserializeOwned>(&self, response: &mut Response<Body>) -> anyhow::Result<T> {
        response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_json().with_context(|| {
            format!(
                "{} answers with something else than this version of palisade expects; use the palisade of the server's version",
                self.target.url
            )
        })
    }

    fn check(&self, answer: Result<Response<Body>, Error>) -> anyhow::Result<Response<Body>> {
        let mut response = answer.map_err(|error| self.explain(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        match response.body_mut().read_json::<Problem>() {
            Ok(problem) if problem.kind == "urn:palisade:problem:unauthorized" => {
                bail!("{}", self.unaccepted());
            }
            Ok(problem) => Err(Refusal {
                detail: super::table::safe(&problem.detail),
                kind: problem.kind,
            }
            .into()),
            Err(_) => bail!(
                "{} answers {status}, and is no Palisade server; check {URL}",
                self.target.url
            ),
        }
    }

    fn unaccepted(&self) -> String {
        let url = &self.target.url;
        match &self.target.credential {
            Credential::Session(_) => format!(
                "the session at {url} has ended; begin another one with `palisade login NAME`, or forget it with `palisade logout`"
            ),
            _ => format!(
                "{url} does not accept the token; set {TOKEN} to the text of a valid one (the first is in admin.token in the server's state folder), or log in with `palisade login NAME`"
            ),
        }
    }

    fn explain(&self, error: Error) -> anyhow::Error {
        let url = &self.target.url;
        if let Some(certificate) = certificate_error(&error) {
            let root = self.target.root_file.display();
            return match certificate {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => anyhow!(
                    "the server at {url} is not of the site whose CA is {root}; set {CA} to that site's ca/root.pem, or {URL} to the right server"
                ),
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => anyhow!(
                    "the certificate of {url} is not for that name; use a name that it is for, or add the name to api_names in server.toml and restart the server"
                ),
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => anyhow!(
                    "the certificate of {url} is not valid now; check the clocks of both machines, and restart the server"
                ),
                other => anyhow!("the certificate of {url} is not accepted: {other}"),
            };
        }
        match error {
            Error::Io(source) if source.kind() == ErrorKind::ConnectionRefused => anyhow!(
                "nothing listens at {url}: is palisade-server running? Start it, or set {URL} to where it is"
            ),
            Error::ConnectionFailed | Error::Timeout(_) => anyhow!(
                "no server answers at {url}: check that palisade-server runs there and that its TCP port is reachable"
            ),
            Error::HostNotFound => {
                anyhow!("the host of {url} is unknown; set {URL} to where palisade-server is")
            }
            other => anyhow!("{url} cannot be asked: {other}"),
        }
    }
}

/// The reason for which rustls does not accept the server's certificate, if it is that.
fn certificate_error(error: &Error) -> Option<CertificateError> {
    let tls = match error {
        Error::Rustls(error) => error,
        Error::Io(error) => error.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    match tls {
        rustls::Error::InvalidCertificate(error) => Some(error.clone()),
        _ => None,
    }
}
