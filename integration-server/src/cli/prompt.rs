//! Secrets that are typed: not shown on a terminal, a line each from anything else.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};

use crate::accounts::password::MAX_BYTES;

/// Asks for a secret.
///
/// # Errors
/// There is none to read.
pub fn secret(what: &str) -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(format!("{what}: "))
            .with_context(|| format!("the {} cannot be read", what.to_lowercase()));
    }
    line(what)
}

/// Asks for a new password, on a terminal twice.
///
/// # Errors
/// There is none to read, or both are not the same.
pub fn new_password(what: &str) -> anyhow::Result<String> {
    let first = secret(what)?;
    if std::io::stdin().is_terminal() {
        let again = secret("Once more")?;
        if again != first {
            bail!("the two are not the same; nothing was changed");
        }
    }
    Ok(first)
}

/// The next line of stdin, which is no terminal.
fn line(what: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let most = MAX_BYTES as u64 + 2;
    let stdin = std::io::stdin().lock();
    stdin.take(most).read_until(b'\n', &mut bytes)?;
    let text = String::from_utf8(bytes).context("stdin is not text")?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        bail!(
            "the {} is missing: type it, or give it as a line of stdin",
            what.to_lowercase()
        );
    }
    Ok(text.to_owned())
}
