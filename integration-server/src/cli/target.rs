//! Where the server is, as whom it is asked, and by which root it is trusted: the
//! environment, or else the session of `palisade login`, or else the site's own files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use palisade_daemon::cli::Common;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::login::{self, Kept};
use crate::accounts::setup;
use crate::api::auth::admin_token_file;
use crate::server::{url_file, url_of};
use crate::settings::Settings;

/// Names the server: `https://host:port`.
pub const URL: &str = "PALISADE_URL";
/// The API token's text.
pub const TOKEN: &str = "PALISADE_TOKEN";
/// A file with the site's root certificate in PEM.
pub const CA: &str = "PALISADE_CA";

/// A server, and how to talk to it.
#[derive(Clone)]
pub struct Target {
    /// `https://host:port`, without a slash at the end.
    pub url: String,
    /// As whom it is asked.
    pub credential: Credential,
    /// The one root that is trusted.
    pub root: CertificateDer<'static>,
    /// Where that root was read from.
    pub root_file: PathBuf,
}

/// As whom the server is asked.
#[derive(Clone)]
pub enum Credential {
    /// As nobody yet.
    None,
    /// By an API token.
    Token(String),
    /// By a session.
    Session(Kept),
}

/// What a command needs of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// To be somebody.
    Somebody,
    /// To be nobody yet.
    Nobody,
    /// The session, and nothing else.
    Session,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.url)
    }
}

impl Target {
    /// Finds the server.
    ///
    /// # Errors
    /// What is missing, and how to give it.
    pub fn find(
        common: &Common,
        environment: &HashMap<OsString, OsString>,
        wanted: Wanted,
    ) -> anyhow::Result<Self> {
        let given = |name: &str| given(environment, name);
        let text = |name: &str| match given(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim().to_owned())),
            Some(Err(_)) => bail!("{name} is not text"),
        };
        // The server's settings are read only for what is not given.
        let session = login::file(given).filter(|file| file.exists());
        let somebody = given(TOKEN).is_some() || session.is_some() || wanted != Wanted::Somebody;
        let complete = given(URL).is_some() && somebody && given(CA).is_some();
        let site = if complete {
            None
        } else {
            Some(OwnSite::read(common, environment.clone())?)
        };
        let missing = |name: &str| format!("set {name}");

        let url = match (text(URL)?, &site) {
            (Some(url), _) => checked(&url)?,
            (None, Some(site)) => site.url.clone(),
            (None, None) => bail!(missing(URL)),
        };
        let root_file = match (given(CA), &site) {
            (Some(file), _) => PathBuf::from(file),
            (None, Some(site)) => site.root_file.clone(),
            (None, None) => bail!(missing(CA)),
        };
        let root = read_root(&root_file)?;
        let kept = || match &session {
            Some(file) => login::kept(file, &url),
            None => Ok(None),
        };
        let credential = match (wanted, text(TOKEN)?) {
            (Wanted::Nobody, _) => Credential::None,
            (Wanted::Session, _) => kept()?.map_or(Credential::None, Credential::Session),
            (Wanted::Somebody, Some(token)) => Credential::Token(token),
            (Wanted::Somebody, None) => match (kept()?, &site) {
                (Some(kept), _) => Credential::Session(kept),
                (None, Some(site)) => Credential::Token(read_token(&site.token_file)?),
                (None, None) => bail!("{}, or log in with `palisade login NAME`", missing(TOKEN)),
            },
        };
        Ok(Self {
            url,
            credential,
            root,
            root_file,
        })
    }
}

/// A variable that is set to something.
pub fn given(environment: &HashMap<OsString, OsString>, name: &str) -> Option<OsString> {
    let value = environment.get(&OsString::from(name))?;
    (!value.is_empty()).then(|| value.clone())
}

/// Where the setup token of a site on this machine is.
///
/// # Errors
/// The site's settings cannot be read.
pub fn setup_token_file(
    common: &Common,
    environment: HashMap<OsString, OsString>,
) -> anyhow::Result<PathBuf> {
    let settings = Settings::load(common, environment)?;
    Ok(setup::file(&settings.state(common)))
}

/// What the server's own machine knows.
struct OwnSite {
    url: String,
    token_file: PathBuf,
    root_file: PathBuf,
}

impl OwnSite {
    fn read(common: &Common, environment: HashMap<OsString, OsString>) -> anyhow::Result<Self> {
        let settings = Settings::load(common, environment)?;
        let state = settings.state(common);
        // A running server says where it is; its settings say where it would be.
        let url = match std::fs::read_to_string(url_file(common)) {
            Ok(url) => checked(url.trim())?,
            Err(_) if settings.listen_api.port() == 0 => bail!(
                "no palisade-server is running for {}; start it, or set {URL}",
                common.settings(crate::settings::COMPONENT).display()
            ),
            Err(_) => url_of(settings.listen_api),
        };
        let root_file = state.join("ca").join("root.pem");
        Ok(Self {
            url,
            token_file: admin_token_file(&state),
            root_file,
        })
    }
}

fn checked(url: &str) -> anyhow::Result<String> {
    let url = url.trim_end_matches('/');
    if !url.starts_with("https://") || url.len() <= "https://".len() {
        bail!("{URL} must be like https://server:7445, and is {url:?}");
    }
    Ok(url.to_owned())
}

fn read_root(file: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let pem = std::fs::read(file).map_err(|error| explain(error, file, "the site's CA", CA))?;
    CertificateDer::from_pem_slice(&pem).with_context(|| {
        format!(
            "{} is not a certificate in PEM; {CA} must name the site's ca/root.pem",
            file.display()
        )
    })
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| explain(error, file, "the admin token", TOKEN))?;
    Ok(text.trim().to_owned())
}

fn explain(error: std::io::Error, file: &Path, what: &str, variable: &str) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::NotFound => format!(
            "no server has started here yet; start palisade-server, name its site with --site DIR, or set {variable}"
        ),
        ErrorKind::PermissionDenied => {
            format!("run as the user of palisade-server (or root), or set {variable}")
        }
        _ => format!("set {variable}"),
    };
    anyhow::anyhow!(
        "{what} cannot be read from {}: {error}; {remedy}",
        file.display()
    )
}
