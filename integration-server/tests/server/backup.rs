//! A backup is whole or refused, opens with its master key alone, and restores into
//! either database; a check says what is wrong.

use palisade_integration_server::store::backup;
use palisade_integration_server::store::seal::Key;
use palisade_integration_server::store::seal::master::Source;
use palisade_integration_server::store::{Change, Changed, Opening, Place, Store};
use palisade_protocol::ids::AgentId;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::postgres::Postgres;
use crate::sealing::{all_bytes, fill, holds};
use crate::store::{Kind, detection, file_place};

const CA_KEY: &str = "-----BEGIN PRIVATE KEY-----\nthe-key-of-the-root-of-this-site\n";

/// A folder with a certificate authority, as far as a backup looks at one.
fn authority() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("root.key", CA_KEY),
        ("root.pem", "root"),
        ("issuing.key", "key"),
        ("issuing.pem", "issuing"),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// All that the trait shows of what `fill` put.
async fn seen(store: &dyn Store, agent: AgentId) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {}",
        store.agents().await.unwrap(),
        store.svms().await.unwrap(),
        store.detections(None, 99).await.unwrap(),
        store.join_tokens().await.unwrap(),
        store.maintenance(5).await.unwrap(),
        store.quarantine_key(agent).await.unwrap().map(|key| key.0),
        store.hosts().await.unwrap(),
        store.accounts().await.unwrap(),
        store.account_tokens(None).await.unwrap(),
        store.policies().await.unwrap(),
        store.groups().await.unwrap(),
        store.policy_report(agent).await.unwrap(),
        store.policy_version().await.unwrap(),
    )
}

async fn goes_over(from: &Kind, to: &Kind) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (file, ca) = (dir.path().join("backup"), authority());
    let place = from.place().await;
    let store = place.open().await.unwrap();
    let (agent, markers) = fill(store.as_ref()).await;
    let many: Vec<_> = (0..1100)
        .map(|n| detection(format!("/many/{n}").as_bytes()))
        .collect();
    store.add_detections(agent, &many, 20).await.unwrap();
    let epoch = store.next_epoch(7000).await.unwrap();
    store
        .fix_deployment(&"site".parse().unwrap())
        .await
        .unwrap();
    // The server runs on meanwhile.
    let rows = backup::write(&place, ca.path(), &file, 1).await.unwrap();
    assert!(rows > 1100);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let written = all_bytes(dir.path());
    for marker in markers
        .iter()
        .map(String::as_str)
        .chain(["the-key-of-the-root"])
    {
        assert!(!holds(&written, marker), "{marker}");
    }
    assert!(holds(&written, "palisade-server backup 1"), "the control");

    let (target, restored) = (to.place().await, tempfile::tempdir().unwrap());
    assert_eq!(
        backup::restore(&target, restored.path(), &file, 9)
            .await
            .unwrap(),
        rows
    );
    let other = target.open().await.unwrap();
    assert_eq!(
        seen(other.as_ref(), agent).await,
        seen(store.as_ref(), agent).await
    );
    // The log goes on where it ended, and says that it was restored.
    let before = store.audit(None, 99).await.unwrap();
    let after = other.audit(None, 99).await.unwrap();
    assert_eq!(after[0].body.action, "store.restore");
    assert!(!before.is_empty());
    assert_eq!(after[1..], before[..]);
    assert!(other.verify_audit(None).await.unwrap().problems.is_empty());
    // Who was logged in logs in again.
    let session = crate::accounts_store::session(&store.accounts().await.unwrap()[0]);
    let begun = Change::AddSession(&session, 1);
    assert_eq!(store.change(begun, None, 9).await.unwrap(), Changed::Done);
    let (again, anew) = (dir.path().join("again"), from.place().await);
    let empty = tempfile::tempdir().unwrap();
    backup::write(&place, ca.path(), &again, 1).await.unwrap();
    backup::restore(&anew, empty.path(), &again, 9)
        .await
        .unwrap();
    let anew = anew.open().await.unwrap();
    let found = async |store: &dyn Store| store.session(&session.token_sha256).await.unwrap();
    assert!(found(store.as_ref()).await.is_some(), "the control");
    assert!(found(anew.as_ref()).await.is_none());
    assert!(other.next_epoch(0).await.unwrap() > epoch);
    assert_eq!(
        other.fix_deployment(&"x".parse().unwrap()).await.unwrap(),
        "site"
    );
    assert_eq!(other.check().await.unwrap(), Vec::<String>::new());
    // What comes now comes after what was restored.
    let last = other.detections(None, 1).await.unwrap().items[0].seq;
    other
        .add_detections(agent, &[detection(b"/new")], 30)
        .await
        .unwrap();
    assert!(other.detections(None, 1).await.unwrap().items[0].seq > last);
    let key = restored.path().join("root.key");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), CA_KEY);
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // Not twice, and not over anything.
    other.close().await;
    drop(other);
    let error = backup::restore(&target, restored.path(), &file, 9)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_goes_from_sqlite_to_postgresql_and_back() {
    let Some(postgres) = Postgres::start("a_site_goes_from_sqlite_to_postgresql") else {
        return;
    };
    let sqlite = Kind::Sqlite(tempfile::tempdir().unwrap());
    let postgres = Kind::Postgres(postgres.into());
    goes_over(&sqlite, &postgres).await;
    goes_over(&postgres, &sqlite).await;
}

async fn is_empty(place: &Place) -> bool {
    let store = place.open().await.unwrap();
    let empty =
        store.join_tokens().await.unwrap().is_empty() && !store.has_api_token("x").await.unwrap();
    store.close().await;
    empty
}

#[tokio::test]
async fn a_backup_that_is_not_whole_restores_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ca) = (dir.path().join("backup"), authority());
    let place = file_place(&dir.path().join("from/palisade.db"));
    let store = place.open().await.unwrap();
    fill(store.as_ref()).await;
    store.close().await;
    backup::write(&place, ca.path(), &file, 1).await.unwrap();
    let good = std::fs::read(&file).unwrap();

    let target = file_place(&dir.path().join("to/palisade.db"));
    let restored = dir.path().join("ca");
    let refused = async |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let error = backup::restore(&target, &restored, &file, 9)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("backup"), "{error}");
        assert!(!restored.join("root.key").exists(), "{error}");
    };
    // A changed bit anywhere, and an end anywhere.
    for at in (0..good.len()).step_by(good.len() / 60) {
        let mut changed = good.clone();
        changed[at] ^= 1;
        refused(&changed).await;
        refused(&good[..at]).await;
    }
    refused(&good[..good.len() - 1]).await;
    refused(&[&good[..], b"x"].concat()).await;
    assert!(is_empty(&target).await);

    std::fs::write(&file, &good).unwrap();
    let other = Place {
        master: Source::Given(Key::new([8; 32])),
        ..file_place(&dir.path().join("other/palisade.db"))
    };
    let error = backup::restore(&other, &restored, &file, 9)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another master key"), "{error}");

    // The control: untouched, it is taken, with the CA that is there already.
    std::fs::create_dir_all(&restored).unwrap();
    std::fs::write(restored.join("root.key"), "another one").unwrap();
    let error = backup::restore(&target, &restored, &file, 9)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another certificate authority"),
        "{error}"
    );
    assert!(is_empty(&target).await);
    std::fs::remove_file(restored.join("root.key")).unwrap();
    backup::restore(&target, &restored, &file, 9).await.unwrap();
    assert!(!is_empty(&target).await);
}

#[tokio::test]
async fn a_check_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("palisade.db");
    let store = file_place(&path).open().await.unwrap();
    fill(store.as_ref()).await;
    assert_eq!(
        store.check().await.unwrap(),
        Vec::<String>::new(),
        "the control"
    );
    let url = format!("sqlite:{}", path.display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("PRAGMA foreign_keys = OFF")
        .execute(&mut db)
        .await
        .unwrap();
    for (change, says) in [
        (
            "UPDATE detections SET engine = name",
            "engine of detections",
        ),
        (
            "UPDATE agents SET name_index = x'00'",
            "is not found by its index",
        ),
        ("UPDATE domains SET uuid = x'0102'", "uuid of domains"),
        (
            "DELETE FROM join_tokens",
            "rows of agents refer to join_tokens",
        ),
    ] {
        sqlx::query(AssertSqlSafe(change))
            .execute(&mut db)
            .await
            .unwrap();
        let problems = store.check().await.unwrap();
        assert!(
            problems.iter().any(|line| line.contains(says)),
            "{change}: {problems:?}"
        );
    }
}

#[tokio::test]
async fn a_backup_takes_no_name_away_and_wants_the_whole_authority() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ca) = (dir.path().join("palisade.1"), authority());
    let place = file_place(&dir.path().join("palisade.db"));
    place.open().await.unwrap().close().await;
    let refused = async |says: &str| {
        let error = backup::write(&place, ca.path(), &file, 1).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    std::fs::write(&file, "somebody's").unwrap();
    refused("is there already").await;
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
    std::fs::remove_file(&file).unwrap();
    let partial = dir.path().join("palisade.1.partial");
    std::fs::write(&partial, "begun").unwrap();
    refused("then remove it").await;
    std::fs::remove_file(&partial).unwrap();
    std::fs::remove_file(ca.path().join("issuing.key")).unwrap();
    refused("not all there").await;
    assert!(!file.exists() && !partial.exists());
    std::fs::write(ca.path().join("issuing.key"), "key").unwrap();
    backup::write(&place, ca.path(), &file, 1).await.unwrap();
    assert!(file.exists() && !partial.exists());
}

/// Commands that look bring nothing up to date: a server of another version may run on it.
#[tokio::test]
async fn who_looks_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("palisade.db");
    let place = file_place(&path);
    let refused = async || {
        let opened = place.open_to(Opening::Look).await;
        opened.map(drop).unwrap_err().to_string()
    };
    refused().await;
    assert!(!path.exists());
    place.open().await.unwrap().close().await;
    place.open_to(Opening::Look).await.unwrap().close().await;
    let url = format!("sqlite:{}", path.display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = $1")
        .bind(backup::SCHEMA)
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    let error = refused().await;
    assert!(error.contains("another version"), "{error}");
}
