//! `palisade setup`, `login`, `logout`: a session of the command line, in a file that its
//! user alone may read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use palisade_daemon::cli::Output;
use palisade_protocol::identity::write_atomic;
use serde::{Deserialize, Serialize};
use ureq::http::header::SET_COOKIE;

use super::client::{Client, is_refusal};
use super::prompt;
use super::resources::{Result, json};
use super::table::safe;
use crate::accounts::login::Proof;
use crate::accounts::sessions;
use crate::api::session::{Confirmation, Session, Setup};

/// Names the file of the session, in place of the user's own.
pub const SESSION: &str = "PALISADE_SESSION";
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4096;

/// A session, as its file has it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The server that it is of.
    pub url: String,
    /// Its token.
    pub token: String,
    /// What goes with changes.
    pub csrf: String,
}

/// Where the session's file is, if there is a place for one.
pub fn file(given: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(file) = given(SESSION) {
        return Some(file.into());
    }
    let state = given("XDG_STATE_HOME").map(PathBuf::from);
    let home = given("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let folder = state.or(home).filter(|folder| folder.is_absolute())?;
    Some(folder.join("palisade").join("session"))
}

/// The session for this server, if there is one.
///
/// # Errors
/// The file is there and cannot be used.
pub fn kept(file: &Path, url: &str) -> anyhow::Result<Option<Kept>> {
    use std::io::Read as _;
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| remedy(file)),
    };
    let mut text = String::new();
    let read = opened.take(MAX_FILE_BYTES).read_to_string(&mut text);
    read.with_context(|| remedy(file))?;
    let kept: Kept = serde_json::from_str(&text).with_context(|| remedy(file))?;
    Ok((kept.url == url).then_some(kept))
}

fn remedy(file: &Path) -> String {
    format!(
        "the session in {} cannot be read; `palisade logout` removes it",
        file.display()
    )
}

/// `palisade setup NAME`.
///
/// # Errors
/// What is in the way, and what helps.
pub fn setup(client: &Client, name: &str, token_file: &Path) -> Result {
    let token = std::fs::read_to_string(token_file).with_context(|| {
        format!(
            "the setup token cannot be read from {}; it is gone once it was used, and palisade-server new-setup-token makes another one",
            token_file.display()
        )
    })?;
    let new = Setup {
        token: token.trim().to_owned(),
        name: name.to_owned(),
        password: prompt::new_password("Password of the new account")?,
    };
    client.send("POST", "setup", Some(&new))?;
    Ok(format!(
        "{} is an administrator now; `palisade login {}` begins a session\n",
        safe(name),
        safe(name)
    ))
}

/// `palisade login NAME`.
///
/// # Errors
/// What is in the way, and what helps.
pub fn log_in(client: &Client, file: Option<&Path>, mut proof: Proof, output: Output) -> Result {
    let Some(file) = file else {
        bail!("there is no place for the session: set {SESSION} to a file, or HOME");
    };
    proof.password = prompt::secret("Password")?;
    let answer = match client.send("POST", "session", Some(&proof)) {
        Err(error) if needs_code(&error) => {
            proof.code = Some(prompt::secret("Code of the authenticator")?);
            client.send("POST", "session", Some(&proof))
        }
        other => other,
    };
    let mut answer = answer?;
    let cookie = answer
        .headers()
        .get(SET_COOKIE)
        .and_then(|cookie| cookie.to_str().ok());
    let token = cookie.and_then(|cookie| sessions::cookie(cookie.split(';').next()?));
    let token = token.context("the server gave no session; use the palisade of its version")?;
    let token = token.to_owned();
    let session: Session = answer.body_mut().read_json()?;
    let kept = Kept {
        url: client.server().to_owned(),
        token,
        csrf: session.csrf.clone().unwrap_or_default(),
    };
    if let Some(folder) = file.parent() {
        crate::store::private_folder(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    write_atomic(file, serde_json::to_string(&kept)?.as_bytes(), 0o600)?;
    if output == Output::Json {
        // The secret that goes with changes is the file's.
        let shown = Session {
            csrf: None,
            ..session
        };
        return json(&shown);
    }
    let grants: Vec<String> = session
        .grants
        .iter()
        .map(|grant| format!("{} at {}", grant.role.as_str(), grant.path))
        .collect();
    let may = match grants.is_empty() {
        true => "no grants yet".to_owned(),
        false => grants.join(", "),
    };
    Ok(format!(
        "logged in as {}: {}\nthe session ends {} if it is not used\n",
        safe(&session.name),
        safe(&may),
        safe(session.ends.as_deref().unwrap_or("soon"))
    ))
}

fn needs_code(error: &anyhow::Error) -> bool {
    is_refusal(error, "code-needed")
}

/// Shows the password once more, for what is dangerous; `asked` is what the server said.
///
/// # Errors
/// What the server said, where nobody types a password; or that it is wrong.
pub fn confirm(client: &Client, asked: anyhow::Error) -> anyhow::Result<()> {
    let Ok(password) = prompt::secret("Your password, once more") else {
        return Err(asked);
    };
    let mut shown = Confirmation {
        password,
        code: None,
        recovery_code: None,
    };
    let path = "session/confirmation";
    match client.send_once("POST", path, Some(&shown)) {
        Err(error) if needs_code(&error) => {
            shown.code = Some(prompt::secret("Code of the authenticator")?);
            client.send_once("POST", path, Some(&shown)).map(drop)
        }
        other => other.map(drop),
    }
}

/// `palisade logout`: whatever the server says, the file is gone afterwards.
///
/// # Errors
/// The file cannot be removed.
pub fn log_out(client: Option<&Client>, file: Option<&Path>) -> Result {
    let Some(file) = file.filter(|file| file.exists()) else {
        return Ok("there is no session\n".to_owned());
    };
    let ended = client.map(|client| client.send::<()>("DELETE", "session", None));
    std::fs::remove_file(file).with_context(|| format!("{} cannot be removed", file.display()))?;
    Ok(match ended {
        Some(Ok(_)) => "the session has ended\n".to_owned(),
        Some(Err(error)) => format!(
            "the session is forgotten here; on the server: {}\n",
            crate::failure::text(&error)
        ),
        None => "the session is forgotten here; it was of another server\n".to_owned(),
    })
}
