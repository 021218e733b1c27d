//! A row whose values are sealed: read and opened.

use std::str::FromStr;

use sqlx::Row as _;

use super::{Backend, Row, row};
use crate::store::seal::{Seat, Unsealed};
use crate::store::{Result, StoreError};

/// A row, and the place that its values were sealed for.
pub struct Opened<'a> {
    row: &'a Row,
    table: &'static str,
    seat: Seat<'a>,
}

impl<'a> Opened<'a> {
    pub fn new(store: &'a Backend, row: &'a Row, table: &'static str, id: &str) -> Self {
        Self {
            row,
            table,
            seat: store.seals.seat(table, id),
        }
    }

    /// What a column holds; none for NULL.
    pub fn bytes_or_none(&self, column: &'static str) -> Result<Option<Vec<u8>>> {
        self.aliased(column, column)
    }

    /// The same where the query calls the column something else.
    fn aliased(&self, column: &'static str, alias: &str) -> Result<Option<Vec<u8>>> {
        let sealed: Option<Vec<u8>> = self
            .row
            .try_get(alias)
            .map_err(|error| row::bad(column, error))?;
        sealed
            .map(|sealed| {
                let opened = self.seat.open(column, &sealed);
                opened.map_err(|error| unsealed(self.table, column, error))
            })
            .transpose()
    }

    pub fn bytes(&self, column: &'static str) -> Result<Vec<u8>> {
        self.bytes_or_none(column)?
            .ok_or_else(|| row::bad(column, "it is empty"))
    }

    pub fn text(&self, column: &'static str) -> Result<String> {
        self.aliased_text(column, column)
    }

    pub fn aliased_text(&self, column: &'static str, alias: &str) -> Result<String> {
        let bytes = self
            .aliased(column, alias)?
            .ok_or_else(|| row::bad(column, "it is empty"))?;
        String::from_utf8(bytes).map_err(|error| row::bad(column, error))
    }

    pub fn text_or_none(&self, column: &'static str) -> Result<Option<String>> {
        self.bytes_or_none(column)?
            .map(|bytes| String::from_utf8(bytes).map_err(|error| row::bad(column, error)))
            .transpose()
    }

    pub fn parsed<T>(&self, column: &'static str) -> Result<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(column)?;
        text.parse()
            .map_err(|error: T::Err| row::bad(column, error))
    }

    pub fn parsed_or_none<T>(&self, column: &'static str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.text_or_none(column)?
            .map(|text| {
                text.parse()
                    .map_err(|error: T::Err| row::bad(column, error))
            })
            .transpose()
    }

    pub fn hash(&self, column: &'static str) -> Result<[u8; 32]> {
        self.hash_or_none(column)?
            .ok_or_else(|| row::bad(column, "it is empty"))
    }

    pub fn hash_or_none(&self, column: &'static str) -> Result<Option<[u8; 32]>> {
        self.bytes_or_none(column)?
            .map(|bytes| {
                bytes.try_into().map_err(|bytes: Vec<u8>| {
                    row::bad(column, format!("{} bytes instead of 32", bytes.len()))
                })
            })
            .transpose()
    }

    /// One that another version wrote and this one cannot read counts as empty: reports
    /// come again.
    pub fn json_or_none<T: serde::de::DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>> {
        let bytes = self.bytes_or_none(column)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

/// A value that does not open, or cannot be sealed.
pub fn unsealed(table: &'static str, column: &'static str, reason: Unsealed) -> StoreError {
    StoreError::Unsealed {
        table,
        column,
        reason,
    }
}

/// A value cannot be sealed or opened, or a statement failed.
pub enum SealingError {
    Seal(&'static str, &'static str, Unsealed),
    Sql(sqlx::Error),
}

impl SealingError {
    /// As the store says it.
    pub fn named(self, of_sqlx: impl FnOnce(sqlx::Error) -> StoreError) -> StoreError {
        match self {
            Self::Seal(table, column, reason) => unsealed(table, column, reason),
            Self::Sql(error) => of_sqlx(error),
        }
    }
}

impl From<sqlx::Error> for SealingError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Unsealed> for SealingError {
    fn from(error: Unsealed) -> Self {
        Self::Seal("hosts", "uri", error)
    }
}
