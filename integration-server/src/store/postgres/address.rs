//! `postgres://user@host:port/database?…`: what of libpq's form is accepted.
//!
//! A password has no place in it: settings are read by others, and a command line
//! is seen by all. TLS is verified in full unless the address says otherwise or the
//! database is on this machine.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Longest password that is read, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;
/// What may stand after the question mark; a misspelt `sslmode` must not be overlooked.
const PARAMETERS: [&str; 6] = [
    "host",
    "port",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
];

/// Where a PostgreSQL database is, and as whom.
#[derive(Clone)]
pub struct Address {
    options: PgConnectOptions,
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
        for parameter in parameters.split('&').filter(|part| !part.is_empty()) {
            let key = parameter.split('=').next().unwrap_or_default();
            if key == "password" {
                return Err(no_password());
            }
            if !PARAMETERS.contains(&key) {
                return Err(format!(
                    "{key:?} is not known; known are {}",
                    PARAMETERS.join(", ")
                ));
            }
        }
        let user = base
            .split_once("://")
            .and_then(|(_, rest)| rest.split('/').next())
            .and_then(|authority| authority.rsplit_once('@'))
            .map(|(user, _)| user);
        if user.is_some_and(|user| user.contains(':')) {
            return Err(no_password());
        }
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|error| format!("it is not postgres://USER@HOST/DATABASE ({error})"))?
            .application_name("palisade-server");
        if options.get_database().is_none_or(str::is_empty) {
            return Err("it names no database: postgres://USER@HOST/DATABASE is expected".into());
        }
        let says_how = parameters
            .split('&')
            .any(|part| part.starts_with("sslmode="));
        if !says_how && std::env::var_os("PGSSLMODE").is_none() {
            let mode = if is_here(&options) {
                PgSslMode::Prefer
            } else {
                PgSslMode::VerifyFull
            };
            options = options.ssl_mode(mode);
        }
        Ok(Self {
            // Statements are no news, and would carry what is stored into the log.
            options: options.disable_statement_logging(),
        })
    }

    /// The same with the password that a file holds, which others may not read if it is to
    /// be `private`.
    ///
    /// # Errors
    /// What is wrong with the file, and what helps.
    pub fn with_password_file(self, path: &Path, private: bool) -> Result<Self, String> {
        use std::io::Read as _;
        use std::os::unix::fs::PermissionsExt as _;
        let named = path.display();
        let file = std::fs::File::open(path)
            .map_err(|error| format!("the password file {named} cannot be read: {error}"))?;
        let mode = file
            .metadata()
            .map_err(|error| format!("the password file {named} cannot be read: {error}"))?
            .permissions()
            .mode();
        if private && mode & 0o077 != 0 {
            return Err(format!(
                "the password file {named} can be read by others; run: chmod 600 {named}"
            ));
        }
        let mut password = String::new();
        file.take(MAX_PASSWORD_BYTES)
            .read_to_string(&mut password)
            .map_err(|error| format!("the password file {named} cannot be read: {error}"))?;
        Ok(Self {
            options: self
                .options
                .password(password.trim_end_matches(['\r', '\n'])),
        })
    }

    /// What sqlx connects with, the password included.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }
}

fn no_password() -> String {
    "a password does not belong there; put it into a file of mode 0600 and name that in database_password_file".into()
}

/// Whether the database is on this machine: a socket, or the loopback.
fn is_here(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Without any secret.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().to_owned(),
        };
        write!(
            f,
            "postgres://{}@{host}:{}/{}",
            options.get_username(),
            options.get_port(),
            options.get_database().unwrap_or_default()
        )
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (url, says) in [
            ("postgres://palisade:secret@db/palisade", "password"),
            ("postgres://palisade@db/palisade?password=x", "password"),
            (
                "postgres://palisade@db/palisade?ssl_mode=disable",
                "ssl_mode",
            ),
            (
                "postgres://palisade@db/palisade?sslmode=perhaps",
                "postgres://",
            ),
            ("postgres://palisade@db", "names no database"),
            ("postgres://[", "postgres://"),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn certificates_are_verified_unless_told() {
        for (url, mode) in [
            ("postgres://u@db.example/p", "VerifyFull"),
            ("postgres://u@10.0.0.1/p", "VerifyFull"),
            ("postgres://u@db.example/p?sslmode=disable", "Disable"),
            ("postgres://u@localhost/p", "Prefer"),
            ("postgres://u@127.0.0.1:9/p", "Prefer"),
            ("postgres://u@db/p?host=/run/postgresql", "Prefer"),
            ("postgres://u@%2Frun%2Fpostgresql/p", "Prefer"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                format!("{:?}", address.options.get_ssl_mode()),
                mode,
                "{url}"
            );
        }
    }

    #[test]
    fn a_password_is_in_no_message() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let address = || Address::parse("postgres://u@db:1/p").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let open = address().with_password_file(&file, true).unwrap_err();
        assert!(open.contains("chmod 600"), "{open}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let with = address().with_password_file(&file, true).unwrap();
        assert_eq!(
            format!("{with} {with:?}"),
            "postgres://u@db:1/p postgres://u@db:1/p"
        );
        assert!(
            address()
                .with_password_file(&dir.path().join("none"), true)
                .is_err()
        );
    }
}
