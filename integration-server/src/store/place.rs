//! Which database the settings name, and opening it.

use std::path::PathBuf;
use std::sync::Arc;

use super::postgres::{Address, PostgresStore};
use super::seal::Key;
use super::seal::master::{BadMaster, Source};
use super::sqlite::SqliteStore;
use super::{Result, Store, StoreError};

/// What a service manager hands over for this purpose, in `$CREDENTIALS_DIRECTORY`.
const PASSWORD_CREDENTIAL: &str = "database-password";

/// Where the store is, and where its master key.
#[derive(Debug, Clone)]
pub struct Place {
    /// Which database.
    pub database: Database,
    /// The key that it is sealed with.
    pub master: Source,
}

/// Which database.
#[derive(Debug, Clone)]
pub enum Database {
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
        Ok(match &self.database {
            Database::File(path) => Arc::new(SqliteStore::open(path, &self.master).await?),
            Database::Postgres(address, file) => {
                let address = Address::clone(address);
                let address = match file.clone().or_else(|| credential(PASSWORD_CREDENTIAL)) {
                    Some(file) => address
                        .with_password_file(&file)
                        .map_err(StoreError::Password)?,
                    None => address,
                };
                Arc::new(PostgresStore::open(&address, &self.master).await?)
            }
        })
    }
}

impl Place {
    /// A new master key, in steps of which each leaves a store that opens; with `reseal`
    /// also a new data key. Says how many rows were sealed anew.
    ///
    /// # Errors
    /// [`StoreError`]; whatever was reached, the next start goes on with.
    pub async fn rotate(&self, reseal: bool) -> Result<u64> {
        let store = self.open().await?;
        let key = Key::random().map_err(BadMaster::from)?;
        self.master.prepare(&key)?;
        store.rewrap(&key).await?;
        self.master.finish()?;
        let rows = match reseal {
            true => store.reseal(&key).await?,
            false => 0,
        };
        store.close().await;
        Ok(rows)
    }
}

/// A credential that systemd gave this service, if it did.
pub fn credential(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.exists().then_some(path)
}
