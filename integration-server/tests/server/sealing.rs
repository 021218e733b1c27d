//! What is in the database is sealed: nothing of it is found there in plain, only its
//! own key opens it, and no step of a rotation or of the first sealing loses a row.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use palisade_integration_server::inventory::{DomainFacts, DomainState, HostRecord};
use palisade_integration_server::policy::Subject;
use palisade_integration_server::store::seal::Key;
use palisade_integration_server::store::seal::master::Source;
use palisade_integration_server::store::{
    ApiToken, Change, Changed, Database, MaintenanceRecord, Place, Spent, Store,
};
use palisade_protocol::bounded::{List, PathBytes, Text};
use palisade_protocol::control::{Component, Detection, Hello, HostFacts, QuarantineKey};
use palisade_protocol::ids::AgentId;
use palisade_protocol::maintenance::Allowed;
use palisade_protocol::policy::PolicyReport;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use uuid::Uuid;

use crate::postgres::Postgres;
use crate::store::{component, detection, file_place, token};

/// Twelve random characters that are nowhere by chance.
pub fn marker() -> String {
    Uuid::new_v4().simple().to_string()[..12].to_owned()
}

/// Puts a marker into every value that can tell of somebody, and gives all of them.
pub async fn fill(store: &dyn Store) -> (AgentId, Vec<String>) {
    let mut markers = Vec::new();
    let mut mark = || {
        markers.push(marker());
        markers.last().unwrap().clone()
    };
    let mut agent = None;
    for kind in [Component::Agent, Component::Svm] {
        let token = token(kind, 1);
        store.add_join_token(&token).await.unwrap();
        let mut new = component(&token);
        new.name = mark();
        new.host.hostname = Text::cut(&mark());
        assert!(matches!(
            store.join(&new, 10).await.unwrap(),
            Spent::Joined(_)
        ));
        let hello = Hello {
            version: Text::cut(&mark()),
            host: HostFacts {
                hostname: Text::cut(&mark()),
                ..new.host
            },
        };
        match kind {
            Component::Agent => {
                agent = Some(AgentId(new.id));
                store
                    .greet_agent(AgentId(new.id), &hello, 11)
                    .await
                    .unwrap();
            }
            Component::Svm => {
                let id = palisade_protocol::ids::SvmId(new.id);
                store.greet_svm(id, &hello, 11).await.unwrap();
            }
        }
    }
    let agent = agent.unwrap();
    let found = Detection {
        path: PathBytes::from_path(Path::new(&format!("/home/{}", mark()))),
        name: Text::cut(&mark()),
        engine: Text::cut(&mark()),
        member: Some(Text::cut(&mark())),
        container: Some(Text::cut(&mark())),
        blake3: *b"a-content-id-of-thirty-two-bytes",
        ..detection(b"/x")
    };
    store.add_detections(agent, &[found], 12).await.unwrap();
    markers.push("a-content-id-of-thirty-two-bytes".to_owned());
    let key = *b"a-quarantine-key-of-32-bytes-all";
    store
        .keep_quarantine_key(agent, &QuarantineKey(key), 13)
        .await
        .unwrap();
    markers.push("a-quarantine-key-of-32-bytes-all".to_owned());
    let mut mark = || {
        markers.push(marker());
        markers.last().unwrap().clone()
    };
    fill_accounts(store, &mut mark).await;
    let token = ApiToken {
        id: Uuid::new_v4(),
        name: mark(),
        token_sha256: *blake3::hash(marker().as_bytes()).as_bytes(),
        created_ms: 1,
    };
    let change = Change::NewApiToken(&token);
    store.change(change, None, 1).await.unwrap();
    let grant = MaintenanceRecord {
        id: Uuid::new_v4(),
        agent,
        allowed: Allowed::Stop,
        from_ms: 1,
        until_ms: 99,
        reason: mark(),
    };
    store.add_maintenance(&grant).await.unwrap();
    let domain = Uuid::new_v4();
    let host = HostRecord {
        uri: format!("qemu+ssh://{}/system", mark()),
        host: mark(),
        datacenter: mark(),
        cluster: mark(),
        error: Some(mark()),
        read_ms: Some(5),
        tried_ms: Some(6),
        domains: [(
            domain,
            DomainFacts {
                name: mark(),
                state: DomainState::Running,
                tags: List::cut([Text::cut(&mark())]),
                began_ms: None,
            },
        )]
        .into(),
    };
    store.put_host(&host).await.unwrap();
    fill_policies(store, agent, &mut mark).await;
    markers.push(domain.to_string());
    // The one machine of all of the suite's components.
    markers.push(Uuid::from_u128(9).to_string());
    (agent, markers)
}

/// An account with a session and a token, and an entry about it.
async fn fill_accounts(store: &dyn Store, mark: &mut impl FnMut() -> String) {
    let mut account = crate::accounts_store::account(&mark());
    account.password = mark();
    let mut entry = crate::audit_store::entry(&mark());
    entry.body.actor.name = mark();
    entry.body.actor.address = Some(mark());
    let change = async |change: Change<'_>| {
        let done = store.change(change, Some(&entry), 20).await.unwrap();
        assert_eq!(done, Changed::Done);
    };
    change(Change::AddAccount(&account)).await;
    let secret = mark();
    change(Change::BeginTotp(account.id, 0, secret.as_bytes())).await;
    let mut session = crate::accounts_store::session(&account);
    session.address = mark();
    change(Change::AddSession(&session, 1)).await;
    let mut token = crate::accounts_store::token(&account);
    token.name = mark();
    change(Change::AddAccountToken(&token)).await;
}

/// A policy, a group, and what an agent says of them.
async fn fill_policies(store: &dyn Store, agent: AgentId, mark: &mut impl FnMut() -> String) {
    let mut policy = crate::policies_store::policy(Subject::Vm(agent), 1, "block");
    let excluded = serde_json::json!([format!("/{}", mark())]);
    policy.settings.insert("exclude".to_owned(), excluded);
    policy.by = mark();
    policy.note = mark();
    let mut group = crate::policies_store::group("acme", &mark());
    group.query = format!("name:{}", mark());
    for change in [Change::PutPolicy(&policy), Change::AddGroup(&group)] {
        let done = store.change(change, None, 20).await.unwrap();
        assert_eq!(done, Changed::Done);
    }
    let report = PolicyReport {
        note: Some(Text::cut(&mark())),
        ..PolicyReport::default()
    };
    store.keep_policy_report(agent, &report, 21).await.unwrap();
}

/// All that lies below a folder, in one piece; what is no text there is replaced.
pub fn all_bytes(folder: &Path) -> String {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                all.extend(std::fs::read(path).unwrap());
            }
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

pub fn holds(bytes: &str, marker: &str) -> bool {
    bytes.contains(marker)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_it_is_found_in_a_sqlite_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("palisade.db");
    let store = file_place(&path).open().await.unwrap();
    let (agent, markers) = fill(store.as_ref()).await;
    // What is in the log still, and what is in the file after it.
    let running = all_bytes(dir.path());
    store.close().await;
    let closed = all_bytes(dir.path());
    for marker in &markers {
        assert!(
            !holds(&running, marker) && !holds(&closed, marker),
            "{marker}"
        );
    }
    // The control: what is plain is found.
    assert!(holds(&closed, &agent.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_it_is_found_in_a_postgresql() {
    let Some(mut postgres) = Postgres::start("nothing_of_it_is_found_in_a_postgresql") else {
        return;
    };
    let store = postgres.place().await.open().await.unwrap();
    let (agent, markers) = fill(store.as_ref()).await;
    store.close().await;
    postgres.execute("postgres", "CHECKPOINT").await;
    postgres.stop();
    let all = all_bytes(&postgres.dir().join("data"));
    for marker in &markers {
        assert!(!holds(&all, marker), "{marker}");
    }
    assert!(holds(&all, &agent.to_string()), "what is plain is found");
}

/// A place whose key is a file.
fn with_file(dir: &Path) -> (Place, PathBuf) {
    let file = dir.join("master-key");
    let place = Place {
        master: Source::File(file.clone()),
        ..file_place(&dir.join("palisade.db"))
    };
    (place, file)
}

async fn reads(place: &Place, agent: AgentId, name: &str) {
    let store = place.open().await.unwrap();
    assert_eq!(store.agent(agent).await.unwrap().unwrap().name, name);
    assert_eq!(store.detections(None, 9).await.unwrap().items.len(), 1);
    assert_eq!(store.hosts().await.unwrap().len(), 1);
    // Each value opens, and the audit log's chain is as it was.
    assert_eq!(store.check().await.unwrap(), Vec::<String>::new());
    assert!(store.verify_audit(None).await.unwrap().head.number > 0);
    store.close().await;
}

#[tokio::test]
async fn another_key_or_none_opens_nothing_and_changes_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (place, file) = with_file(dir.path());
    let store = place.open().await.unwrap();
    let (agent, markers) = fill(store.as_ref()).await;
    store.close().await;
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let good = std::fs::read(&file).unwrap();
    let before = std::fs::read(dir.path().join("palisade.db")).unwrap();
    let refused = async || place.open().await.unwrap_err().to_string();

    std::fs::write(&file, format!("{}\n", "5".repeat(64))).unwrap();
    let wrong = refused().await;
    assert!(
        wrong.contains("is not the one") && wrong.contains("master-key"),
        "{wrong}"
    );
    std::fs::write(&file, "nonsense").unwrap();
    assert!(refused().await.contains("64 hexadecimal digits"));
    std::fs::remove_file(&file).unwrap();
    let missing = refused().await;
    assert!(
        missing.contains("is missing") && missing.contains("copy"),
        "{missing}"
    );
    assert!(!file.exists(), "none is made over a store that has one");
    std::fs::write(&file, &good).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused().await.contains("chmod 600"));

    assert_eq!(
        std::fs::read(dir.path().join("palisade.db")).unwrap(),
        before
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    reads(&place, agent, &markers[0]).await;
}

/// Ended after each of its steps, by doing no more of them.
#[tokio::test]
async fn a_rotation_that_ends_after_any_step_leaves_a_store_that_opens() {
    for steps in 0..=4 {
        let dir = tempfile::tempdir().unwrap();
        let (place, file) = with_file(dir.path());
        let store = place.open().await.unwrap();
        let (agent, markers) = fill(store.as_ref()).await;
        let before = std::fs::read(&file).unwrap();
        let key = Key::random().unwrap();
        if steps > 0 {
            place.master.prepare(&key).unwrap();
        }
        if steps > 1 {
            store.rewrap(&key).await.unwrap();
        }
        if steps > 2 {
            place.master.finish().unwrap();
        }
        if steps > 3 {
            assert!(store.reseal(&key).await.unwrap() >= 8);
        }
        store.close().await;
        reads(&place, agent, &markers[0]).await;
        let after = std::fs::read(&file).unwrap();
        assert_eq!(before == after, steps < 2, "after {steps} steps");
        if steps > 1 {
            std::fs::write(&file, before).unwrap();
            let error = place.open().await.unwrap_err().to_string();
            assert!(error.contains("is not the one"), "the old key: {error}");
            std::fs::write(&file, after).unwrap();
        }
        // And it can be done again, whole.
        place.rotate().await.unwrap();
        place.reseal().await.unwrap();
        reads(&place, agent, &markers[0]).await;
    }
}

/// Values that were moved from one row or column to another, or changed.
#[tokio::test]
async fn a_value_that_was_moved_or_changed_is_named_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("palisade.db");
    let store = file_place(&path).open().await.unwrap();
    let (agent, _) = fill(store.as_ref()).await;
    let (other, _) = fill(store.as_ref()).await;
    let mut db = SqliteConnection::connect(&format!("sqlite:{}", path.display()))
        .await
        .unwrap();
    for change in [
        format!(
            "UPDATE agents SET name = (SELECT name FROM agents WHERE id = '{other}') WHERE id = '{agent}'"
        ),
        format!("UPDATE agents SET name = hostname WHERE id = '{agent}'"),
        format!("UPDATE agents SET name = name || x'00' WHERE id = '{agent}'"),
    ] {
        store.agent(agent).await.unwrap().unwrap();
        let good: Vec<u8> = sqlx::query_scalar("SELECT name FROM agents WHERE id = $1")
            .bind(agent.to_string())
            .fetch_one(&mut db)
            .await
            .unwrap();
        sqlx::query(AssertSqlSafe(change.clone()))
            .execute(&mut db)
            .await
            .unwrap();
        let error = store.agent(agent).await.unwrap_err().to_string();
        assert!(
            error.contains("name in agents") && error.contains("backup"),
            "{change}: {error}"
        );
        assert!(store.agent(other).await.is_ok());
        sqlx::query("UPDATE agents SET name = $2 WHERE id = $1")
            .bind(agent.to_string())
            .bind(good)
            .execute(&mut db)
            .await
            .unwrap();
    }
}

/// A database that an earlier version wrote in plain: version 5, with a row in each table.
const PLAIN: &str = "
INSERT INTO join_tokens (id, component, tenant, secret_sha256, uses, used, created_ms, expires_ms)
VALUES ('00000000-0000-0000-0000-000000000001', 'agent', 'default', $hash, 9, 2, 1, 1000);
INSERT INTO api_tokens (id, name, token_sha256, created_ms)
VALUES ('00000000-0000-0000-0000-000000000002', 'MARK-token', $hash, 1);
INSERT INTO svms (id, name, token_id, key_sha256, enrolled_ms, hostname)
VALUES ('00000000-0000-0000-0000-000000000003', 'MARK-svm', '00000000-0000-0000-0000-000000000001', $hash, 1, 'MARK-host');
INSERT INTO agents (id, tenant, name, token_id, key_sha256, enrolled_ms, version, hostname, product_uuid)
VALUES ('00000000-0000-0000-0000-000000000004', 'default', 'MARK-guest', '00000000-0000-0000-0000-000000000001', $hash, 1, '1.2', 'MARK-host', '00000000-0000-0000-0000-000000000009');
INSERT INTO detections (agent_id, id, tenant, time_ms, received_ms, path, verdict, name, engine, action, class, blake3, size, pid, member)
VALUES ('00000000-0000-0000-0000-000000000004', '00000000-0000-0000-0000-000000000005', 'default', 1, 2, $path, 'malware', 'MARK-name', 'MARK-engine', 'blocked', 'on_access', $hash, 3, 4, 'MARK-member');
INSERT INTO quarantine_keys (agent_id, key, kept_ms) VALUES ('00000000-0000-0000-0000-000000000004', $hash, 7);
INSERT INTO maintenance_grants (id, agent_id, allowed, from_ms, until_ms, reason)
VALUES ('00000000-0000-0000-0000-000000000006', '00000000-0000-0000-0000-000000000004', 'stop', 1, 99, 'MARK-reason');
INSERT INTO hosts (uri, host, datacenter, cluster, read_ms) VALUES ('qemu://MARK-uri', 'MARK-hv', 'MARK-dc', '', 5);
INSERT INTO domains (uri, uuid, name, state) VALUES ('qemu://MARK-uri', '00000000-0000-0000-0000-000000000009', 'MARK-domain', 'running');
";

/// The statements of the versions before anything was sealed, and `PLAIN`.
fn plain(dialect: &str, hash: &str, path: &str) -> Vec<(i64, String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("migrations")
        .join(dialect);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut all: Vec<(i64, String, String)> = files
        .iter()
        .take(5)
        .map(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap();
            let (number, name) = name.split_once('_').unwrap();
            let text = std::fs::read_to_string(file).unwrap();
            (number.parse().unwrap(), name.replace('_', " "), text)
        })
        .collect();
    let rows = PLAIN.replace("$hash", hash).replace("$path", path);
    all.push((0, String::new(), rows));
    all
}

async fn was_plain(store: Arc<dyn Store>) {
    let agent = AgentId(Uuid::from_u128(4));
    let found = store.agent(agent).await.unwrap().unwrap();
    assert_eq!(
        (found.name.as_str(), found.version.as_str()),
        ("MARK-guest", "1.2")
    );
    assert_eq!(found.product_uuid, Some(Uuid::from_u128(9)));
    let svms = store.svms().await.unwrap();
    assert_eq!(
        (svms[0].name.as_str(), svms[0].version.as_str()),
        ("MARK-svm", "")
    );
    assert!(store.has_api_token("MARK-token").await.unwrap());
    let found = &store.detections(None, 9).await.unwrap().items[0];
    assert_eq!(found.path.as_bytes(), b"/MARK-path");
    assert_eq!(
        (found.name.as_str(), found.agent_name.as_str()),
        ("MARK-name", "MARK-guest")
    );
    assert_eq!(
        (found.member.as_deref(), found.container.as_deref()),
        (Some("MARK-member"), None)
    );
    assert_eq!(found.blake3, [7; 32]);
    assert_eq!(
        store.quarantine_key(agent).await.unwrap(),
        Some(QuarantineKey([7; 32]))
    );
    assert_eq!(store.maintenance(5).await.unwrap()[0].reason, "MARK-reason");
    let hosts = store.hosts().await.unwrap();
    assert_eq!(
        (hosts[0].uri.as_str(), hosts[0].domains.len()),
        ("qemu://MARK-uri", 1)
    );
    // A name that was taken is taken still, found by its index.
    let token = store.join_token(Uuid::from_u128(1)).await.unwrap().unwrap();
    let mut new = component(&token);
    new.name = "MARK-guest".to_owned();
    match store.join(&new, 10).await.unwrap() {
        Spent::Joined(name) => assert!(name.starts_with("MARK-guest-"), "{name}"),
        Spent::NotUsable => panic!(),
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_sqlite_file_is_sealed_and_its_free_pages_are_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("palisade.db");
    // What sqlx keeps of the versions that it ran is made by sqlx itself.
    let before = tempfile::tempdir().unwrap();
    for (number, name, text) in plain(
        "sqlite",
        &format!("x'{}'", "07".repeat(32)),
        "CAST('/MARK-path' AS BLOB)",
    ) {
        if number > 0 {
            let file = format!("{number:04}_{}.sql", name.replace(' ', "_"));
            std::fs::write(before.path().join(file), text).unwrap();
            continue;
        }
        let url = format!("sqlite:{}?mode=rwc", path.display());
        let mut db = SqliteConnection::connect(&url).await.unwrap();
        let migrator = sqlx::migrate::Migrator::new(before.path()).await.unwrap();
        migrator.run_direct(None, &mut db, false).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut db)
            .await
            .unwrap();
        db.close().await.unwrap();
    }
    assert!(holds(&all_bytes(dir.path()), "MARK-guest"), "the control");
    was_plain(file_place(&path).open().await.unwrap()).await;
    assert!(!holds(&all_bytes(dir.path()), "MARK-"));
    // Another start finds it done.
    let store = file_place(&path).open().await.unwrap();
    assert_eq!(store.count_detections().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_postgresql_is_sealed() {
    let Some(postgres) = Postgres::start("a_plain_postgresql_is_sealed") else {
        return;
    };
    let name = postgres.new_database().await;
    let before = tempfile::tempdir().unwrap();
    for (number, what, text) in plain(
        "postgres",
        &format!("decode('{}', 'hex')", "07".repeat(32)),
        "convert_to('/MARK-path', 'UTF8')",
    ) {
        if number > 0 {
            let file = format!("{number:04}_{}.sql", what.replace(' ', "_"));
            std::fs::write(before.path().join(file), text).unwrap();
            continue;
        }
        let mut db = postgres.connect(&name).await;
        let migrator = sqlx::migrate::Migrator::new(before.path()).await.unwrap();
        migrator.run_direct(None, &mut db, false).await.unwrap();
        db.close().await.unwrap();
        postgres.execute(&name, &text).await;
    }
    let place = crate::postgres::place(&postgres.url("palisade", &name));
    was_plain(place.open().await.unwrap()).await;
    assert!(matches!(place.database, Database::Postgres(..)));
    // In the tables' own files; the write-ahead log has what was before until it is
    // used again.
    postgres.execute(&name, "CHECKPOINT").await;
    let tables = all_bytes(&postgres.dir().join("data/base"));
    assert!(!holds(&tables, "MARK-"));
}
