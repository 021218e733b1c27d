//! What PostgreSQL and the way to it say, and what helps: one table.

use std::io::ErrorKind;
use std::time::Duration;

use super::ACQUIRE;
use crate::store::StoreError;

/// Nothing was heard for this long.
pub fn silent(database: &str, after: Duration) -> StoreError {
    StoreError::TooSlow {
        database: database.to_owned(),
        seconds: after.as_secs(),
    }
}

/// By SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), or by
/// what happened to the connection.
pub fn of_sqlx(database: &str, operation: &'static str, error: sqlx::Error) -> StoreError {
    let database = database.to_owned();
    let detail = error.to_string();
    match &error {
        sqlx::Error::Database(said) => match said.code().as_deref().unwrap_or_default() {
            code if code.starts_with("28") => StoreError::Refused { database, detail },
            "3D000" => StoreError::Missing { database, detail },
            "42501" => StoreError::Forbidden { database, detail },
            "25006" => StoreError::ReadOnly { database, detail },
            "53100" | "58030" => StoreError::Disk { database, detail },
            "XX001" | "XX002" => StoreError::Damaged { database, detail },
            // Cancelled because it took too long.
            "57014" => silent(&database, super::CALL),
            // It is about to stop or to start, or has no connection left.
            "57P01" | "57P02" | "57P03" | "53300" => StoreError::Unreachable { database, detail },
            code if code.starts_with("08") => StoreError::Unreachable { database, detail },
            _ => failed(operation, error),
        },
        sqlx::Error::Tls(_) => StoreError::Tls { database, detail },
        // What rustls refuses comes as an error of the socket.
        sqlx::Error::Io(refused) if refused.kind() == ErrorKind::InvalidData => {
            StoreError::Tls { database, detail }
        }
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => {
            StoreError::Unreachable { database, detail }
        }
        sqlx::Error::PoolTimedOut => StoreError::Unreachable {
            database,
            detail: format!("no connection within {} s", ACQUIRE.as_secs()),
        },
        _ => failed(operation, error),
    }
}

fn failed(operation: &'static str, error: sqlx::Error) -> StoreError {
    StoreError::Failed {
        operation,
        source: Box::new(error),
    }
}
