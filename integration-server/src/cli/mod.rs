//! The `palisade` command: a client of the public API, and no more.
//!
//! ```text
//!   arguments ─► Target (URL, session or token, CA) ─► Client ─► resource's command ─► table | JSON
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`target`] | where the server is and how it is trusted: environment, or the site's files |
//! | [`client`] | requests, and what an error means for the person who asked |
//! | [`resources`] | one function a noun and verb: which columns, which JSON |
//! | [`repository`], [`bundle`], [`publisher`] | the site's definitions: commands, files to be sent, a publisher's key |
//! | [`definitions`], [`maintenance`], [`selection`], [`alerts`], [`exposures`] | the same for a Protection Server's definitions, maintenance tokens, agents' choices, alerts, times without verdicts |
//! | [`login`], [`accounts`], [`api_tokens`], [`audit`] | the same for sessions, accounts, their API tokens, the audit log |
//! | [`policies`], [`groups`] | the same for policies and groups |
//! | [`prompt`] | secrets that are typed |
//! | [`table`] | columns for people, with nothing in them that drives a terminal |

pub mod accounts;
pub mod alerts;
pub mod api_tokens;
pub mod audit;
pub mod bundle;
pub mod client;
pub mod definitions;
pub mod exposures;
pub mod groups;
pub mod login;
pub mod maintenance;
pub mod policies;
pub mod prompt;
pub mod publisher;
pub mod repository;
pub mod resources;
pub mod selection;
pub mod table;
pub mod target;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use palisade_daemon::cli::{Common, Format, exit};
use uuid::Uuid;

use crate::accounts::login::Proof;
use crate::api::maintenance::{Allowed, NewMaintenance};
use crate::api::tokens::Component;
use crate::interval::Interval;
use client::Client;
use target::{Credential, Target, Wanted};

/// Look at a Palisade site and let components join it
#[derive(Debug, Parser)]
#[command(name = "palisade", version, after_help = MORE)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    format: Format,
    #[command(subcommand)]
    noun: Noun,
}

const MORE: &str = "\
On the server's own machine it finds everything by itself. Elsewhere set PALISADE_URL
and PALISADE_CA (a file with the site's root certificate, ca/root.pem in the server's
state folder), and log in, or set PALISADE_TOKEN to an API token.

Exit codes: 0 fine, 1 there is an alert (`alert list`), the audit log was changed
(`audit verify`) or an agent does not have its policy (`policy effective`), 2 wrong
usage, 3 could not do it.";

#[derive(Debug, Subcommand)]
enum Noun {
    /// The site on one screen
    Status,
    /// Protection Servers
    #[command(subcommand)]
    Svm(Svms),
    /// The site's definitions, which Protection Servers follow
    #[command(subcommand)]
    Definitions(repository::Verb),
    /// Light Agents
    #[command(subcommand)]
    Agent(Members),
    /// Hypervisors and their domains
    #[command(subcommand)]
    Inventory(Inventory),
    /// What somebody must look at now
    #[command(subcommand)]
    Alert(Alerts),
    /// What agents found
    #[command(subcommand)]
    Detection(Detections),
    /// When guests ran without verdicts
    #[command(subcommand)]
    Exposure(Exposures),
    /// What is set for guests: for all, or a tenant, a group, a VM
    #[command(subcommand)]
    Policy(policies::Policies),
    /// Groups of a tenant's agents, which have a policy in common
    #[command(subcommand)]
    Group(groups::Groups),
    /// Join tokens, by which agents and Protection Servers join
    #[command(subcommand)]
    Token(Tokens),
    /// Make the first account, with the server's setup token
    Setup {
        /// What it is called
        name: String,
        /// The file with the setup token, if it is not this machine's own
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Begin a session; the password is asked for
    Login {
        /// The account's name
        name: String,
        /// A recovery code, in place of the authenticator's
        #[arg(long, value_name = "CODE")]
        recovery_code: Option<String>,
    },
    /// End the session
    Logout,
    /// Who may use this
    #[command(subcommand)]
    Account(accounts::Accounts),
    /// API tokens, by which programs use your account
    #[command(subcommand)]
    ApiToken(api_tokens::ApiTokens),
    /// What was changed, by whom
    #[command(subcommand)]
    Audit(audit::Audit),
}

#[derive(Debug, Subcommand)]
enum Svms {
    /// List all, by name
    List,
    /// Cut one off; it can join again with a new token only
    Revoke {
        /// Its id
        id: Uuid,
    },
    /// See and choose the definitions in force on one
    Definitions {
        /// Its name or id
        svm: String,
        #[command(subcommand)]
        order: Option<definitions::Order>,
    },
}

#[derive(Debug, Subcommand)]
enum Members {
    /// List all, by name
    List,
    /// Cut one off; it can join again with a new token only
    Revoke {
        /// Its id
        id: Uuid,
    },
    /// Say why one uses its Protection Server, and why not each other one
    ///
    /// The agent is asked. Exits with 1 when it uses none.
    Explain {
        /// Its name or id
        agent: String,
    },
    /// Make a token by which one may be stopped for a time, and print it, alone
    Maintenance {
        /// Its name or id
        agent: String,
        /// Let its package be removed, too
        #[arg(long)]
        remove: bool,
        /// For how long: 30m, 2h, 7d at most
        #[arg(long = "for", value_name = "TIME", default_value = "2h")]
        time: Interval,
        /// Why, on one line; it is kept and logged
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
enum Alerts {
    /// List all, the oldest first; exits with 1 when there is one
    List,
}

#[derive(Debug, Subcommand)]
enum Exposures {
    /// List what agents report, the latest beginning first
    List,
}

#[derive(Debug, Subcommand)]
enum Inventory {
    /// List all hosts with their domains
    List,
}

#[derive(Debug, Subcommand)]
enum Detections {
    /// List detections, newest first
    List {
        /// How many at the most
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

#[derive(Debug, Subcommand)]
enum Tokens {
    /// Make a join token and print it, alone
    Create {
        /// What may join with it
        #[arg(long, value_enum, default_value = "agent")]
        component: Component,
        /// The tenant that agents join
        #[arg(long, default_value = "default")]
        tenant: palisade_protocol::ids::TenantId,
        /// How often it may be used
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::api::tokens::MAX_USES)))]
        uses: u32,
        /// How long it may be used: 30s, 5m, 1h, 7d
        #[arg(long, default_value = "1h")]
        expires: Interval,
    },
    /// List join tokens, without their secrets
    List,
    /// Make a join token void; who joined with it stays
    Revoke {
        /// Its id
        id: Uuid,
    },
}

/// What a command prints, and how it ends.
#[derive(Debug)]
pub struct Printed {
    /// For stdout: what was asked for.
    pub out: String,
    /// For stderr: what people should know beside it.
    pub note: String,
    /// The exit code.
    pub code: u8,
}

impl From<String> for Printed {
    fn from(out: String) -> Self {
        Self {
            out,
            note: String::new(),
            code: exit::FINE,
        }
    }
}

/// Runs the command; for `main`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let printed = match run(&arguments) {
        Ok(printed) => printed,
        Err(error) => return fail(&error),
    };
    match std::io::stdout().lock().write_all(printed.out.as_bytes()) {
        Ok(()) => {}
        // A reader that has enough, like `head`, is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => return fail(&anyhow::Error::from(error)),
    }
    eprint!("{}", printed.note);
    ExitCode::from(printed.code)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("palisade: {}", crate::failure::text(error));
    ExitCode::from(exit::FAILED)
}

fn run(arguments: &Arguments) -> anyhow::Result<Printed> {
    let environment: HashMap<OsString, OsString> = std::env::vars_os().collect();
    let (common, output) = (&arguments.common, arguments.format.output);
    if let Noun::Definitions(verb) = &arguments.noun
        && repository::is_local(verb)
    {
        return repository::run_local(verb);
    }
    let wanted = match &arguments.noun {
        Noun::Setup { .. } | Noun::Login { .. } => Wanted::Nobody,
        Noun::Logout => Wanted::Session,
        _ => Wanted::Somebody,
    };
    let target = Target::find(common, &environment, wanted)?;
    let in_session = matches!(target.credential, Credential::Session(_));
    let client = Client::new(target)?;
    let session = login::file(|name| target::given(&environment, name));
    let session = session.as_deref();
    let text = match &arguments.noun {
        Noun::Setup { name, token_file } => {
            let file = match token_file {
                Some(file) => file.clone(),
                None => target::setup_token_file(common, environment)?,
            };
            login::setup(&client, name, &file)
        }
        Noun::Login {
            name,
            recovery_code,
        } => {
            let proof = Proof {
                name: name.clone(),
                password: String::new(),
                code: None,
                recovery_code: recovery_code.clone(),
            };
            login::log_in(&client, session, proof, output)
        }
        Noun::Logout => login::log_out(in_session.then_some(&client), session),
        Noun::Policy(what) => return policies::run(&client, what, output),
        Noun::Group(what) => groups::run(&client, what, output),
        Noun::Account(what) => accounts::run(&client, what, output),
        Noun::ApiToken(what) => api_tokens::run(&client, what, output),
        Noun::Audit(what) => return audit::run(&client, what, output),
        Noun::Status => resources::status(&client, output),
        Noun::Svm(Svms::List) => resources::svms(&client, output),
        Noun::Svm(Svms::Revoke { id }) => resources::revoke(&client, "svms", *id, output),
        Noun::Svm(Svms::Definitions { svm, order }) => {
            definitions::definitions(&client, svm, order.as_ref(), output)
        }
        Noun::Definitions(verb) => return repository::run(&client, verb, output),
        Noun::Agent(Members::List) => resources::agents(&client, output),
        Noun::Agent(Members::Revoke { id }) => resources::revoke(&client, "agents", *id, output),
        Noun::Inventory(Inventory::List) => resources::inventory(&client, output),
        Noun::Detection(Detections::List { limit }) => {
            resources::detections(&client, *limit, output)
        }
        Noun::Exposure(Exposures::List) => exposures::list(&client, output),
        Noun::Token(Tokens::List) => resources::tokens(&client, output),
        Noun::Token(Tokens::Revoke { id }) => resources::revoke(&client, "tokens", *id, output),
        Noun::Token(Tokens::Create {
            component,
            tenant,
            uses,
            expires,
        }) => {
            let new = crate::api::tokens::NewToken {
                component: *component,
                tenant: Some(tenant.to_string()),
                uses: *uses,
                expires_in: expires.to_string(),
            };
            resources::create_token(&client, &new, output)
        }
        Noun::Agent(Members::Explain { agent }) => {
            return selection::explain(&client, agent, output);
        }
        Noun::Alert(Alerts::List) => return alerts::list(&client, output),
        Noun::Agent(Members::Maintenance {
            agent,
            remove,
            time,
            reason,
        }) => {
            let new = NewMaintenance {
                allowed: if *remove {
                    Allowed::Remove
                } else {
                    Allowed::Stop
                },
                for_s: time.get().as_secs(),
                reason: reason.clone(),
            };
            return maintenance::create(&client, agent, &new, output);
        }
    };
    text.map(Printed::from)
}
