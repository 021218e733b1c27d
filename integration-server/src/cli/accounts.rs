//! `palisade account`: who may use the server, and one's own secrets.

use std::str::FromStr;

use anyhow::Context as _;
use clap::Subcommand;
use palisade_daemon::cli::Output;
use uuid::Uuid;

use super::client::Client;
use super::prompt;
use super::resources::{Result, json};
use super::table::{Table, safe};
use crate::access::{Grant, Role};
use crate::api::accounts::{Account, AccountChange, NewAccount, NewPassword};
use crate::api::own::{PasswordChange, RecoveryCodes, TotpCode, TotpSecret};

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub enum Accounts {
    /// List those that you may see, by name
    List,
    /// Make one; its first password is asked for
    Create {
        /// What it is called
        name: String,
        /// What it may do, ROLE:PATH: admin:/, operator:/, auditor:/, tenant_admin:/tenants/acme
        #[arg(long = "grant", value_name = "ROLE:PATH")]
        grants: Vec<Given>,
    },
    /// Change what one may do: these grants in place of those before
    Grant {
        /// Its name or id
        account: String,
        /// As with `create`; none takes all away
        #[arg(long = "grant", value_name = "ROLE:PATH")]
        grants: Vec<Given>,
    },
    /// Disable one; its sessions and API tokens end
    Disable {
        /// Its name or id
        account: String,
    },
    /// Enable one that was disabled
    Enable {
        /// Its name or id
        account: String,
    },
    /// Remove one that is disabled; its name is free then
    Remove {
        /// Its name or id
        account: String,
    },
    /// Change your password, or set another account's
    Password {
        /// Whose, by name or id; your own if it is not said
        account: Option<String>,
    },
    /// Your second factor, or another account's that was lost
    #[command(subcommand)]
    Totp(Totp),
}

/// What to do with a second factor.
#[derive(Debug, Subcommand)]
pub enum Totp {
    /// Have a code asked for when you log in; shows the secret and recovery codes, once
    On,
    /// Ask for none any more
    Off {
        /// Whose, by name or id; your own if it is not said
        account: Option<String>,
    },
}

/// A grant as people write it.
#[derive(Debug, Clone)]
pub struct Given(Grant);

impl FromStr for Given {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (role, path) = text
            .split_once(':')
            .ok_or_else(|| "a grant is ROLE:PATH, like auditor:/".to_owned())?;
        let role = <Role as clap::ValueEnum>::from_str(role, false)
            .map_err(|_| format!("{role:?} is none of admin, operator, auditor, tenant_admin"))?;
        let path = path.parse().map_err(|error| format!("{error}"))?;
        Ok(Self(Grant { role, path }))
    }
}

/// Does it.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run(client: &Client, what: &Accounts, output: Output) -> Result {
    match what {
        Accounts::List => list(client, output),
        Accounts::Create { name, grants } => {
            let new = NewAccount {
                name: name.clone(),
                password: prompt::new_password("Password of the new account")?,
                grants: grants.iter().map(|given| given.0.clone()).collect(),
            };
            let made: Account = client.post("accounts", &new)?;
            shown(&made, "is made", output)
        }
        Accounts::Grant { account, grants } => {
            let grants = grants.iter().map(|given| given.0.clone()).collect();
            let change = AccountChange {
                grants: Some(grants),
                ..AccountChange::default()
            };
            changed(client, account, &change, "may do that from now on", output)
        }
        Accounts::Disable { account } => {
            let change = AccountChange {
                disabled: Some(true),
                ..AccountChange::default()
            };
            changed(client, account, &change, "is disabled", output)
        }
        Accounts::Enable { account } => {
            let change = AccountChange {
                disabled: Some(false),
                ..AccountChange::default()
            };
            changed(client, account, &change, "is enabled", output)
        }
        Accounts::Remove { account } => {
            let (id, name) = named(client, account)?;
            client.delete(&format!("accounts/{id}"))?;
            Ok(format!("{} is removed\n", safe(&name)))
        }
        Accounts::Password { account: None } => {
            let change = PasswordChange {
                old: prompt::secret("Your password before")?,
                new: prompt::new_password("Your new password")?,
            };
            client.send("PUT", "session/password", Some(&change))?;
            Ok("your password is changed; your other sessions have ended\n".to_owned())
        }
        Accounts::Password {
            account: Some(account),
        } => {
            let (id, name) = named(client, account)?;
            let new = NewPassword {
                password: prompt::new_password(&format!("New password of {}", safe(&name)))?,
            };
            client.send("PUT", &format!("accounts/{id}/password"), Some(&new))?;
            Ok(format!(
                "the password of {} is set; its sessions have ended\n",
                safe(&name)
            ))
        }
        Accounts::Totp(Totp::On) => totp_on(client),
        Accounts::Totp(Totp::Off { account: None }) => {
            client.delete("session/totp")?;
            Ok("no code is asked for any more\n".to_owned())
        }
        Accounts::Totp(Totp::Off {
            account: Some(account),
        }) => {
            let (id, name) = named(client, account)?;
            client.delete(&format!("accounts/{id}/totp"))?;
            Ok(format!("no code is asked of {} any more\n", safe(&name)))
        }
    }
}

fn list(client: &Client, output: Output) -> Result {
    let accounts: Vec<Account> = client.list("accounts", None, usize::MAX)?;
    if output == Output::Json {
        return json(&accounts);
    }
    let mut table = Table::new(["NAME", "STATE", "MAY", "TOTP", "LAST LOGIN", "ID"]);
    for account in accounts {
        table.row([
            account.name.clone(),
            account.state.clone(),
            may(&account),
            if account.totp { "yes" } else { "no" }.to_owned(),
            account.last_login.unwrap_or_default(),
            account.id.to_string(),
        ]);
    }
    Ok(table.print("there is no account; `palisade setup NAME` makes the first one"))
}

fn may(account: &Account) -> String {
    let one = |grant: &Grant| format!("{} at {}", grant.role.as_str(), grant.path);
    account
        .grants
        .iter()
        .map(one)
        .collect::<Vec<_>>()
        .join(", ")
}

fn shown(account: &Account, said: &str, output: Output) -> Result {
    if output == Output::Json {
        return json(account);
    }
    let may = match account.grants.is_empty() {
        true => "it may do nothing yet: `palisade account grant` says what".to_owned(),
        false => may(account),
    };
    Ok(format!("{} {said}: {}\n", safe(&account.name), safe(&may)))
}

fn changed(
    client: &Client,
    account: &str,
    change: &AccountChange,
    said: &str,
    output: Output,
) -> Result {
    let (id, _) = named(client, account)?;
    let mut answer = client.send("PATCH", &format!("accounts/{id}"), Some(change))?;
    let account: Account = answer.body_mut().read_json()?;
    shown(&account, said, output)
}

/// Shows the secret, asks for a code of it, and shows the recovery codes.
fn totp_on(client: &Client) -> Result {
    let mut made = client.send::<()>("POST", "session/totp", None)?;
    let secret: TotpSecret = made.body_mut().read_json()?;
    // Before the code is asked for: it is what the code is made of.
    eprintln!(
        "Give this secret to your authenticator: {}",
        safe(&secret.secret)
    );
    eprintln!("The same as a URI: {}", safe(&secret.uri));
    let code = TotpCode {
        code: prompt::secret("The code that it shows now")?,
    };
    let mut answer = client.send("PUT", "session/totp", Some(&code))?;
    let codes: RecoveryCodes = answer.body_mut().read_json()?;
    let mut text = codes.recovery_codes.join("\n");
    text.push_str(
        "\n\nA code is asked for from now on. Keep these recovery codes apart from the authenticator; each counts once, in place of a code: `palisade login NAME --recovery-code CODE`.\n",
    );
    Ok(text)
}

/// An id, or a name that an account has.
fn named(client: &Client, account: &str) -> anyhow::Result<(Uuid, String)> {
    if let Ok(id) = account.parse::<Uuid>() {
        return Ok((id, id.to_string()));
    }
    let accounts: Vec<Account> = client.list("accounts", None, usize::MAX)?;
    let found = accounts.into_iter().find(|known| known.name == account);
    let found = found.with_context(|| {
        format!(
            "no account that you may see is called {}; `palisade account list` shows them",
            safe(account)
        )
    })?;
    Ok((found.id, found.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_a_role_and_a_path() {
        let given: Given = "tenant_admin:/tenants/acme".parse().unwrap();
        assert_eq!(given.0.role, Role::TenantAdmin);
        assert_eq!(given.0.path.to_string(), "/tenants/acme");
        for bad in ["admin", "root:/", "admin:tenants", ":/", ""] {
            assert!(bad.parse::<Given>().is_err(), "{bad}");
        }
    }
}
