//! `palisade api-token`: tokens by which programs use your account. Join tokens are
//! `palisade token`.

use clap::Subcommand;
use palisade_daemon::cli::Output;
use uuid::Uuid;

use super::client::Client;
use super::resources::{Result, json, revoke};
use super::table::Table;
use crate::access::{Grant, Role, Scope};
use crate::api::api_tokens::{ApiToken, CreatedApiToken, NewApiToken};
use crate::interval::Interval;

/// What to do with API tokens.
#[derive(Debug, Subcommand)]
pub enum ApiTokens {
    /// Make one of your account and print it, alone; for PALISADE_TOKEN
    Create {
        /// What it is for
        name: String,
        /// What it is limited to, of what you may do
        #[arg(long, value_enum)]
        role: Role,
        /// Where: /, /tenants/NAME
        #[arg(long, default_value = "/")]
        path: Scope,
        /// How long it lasts, a year at most: 1h, 7d, 30d
        #[arg(long, default_value = "30d")]
        expires: Interval,
    },
    /// List yours, and those of accounts that you may see, without their texts
    List,
    /// Make one void
    Revoke {
        /// Its id
        id: Uuid,
    },
}

/// Does it.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run(client: &Client, what: &ApiTokens, output: Output) -> Result {
    match what {
        ApiTokens::Create {
            name,
            role,
            path,
            expires,
        } => {
            let new = NewApiToken {
                name: name.clone(),
                scope: Grant {
                    role: *role,
                    path: path.clone(),
                },
                expires_in: expires.to_string(),
            };
            let created: CreatedApiToken = client.post("api-tokens", &new)?;
            match output {
                Output::Json => json(&created),
                Output::Text => Ok(created.token + "\n"),
            }
        }
        ApiTokens::List => list(client, output),
        ApiTokens::Revoke { id } => revoke(client, "api-tokens", *id, output),
    }
}

fn list(client: &Client, output: Output) -> Result {
    let tokens: Vec<ApiToken> = client.list("api-tokens", None, usize::MAX)?;
    if output == Output::Json {
        return json(&tokens);
    }
    let mut table = Table::new([
        "NAME",
        "ACCOUNT",
        "LIMITED TO",
        "STATE",
        "EXPIRES",
        "LAST USED",
        "ID",
    ]);
    for token in tokens {
        table.row([
            token.name,
            token.account_name,
            format!("{} at {}", token.scope.role.as_str(), token.scope.path),
            token.state,
            token.expires,
            token.last_used.unwrap_or_default(),
            token.id.to_string(),
        ]);
    }
    Ok(table.print("there is no API token; `palisade api-token create` makes one"))
}
