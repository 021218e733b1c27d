//! All rows at once: out of a store in one snapshot, into an empty one in one
//! transaction, and looked at one by one.

use sqlx::{AssertSqlSafe, Row as _};

use super::keys::{self, page};
use super::{Backend, Connection, Row, row};
use crate::store::backup::{RowSink, RowSource, Value};
use crate::store::seal::Key;
use crate::store::seal::catalog::{INVENTORY, LATER, TABLES, Table};
use crate::store::seal::master::BadMaster;
use crate::store::shape::{Kind, REFERENCES, SHAPES, Shape};
use crate::store::{Result, StoreError};

/// Rows that are handed over at a time.
const BATCH: usize = 500;
/// Most problems that a check lists; whoever has more has one cause.
const MAX_PROBLEMS: usize = 100;

/// Hands all rows over as they were at one moment; sealed values stay sealed.
pub async fn export(store: &Backend, sink: &mut dyn RowSink) -> Result<()> {
    let at = |error| store.failed("read all rows", error);
    let mut snapshot = store.snapshot().await.map_err(at)?;
    for (number, shape) in SHAPES.iter().enumerate() {
        let mut after = None;
        loop {
            let rows = next(&mut snapshot, shape, after).await.map_err(at)?;
            let count = rows.len();
            after = rows.last().cloned();
            if count > 0 {
                sink.rows(number, rows)?;
            }
            if count < BATCH {
                break;
            }
        }
    }
    snapshot.rollback().await.map_err(at)
}

/// The next rows after this one, in the order of their keys.
async fn next(
    connection: &mut Connection,
    shape: &Shape,
    after: Option<Vec<Value>>,
) -> sqlx::Result<Vec<Vec<Value>>> {
    let columns: Vec<&str> = shape.columns.iter().map(|(name, _)| *name).collect();
    let key = columns.iter().take(shape.key).copied().collect::<Vec<_>>();
    let key = key.join(", ");
    let places: Vec<String> = (1..=shape.key).map(|n| format!("${n}")).collect();
    let from = match after {
        None => String::new(),
        Some(_) => format!("WHERE ({key}) > ({})", places.join(", ")),
    };
    let sql = format!(
        "SELECT {} FROM {} {from} ORDER BY {key} LIMIT {BATCH}",
        columns.join(", "),
        shape.table
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for value in after
        .into_iter()
        .flat_map(|row| row.into_iter().take(shape.key))
    {
        query = match value {
            Value::Number(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
            Value::Null => query.bind(None::<String>),
        };
    }
    let found = query.fetch_all(connection).await?;
    found.iter().map(|one| values(shape, one)).collect()
}

fn values(shape: &Shape, found: &Row) -> sqlx::Result<Vec<Value>> {
    shape
        .columns
        .iter()
        .map(|(name, kind)| {
            Ok(match kind {
                Kind::Number => found
                    .try_get::<Option<i64>, _>(name)?
                    .map_or(Value::Null, Value::Number),
                Kind::Text => found
                    .try_get::<Option<String>, _>(name)?
                    .map_or(Value::Null, Value::Text),
                Kind::Bytes => found
                    .try_get::<Option<Vec<u8>>, _>(name)?
                    .map_or(Value::Null, Value::Bytes),
            })
        })
        .collect()
}

/// Puts rows into a store that has none: all of them, or nothing.
/// `master` must open the keys that come with them.
pub async fn import(store: &Backend, source: &mut dyn RowSource, master: &Key) -> Result<()> {
    let at = |error| store.failed("restore all rows", error);
    let mut transaction = store.begin().await.map_err(at)?;
    for table in ["join_tokens", "api_tokens", "hosts", "meta", "accounts"] {
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}")))
            .fetch_one(&mut *transaction)
            .await
            .map_err(at)?;
        if count > 0 {
            return Err(StoreError::NotEmpty(table));
        }
    }
    for table in ["counters", "data_keys"] {
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {table}")))
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    while let Some((number, rows)) = source.rows()? {
        let shape = SHAPES
            .get(number)
            .ok_or_else(|| row::bad("table", format!("no table has the number {number}")))?;
        for values in rows {
            put(&mut transaction, shape, values).await.map_err(at)?;
        }
    }
    sqlx::raw_sql(super::AFTER_IMPORT)
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
    // What was ended since is not known here: nobody comes in by what a backup brings back
    // but by his password or API token.
    for table in ["sessions", "setup_tokens"] {
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {table}")))
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    if !keys::are_opened_by(&mut transaction, master)
        .await
        .map_err(at)?
    {
        return Err(BadMaster::Wrong("in place".to_owned()).into());
    }
    // What belongs to the rows and is not among them is there first.
    source.before_commit()?;
    transaction.commit().await.map_err(at)
}

async fn put(connection: &mut Connection, shape: &Shape, values: Vec<Value>) -> sqlx::Result<()> {
    let columns: Vec<&str> = shape.columns.iter().map(|(name, _)| *name).collect();
    let places: Vec<String> = (1..=columns.len()).map(|n| format!("${n}")).collect();
    let sql = format!(
        "INSERT INTO {} ({}) VALUES ({})",
        shape.table,
        columns.join(", "),
        places.join(", ")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for ((_, kind), value) in shape.columns.iter().zip(values) {
        // NULL has its column's type, too.
        query = match (kind, value) {
            (Kind::Number, Value::Number(value)) => query.bind(Some(value)),
            (Kind::Number, _) => query.bind(None::<i64>),
            (Kind::Text, Value::Text(value)) => query.bind(Some(value)),
            (Kind::Text, _) => query.bind(None::<String>),
            (Kind::Bytes, Value::Bytes(value)) => query.bind(Some(value)),
            (Kind::Bytes, _) => query.bind(None::<Vec<u8>>),
        };
    }
    query.execute(connection).await.map(drop)
}

/// Looks at everything, and says what is wrong.
pub async fn check(store: &Backend) -> Result<Vec<String>> {
    let at = |error| store.failed("look at all rows", error);
    let mut problems = Vec::new();
    let mut snapshot = store.snapshot().await.map_err(at)?;
    if let Some(sql) = super::INTEGRITY {
        let said: Vec<String> = sqlx::query_scalar(sql)
            .fetch_all(&mut *snapshot)
            .await
            .map_err(at)?;
        problems.extend(said.into_iter().filter(|line| line != "ok"));
    }
    for (table, column, to) in REFERENCES {
        let sql = format!(
            "SELECT COUNT(*) FROM {table} WHERE NOT EXISTS \
             (SELECT 1 FROM {to} WHERE {to}.id = {table}.{column})"
        );
        let lost: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut *snapshot)
            .await
            .map_err(at)?;
        if lost > 0 {
            problems.push(format!(
                "{lost} rows of {table} refer to {to} that are not there"
            ));
        }
    }
    for table in TABLES.iter().chain(&INVENTORY).chain(&LATER) {
        let mut after: Option<Vec<String>> = None;
        loop {
            let found = page(&mut snapshot, table, after.as_deref())
                .await
                .map_err(at)?;
            for one in &found {
                let key = look(store, table, one, &mut problems).map_err(at)?;
                after = Some(key);
                if problems.len() >= MAX_PROBLEMS {
                    problems.push("and more".to_owned());
                    return Ok(problems);
                }
            }
            if found.is_empty() {
                break;
            }
        }
    }
    let chain = super::audit::verify(store, &mut snapshot, None).await?;
    let of_chain = |problem: String| format!("the audit log: {problem}");
    problems.extend(chain.problems.into_iter().map(of_chain));
    Ok(problems)
}

/// One row: every value opens, and is found by what it should be found by.
fn look(
    store: &Backend,
    table: &'static Table,
    one: &Row,
    problems: &mut Vec<String>,
) -> sqlx::Result<Vec<String>> {
    let mut key = Vec::new();
    for name in table.key {
        key.push(one.try_get::<String, _>(name)?);
    }
    let id = key.join("/");
    let seat = store.seals.seat(table.name, id.as_str());
    for column in table.columns {
        let place = format!("{} of {} {id}", column.name, table.name);
        let sealed: Option<Vec<u8>> = one.try_get(column.name)?;
        let opened = match sealed.map(|sealed| seat.open(column.name, &sealed)) {
            None => None,
            Some(Ok(value)) => Some(value),
            Some(Err(error)) => {
                problems.push(format!("{place} does not open: {error}"));
                continue;
            }
        };
        if let Some(index) = column.index {
            let kept: Option<Vec<u8>> = one.try_get(index)?;
            let right = opened.map(|value| store.seals.index(table.name, column.name, &value));
            if kept != right {
                problems.push(format!("{place} is not found by its index"));
            }
        }
    }
    Ok(key)
}
