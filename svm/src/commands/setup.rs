//! `check-config` and `enrol`: before the daemon runs.

use palisade_daemon::cli::Common;
use palisade_daemon::enrol::{read_token, read_token_file};
use palisade_svm::settings::{self, COMPONENT};
use palisade_svm::state::State;

use super::runtime;

/// Reads the settings.
///
/// # Errors
/// What is wrong with them.
pub fn check_config(common: &Common) -> anyhow::Result<()> {
    let file = common.settings(COMPONENT);
    settings::load(&file)?;
    println!("{}: fine", file.display());
    Ok(())
}

/// Gets an identity.
///
/// # Errors
/// What is missing, and the remedy.
pub fn enrol(common: &Common, token: Option<&str>) -> anyhow::Result<()> {
    let settings = settings::load(&common.settings(COMPONENT))?;
    let token = match (token, &settings.join_token_file) {
        (Some(text), _) => read_token(text)?,
        (None, Some(file)) => read_token_file(file)?,
        (None, None) => anyhow::bail!(
            "no join token: give one (palisade-scanserver enrol TOKEN, or - for standard input), \
             or set join_token_file; `palisade token create --component svm` makes one"
        ),
    };
    let state = State::open(settings.folders(&common.site())?)?;
    let membership = runtime()?.block_on(state.enrol(&token))?;
    println!(
        "enrolled as {} ({})",
        membership.name,
        membership.identity.id()
    );
    Ok(())
}
