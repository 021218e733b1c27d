//! Which database the settings name, and opening it.

use std::path::PathBuf;
use std::sync::Arc;

use super::postgres::{Address, PostgresStore};
use super::sqlite::SqliteStore;
use super::{Result, Store, StoreError};

/// What a service manager hands over for this purpose, in `$CREDENTIALS_DIRECTORY`.
const PASSWORD_CREDENTIAL: &str = "database-password";

/// Where the store is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A SQLite file.
    File(PathBuf),
    /// A PostgreSQL database, and the file of its user's password.
    Postgres(Box<Address>, Option<PathBuf>),
}

impl Place {
    /// Opens the store there, and brings its schema up to this version's.
    ///
    /// # Errors
    /// [`StoreError`] naming the database and the remedy.
    pub async fn open(&self) -> Result<Arc<dyn Store>> {
        Ok(match self {
            Self::File(path) => Arc::new(SqliteStore::open(path).await?),
            Self::Postgres(address, file) => {
                let address = Address::clone(address);
                let address = match file.clone().or_else(|| credential(PASSWORD_CREDENTIAL)) {
                    Some(file) => address
                        .with_password_file(&file)
                        .map_err(StoreError::Password)?,
                    None => address,
                };
                Arc::new(PostgresStore::open(&address).await?)
            }
        })
    }
}

/// A credential that systemd gave this service, if it did.
fn credential(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.exists().then_some(path)
}
