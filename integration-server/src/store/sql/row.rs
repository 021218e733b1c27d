//! Between Rust's types and what a column can hold. SQL integers are signed and
//! 64 bits wide; ids are text.

use sqlx::Row as _;

use super::Row;
use std::str::FromStr;

use crate::store::{Result, StoreError};

/// A number as a column holds it; what does not fit is its largest value.
pub fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// A text column.
pub fn text(row: &Row, column: &'static str) -> Result<String> {
    row.try_get(column).map_err(|error| bad(column, error))
}

/// A text column that parses.
pub fn parsed<T>(row: &Row, column: &'static str) -> Result<T>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text(row, column)?
        .parse()
        .map_err(|error: T::Err| bad(column, error))
}

/// A number column.
pub fn unsigned(row: &Row, column: &'static str) -> Result<u64> {
    let value: i64 = row.try_get(column).map_err(|error| bad(column, error))?;
    u64::try_from(value).map_err(|error| bad(column, error))
}

/// A number column of 32 bits.
pub fn unsigned32(row: &Row, column: &'static str) -> Result<u32> {
    u32::try_from(unsigned(row, column)?).map_err(|error| bad(column, error))
}

/// A number column that may be empty.
pub fn unsigned_or_none(row: &Row, column: &'static str) -> Result<Option<u64>> {
    let value: Option<i64> = row.try_get(column).map_err(|error| bad(column, error))?;
    value
        .map(|value| u64::try_from(value).map_err(|error| bad(column, error)))
        .transpose()
}

/// A column of bytes.
pub fn bytes(row: &Row, column: &'static str) -> Result<Vec<u8>> {
    row.try_get(column).map_err(|error| bad(column, error))
}

/// A column of 32 bytes.
pub fn hash(row: &Row, column: &'static str) -> Result<[u8; 32]> {
    bytes(row, column)?
        .try_into()
        .map_err(|bytes: Vec<u8>| bad(column, format!("{} bytes instead of 32", bytes.len())))
}

/// A value for a JSON column.
pub fn json<T: serde::Serialize>(column: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| bad(column, error))
}

pub fn bad(column: &'static str, detail: impl ToString) -> StoreError {
    StoreError::BadRow {
        column,
        detail: detail.to_string(),
    }
}
