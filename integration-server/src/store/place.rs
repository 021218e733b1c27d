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

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// To serve from: its schema is brought up to this version's.
    Serve,
    /// To look at, while others may serve from it: it must be as this version has it, and
    /// nothing of it is brought up to date.
    Look,
    /// To change what others rely on: nobody else may have it open.
    Alone,
}

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
        self.open_to(Opening::Serve).await
    }

    /// Opens the store there for a purpose.
    ///
    /// # Errors
    /// As [`open`](Self::open), and that the purpose does not allow it now.
    pub async fn open_to(&self, purpose: Opening) -> Result<Arc<dyn Store>> {
        Ok(match &self.database {
            Database::File(path) => Arc::new(SqliteStore::open(path, &self.master, purpose).await?),
            Database::Postgres(address, file) => {
                let address = Address::clone(address);
                // Who may read a credential is systemd's matter.
                let file = file.clone().map(|file| (file, true));
                let file = file.or_else(|| Some((credential(PASSWORD_CREDENTIAL)?, false)));
                let address = match file {
                    Some((file, private)) => address
                        .with_password_file(&file, private)
                        .map_err(StoreError::Password)?,
                    None => address,
                };
                Arc::new(PostgresStore::open(&address, &self.master, purpose).await?)
            }
        })
    }
}

impl Place {
    /// A new master key, in steps of which each leaves a store that opens.
    ///
    /// # Errors
    /// [`StoreError`]; whatever was reached, the next start goes on with.
    pub async fn rotate(&self) -> Result<()> {
        let store = self.open_to(Opening::Alone).await?;
        let key = Key::random().map_err(BadMaster::from)?;
        self.master.prepare(&key)?;
        store.rewrap(&key).await?;
        self.master.finish()?;
        store.close().await;
        Ok(())
    }

    /// A new data key under the master key: every value is sealed anew. Says how many rows
    /// there were.
    ///
    /// # Errors
    /// [`StoreError`]; all of it was done, or nothing.
    pub async fn reseal(&self) -> Result<u64> {
        let store = self.open_to(Opening::Alone).await?;
        let master = self.master.read()?.0;
        let master = master.ok_or_else(|| BadMaster::Missing(self.master.path()))?;
        let rows = store.reseal(&master).await?;
        store.close().await;
        Ok(rows)
    }
}

/// A credential that systemd gave this service, if it did.
pub fn credential(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.exists().then_some(path)
}
