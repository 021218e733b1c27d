//! One suite over the trait; each backend runs all of it.

use std::path::Path;
use std::sync::Arc;

use palisade_integration_server::inventory::{DomainFacts, DomainState, HostRecord};
use palisade_integration_server::store::seal::Key;
use palisade_integration_server::store::seal::master::Source;
use palisade_integration_server::store::{
    ApiToken, Change, Database, JoinTokenRecord, MaintenanceRecord, NewComponent, Place, Spent,
    Store,
};
use palisade_protocol::bounded::{List, PathBytes, Text};
use palisade_protocol::control::{
    Action, AgentReport, Component, Detection, Hello, HostFacts, Protection, QuarantineKey,
};
use palisade_protocol::ids::{AgentId, DetectionId, TenantId};
use palisade_protocol::maintenance::Allowed;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::VerdictKind;
use tempfile::TempDir;
use uuid::Uuid;

use crate::postgres::Postgres;

pub fn token(component: Component, uses: u32) -> JoinTokenRecord {
    JoinTokenRecord {
        id: Uuid::new_v4(),
        component,
        tenant: TenantId::default_tenant(),
        secret_sha256: [7; 32],
        uses,
        used: 0,
        created_ms: 1,
        expires_ms: 1000,
        revoked_ms: None,
    }
}

pub fn component(token: &JoinTokenRecord) -> NewComponent {
    let id = Uuid::new_v4();
    let mut key_sha256 = [0; 32];
    key_sha256[..16].copy_from_slice(id.as_bytes());
    NewComponent {
        id,
        token: token.clone(),
        name: "guest".to_owned(),
        key_sha256,
        host: HostFacts {
            product_uuid: Some(Uuid::from_u128(9)),
            ..Default::default()
        },
    }
}

pub async fn joined_agent(store: &dyn Store) -> AgentId {
    let token = token(Component::Agent, 1);
    store.add_join_token(&token).await.unwrap();
    let new = component(&token);
    assert!(matches!(
        store.join(&new, 10).await.unwrap(),
        Spent::Joined(_)
    ));
    AgentId(new.id)
}

pub fn detection(path: &[u8]) -> Detection {
    use std::os::unix::ffi::OsStrExt as _;
    Detection {
        id: DetectionId::random(),
        time_ms: 1_700_000_000_000,
        tenant: TenantId::default_tenant(),
        path: PathBytes::from_path(std::path::Path::new(std::ffi::OsStr::from_bytes(path))),
        verdict: VerdictKind::Malware,
        name: Text::cut("Eicar-Test-Signature"),
        engine: Text::cut("libclamav"),
        member: Some(Text::cut("b.tar/c.exe")),
        action: Action::Blocked,
        class: ScanClass::OnAccess,
        blake3: [1; 32],
        sha256: Some([2; 32]),
        size: 68,
        pid: 42,
        container: Some(Text::cut("lxc:web")),
    }
}

/// The master key of tests that are about something else.
pub fn master() -> Source {
    Source::Given(Key::new([7; 32]))
}

/// A store in this file.
pub fn file_place(path: &Path) -> Place {
    Place {
        database: Database::File(path.to_owned()),
        master: master(),
    }
}

/// A backend, and where it gets a new, empty store.
pub enum Kind {
    Sqlite(TempDir),
    Postgres(Box<Postgres>),
}

impl Kind {
    pub async fn place(&self) -> Place {
        match self {
            Self::Sqlite(dir) => {
                let folder = dir.path().join(Uuid::new_v4().to_string());
                file_place(&folder.join("palisade.db"))
            }
            Self::Postgres(postgres) => postgres.place().await,
        }
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        self.place().await.open().await.unwrap()
    }
}

/// Each test once for each backend.
macro_rules! on_both {
    ($($name:ident),*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Kind::Sqlite(tempfile::tempdir().unwrap())).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                if let Some(postgres) = crate::postgres::Postgres::start(stringify!($name)) {
                    super::$name(super::Kind::Postgres(postgres.into())).await;
                }
            })*
        }
    };
}

pub(crate) use on_both;

on_both!(
    every_part_keeps_its_promises,
    what_was_acknowledged_is_there_after_a_restart,
    a_newer_schema_is_not_touched
);

async fn every_part_keeps_its_promises(kind: Kind) {
    deployment_and_epochs(kind.store().await.as_ref()).await;
    tokens(kind.store().await.as_ref()).await;
    raced_uses(&kind.store().await).await;
    components(kind.store().await.as_ref()).await;
    quarantine_keys(kind.store().await.as_ref()).await;
    maintenance(kind.store().await.as_ref()).await;
    detections(kind.store().await.as_ref()).await;
    raced_detections(&kind.store().await).await;
    api_tokens(kind.store().await.as_ref()).await;
    hosts(kind.store().await.as_ref()).await;
    hostile_text(kind.store().await.as_ref()).await;
}

async fn deployment_and_epochs(store: &dyn Store) {
    assert_eq!(
        store.fix_deployment(&"one".parse().unwrap()).await.unwrap(),
        "one"
    );
    assert_eq!(
        store.fix_deployment(&"two".parse().unwrap()).await.unwrap(),
        "one"
    );
    let first = store.next_epoch(5000).await.unwrap();
    assert!(first >= 5000);
    assert!(
        store.next_epoch(0).await.unwrap() > first,
        "a clock that goes back changes nothing"
    );
    assert!(store.next_epoch(9_000_000).await.unwrap() >= 9_000_000);
}

async fn tokens(store: &dyn Store) {
    let token = token(Component::Svm, 2);
    store.add_join_token(&token).await.unwrap();
    assert_eq!(store.join_token(token.id).await.unwrap().unwrap(), token);
    assert_eq!(store.join_token(Uuid::new_v4()).await.unwrap(), None);

    let first = component(&token);
    assert_eq!(
        store.join(&first, 10).await.unwrap(),
        Spent::Joined("guest".to_owned())
    );
    let found = store
        .joined(token.id, &first.key_sha256)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((found.id, found.revoked), (first.id, false));
    let second = component(&token);
    let Spent::Joined(name) = store.join(&second, 10).await.unwrap() else {
        panic!()
    };
    assert!(
        name.starts_with("guest-"),
        "a taken name is made unlike it: {name}"
    );
    assert_eq!(
        store.join(&component(&token), 10).await.unwrap(),
        Spent::NotUsable
    );
    assert_eq!(store.join_token(token.id).await.unwrap().unwrap().used, 2);

    let late = JoinTokenRecord {
        id: Uuid::new_v4(),
        ..token.clone()
    };
    store.add_join_token(&late).await.unwrap();
    assert_eq!(
        store.join(&component(&late), 1000).await.unwrap(),
        Spent::NotUsable
    );
    assert!(store.revoke_join_token(late.id, 20).await.unwrap());
    assert!(!store.revoke_join_token(late.id, 21).await.unwrap());
    assert_eq!(
        store.join(&component(&late), 10).await.unwrap(),
        Spent::NotUsable
    );
    assert!(store.join_tokens().await.unwrap().len() >= 2);
}

async fn raced_uses(store: &Arc<dyn Store>) {
    let token = token(Component::Agent, 3);
    store.add_join_token(&token).await.unwrap();
    let racers: Vec<_> = (0..24)
        .map(|_| {
            let (store, new) = (Arc::clone(store), component(&token));
            tokio::spawn(async move { store.join(&new, 10).await.unwrap() })
        })
        .collect();
    let mut joined = 0;
    for racer in racers {
        joined += usize::from(matches!(racer.await.unwrap(), Spent::Joined(_)));
    }
    assert_eq!(joined, 3);
}

async fn components(store: &dyn Store) {
    let id = joined_agent(store).await;
    let agent = store.agent(id).await.unwrap().unwrap();
    assert_eq!((agent.last_seen_ms, agent.report), (None, None));
    let hello = Hello {
        version: Text::cut("1.2.3"),
        host: HostFacts::default(),
    };
    store.greet_agent(id, &hello, 77).await.unwrap();
    let report = AgentReport {
        protection: Protection::Blocking,
        svm: None,
        events: Default::default(),
        clock_ms: 5,
        exposure: Default::default(),
        maintenance: None,
    };
    store.report_agent(id, &report, 78).await.unwrap();
    let agent = store.agent(id).await.unwrap().unwrap();
    assert_eq!((agent.last_seen_ms, agent.report), (Some(78), Some(report)));
    assert_eq!(
        (agent.version.as_str(), agent.product_uuid),
        ("1.2.3", None)
    );
    assert!(store.revoke_agent(id, 80).await.unwrap());
    assert!(!store.revoke_agent(id, 81).await.unwrap());
    assert!(store.agent(id).await.unwrap().unwrap().revoked);
    assert!(
        store
            .agents()
            .await
            .unwrap()
            .iter()
            .all(|agent| agent.id != id)
    );
}

async fn maintenance(store: &dyn Store) {
    let grant = |agent, until_ms| MaintenanceRecord {
        id: Uuid::new_v4(),
        agent,
        allowed: Allowed::Remove,
        from_ms: 5,
        until_ms,
        reason: "'; DROP TABLE agents; --".to_owned(),
    };
    let agent = joined_agent(store).await;
    let (late, early) = (grant(agent, 90), grant(agent, 50));
    for grant in [&late, &early] {
        store.add_maintenance(grant).await.unwrap();
    }
    assert_eq!(
        store.maintenance(49).await.unwrap(),
        vec![early, late.clone()]
    );
    assert_eq!(store.maintenance(50).await.unwrap(), vec![late.clone()]);
    assert!(store.maintenance(90).await.unwrap().is_empty());
    // One that is over stays as it ended.
    let [first, second] = [60, 70];
    for at_ms in [first, second] {
        store.end_maintenance(late.id, at_ms).await.unwrap();
    }
    assert_eq!(store.maintenance(59).await.unwrap()[0].until_ms, 60);
    assert!(store.maintenance(60).await.unwrap().is_empty());
    assert!(
        store
            .add_maintenance(&grant(AgentId::random(), 90))
            .await
            .is_err(),
        "an agent that never joined has no grant"
    );
}

async fn detections(store: &dyn Store) {
    let (one, other) = (joined_agent(store).await, joined_agent(store).await);
    let hostile = detection(b"/tmp/a\n\xff';DROP TABLE detections;--");
    assert_eq!(
        store
            .add_detections(one, std::slice::from_ref(&hostile), 1)
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        store
            .add_detections(one, std::slice::from_ref(&hostile), 2)
            .await
            .unwrap(),
        0
    );
    // Another agent cannot take an id away by using it first.
    assert_eq!(
        store
            .add_detections(other, std::slice::from_ref(&hostile), 3)
            .await
            .unwrap(),
        1
    );
    let kept = &store.detections(None, 1).await.unwrap().items[0];
    assert_eq!((&kept.path, kept.agent), (&hostile.path, other));
    assert_eq!((kept.sha256, kept.pid), (Some([2; 32]), 42));
    assert_eq!(kept.member.as_deref(), Some("b.tar/c.exe"));
    assert_eq!(kept.container.as_deref(), Some("lxc:web"));

    let many: Vec<Detection> = (0..10)
        .map(|n| detection(format!("/f{n}").as_bytes()))
        .collect();
    store.add_detections(one, &many, 4).await.unwrap();
    assert_eq!(store.count_detections().await.unwrap(), 12);
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.detections(cursor, 5).await.unwrap();
        seen.extend(page.items.into_iter().map(|item| item.seq));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 12);
    assert!(
        seen.windows(2).all(|pair| pair[0] > pair[1]),
        "newest first, each once"
    );
    let stranger = AgentId::random();
    assert!(
        store
            .add_detections(stranger, &[detection(b"/x")], 5)
            .await
            .is_err()
    );
}

async fn api_tokens(store: &dyn Store) {
    let token = ApiToken {
        id: Uuid::new_v4(),
        name: "admin".to_owned(),
        token_sha256: [9; 32],
        created_ms: 1,
    };
    assert!(!store.has_api_token("admin").await.unwrap());
    let change = Change::NewApiToken(&token);
    store.change(change, None, 1).await.unwrap();
    assert!(store.has_api_token("admin").await.unwrap());
    assert_eq!(store.api_token(&[9; 32]).await.unwrap(), Some(token));
    assert_eq!(store.api_token(&[8; 32]).await.unwrap(), None);
    // The next one of the same name is in its place.
    let next = ApiToken {
        id: Uuid::new_v4(),
        name: "admin".to_owned(),
        token_sha256: [7; 32],
        created_ms: 2,
    };
    let change = Change::NewApiToken(&next);
    store.change(change, None, 2).await.unwrap();
    assert_eq!(store.api_token(&[9; 32]).await.unwrap(), None);
    assert_eq!(store.api_token(&[7; 32]).await.unwrap(), Some(next));
}

async fn hosts(store: &dyn Store) {
    let facts = DomainFacts {
        name: "a'\"\n\u{202e}".to_owned(),
        state: DomainState::Running,
        tags: List::cut([Text::cut("gold"), Text::cut("ü'\"")]),
        began_ms: None,
    };
    let mut host = HostRecord {
        uri: "qemu:///system".to_owned(),
        host: "hv1".to_owned(),
        datacenter: "dc".to_owned(),
        cluster: String::new(),
        error: None,
        read_ms: Some(5),
        tried_ms: Some(5),
        domains: [(Uuid::from_u128(1), facts)].into(),
    };
    store.put_host(&host).await.unwrap();
    assert_eq!(store.hosts().await.unwrap(), vec![host.clone()]);
    host.domains.clear();
    host.error = Some("refused".to_owned());
    store.put_host(&host).await.unwrap();
    assert_eq!(store.hosts().await.unwrap(), vec![host.clone()]);
    store
        .keep_hosts(std::slice::from_ref(&host.uri))
        .await
        .unwrap();
    assert_eq!(store.hosts().await.unwrap().len(), 1);
    store.keep_hosts(&[]).await.unwrap();
    assert!(store.hosts().await.unwrap().is_empty());
}

/// Whose keys are whose is `quarantine_keys.rs`'s, by sessions; here it is that both
/// databases see it alike.
async fn quarantine_keys(store: &dyn Store) {
    let (first, second) = (joined_agent(store).await, joined_agent(store).await);
    assert_eq!(store.quarantine_key(first).await.unwrap(), None);
    let (one, two) = (QuarantineKey([1; 32]), QuarantineKey([2; 32]));
    store.keep_quarantine_key(first, &one, 5).await.unwrap();
    // The same machine by its UUID, another identity.
    assert_eq!(
        store.quarantine_key(second).await.unwrap(),
        Some(one.clone())
    );
    store.keep_quarantine_key(second, &two, 6).await.unwrap();
    store.keep_quarantine_key(second, &two, 7).await.unwrap();
    assert_eq!(
        store.quarantine_key(first).await.unwrap(),
        Some(one.clone())
    );
    assert_eq!(store.quarantine_key(second).await.unwrap(), Some(two));
    let third = joined_agent(store).await;
    let newest = store.quarantine_key(third).await.unwrap();
    assert_eq!(
        newest,
        Some(QuarantineKey([2; 32])),
        "the newest of that machine"
    );
    // A machine without UUID is nobody's double.
    let hello = Hello {
        version: Text::cut("1"),
        host: HostFacts::default(),
    };
    for id in [first, third] {
        store.greet_agent(id, &hello, 8).await.unwrap();
    }
    assert_eq!(store.quarantine_key(third).await.unwrap(), None);
    assert_eq!(store.quarantine_key(first).await.unwrap(), Some(one));
}

/// The same detections at once, forwards and backwards: none twice, none lost, and
/// nobody waits for ever.
async fn raced_detections(store: &Arc<dyn Store>) {
    let agent = joined_agent(store.as_ref()).await;
    let many: Vec<Detection> = (0..40)
        .map(|n| detection(format!("/r{n}").as_bytes()))
        .collect();
    let racers: Vec<_> = (0..8)
        .map(|n| {
            let (store, mut batch) = (Arc::clone(store), many.clone());
            if n % 2 == 1 {
                batch.reverse();
            }
            tokio::spawn(async move { store.add_detections(agent, &batch, 1).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for racer in racers {
        new += racer.await.unwrap();
    }
    assert_eq!(new, 40);
    assert_eq!(store.count_detections().await.unwrap(), 40);
}

/// What a peer may call itself: none of it makes a batch or a report fail.
async fn hostile_text(store: &dyn Store) {
    for name in ["a\0b", "\u{202e}x\u{feff}", "'\"\\;--", "\u{10ffff}", ""] {
        let token = token(Component::Agent, 1);
        store.add_join_token(&token).await.unwrap();
        let mut new = component(&token);
        new.name = name.to_owned();
        new.host.hostname = Text::cut(name);
        assert!(matches!(
            store.join(&new, 10).await.unwrap(),
            Spent::Joined(_)
        ));
        let agent = AgentId(new.id);
        let hello = Hello {
            version: Text::cut(name),
            host: new.host.clone(),
        };
        store.greet_agent(agent, &hello, 11).await.unwrap();
        let hostile = Detection {
            name: Text::cut(name),
            engine: Text::cut(name),
            member: Some(Text::cut(name)),
            container: Some(Text::cut(name)),
            ..detection(b"/\0\xff")
        };
        assert_eq!(
            store.add_detections(agent, &[hostile], 12).await.unwrap(),
            1
        );
        let page = store.detections(None, 1).await.unwrap();
        assert_eq!(page.items[0].agent, agent);
    }
}

async fn what_was_acknowledged_is_there_after_a_restart(kind: Kind) {
    let place = kind.place().await;
    let store = place.open().await.unwrap();
    let agent = joined_agent(store.as_ref()).await;
    store
        .add_detections(agent, &[detection(b"/x")], 1)
        .await
        .unwrap();
    // Not closed: as if the process were gone.
    let again = place.open().await.unwrap();
    assert_eq!(again.count_detections().await.unwrap(), 1);
    drop(store);
}

async fn a_newer_schema_is_not_touched(kind: Kind) {
    const LATER: &str = "INSERT INTO _sqlx_migrations \
         (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', TRUE, '', 0)";
    let place = kind.place().await;
    place.open().await.unwrap().close().await;
    match (&kind, &place.database) {
        (Kind::Sqlite(_), Database::File(path)) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            sqlx::query(LATER).execute(&pool).await.unwrap();
            pool.close().await;
        }
        (Kind::Postgres(postgres), Database::Postgres(address, _)) => {
            let address = address.to_string();
            let name = address.rsplit('/').next().unwrap();
            postgres.execute(name, LATER).await;
        }
        _ => unreachable!(),
    }
    let error = place.open().await.unwrap_err().to_string();
    assert!(error.contains("does not fit this version"), "{error}");
}
