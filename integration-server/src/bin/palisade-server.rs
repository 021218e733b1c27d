//! `palisade-server`: the Integration Server.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use palisade_daemon::cli::{Common, exit};
use palisade_daemon::logging;
use palisade_integration_server::accounts::setup;
use palisade_integration_server::api::{self, auth};
use palisade_integration_server::definitions;
use palisade_integration_server::failure;
use palisade_integration_server::server::{Server, lock};
use palisade_integration_server::settings::Settings;
use palisade_integration_server::store::{Opening, backup};
use palisade_integration_server::time::now_ms;

/// The Integration Server of a Palisade site
#[derive(Parser)]
#[command(name = "palisade-server", version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve agents, Protection Servers and the API (the default)
    Run,
    /// Read the settings, say what is wrong with them, and end
    CheckConfig,
    /// Make a new admin token; the one before is void
    NewAdminToken,
    /// Make a one-time token for another first account, for who is locked out
    NewSetupToken,
    /// Seal the database with a new master key; the server is stopped meanwhile
    RotateKey {
        /// Seal every value with a new data key, too
        #[arg(long)]
        reseal: bool,
    },
    /// Write a backup of the database and the CA, while the server runs or not
    Backup {
        /// A new file
        file: PathBuf,
    },
    /// Restore a backup into an empty database, with the master key in place
    Restore {
        /// The backup
        file: PathBuf,
    },
    /// Forget the site's definitions and the keys that sign them; the server is stopped meanwhile
    ///
    /// Protection Servers that know them refuse those that come after, and are set up anew.
    ForgetDefinitions,
    /// Look at the whole database; exit code 1 when something is wrong
    Check,
    /// Print the API's specification (OpenAPI 3.1)
    Openapi,
}

fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    logging::start(common.log_format, "info");
    let settings = match Settings::load(&common, std::env::vars_os()) {
        Ok(settings) => settings,
        Err(error) => return fail(exit::USAGE, &error.into()),
    };
    let done = match command.unwrap_or(Command::Run) {
        Command::Run => block_on(async { Server::start(settings, &common).await?.run().await }),
        Command::CheckConfig => {
            println!("{}: ok", common.settings("server").display());
            Ok(())
        }
        Command::NewAdminToken => block_on(new_admin_token(settings, common)),
        Command::NewSetupToken => block_on(new_setup_token(settings, common)),
        Command::RotateKey { reseal } => block_on(rotate_key(settings, common, reseal)),
        Command::Backup { file } => block_on(back_up(settings, common, file)),
        Command::Restore { file } => block_on(restore(settings, common, file)),
        Command::ForgetDefinitions => block_on(forget_definitions(settings, common)),
        Command::Check => match block_on(check(settings, common)) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(exit::FOUND),
            Err(error) => Err(error),
        },
        Command::Openapi => api::document_text()
            .map(|text| print!("{text}"))
            .map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::from(exit::FINE),
        Err(error) => fail(exit::FAILED, &error),
    }
}

async fn new_admin_token(settings: Settings, common: Common) -> anyhow::Result<()> {
    let state = settings.state(&common);
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    let store = place.open_to(Opening::Look).await?;
    auth::new_admin_token(store.as_ref(), &state, now_ms()).await?;
    println!("{}", auth::admin_token_file(&state).display());
    store.close().await;
    Ok(())
}

async fn new_setup_token(settings: Settings, common: Common) -> anyhow::Result<()> {
    let state = settings.state(&common);
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    let store = place.open_to(Opening::Look).await?;
    let file = setup::renew(store.as_ref(), &state, now_ms()).await?;
    println!("{}", file.display());
    store.close().await;
    Ok(())
}

async fn rotate_key(settings: Settings, common: Common, reseal: bool) -> anyhow::Result<()> {
    let state = settings.state(&common);
    let _lock = lock(&state)?;
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    place.rotate().await?;
    let file = place.master.path();
    println!(
        "The database is sealed with a new master key: {}",
        file.display()
    );
    println!(
        "Keep a copy of it apart from the database, and put it where other servers of this database read theirs. Keep the one before, too, as long as there are backups of its time."
    );
    if reseal {
        let rows = place.reseal().await?;
        println!("Rows that were sealed anew: {rows}");
    }
    Ok(())
}

async fn back_up(settings: Settings, common: Common, file: PathBuf) -> anyhow::Result<()> {
    let state = settings.state(&common);
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    let rows = backup::write(&place, &state.join("ca"), &file, now_ms()).await?;
    println!(
        "{}: {rows} rows and the certificate authority",
        file.display()
    );
    println!(
        "The master key is not in it, and it opens with that alone: {}",
        place.master.path().display()
    );
    Ok(())
}

async fn restore(settings: Settings, common: Common, file: PathBuf) -> anyhow::Result<()> {
    let state = settings.state(&common);
    let _lock = lock(&state)?;
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    let rows = backup::restore(&place, &state.join("ca"), &file, now_ms()).await?;
    println!("Restored {rows} rows and the certificate authority.");
    println!(
        "Passwords, API tokens and accounts are those of the backup's time: disable, revoke and remove again what was since. Sessions are none."
    );
    println!(
        "Run palisade-server new-admin-token if {} is lost.",
        auth::admin_token_file(&state).display()
    );
    Ok(())
}

async fn forget_definitions(settings: Settings, common: Common) -> anyhow::Result<()> {
    let state = settings.state(&common);
    let _lock = lock(&state)?;
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    let store = place.open_to(Opening::Look).await?;
    definitions::repository::forget(store.as_ref(), &state, now_ms()).await?;
    store.close().await;
    println!(
        "The site's definitions are forgotten; the next import begins with new keys. Remove the folder repository in the state of each Protection Server that followed them, and restart it."
    );
    Ok(())
}

/// Whether nothing is wrong.
async fn check(settings: Settings, common: Common) -> anyhow::Result<bool> {
    let state = settings.state(&common);
    let place = settings.place(&state).map_err(anyhow::Error::msg)?;
    let store = place.open_to(Opening::Look).await?;
    let problems = store.check().await?;
    store.close().await;
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!(
            "Nothing is wrong: every reference leads somewhere, and every sealed value opens."
        );
    }
    Ok(problems.is_empty())
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("palisade-server: {}", failure::text(error));
    ExitCode::from(code)
}
