//! Both backends have one list of schema versions, and after it the same schema.

use std::collections::BTreeSet;
use std::path::Path;

use palisade_integration_server::store::backup::SCHEMA;
use palisade_integration_server::store::shape::SHAPES;
use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};

use crate::postgres::Postgres;

/// Each line one fact: a column, a key, an index, a reference.
type Facts = BTreeSet<String>;

#[test]
fn both_folders_have_the_same_versions() {
    let names = |dialect: &str| -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("migrations")
            .join(dialect);
        std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let versions = names("sqlite");
    assert!(!versions.is_empty());
    assert_eq!(versions, names("postgres"));
    assert_eq!(versions.len() as i64, SCHEMA, "what a backup says it is of");
    for (number, name) in versions.iter().enumerate() {
        assert!(name.starts_with(&format!("{:04}_", number + 1)), "{name}");
    }
}

#[tokio::test]
async fn both_schemas_are_the_same() {
    let Some(postgres) = Postgres::start("both_schemas_are_the_same") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("palisade.db");
    crate::store::file_place(&file)
        .open()
        .await
        .unwrap()
        .close()
        .await;
    let name = postgres.new_database().await;
    let place = crate::postgres::place(&postgres.url("palisade", &name));
    place.open().await.unwrap().close().await;

    let of_sqlite = sqlite(&file).await;
    assert!(of_sqlite.len() > 50, "{of_sqlite:#?}");
    assert_eq!(of_sqlite, of_postgres(&postgres, &name).await);

    // A backup has every column of every table.
    let kept: BTreeSet<String> = SHAPES
        .iter()
        .flat_map(|shape| {
            shape
                .columns
                .iter()
                .map(move |column| (shape.table, column))
        })
        .map(|(table, (name, kind))| format!("{table}.{name} {kind:?}").to_lowercase())
        .collect();
    let columns: BTreeSet<String> = of_sqlite
        .iter()
        .filter_map(|fact| fact.split_once(" default").map(|(column, _)| column))
        .map(|column| column.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(kept, columns);

    // The control: a difference of each kind is seen.
    for change in [
        "ALTER TABLE agents ALTER COLUMN report SET NOT NULL",
        "ALTER TABLE agents ALTER COLUMN enrolled_ms TYPE INTEGER",
        "ALTER TABLE agents ADD COLUMN more TEXT",
        "ALTER TABLE agents ALTER COLUMN name DROP DEFAULT",
        "DROP INDEX agents_by_name",
        "CREATE INDEX more ON agents (tenant)",
        "ALTER TABLE agents DROP CONSTRAINT agents_token_id_key_sha256_key",
        "ALTER TABLE domains DROP CONSTRAINT sealed_domains_host_id_fkey",
    ] {
        let name = postgres.new_database().await;
        let place = crate::postgres::place(&postgres.url("palisade", &name));
        place.open().await.unwrap().close().await;
        postgres.execute(&name, change).await;
        assert_ne!(of_sqlite, of_postgres(&postgres, &name).await, "{change}");
    }
}

async fn sqlite(file: &Path) -> Facts {
    let url = format!("sqlite:{}", file.display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    let mut facts = Facts::new();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' \
         AND name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\'",
    )
    .fetch_all(&mut db)
    .await
    .unwrap();
    for table in tables {
        let mut key = Vec::new();
        for row in pragma(&mut db, "table_info", &table).await {
            let (name, of_key): (String, i64) = (row.get("name"), row.get("pk"));
            let kind = match row.get::<String, _>("type").as_str() {
                "INTEGER" | "BIGINT" => "number",
                "TEXT" => "text",
                "BLOB" => "bytes",
                other => panic!("{table}.{name} is {other}"),
            };
            // A primary key is never NULL for PostgreSQL; SQLite wants to be told.
            let required = row.get::<i64, _>("notnull") == 1 || of_key > 0;
            let default: Option<String> = row.get("dflt_value");
            facts.insert(column(&table, &name, kind, required, default));
            if of_key > 0 {
                key.push((of_key, name));
            }
        }
        key.sort();
        let key: Vec<String> = key.into_iter().map(|(_, name)| name).collect();
        facts.insert(format!("{table} unique {}", key.join(",")));
        for row in pragma(&mut db, "index_list", &table).await {
            let (name, unique): (String, i64) = (row.get("name"), row.get("unique"));
            let columns: Vec<String> = pragma(&mut db, "index_info", &name)
                .await
                .iter()
                .map(|row| row.get("name"))
                .collect();
            facts.insert(if unique == 1 {
                format!("{table} unique {}", columns.join(","))
            } else {
                format!("{table} index {name} {}", columns.join(","))
            });
        }
        for row in pragma(&mut db, "foreign_key_list", &table).await {
            facts.insert(format!(
                "{table}.{} references {}.{} {}",
                row.get::<String, _>("from"),
                row.get::<String, _>("table"),
                row.get::<String, _>("to"),
                row.get::<String, _>("on_delete"),
            ));
        }
    }
    facts
}

async fn pragma(db: &mut SqliteConnection, what: &str, of: &str) -> Vec<sqlx::sqlite::SqliteRow> {
    sqlx::query(AssertSqlSafe(format!("PRAGMA {what}({of})")))
        .fetch_all(db)
        .await
        .unwrap()
}

async fn of_postgres(postgres: &Postgres, name: &str) -> Facts {
    let mut db = postgres.connect(name).await;
    let mut facts = Facts::new();
    let columns = sqlx::query(
        "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text, \
         column_default::text FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'",
    );
    for row in columns.fetch_all(&mut db).await.unwrap() {
        let (table, name): (String, String) = (row.get("table_name"), row.get("column_name"));
        let kind = match row.get::<String, _>("data_type").as_str() {
            "bigint" => "number",
            "text" => "text",
            "bytea" => "bytes",
            other => {
                facts.insert(format!("{table}.{name} is {other}"));
                continue;
            }
        };
        let required = row.get::<String, _>("is_nullable") == "NO";
        let default = row.get::<Option<String>, _>("column_default");
        let default = default.map(|text| text.split("::").next().unwrap().replace("'\\x'", "''"));
        facts.insert(column(&table, &name, kind, required, default));
    }
    let indexes = sqlx::query(
        "SELECT t.relname::text AS on_table, i.relname::text AS name, x.indisunique AS is_unique, \
         (SELECT string_agg(a.attname::text, ',' ORDER BY k.place) \
          FROM unnest(x.indkey) WITH ORDINALITY AS k (number, place) \
          JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number) AS columns \
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
         JOIN pg_class t ON t.oid = x.indrelid \
         JOIN pg_namespace n ON n.oid = t.relnamespace \
         WHERE n.nspname = 'public' AND t.relname NOT LIKE '\\_sqlx%'",
    );
    for row in indexes.fetch_all(&mut db).await.unwrap() {
        let (table, name): (String, String) = (row.get("on_table"), row.get("name"));
        let columns: String = row.get("columns");
        facts.insert(if row.get("is_unique") {
            format!("{table} unique {columns}")
        } else {
            format!("{table} index {name} {columns}")
        });
    }
    let references = sqlx::query(
        "SELECT t.relname::text AS on_table, a.attname::text AS of_column, \
         r.relname::text AS to_table, b.attname::text AS to_column, \
         CASE c.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'a' THEN 'NO ACTION' \
         ELSE c.confdeltype::text END AS on_delete \
         FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid \
         JOIN pg_class r ON r.oid = c.confrelid \
         JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.conkey[1] \
         JOIN pg_attribute b ON b.attrelid = r.oid AND b.attnum = c.confkey[1] \
         WHERE c.contype = 'f'",
    );
    for row in references.fetch_all(&mut db).await.unwrap() {
        facts.insert(format!(
            "{}.{} references {}.{} {}",
            row.get::<String, _>("on_table"),
            row.get::<String, _>("of_column"),
            row.get::<String, _>("to_table"),
            row.get::<String, _>("to_column"),
            row.get::<String, _>("on_delete"),
        ));
    }
    facts
}

fn column(table: &str, name: &str, kind: &str, required: bool, default: Option<String>) -> String {
    let null = if required { "NOT NULL" } else { "NULL" };
    format!(
        "{table}.{name} {kind} {null} default {}",
        default.unwrap_or_default()
    )
}
