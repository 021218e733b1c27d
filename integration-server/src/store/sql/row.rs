//! Between Rust's types and what a column can hold. SQL integers are signed and
//! 64 bits wide; ids are text.

use sqlx::Row as _;

use super::Row;
use std::borrow::Cow;
use std::str::FromStr;

use crate::store::{Result, StoreError};

/// A number as a column holds it; what does not fit is its largest value.
pub fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Text of a peer as both databases take it: PostgreSQL has no NUL in text, and
/// whoever sends one must not have a whole batch refused.
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A text column.
pub fn text(row: &Row, column: &'static str) -> Result<String> {
    row.try_get(column).map_err(|error| bad(column, error))
}

/// A text column that may be empty.
pub fn text_or_none(row: &Row, column: &'static str) -> Result<Option<String>> {
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

/// A text column that parses or is empty.
pub fn parsed_or_none<T>(row: &Row, column: &'static str) -> Result<Option<T>>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text_or_none(row, column)?
        .map(|text| text.parse().map_err(|error: T::Err| bad(column, error)))
        .transpose()
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

/// A column of 32 bytes that may be empty.
pub fn hash_or_none(row: &Row, column: &'static str) -> Result<Option<[u8; 32]>> {
    let value: Option<Vec<u8>> = row.try_get(column).map_err(|error| bad(column, error))?;
    value
        .map(|bytes| {
            bytes.try_into().map_err(|bytes: Vec<u8>| {
                bad(column, format!("{} bytes instead of 32", bytes.len()))
            })
        })
        .transpose()
}

/// A JSON column. One that an other version wrote and this one cannot read counts
/// as empty: reports come again.
pub fn json_or_none<T: serde::de::DeserializeOwned>(
    row: &Row,
    column: &'static str,
) -> Result<Option<T>> {
    Ok(text_or_none(row, column)?.and_then(|text| serde_json::from_str(&text).ok()))
}

/// A value for a JSON column.
pub fn json<T: serde::Serialize>(column: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| bad(column, error))
}

fn bad(column: &'static str, detail: impl ToString) -> StoreError {
    StoreError::BadRow {
        column,
        detail: detail.to_string(),
    }
}
