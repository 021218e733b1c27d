//! The audit log in the store: one suite, both backends. Rows are changed as an
//! administrator of the database would change them.

use std::sync::Arc;

use palisade_integration_server::audit::{Actor, Entry};
use palisade_integration_server::store::{Change, Changed, Database, Place, Store};
use palisade_protocol::control::Component;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use crate::store::{Kind, on_both, token};

pub fn entry(object: &str) -> Entry {
    Entry::done(Actor::local(), "test.change", object, 77)
}

/// Does something in the database, beside the server.
async fn tamper(place: &Place, statements: &str) {
    match &place.database {
        Database::File(path) => {
            let url = format!("sqlite:{}", path.display());
            let mut db = SqliteConnection::connect(&url).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(statements))
                .execute(&mut db)
                .await
                .unwrap();
            db.close().await.unwrap();
        }
        Database::Postgres(address, _) => {
            let mut db = PgConnection::connect_with(address.options()).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(statements))
                .execute(&mut db)
                .await
                .unwrap();
            db.close().await.unwrap();
        }
    }
}

async fn write(store: &dyn Store, object: &str) {
    let done = store
        .change(Change::Nothing, Some(&entry(object)), 77)
        .await;
    assert_eq!(done.unwrap(), Changed::Done);
}

on_both!(
    several_writers_make_one_chain,
    any_change_of_the_log_is_found,
    a_change_and_its_entry_are_both_or_neither
);

async fn several_writers_make_one_chain(kind: Kind) {
    let place = kind.place().await;
    let servers = [place.open().await.unwrap(), place.open().await.unwrap()];
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let store = Arc::clone(&servers[n % 2]);
            tokio::spawn(async move {
                for m in 0..10 {
                    write(store.as_ref(), &format!("{n}/{m}")).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let found = servers[0].verify_audit(None).await.unwrap();
    assert_eq!((found.head.number, found.problems), (80, Vec::new()));
    let mut objects = std::collections::BTreeSet::new();
    let mut before = None;
    loop {
        let page = servers[1].audit(before, 33).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.number);
        for record in page {
            assert_eq!((record.time_ms, record.body.actor), (77, Actor::local()));
            objects.insert(record.body.object);
        }
    }
    assert_eq!(objects.len(), 80);
    assert_eq!(
        servers[1]
            .verify_audit(Some(found.head))
            .await
            .unwrap()
            .problems
            .len(),
        0
    );
    assert!(servers[0].check().await.unwrap().is_empty());
}

async fn any_change_of_the_log_is_found(kind: Kind) {
    let (first, third) = (format!("{:020}", 1), format!("{:020}", 3));
    let last = format!("{:020}", 6);
    for (change, says) in [
        // A bit of a body, as far as the database sees one.
        (
            format!(
                "UPDATE audit SET body = (SELECT body FROM audit WHERE id = '{first}') WHERE id = '{third}'"
            ),
            "entry 3 does not open",
        ),
        (
            format!("UPDATE audit SET time_ms = time_ms + 1 WHERE id = '{third}'"),
            "entry 3 or its order was changed",
        ),
        (
            format!(
                "UPDATE audit SET hash = (SELECT hash FROM audit WHERE id = '{first}') WHERE id = '{third}'"
            ),
            "entry 3 or its order was changed",
        ),
        (
            format!("DELETE FROM audit WHERE id = '{third}'"),
            "entry 3 is missing",
        ),
        (
            "DELETE FROM audit WHERE id < '00000000000000000003'".to_owned(),
            "entries 1 to 2 are missing",
        ),
        (
            format!("DELETE FROM audit WHERE id = '{last}'"),
            "the last 1 of 6 entries are missing",
        ),
        // Two rows change their places.
        (
            format!(
                "UPDATE audit SET id = 'x' WHERE id = '{first}'; UPDATE audit SET id = '{first}' WHERE id = '{third}'; UPDATE audit SET id = '{third}' WHERE id = 'x'"
            ),
            "entry 1 does not open",
        ),
        (
            "UPDATE audit SET id = 'foreign' WHERE id = '00000000000000000002'".to_owned(),
            "none of the log's",
        ),
        // All of it, and its counter.
        (
            "DELETE FROM audit; UPDATE counters SET value = 0 WHERE name = 'audit'".to_owned(),
            "entry 6 was noted and is not there",
        ),
        (
            format!(
                "DELETE FROM audit WHERE id = '{last}'; UPDATE counters SET value = 5 WHERE name = 'audit'"
            ),
            "entry 6 was noted and is not there",
        ),
    ] {
        let place = kind.place().await;
        let store = place.open().await.unwrap();
        for n in 0..6 {
            write(store.as_ref(), &n.to_string()).await;
        }
        let good = store.verify_audit(None).await.unwrap();
        assert!(good.problems.is_empty(), "the control: {:?}", good.problems);
        tamper(&place, &change).await;
        let found = store.verify_audit(Some(good.head)).await.unwrap().problems;
        assert!(
            found.iter().any(|problem| problem.contains(says)),
            "{change}: {found:?}"
        );
        // Where nobody noted a head, all but an end that was taken off whole is found.
        let alone = store.verify_audit(None).await.unwrap().problems;
        assert_eq!(
            alone.is_empty(),
            says.contains("was noted"),
            "{change}: {alone:?}"
        );
        if !alone.is_empty() {
            let check = store.check().await.unwrap();
            assert!(
                check.iter().any(|problem| problem.contains("audit")),
                "{check:?}"
            );
        }
        // The log goes on, and does not heal.
        if !says.contains("was noted") {
            write(store.as_ref(), "after").await;
            assert!(
                !store.verify_audit(None).await.unwrap().problems.is_empty(),
                "{change}"
            );
        }
    }
}

async fn a_change_and_its_entry_are_both_or_neither(kind: Kind) {
    let place = kind.place().await;
    let store = place.open().await.unwrap();
    let good = token(Component::Agent, 1);
    let made = store
        .change(Change::AddJoinToken(&good), Some(&entry("good")), 5)
        .await;
    assert_eq!(made.unwrap(), Changed::Done);
    // What there is not cannot be changed, and has no entry.
    let nothing = store
        .change(
            Change::RevokeJoinToken(uuid::Uuid::new_v4()),
            Some(&entry("none")),
            5,
        )
        .await;
    assert_eq!(nothing.unwrap(), Changed::Nothing);

    let (refuse, allow) = match &place.database {
        Database::File(_) => (
            "CREATE TRIGGER no BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END",
            "DROP TRIGGER no",
        ),
        Database::Postgres(..) => (
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
             CREATE TRIGGER no BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION no()",
            "DROP TRIGGER no ON audit",
        ),
    };
    tamper(&place, refuse).await;
    let bad = token(Component::Agent, 1);
    let failed = store
        .change(Change::AddJoinToken(&bad), Some(&entry("bad")), 5)
        .await;
    assert!(failed.is_err());
    tamper(&place, allow).await;
    assert_eq!(store.join_tokens().await.unwrap(), vec![good]);
    let log = store.audit(None, 10).await.unwrap();
    assert_eq!((log.len(), log[0].body.object.as_str()), (1, "good"));
    assert!(store.verify_audit(None).await.unwrap().problems.is_empty());
}
